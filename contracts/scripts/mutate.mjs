// Plants one bug at a time into a copy of the contracts and requires the forge tests to notice.
// A bug that survives is a hole in the tests. `mutate.mjs WORD` plants those with WORD in the name.
import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = new URL("..", import.meta.url).pathname;
// In the order of the sources; `from` must occur exactly once in `file`, however it is spaced.
const bugs = JSON.parse(readFileSync(new URL("bugs.json", import.meta.url), "utf8"));

const words = process.argv.slice(2);
const chosen = bugs.filter(({ name }) => !words.length || words.some((word) => name.includes(word)));
const copy = mkdtempSync(join(tmpdir(), "souk-mutate-"));
process.on("exit", () => rmSync(copy, { recursive: true }));
for (const path of ["src", "test", "scripts", "bin", "foundry.toml"]) {
  cpSync(join(root, path), join(copy, path), { recursive: true });
}
symlinkSync(join(root, "node_modules"), join(copy, "node_modules"));

const spaced = (text) => {
  const literal = (word) => word.replace(/[^\w\s]/g, "\\$&");
  return new RegExp(text.trim().split(/\s+/).map(literal).join("\\s+"), "g");
};

/** Runs the tests on the copy: null when all pass, else the first line that tells why not. */
function failure() {
  const { status, stdout, stderr, error } = spawnSync(
    join(copy, "bin/forge"),
    ["test", "--root", copy, "--fail-fast", "--no-match-contract", "Proofs"],
    { encoding: "utf8", env: { ...process.env, FOUNDRY_PROFILE: "mutate" } },
  );
  if (error) throw error;
  if (status === 0) return null;
  const reason = /\[FAIL.*/.exec(stdout);
  // A bug that does not compile proves nothing.
  if (!reason) throw new Error(`the tests did not run:\n${stdout}${stderr}`);
  return reason[0].replace(/\s+/g, " ").slice(0, 100);
}

for (const { name, file: path, from } of bugs) {
  const places = readFileSync(join(copy, path), "utf8").match(spaced(from)) ?? [];
  if (places.length !== 1) throw new Error(`${name}: ${places.length} places in ${path}`);
}
if (failure()) throw new Error("the tests fail without any bug");
let survivors = 0;
for (const { name, file: path, from, to } of chosen) {
  const file = join(copy, path);
  const good = readFileSync(file, "utf8");
  writeFileSync(file, good.replace(spaced(from), () => to));
  const reason = failure();
  writeFileSync(file, good);
  if (!reason) survivors++;
  console.log(`${reason ? "caught  " : "SURVIVED"} ${name.padEnd(44)} ${reason ?? ""}`);
}
console.log(`${chosen.length - survivors} of ${chosen.length} bugs caught`);
if (survivors) process.exitCode = 1;
