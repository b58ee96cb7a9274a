// vectors/eip712.json: what other implementations must hash and sign. Each signature is made here
// by viem and then does its work on the hub, on a chain of its own; so the file holds what the
// contract accepts. Compares the file with that; --write writes it.
//
// Hub and token have the addresses of the first two deployments of anvil's first account, on
// anvil's chain id, and nothing ends before 2100: the file can be replayed on any fresh anvil.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { getContractAddress, hashTypedData, keccak256, stringToHex } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { artifact, deploy, payer, withChain } from "./chain.mjs";
import { compact, domains, encodeType, types } from "./typed-data.mjs";

const file = new URL("../vectors/eip712.json", import.meta.url);
const LATE = 4_102_444_800; // 2100-01-01
const DOLLAR = 1_000_000n;

const CHAIN_ID = 31337;
const [hub, usd] = [0n, 1n].map((nonce) => getContractAddress({ from: payer.address, nonce }));
const domain = domains(CHAIN_ID, hub, usd);

const keys = Object.fromEntries(
  ["buyer", "seller", "operator", "voucherSigner"].map((name) => [
    name,
    keccak256(stringToHex(name)),
  ]),
);
const accounts = Object.fromEntries(
  Object.entries(keys).map(([name, key]) => [name, privateKeyToAccount(key)]),
);
const { buyer, seller, operator, voucherSigner } = accounts;

const channel = {
  buyer: buyer.address,
  seller: seller.address,
  operator: operator.address,
  token: usd,
  voucherSigner: voucherSigner.address,
  challengePeriod: 86_400,
  salt: keccak256(stringToHex("salt")),
};
const channelId = hashTypedData({
  domain: domain.hub, types, primaryType: "Channel", message: channel,
});

const vector = async (type, signer, message, of = "hub") => {
  const typed = { domain: domain[of], types, primaryType: type, message };
  const digest = hashTypedData(typed);
  const unsigned = { type, encodeType: encodeType(type), domain: of, message, digest };
  if (!signer) return unsigned;
  return { ...unsigned, signer, signature: await accounts[signer].signTypedData(typed) };
};
const vectors = [
  await vector("ReceiveWithAuthorization", "buyer", {
    from: buyer.address,
    to: hub,
    value: 100n * DOLLAR,
    validAfter: 0n,
    validBefore: BigInt(LATE),
    nonce: keccak256(stringToHex("nonce")),
  }, "usd"),
  await vector("Channel", null, channel),
  await vector("OpenAuth", "buyer", {
    channel, deposit: 5n * DOLLAR, openFee: 2_000n, expiry: LATE, validBefore: LATE,
  }),
  await vector("Voucher", "voucherSigner", { channelId, cumulative: 1_234_567n }),
  await vector("TopUpAuth", "buyer", {
    channelId, deposit: 10n * DOLLAR, expiry: LATE + 1, validBefore: LATE,
  }),
  await vector("RequestClose", "voucherSigner", { channelId, validBefore: LATE }),
  await vector("CloseAuth", "operator", { channelId, cumulative: 1_234_567n, validBefore: LATE }),
  await vector("Withdraw", "buyer", {
    account: buyer.address,
    token: usd,
    to: buyer.address,
    amount: 3n * DOLLAR,
    relayer: seller.address,
    fee: 2_000n,
    nonce: 258n,
    validBefore: LATE,
  }),
];
const of = Object.fromEntries(vectors.map((vector) => [vector.type, vector]));
// The form in which `settle` and `close` take a voucher's signature.
Object.assign(of.Voucher, compact(of.Voucher.signature));

await withChain(async (client) => {
  const [hubCode, usdCode] = ["ChannelHub", "TestUSD"].map(artifact);
  assert.equal(client.chain.id, CHAIN_ID);
  assert.equal(await deploy(client, hubCode), hub.toLowerCase());
  assert.equal(await deploy(client, usdCode), usd.toLowerCase());
  for (const [address, { codeHash }] of [[hub, hubCode], [usd, usdCode]]) {
    assert.equal(keccak256(await client.getCode({ address })), codeHash);
  }

  const call = async (address, functionName, args) => {
    const { abi } = address === hub ? hubCode : usdCode;
    const hash = await client.writeContract({ address, abi, functionName, args, account: payer });
    assert.equal((await client.waitForTransactionReceipt({ hash })).status, "success");
  };
  const read = (address, functionName, args) =>
    client.readContract({
      address, abi: (address === hub ? hubCode : usdCode).abi, functionName, args,
    });
  const state = () => read(hub, "stateOf", [channelId]);

  assert.equal(await read(hub, "channelId", [channel]), channelId);
  await call(usd, "mint", [buyer.address, 100n * DOLLAR]);

  const { to, ...authorization } = of.ReceiveWithAuthorization.message;
  assert.equal(to, hub);
  const { signature } = of.ReceiveWithAuthorization;
  await call(hub, "depositWithAuthorization", [usd, authorization, signature]);
  assert.equal(await read(hub, "balanceOf", [usd, buyer.address]), 100n * DOLLAR);

  await call(hub, "open", [of.OpenAuth.message, of.OpenAuth.signature]);
  assert.equal((await state()).deposit, 5n * DOLLAR);

  const { cumulative } = of.Voucher.message;
  const claim = { channel, cumulative, r: of.Voucher.r, vs: of.Voucher.vs };
  await call(hub, "settle", [claim]);
  assert.equal((await state()).settled, cumulative);

  const { deposit, expiry, validBefore } = of.TopUpAuth.message;
  await call(hub, "topUp", [channel, deposit, expiry, validBefore, of.TopUpAuth.signature]);
  assert.equal((await state()).deposit, deposit);

  await call(hub, "requestCloseBySig", [channel, LATE, of.RequestClose.signature]);
  assert((await state()).closing);

  await call(hub, "closeBySig", [claim, LATE, of.CloseAuth.signature]);
  assert((await state()).closed);

  await call(hub, "withdrawBySig", [of.Withdraw.message, of.Withdraw.signature]);
  assert.equal(await read(usd, "balanceOf", [buyer.address]), 3n * DOLLAR);
  assert.equal(await read(hub, "balanceOf", [usd, seller.address]), cumulative + 2_000n);
});

// JSON's numbers lose digits, so all of them are strings.
const stringly = (_, value) =>
  typeof value === "bigint" || typeof value === "number" ? String(value) : value;
const text = `${JSON.stringify({ domains: domain, keys, vectors }, stringly, 1)}\n`;
if (process.argv.includes("--write")) writeFileSync(file, text);
assert(readFileSync(file, "utf8") === text, "vectors/eip712.json is old: npm run write:vectors");
console.log(`${vectors.length} vectors: the contract accepts them, and the file holds them`);
