// Writes artifacts/*.json from forge's build output; with --check compares them instead.
// They are committed so that building the node needs neither Node.js nor a network.
import { readFileSync, writeFileSync } from "node:fs";
import { keccak256 } from "viem";

const check = process.argv.includes("--check");
const root = new URL("..", import.meta.url);

for (const name of ["ChannelHub", "TestUSD"]) {
  const built = JSON.parse(readFileSync(new URL(`.out/${name}.sol/${name}.json`, root), "utf8"));
  const { compiler, sources } = built.metadata;
  // Immutable values would be written into the code at deployment, and `codeHash` would not hold.
  if (Object.keys(built.deployedBytecode.immutableReferences ?? {}).length) {
    throw new Error(`${name} has immutables`);
  }
  const artifact = {
    contractName: name,
    compiler: compiler.version,
    sources: Object.fromEntries(
      Object.entries(sources).map(([path, { keccak256 }]) => [path, keccak256]),
    ),
    codeHash: keccak256(built.deployedBytecode.object),
    abi: built.abi,
    bytecode: { object: built.bytecode.object },
    deployedBytecode: { object: built.deployedBytecode.object },
  };
  const file = new URL(`artifacts/${name}.json`, root);
  const text = `${JSON.stringify(artifact, null, 1)}\n`;
  if (!check) {
    writeFileSync(file, text);
  } else if (readFileSync(file, "utf8") !== text) {
    console.error(`artifacts/${name}.json is not what was compiled: npm run write:artifacts`);
    process.exitCode = 1;
  }
}
