// Calls a buyer (or any provider) with the real `openai` and `@anthropic-ai/sdk` libraries.
//
//     BASE_URL=http://127.0.0.1:5005 CHAT_MODEL=id MESSAGES_MODEL=id node drive.mjs
//
// EMBED_MODEL=id also checks completions and embeddings, for which CHAT_MODEL has to be sold in chat.
// MARKET=1 also checks what only a buyer adds: the cost, the typed error of an unknown model, any
// dialect for any model. LABEL stands before each check's name.
// Prints one line a check, `PASS name` or `FAIL name: why`; exits 1 when one failed.

import assert from "node:assert/strict";
import OpenAI from "openai";
import Anthropic from "@anthropic-ai/sdk";

const { BASE_URL, CHAT_MODEL, MESSAGES_MODEL, EMBED_MODEL } = process.env;
const label = process.env.LABEL ?? "";
const market = process.env.MARKET === "1";
const ask = [{ role: "user", content: "Say something." }];
const read = [{ role: "user", content: "read hello.txt and tell me the secret word" }];
const schema = { type: "object", properties: { path: { type: "string" } }, required: ["path"] };
const word = "the secret word is PLUMBUS";

const once = { maxRetries: 0, timeout: 60_000 };
const chat = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "local", ...once });
const claude = new Anthropic({ baseURL: BASE_URL, apiKey: "local", ...once });

const checks = {
  async "openai whole"() {
    const answer = await chat.chat.completions.create({ model: CHAT_MODEL, messages: ask });
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.model, CHAT_MODEL);
    assert.ok(answer.usage.completion_tokens > 0);
    if (market) assert.ok(answer.usage.cost > 0, "usage.cost");
  },
  async "openai stream"() {
    const stream = await chat.chat.completions.create({
      model: CHAT_MODEL, messages: ask, stream: true, stream_options: { include_usage: true },
    });
    let [text, usage, chunks] = ["", [], 0];
    for await (const chunk of stream) {
      chunks += 1;
      text += chunk.choices[0]?.delta?.content ?? "";
      if (chunk.usage) usage.push(chunk.usage);
    }
    assert.ok(text.includes("東京") && chunks > 10, text);
    assert.equal(usage.length, 1);
    if (market) assert.ok(usage[0].cost > 0, "usage.cost");
  },
  async "openai tools"() {
    const tools = [{ type: "function", function: { name: "read", parameters: schema } }];
    const first = chat.chat.completions.stream({ model: CHAT_MODEL, messages: read, tools });
    const turn = (await first.finalChatCompletion()).choices[0].message;
    const call = turn.tool_calls[0];
    assert.deepEqual(JSON.parse(call.function.arguments), { path: "hello.txt" });
    const result = { role: "tool", tool_call_id: call.id, content: word };
    const second = await chat.chat.completions.create({
      model: CHAT_MODEL, messages: [...read, turn, result], tools,
    });
    assert.ok(second.choices[0].message.content.includes("PLUMBUS"));
  },
  async "openai models"() {
    const list = await chat.models.list();
    assert.ok(list.data.some((model) => model.id === CHAT_MODEL));
  },
  async "openai parallel"() {
    await Promise.all(Array.from({ length: 32 }, () => checks["openai stream"]()));
  },
  async "anthropic whole"() {
    const answer = await claude.messages.create({
      model: MESSAGES_MODEL, max_tokens: 512, messages: ask,
    });
    assert.equal(answer.stop_reason, "end_turn");
    assert.equal(answer.model, MESSAGES_MODEL);
    assert.ok(answer.content[0].text.length > 0 && answer.usage.output_tokens > 0);
  },
  async "anthropic stream"() {
    const stream = claude.messages.stream({
      model: MESSAGES_MODEL, max_tokens: 512, messages: ask,
    });
    let pieces = 0;
    stream.on("text", () => (pieces += 1));
    const last = await stream.finalMessage();
    assert.ok(last.content[0].text.includes("東京") && pieces > 10);
    assert.ok(last.usage.output_tokens > 10);
  },
  async "anthropic tools"() {
    const tools = [{ name: "read", input_schema: schema }];
    const stream = claude.messages.stream({
      model: MESSAGES_MODEL, max_tokens: 512, messages: read, tools,
    });
    const first = await stream.finalMessage();
    const call = first.content.find((block) => block.type === "tool_use");
    assert.deepEqual(call.input, { path: "hello.txt" });
    const { type, id, name, input } = call;
    const result = { type: "tool_result", tool_use_id: id, content: word };
    const messages = [
      ...read,
      { role: "assistant", content: [{ type, id, name, input }] },
      { role: "user", content: [result] },
    ];
    const second = await claude.messages.create({
      model: MESSAGES_MODEL, max_tokens: 512, messages, tools,
    });
    assert.ok(second.content[0].text.includes("PLUMBUS"));
  },
};
if (EMBED_MODEL) {
  checks["openai completions"] = async () => {
    const whole = await chat.completions.create({ model: CHAT_MODEL, prompt: "Say something." });
    assert.ok(whole.choices[0].text.includes("東京") && whole.usage.completion_tokens > 10);
    const stream = await chat.completions.create({
      model: CHAT_MODEL, prompt: "Say something.", stream: true,
    });
    let text = "";
    for await (const piece of stream) text += piece.choices[0]?.text ?? "";
    assert.ok(text.includes("東京"), text);
  };
  checks["openai embeddings"] = async () => {
    const answer = await chat.embeddings.create({
      model: EMBED_MODEL, input: ["one two three", "four"], encoding_format: "float",
    });
    assert.deepEqual(answer.data.map((d) => d.embedding.length), [2, 2]);
    assert.equal(answer.usage.prompt_tokens, 4);
  };
}
if (market) {
  checks["openai responses stream"] = async () => {
    const stream = chat.responses.stream({ model: CHAT_MODEL, input: "Say something." });
    let pieces = 0;
    stream.on("response.output_text.delta", () => (pieces += 1));
    const last = await stream.finalResponse();
    assert.ok(last.output_text.includes("東京") && pieces > 10, last.output_text);
    assert.ok(last.usage.output_tokens > 10 && last.status === "completed");
  };
  checks["openai unknown model"] = async () => {
    const request = { model: "nobody/sells-this", messages: ask };
    await assert.rejects(chat.chat.completions.create(request), OpenAI.NotFoundError);
  };
  checks["anthropic unknown model"] = async () => {
    const request = { model: "nobody/sells-this", max_tokens: 16, messages: ask };
    await assert.rejects(claude.messages.create(request), Anthropic.NotFoundError);
  };
}

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`PASS node ${label}${name}`);
  } catch (error) {
    failed += 1;
    const why = String(error?.message ?? error).replaceAll(/\s+/g, " ").slice(0, 200);
    console.log(`FAIL node ${label}${name}: ${why}`);
  }
}
process.exit(failed ? 1 : 0);
