#!/usr/bin/env node
// npm's solc with the command line forge expects of a native one: --version and --standard-json.
import { text } from "node:stream/consumers";
import solc from "solc";

const args = process.argv.slice(2);
if (args.includes("--version")) {
  // forge reads the target's name from the version and does not know Emscripten.
  const version = solc.version().replace("Emscripten.clang", "Linux.g++");
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${version}`);
} else if (args.includes("--standard-json")) {
  process.stdout.write(solc.compile(await text(process.stdin)));
} else {
  console.error(`solc.mjs: unsupported arguments: ${args.join(" ")}`);
  process.exitCode = 1;
}
