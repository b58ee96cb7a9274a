// OpenClaw's provider `souk`: the models that the buyer on this machine can buy now, and what was
// spent. Everything is read from the buyer; nothing is kept here.
import { definePluginEntry } from "openclaw/plugin-sdk/plugin-entry";

const PROVIDER = "souk";
const URL_DEFAULT = "http://127.0.0.1:5005";
const API = "openai-completions";
const TOKEN_VARIABLE = "SOUK_TOKEN";
// Sent where the port asks for no token.
const NO_TOKEN = "local";
// The list comes from the buyer's memory; one that does not answer by then is not there.
const LIST_TIMEOUT_MS = 3000;
// Assumed where no seller says how much it takes and gives, tokens.
const CONTEXT_DEFAULT = 128000;
const OUTPUT_DEFAULT = 8192;
const MICRO_USD = 1e6;

/** Where the buyer listens: the plugin's own setting, the provider's, else the usual port. */
function buyerUrl(config) {
  const own = config?.plugins?.entries?.[PROVIDER]?.config?.url;
  const provider = config?.models?.providers?.[PROVIDER]?.baseUrl;
  return String(own || provider || URL_DEFAULT).replace(/\/+$/, "").replace(/\/v1$/, "");
}

async function ask(url, token, { fetchFn = fetch, signal } = {}) {
  const answer = await fetchFn(url, {
    headers: { accept: "application/json", authorization: `Bearer ${token}` },
    signal: signal ?? AbortSignal.timeout(LIST_TIMEOUT_MS),
  });
  if (!answer.ok) throw new Error(`${url} answers ${answer.status}`);
  return await answer.json();
}

/** USD per million tokens, from USD per token as decimal text. */
function price(text) {
  const value = Number(text) * 1e6;
  return Number.isFinite(value) ? Number(value.toPrecision(12)) : 0;
}

/** One entry of `/v1/models` as OpenClaw describes a model. */
export function model(listed) {
  const pricing = listed.pricing ?? {};
  return {
    id: listed.id,
    name: `${listed.id.split("/").pop()} (souk)`,
    reasoning: false,
    input: (listed.input_modalities ?? ["text"]).filter((kind) => ["text", "image"].includes(kind)),
    contextWindow: listed.context_length || CONTEXT_DEFAULT,
    maxTokens: listed.max_output || OUTPUT_DEFAULT,
    cost: {
      input: price(pricing.prompt),
      output: price(pricing.completion),
      cacheRead: price(pricing.input_cache_read),
      cacheWrite: price(pricing.input_cache_write),
    },
  };
}

/** `/api/status` of the buyer as OpenClaw shows usage; money there is micro-USD. */
export function usage(status) {
  const money = status.money ?? {};
  const spent = money.spent_today_micro_usd ?? 0;
  const daily = status.budget?.daily_micro_usd ?? null;
  const used = { unit: "USD", period: "day" };
  return {
    provider: PROVIDER,
    displayName: "Souk",
    plan: `payment: ${status.mode}`,
    windows:
      daily === null
        ? []
        : [{ label: "Daily limit", usedPercent: daily > 0 ? Math.min(100, (spent / daily) * 100) : 100 }],
    billing: [
      daily === null
        ? { type: "spend", amount: spent / MICRO_USD, ...used }
        : { type: "budget", used: spent / MICRO_USD, limit: daily / MICRO_USD, ...used },
    ],
    summary: `${status.offers} offers of ${status.peers} peers`,
  };
}

// What was listed last, by the buyer's address: OpenClaw looks a model up without waiting.
const listed = new Map();

/** Asks the buyer what is on sale; null where none runs or nothing is. */
async function list(url, token) {
  let answer;
  try {
    answer = await ask(`${url}/v1/models`, token);
  } catch {
    listed.delete(url);
    return null;
  }
  const models = (answer.data ?? []).map(model);
  listed.set(url, models);
  return models.length > 0 ? models : null;
}

export default definePluginEntry({
  id: PROVIDER,
  name: "Souk",
  description: "Models of a peer-to-peer market for inference",
  register(api) {
    api.registerProvider({
      id: PROVIDER,
      label: "Souk",
      envVars: [TOKEN_VARIABLE],
      auth: [],
      catalog: {
        order: "simple",
        run: async (ctx) => {
          const { apiKey, discoveryApiKey } = ctx.resolveProviderApiKey(PROVIDER);
          if (!apiKey) return null;
          const url = buyerUrl(ctx.config);
          const models = await list(url, discoveryApiKey ?? process.env[TOKEN_VARIABLE] ?? apiKey);
          return models && { provider: { baseUrl: `${url}/v1`, apiKey, api: API, models } };
        },
      },
      // A turn before any list was made asks for one model by its name.
      prepareDynamicModel: async (ctx) => {
        await list(buyerUrl(ctx.config), process.env[TOKEN_VARIABLE] ?? NO_TOKEN);
      },
      resolveDynamicModel: (ctx) => {
        const url = buyerUrl(ctx.config);
        const found = listed.get(url)?.find((one) => one.id === ctx.modelId);
        return found && { ...found, provider: PROVIDER, api: API, baseUrl: `${url}/v1` };
      },
      resolveUsageAuth: async (ctx) => ({ token: ctx.env?.[TOKEN_VARIABLE] || NO_TOKEN }),
      fetchUsageSnapshot: async (ctx) =>
        usage(await ask(`${buyerUrl(ctx.config)}/api/status`, ctx.token, ctx)),
    });
  },
});
