// Every client dialect against every upstream dialect, with the real `openai` and
// `@anthropic-ai/sdk`: the same cells as matrix.py, through these libraries' own stream helpers.
//
//     BASE_URL=http://127.0.0.1:5005 MODELS='{"chat":"id","messages":"id","responses":"id"}' node matrix.mjs

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import Anthropic from "@anthropic-ai/sdk";

const { BASE_URL } = process.env;
const models = JSON.parse(process.env.MODELS);
const lossy = JSON.parse(readFileSync(new URL("lossy.json", import.meta.url)));
const cells = ["text", "tools", "parallel", "images", "thinking", "long", "refusal"];
const modelOf = { parallel: "-parallel", thinking: "-thinking", long: "-long", refusal: "-refusing" };
const png =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const schema = {
  type: "object",
  properties: { path: { type: "string" } },
  required: ["path"],
  additionalProperties: false,
};
const word = "the secret word is PLUMBUS";
const never = "never said";

let dropped = "";
const noting = async (url, init) => {
  const response = await fetch(url, init);
  dropped = response.headers.get("x-souk-dropped") ?? "";
  return response;
};
const once = { maxRetries: 0, timeout: 60_000, fetch: noting };
const openai = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "local", ...once });
const anthropic = new Anthropic({ baseURL: BASE_URL, apiKey: "local", ...once });

const chat = {
  user(text, image) {
    const url = { url: `data:image/png;base64,${png}` };
    const parts = [{ type: "text", text }, { type: "image_url", image_url: url }];
    return [{ role: "user", content: image ? parts : text }];
  },
  more(cell) {
    const read = { name: "read", description: "Reads a file.", parameters: schema };
    const strict = { ...read, strict: true };
    const all = {
      tools: { tools: [{ type: "function", function: strict }] },
      parallel: { tools: [{ type: "function", function: read }] },
      thinking: { reasoning_effort: "high" },
      long: { stop: [never], max_tokens: 300 },
    };
    return all[cell] ?? {};
  },
  results: (calls) => calls.map(([id]) => ({ role: "tool", tool_call_id: id, content: word })),
  async ask(model, messages, stream, more) {
    const body = { model, messages, ...more };
    let [answer, thinking] = [null, ""];
    if (stream) {
      // The helper joins everything but reasoning, and takes a cut answer for an error.
      const options = { include_usage: true };
      const events = openai.chat.completions.stream({ ...body, stream_options: options });
      events.on("chunk", (chunk) => (thinking += chunk.choices[0]?.delta?.reasoning_content ?? ""));
      try {
        answer = await events.finalChatCompletion();
      } catch (error) {
        if (!(error instanceof OpenAI.LengthFinishReasonError || error instanceof OpenAI.ContentFilterFinishReasonError)) throw error;
        answer = events.currentChatCompletionSnapshot;
      }
    } else {
      answer = await openai.chat.completions.create(body);
      thinking = answer.choices[0].message.reasoning_content ?? "";
    }
    const { message, finish_reason } = answer.choices[0];
    assert.ok(answer.usage.cost > 0, "usage.cost");
    return {
      text: message.content ?? "",
      thinking,
      calls: (message.tool_calls ?? []).map((c) => [c.id, c.function.name, JSON.parse(c.function.arguments)]),
      stop: { stop: "end", tool_calls: "tools", length: "length", content_filter: "refusal" }[finish_reason],
      used: [answer.usage.prompt_tokens, answer.usage.completion_tokens],
      turn: [{ role: "assistant", content: message.content, tool_calls: message.tool_calls?.map(({ id, type, function: { name, arguments: text } }) => ({ id, type, function: { name, arguments: text } })) }],
    };
  },
};

const messages = {
  user(text, image) {
    const source = { type: "base64", media_type: "image/png", data: png };
    return [{ role: "user", content: image ? [{ type: "text", text }, { type: "image", source }] : text }];
  },
  more(cell) {
    const read = { name: "read", description: "Reads a file.", input_schema: schema };
    const all = {
      tools: { tools: [read] },
      parallel: { tools: [read] },
      thinking: { thinking: { type: "enabled", budget_tokens: 1024 } },
      long: { stop_sequences: [never] },
    };
    return all[cell] ?? {};
  },
  results: (calls) => [
    { role: "user", content: calls.map(([id]) => ({ type: "tool_result", tool_use_id: id, content: word })) },
  ],
  async ask(model, turns, stream, more) {
    const body = { model, messages: turns, max_tokens: 2048, ...more };
    const answer = stream
      ? await anthropic.messages.stream(body).finalMessage()
      : await anthropic.messages.create(body);
    const joined = (kind) => answer.content.filter((b) => b.type === kind).map((b) => b[kind]).join("");
    const usage = answer.usage;
    const cached = (usage.cache_read_input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0);
    return {
      text: joined("text"),
      thinking: joined("thinking"),
      calls: answer.content.filter((b) => b.type === "tool_use").map((b) => [b.id, b.name, b.input]),
      stop: { end_turn: "end", tool_use: "tools", max_tokens: "length", refusal: "refusal" }[answer.stop_reason],
      used: [usage.input_tokens + cached, usage.output_tokens],
      turn: [{ role: "assistant", content: answer.content }],
    };
  },
};

