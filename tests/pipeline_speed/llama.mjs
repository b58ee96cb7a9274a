// llama.cpp on the file that pipeline_speed leaves: the same prompts, answers and figures.
//
//     node llama.mjs MODEL.gguf [TOKENS] [THREADS]
//
// `run` brings llama.cpp (node-llama-cpp, ready built) and calls this.

import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const STREAMS = 8;
const PROMPT = 16;
const PREFILL = 256;

const [modelPath, tokens = "128", threads = "1"] = process.argv.slice(2);
const count = Number(tokens);
const llama = await getLlama({
  gpu: false,
  build: "never",
  maxThreads: Number(threads),
  logLevel: LlamaLogLevel.error,
});
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
  sequences: STREAMS,
  contextSize: 4096,
  batchSize: 512,
  threads: Number(threads),
});
const sequences = Array.from({ length: STREAMS }, () => context.getSequence());

/** One greedy answer; its tokens. */
async function answer(sequence, stream) {
  await sequence.clearHistory();
  const prompt = Array.from({ length: PROMPT }, (_, at) => (at * 37 + stream * 101) % 1000);
  const found = [];
  for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    found.push(token);
    if (found.length === count) break;
  }
  return found;
}

/** Runs, and prints how many tokens a second that was, of the wall's and of the processor's. */
async function measure(name, run) {
  const cpu = process.cpuUsage();
  const began = performance.now();
  const done = await run();
  const wall = (performance.now() - began) / 1e3;
  const { user, system } = process.cpuUsage(cpu);
  const per = (seconds) => (done / seconds).toFixed(2).padStart(7);
  const used = (user + system) / 1e6;
  console.log(`llama.cpp ${name}: ${per(wall)} tokens/s, ${per(used)} tokens per CPU-second`);
}

/** So many answers at once; the tokens of all. */
async function streams(number) {
  const all = await Promise.all(sequences.slice(0, number).map(answer));
  return all.reduce((sum, tokens) => sum + tokens.length, 0);
}

await streams(1); // Warm, as ours is.
await measure("1 streams", () => streams(1));
await measure(`${STREAMS} streams`, () => streams(STREAMS));
await sequences[0].clearHistory();
await measure(`prefill of ${PREFILL}`, async () => {
  const prompt = Array.from({ length: PREFILL }, (_, at) => at);
  await sequences[0].evaluateWithoutGeneratingNewTokens(prompt);
  return PREFILL;
});
process.exit(0);
