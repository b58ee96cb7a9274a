// A throwaway chain with a hub and a token on it, the same at every run: fixed keys, fixed clock.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { createTestClient, http, publicActions, walletActions } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { foundry } from "viem/chains";

const root = new URL("..", import.meta.url);
export const START = 1_800_000_000; // 2027-01-15, in seconds

export const artifact = (name) =>
  JSON.parse(readFileSync(new URL(`artifacts/${name}.json`, root), "utf8"));

const freePort = () =>
  new Promise((resolve, reject) => {
    const server = createServer().once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

/** Starts anvil, calls `use(client)` and stops anvil again. */
export async function withChain(use) {
  const port = await freePort();
  const anvil = spawn(
    new URL("bin/anvil", root).pathname,
    `--host 127.0.0.1 --port ${port} --timestamp ${START} --hardfork prague --silent`.split(" "),
    { stdio: ["ignore", "ignore", "inherit"] },
  );
  const died = new Promise((_, reject) => {
    anvil.once("error", reject).once("exit", (code) => reject(new Error(`anvil ended: ${code}`)));
  });
  try {
    const client = createTestClient({
      mode: "anvil",
      chain: foundry,
      transport: http(`http://127.0.0.1:${port}`, { retryCount: 20, retryDelay: 50 }),
      pollingInterval: 10,
      cacheTime: 0,
    })
      .extend(publicActions)
      .extend(walletActions);
    return await Promise.race([use(client), died]);
  } finally {
    died.catch(() => {});
    anvil.kill();
  }
}

/** anvil's first account, which has ether and pays all gas. */
export const payer = privateKeyToAccount(
  "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
);

/** Deploys an artifact and returns its address. */
export async function deploy(client, { abi, bytecode }) {
  const hash = await client.deployContract({ abi, bytecode: bytecode.object, account: payer });
  return (await client.waitForTransactionReceipt({ hash })).contractAddress;
}