const responses = {
  user(text, image) {
    const url = `data:image/png;base64,${png}`;
    const parts = [{ type: "input_text", text }, { type: "input_image", image_url: url, detail: "auto" }];
    return [{ role: "user", content: image ? parts : text }];
  },
  more(cell) {
    const read = { type: "function", name: "read", parameters: schema, strict: cell === "tools" };
    const all = {
      tools: { tools: [read] },
      parallel: { tools: [read] },
      thinking: { reasoning: { effort: "high", summary: "auto" } },
      long: { max_output_tokens: 300 },
    };
    return all[cell] ?? {};
  },
  results: (calls) => calls.map(([id]) => ({ type: "function_call_output", call_id: id, output: word })),
  async ask(model, input, stream, more) {
    const body = { model, input, store: false, ...more };
    const answer = stream
      ? await openai.responses.stream(body).finalResponse()
      : await openai.responses.create(body);
    const calls = answer.output.filter((i) => i.type === "function_call");
    const why = answer.incomplete_details?.reason;
    return {
      text: answer.output_text,
      thinking: answer.output.filter((i) => i.type === "reasoning").flatMap((i) => i.summary.map((s) => s.text)).join(""),
      calls: calls.map((c) => [c.call_id, c.name, JSON.parse(c.arguments)]),
      stop: why ? { max_output_tokens: "length", content_filter: "refusal" }[why] : calls.length ? "tools" : "end",
      used: [answer.usage.input_tokens, answer.usage.output_tokens],
      turn: answer.output.map(({ parsed_arguments: _parsed, ...item }) => item),
    };
  },
};

const clients = { chat, messages, responses };

/** One cell; gives what was lost and why. */
async function run(client, upstream, cell, stream) {
  const dialect = clients[client];
  const model = models[upstream] + (modelOf[cell] ?? "");
  const lost = lossy.filter(
    (row) => row.clients.includes(client) && row.upstreams.includes(upstream) && row.cells.includes(cell),
  );
  const calls = { tools: 1, parallel: 3 }[cell];
  const prompt = calls ? "read hello.txt and tell me the secret word" : "Say something.";
  const turns = dialect.user(prompt, cell === "images");
  const more = dialect.more(cell);
  let answer = await dialect.ask(model, turns, stream, more);
  assert.equal(dropped, lost.map((row) => row.dropped).join(", "), "x-souk-dropped");
  assert.ok(answer.used.every((n) => n > 0), JSON.stringify(answer.used));
  if (calls) {
    assert.equal(answer.stop, "tools");
    assert.equal(new Set(answer.calls.map(([id]) => id)).size, calls, "ids differ");
    for (const [, name, input] of answer.calls) assert.deepEqual([name, input], ["read", { path: "hello.txt" }]);
    answer = await dialect.ask(model, [...turns, ...answer.turn, ...dialect.results(answer.calls)], stream, more);
    assert.ok(answer.text.includes("PLUMBUS"), answer.text);
  } else if (cell === "images") {
    assert.equal(answer.text, `I see an image: image/png, ${png.length} characters of base64`);
  } else {
    assert.ok(answer.text.includes("東京"), answer.text);
  }
  assert.equal(answer.stop, { long: "length", refusal: "refusal" }[cell] ?? "end");
  assert.equal(answer.thinking, cell === "thinking" ? "Let me see." : "");
  return lost.map((row) => `without ${row.dropped}: ${row.why}`).join("; ");
}

let failed = 0;
for (const client of Object.keys(clients)) {
  for (const upstream of Object.keys(clients)) {
    for (const cell of cells) {
      for (const stream of [false, true]) {
        const name = `node ${client} -> ${upstream} ${cell} ${stream ? "stream" : "whole"}`;
        try {
          const lost = await run(client, upstream, cell, stream);
          console.log(`PASS ${name}${lost ? ` (${lost})` : ""}`);
        } catch (error) {
          failed += 1;
          const why = String(error?.message ?? error).replaceAll(/\s+/g, " ").slice(0, 300);
          console.log(`FAIL ${name}: ${why}`);
        }
      }
    }
  }
}
process.exit(failed ? 1 : 0);
