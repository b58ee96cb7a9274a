// What each operation costs as a transaction of its own on anvil: base fee of 21 000 gas, calldata
// and execution together, as a seller pays it. Fails when one costs over 2 % more than in gas.json;
// --write records the figures instead. Accounts are in their usual state: they had money before.
import { readFileSync, writeFileSync } from "node:fs";
import { encodeFunctionData, keccak256, parseSignature, stringToHex, toHex, zeroAddress } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { artifact, deploy, payer, START, withChain } from "./chain.mjs";
import { authorisation, domains, types } from "./typed-data.mjs";

const file = new URL("../gas.json", import.meta.url);
const DOLLAR = 1_000_000n;
const account = (name) => privateKeyToAccount(keccak256(stringToHex(name)));
const [buyer, hot, operator] = ["buyer", "voucher signer", "operator"].map(account);
const later = START + 30 * 86_400;

const figures = await withChain(async (client) => {
  const [hubCode, usdCode] = ["ChannelHub", "TestUSD"].map(artifact);
  const [hub, usd] = [await deploy(client, hubCode), await deploy(client, usdCode)];
  const domain = domains(client.chain.id, hub, usd);

  const send = async (contract, functionName, args) => {
    const { abi } = contract === hub ? hubCode : usdCode;
    // A limit far above need, so that no estimate changes the figure.
    const gas = 5_000_000n;
    const hash = await client.writeContract({ address: contract, abi, functionName, args, account: payer, gas });
    const receipt = await client.waitForTransactionReceipt({ hash });
    if (receipt.status !== "success") throw new Error(`${functionName} reverted`);
    return Number(receipt.gasUsed);
  };
  const call = (functionName, args) =>
    encodeFunctionData({ abi: hubCode.abi, functionName, args });
  const sign = (signer, domain, primaryType, message) =>
    signer.signTypedData({ domain, types, primaryType, message });

  const channel = (name) => ({
    buyer: buyer.address,
    seller: payer.address,
    operator: operator.address,
    token: usd,
    voucherSigner: hot.address,
    challengePeriod: 86_400,
    salt: keccak256(stringToHex(name)),
  });
  const opening = async (name) => {
    const auth = { channel: channel(name), deposit: 5n * DOLLAR, openFee: 2_000n, expiry: later, validBefore: later };
    return [auth, await sign(buyer, domain.hub, "OpenAuth", auth)];
  };
  const idOf = (channel) =>
    client.readContract({ address: hub, abi: hubCode.abi, functionName: "channelId", args: [channel] });
  const claim = async (name, cumulative) => {
    const message = { channelId: await idOf(channel(name)), cumulative };
    const { r, s, yParity } = parseSignature(await sign(hot, domain.hub, "Voucher", message));
    const vs = toHex(BigInt(s) | (BigInt(yParity) << 255n), { size: 32 });
    return { channel: channel(name), cumulative, r, vs };
  };
  const depositing = async (nonce) => {
    const auth = authorisation(buyer.address, 5n * DOLLAR, later, nonce);
    const signature = await sign(buyer, domain.usd, "ReceiveWithAuthorization", { ...auth, to: hub });
    return [usd, auth, signature];
  };
  const withdrawal = async (nonce) => {
    const auth = {
      account: buyer.address, token: usd, to: buyer.address, amount: DOLLAR,
      relayer: zeroAddress, fee: 2_000n, nonce, validBefore: later,
    };
    return [auth, await sign(buyer, domain.hub, "Withdraw", auth)];
  };

  await send(usd, "mint", [buyer.address, 1_000n * DOLLAR]);
  await send(usd, "mint", [payer.address, 1_000n * DOLLAR]);
  await send(usd, "approve", [hub, 1_000n * DOLLAR]);
  await send(hub, "deposit", [usd, buyer.address, 500n * DOLLAR]);
  await send(hub, "deposit", [usd, payer.address, DOLLAR]);

  const figures = {};
  const measure = async (name, functionName, args, share = 1) => {
    figures[name] = Math.ceil((await send(hub, functionName, args)) / share);
  };
  await measure("deposit", "deposit", [usd, buyer.address, DOLLAR]);
  await measure("open from the vault", "open", await opening("a"));
  await measure("deposit by signature + open", "multicall", [
    [call("depositWithAuthorization", await depositing(toHex(1, { size: 32 }))), call("open", await opening("b"))],
  ]);
  await measure("settle", "settle", [await claim("a", DOLLAR)]);
  await measure("settle, nothing new", "settle", [await claim("a", DOLLAR)]);
  const topUp = { channelId: await idOf(channel("a")), deposit: 9n * DOLLAR, expiry: later, validBefore: later };
  await measure("top up", "topUp", [
    channel("a"), topUp.deposit, later, later, await sign(buyer, domain.hub, "TopUpAuth", topUp),
  ]);
  await measure("close with a last voucher", "close", [await claim("a", 2n * DOLLAR)]);
  const batch = [];
  for (let i = 0; i < 20; i++) {
    await send(hub, "open", await opening(`batch ${i}`));
    batch.push(await claim(`batch ${i}`, DOLLAR));
  }
  await measure("batch of 20, each", "settleBatch", [batch], 20);
  await measure("request close", "requestCloseBySig", [
    channel("b"), later, await sign(hot, domain.hub, "RequestClose", { channelId: await idOf(channel("b")), validBefore: later }),
  ]);
  await client.increaseTime({ seconds: 86_401 });
  await measure("reclaim", "reclaim", [channel("b")]);
  await measure("withdraw", "withdraw", [usd, payer.address, DOLLAR]);
  await send(hub, "withdrawBySig", await withdrawal(0n));
  await measure("withdraw by signature", "withdrawBySig", await withdrawal(1n));
  return figures;
});

if (process.argv.includes("--write")) {
  writeFileSync(file, `${JSON.stringify(figures, null, 2)}\n`);
}
const agreed = JSON.parse(readFileSync(file, "utf8"));
for (const name of new Set([...Object.keys(agreed), ...Object.keys(figures)])) {
  const [is, was] = [figures[name], agreed[name]];
  const over = !(is <= was * 1.02);
  console.log(`${name.padEnd(28)} ${String(is).padStart(7)}  was ${was}${over ? "  TOO MUCH" : ""}`);
  if (over) process.exitCode = 1;
}
