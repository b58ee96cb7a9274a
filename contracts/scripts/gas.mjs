// What each operation costs as a transaction of its own on anvil: base fee of 21 000 gas, calldata
// and execution together, as a seller pays it. Fails when one costs over 2 % more than in gas.json;
// --write records the figures instead. Accounts are in their usual state: they had money before.
import { readFileSync, writeFileSync } from "node:fs";
import { encodeFunctionData, keccak256, stringToHex, toHex, zeroAddress } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { artifact, deploy, payer, START, withChain } from "./chain.mjs";
import { compact, domains, types } from "./typed-data.mjs";

const file = new URL("../gas.json", import.meta.url);
const DOLLAR = 1_000_000n;
const account = (name) => privateKeyToAccount(keccak256(stringToHex(name)));
const [buyer, hot, operator] = ["buyer", "voucher signer", "operator"].map(account);
const later = START + 30 * 86_400;

const figures = await withChain(async (client) => {
  const [hubCode, usdCode] = ["ChannelHub", "TestUSD"].map(artifact);
  const [hub, usd] = [await deploy(client, hubCode), await deploy(client, usdCode)];
  const domain = domains(client.chain.id, hub, usd);

  // ---- transactions ------------------------------------------------------------------------

  const send = async (address, functionName, args) => {
    const { abi } = address === hub ? hubCode : usdCode;
    // A limit far above need, so that no estimate changes the figure.
    const request = { address, abi, functionName, args, account: payer, gas: 5_000_000n };
    const hash = await client.writeContract(request);
    const receipt = await client.waitForTransactionReceipt({ hash });
    if (receipt.status !== "success") throw new Error(`${functionName} reverted`);
    return Number(receipt.gasUsed);
  };
  const encode = (functionName, args) =>
    encodeFunctionData({ abi: hubCode.abi, functionName, args });

  const figures = {};
  const measure = async (name, functionName, args, share = 1) => {
    figures[name] = Math.ceil((await send(hub, functionName, args)) / share);
  };

  // ---- arguments ---------------------------------------------------------------------------

  const sign = (signer, primaryType, message, of = domain.hub) =>
    signer.signTypedData({ domain: of, types, primaryType, message });

  const channel = (name) => ({
    buyer: buyer.address,
    seller: payer.address,
    operator: operator.address,
    token: usd,
    voucherSigner: hot.address,
    challengePeriod: 86_400,
    salt: keccak256(stringToHex(name)),
  });
  const idOf = (name) =>
    client.readContract({
      address: hub,
      abi: hubCode.abi,
      functionName: "channelId",
      args: [channel(name)],
    });
  const opening = async (name) => {
    const times = { expiry: later, validBefore: later };
    const auth = { channel: channel(name), deposit: 5n * DOLLAR, openFee: 2_000n, ...times };
    return [auth, await sign(buyer, "OpenAuth", auth)];
  };
  const claim = async (name, cumulative) => {
    const signature = await sign(hot, "Voucher", { channelId: await idOf(name), cumulative });
    return { channel: channel(name), cumulative, ...compact(signature) };
  };
  const depositing = async () => {
    const auth = {
      from: buyer.address,
      value: 5n * DOLLAR,
      validAfter: 0n,
      validBefore: BigInt(later),
      nonce: keccak256(stringToHex("nonce")),
    };
    const message = { ...auth, to: hub };
    return [usd, auth, await sign(buyer, "ReceiveWithAuthorization", message, domain.usd)];
  };
  const toppingUp = async (name) => {
    const [deposit, expiry, validBefore] = [9n * DOLLAR, later, later];
    const message = { channelId: await idOf(name), deposit, expiry, validBefore };
    return [channel(name), deposit, expiry, validBefore, await sign(buyer, "TopUpAuth", message)];
  };
  const requesting = async (name) => {
    const message = { channelId: await idOf(name), validBefore: later };
    return [channel(name), later, await sign(hot, "RequestClose", message)];
  };
  const withdrawing = async (nonce) => {
    const auth = {
      account: buyer.address,
      token: usd,
      to: buyer.address,
      amount: DOLLAR,
      relayer: zeroAddress,
      fee: 2_000n,
      nonce,
      validBefore: later,
    };
    return [auth, await sign(buyer, "Withdraw", auth)];
  };

  // ---- measurements ------------------------------------------------------------------------

  for (const owner of [buyer, payer]) await send(usd, "mint", [owner.address, 1_000n * DOLLAR]);
  await send(usd, "approve", [hub, 1_000n * DOLLAR]);
  await send(hub, "deposit", [usd, buyer.address, 500n * DOLLAR]);
  await send(hub, "deposit", [usd, payer.address, DOLLAR]);

  await measure("deposit", "deposit", [usd, buyer.address, DOLLAR]);
  await measure("open from the vault", "open", await opening("a"));
  await measure("deposit by signature + open", "multicall", [
    [
      encode("depositWithAuthorization", await depositing()),
      encode("open", await opening("b")),
    ],
  ]);
  await measure("settle", "settle", [await claim("a", DOLLAR)]);
  await measure("settle, nothing new", "settle", [await claim("a", DOLLAR)]);
  await measure("top up", "topUp", await toppingUp("a"));
  await measure("close with a last voucher", "close", [await claim("a", 2n * DOLLAR)]);

  const batch = [];
  for (let i = 0; i < 20; i++) {
    await send(hub, "open", await opening(`batch ${i}`));
    batch.push(await claim(`batch ${i}`, DOLLAR));
  }
  await measure("batch of 20, each", "settleBatch", [batch], 20);

  await measure("request close", "requestCloseBySig", await requesting("b"));
  await client.increaseTime({ seconds: 86_401 });
  await measure("reclaim", "reclaim", [channel("b")]);
  await measure("withdraw", "withdraw", [usd, payer.address, DOLLAR]);
  // The first nonce of a word costs more than its neighbours.
  await send(hub, "withdrawBySig", await withdrawing(0n));
  await measure("withdraw by signature", "withdrawBySig", await withdrawing(1n));
  return figures;
});

const readme = new URL("../README.md", import.meta.url);
const rows = (table) =>
  Object.entries(table).map(([name, gas]) => `| ${name} | ${gas.toLocaleString("en-US")} |\n`);
const text = readFileSync(readme, "utf8");
if (process.argv.includes("--write")) {
  writeFileSync(file, `${JSON.stringify(figures, null, 2)}\n`);
  writeFileSync(readme, text.replace(/(?<=\|---:\|\n)(\|.*\n)*/, rows(figures).join("")));
}
const agreed = JSON.parse(readFileSync(file, "utf8"));
if (!readFileSync(readme, "utf8").includes(rows(agreed).join(""))) {
  console.log("README.md has other figures than gas.json: npm run write:gas");
  process.exitCode = 1;
}
for (const name of new Set([...Object.keys(agreed), ...Object.keys(figures)])) {
  const [is, was] = [figures[name], agreed[name]];
  const over = !(is <= was * 1.02);
  console.log(`${name.padEnd(28)} ${String(is).padStart(7)}  was ${was}${over ? "  TOO MUCH" : ""}`);
  if (over) process.exitCode = 1;
}
