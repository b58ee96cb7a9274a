// Plants one bug at a time into a copy of the contracts and requires the forge tests to notice.
// A bug that survives is a hole in the tests. `mutate.mjs WORD…` runs those whose name has a WORD.
import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = new URL("..", import.meta.url).pathname;
const HUB = "src/ChannelHub.sol";
const VAULT = "src/Vault.sol";
const TYPED = "src/TypedData.sol";

// [name, file, from, to]; `from` must occur exactly once.
const bugs = [
  ["a voucher above the deposit is paid in full", HUB,
    "claim.cumulative < state.deposit ? claim.cumulative : state.deposit", "claim.cumulative"],
  ["max for min in settle", HUB,
    "claim.cumulative < state.deposit ?", "claim.cumulative > state.deposit ?"],
  ["an old voucher takes back", HUB,
    "if (settled <= state.settled) return 0;", "if (settled == state.settled) return 0;"],
  ["settle pays the whole again", HUB, "paid = settled - state.settled;", "paid = settled;"],
  ["settle forgets what it paid", HUB, "state.settled = settled;\n", ""],
  ["settle pays the buyer", HUB,
    "balanceOf[channel.token][channel.seller] += paid;",
    "balanceOf[channel.token][channel.buyer] += paid;"],
  ["settle pays nobody", HUB, "balanceOf[channel.token][channel.seller] += paid;", ""],
  ["anybody signs vouchers", HUB,
    "if (signer != channel.voucherSigner) revert BadSignature();", "signer;"],
  ["the buyer's main key signs vouchers", HUB,
    "if (signer != channel.voucherSigner)",
    "if (signer != channel.voucherSigner && signer != channel.buyer)"],
  ["a batch stops after the first", HUB, "i < claims.length", "i < 1"],
  ["open without a signature", HUB,
    "_requireSignature(channel.buyer, address(0), authHash, signature);\n\n        _debit(channel.token, channel.buyer, auth.deposit);",
    "authHash; signature;\n        _debit(channel.token, channel.buyer, auth.deposit);"],
  ["open does not take the deposit", HUB,
    "_debit(channel.token, channel.buyer, auth.deposit);", ""],
  ["open takes the wrong token", HUB,
    "_debit(channel.token, channel.buyer, auth.deposit);",
    "_debit(channel.voucherSigner, channel.buyer, auth.deposit);"],
  ["an id opens twice", HUB, "if (_channels[id].expiry != 0) revert ChannelExists();", ""],
  ["a closed id opens again", HUB,
    "if (_channels[id].expiry != 0)", "if (_channels[id].expiry != 0 && !_channels[id].closed)"],
  ["the fee exceeds the deposit", HUB,
    "if (auth.openFee > auth.deposit) revert BadAmount();", ""],
  ["the fee is paid but not counted", HUB, "settled: auth.openFee,", "settled: 0,"],
  ["the fee is counted but not paid", HUB,
    "balanceOf[channel.token][channel.seller] += auth.openFee;", ""],
  ["a channel without a voucher signer", HUB, " || channel.voucherSigner == address(0)", ""],
  ["a channel without a seller", HUB, "channel.seller == address(0) || ", ""],
  ["too short a challenge period", HUB,
    "channel.challengePeriod < CHALLENGE_PERIOD_MIN\n                || ", ""],
  ["too long a challenge period", HUB,
    "channel.challengePeriod > CHALLENGE_PERIOD_MAX", "false"],
  ["expiry within the challenge period", HUB,
    "if (expiry < block.timestamp + channel.challengePeriod)", "if (expiry < block.timestamp)"],
  ["open and top-up valid for ever", HUB,
    "if (block.timestamp >= validBefore) revert AuthExpired();\n        if (expiry", "if (expiry"],
  ["a top-up that adds nothing", HUB,
    "if (deposit <= state.deposit) revert", "if (deposit < state.deposit) revert"],
  ["a top-up of a closing channel", HUB,
    "if (state.closing || state.closed) revert", "if (state.closed) revert"],
  ["a top-up of a closed channel", HUB,
    "if (state.closing || state.closed) revert", "if (state.closing) revert"],
  ["a top-up brings the expiry forward", HUB,
    "if (expiry < state.expiry) revert BadExpiry();", ""],
  ["a top-up without a signature", HUB,
    "_requireSignature(channel.buyer, address(0), authHash, signature);\n\n        _debit(channel.token, channel.buyer, deposit",
    "authHash; signature;\n        _debit(channel.token, channel.buyer, deposit"],
  ["a top-up takes the whole deposit again", HUB, "deposit - state.deposit);", "deposit);"],
  ["anybody closes", HUB,
    "if (msg.sender != channel.seller && msg.sender != channel.operator) revert NotAllowed();", ""],
  ["the operator cannot close", HUB, " && msg.sender != channel.operator", ""],
  ["the buyer agrees for the seller", HUB,
    "_requireSignature(channel.seller, channel.operator,",
    "_requireSignature(channel.buyer, channel.operator,"],
  ["an agreement valid for ever", HUB,
    "if (block.timestamp >= validBefore) revert AuthExpired();\n        bytes32 authHash = TypedData.hashClose", "bytes32 authHash = TypedData.hashClose"],
  ["an agreement for any amount", HUB, "channelId(channel), claim.cumulative, validBefore",
    "channelId(channel), 0, validBefore"],
  ["close without the last voucher", HUB, "_settle(claim, domainSeparator());\n        (bytes32", "(bytes32"],
  ["anybody requests the end", HUB,
    "if (msg.sender != channel.buyer && msg.sender != channel.voucherSigner) {\n            revert NotAllowed();\n        }", ""],
  ["a request valid for ever", HUB,
    "if (block.timestamp >= validBefore) revert AuthExpired();\n        bytes32 authHash = TypedData.hashRequest", "bytes32 authHash = TypedData.hashRequest"],
  ["the seller requests the end", HUB,
    "_requireSignature(channel.buyer, channel.voucherSigner,",
    "_requireSignature(channel.seller, channel.voucherSigner,"],
  ["a request puts the expiry off", HUB,
    "if (expiry < state.expiry) state.expiry = expiry;", "state.expiry = expiry;"],
  ["a request ends it at once", HUB,
    "uint40(block.timestamp) + channel.challengePeriod;", "uint40(block.timestamp);"],
  ["a request does not stick", HUB, "state.closing = true;\n", ""],
  ["a second request counts again", HUB,
    "if (state.closing || state.closed) return;", "if (state.closed) return;"],
  ["a closed channel can be asked to end", HUB,
    "if (state.closing || state.closed) return;", "if (state.closing) return;"],
  ["reclaim before the expiry", HUB,
    "if (block.timestamp < state.expiry) revert NotExpired();", ""],
  ["reclaim a second late", HUB,
    "if (block.timestamp < state.expiry)", "if (block.timestamp <= state.expiry)"],
  ["a channel ends twice", HUB, "if (state.closed) return;", ""],
  ["the end refunds the seller", HUB,
    "balanceOf[channel.token][channel.buyer] += refund;",
    "balanceOf[channel.token][channel.seller] += refund;"],
  ["the end refunds the whole deposit", HUB,
    "uint96 refund = state.deposit - state.settled;", "uint96 refund = state.deposit;"],
  ["a closed channel keeps its deposit", HUB, "state.deposit = state.settled;\n", ""],
  ["the end leaves no tombstone", HUB, "state.closed = true;\n        _channels[id] = state;",
    "state.closed = true;\n        delete _channels[id];"],
  ["an unknown channel is known", HUB,
    "if (state.expiry == 0) revert ChannelUnknown();", ""],
  ["all hubs share a domain", HUB,
    "VERSION_HASH, address(this));", "VERSION_HASH, address(0));"],

  ["a nonce is not burnt", VAULT, "usedNonces[account][nonce / 256] = used | bit;", "used | bit;"],
  ["a nonce burns its word", VAULT, "used | bit;", "type(uint256).max;"],
  ["a nonce forgets its word", VAULT, "= used | bit;", "= bit;"],
  ["nonces are shared by all", VAULT,
    "_useNonce(auth.account, auth.nonce);", "_useNonce(address(0), auth.nonce);"],
  ["a withdrawal valid for ever", VAULT,
    "if (block.timestamp >= auth.validBefore) revert AuthExpired();", ""],
  ["a withdrawal without a signature", VAULT,
    "_requireSignature(auth.account, address(0), TypedData.hash(auth), signature);", "signature;"],
  ["a vault goes below zero", VAULT,
    "if (balance < amount) revert InsufficientBalance();", ""],
  ["the fee is not taken", VAULT, "auth.amount + auth.fee);", "auth.amount);"],
  ["the fee goes to the submitter", VAULT,
    "auth.relayer == address(0) ? msg.sender : auth.relayer", "msg.sender"],
  ["the fee goes nowhere", VAULT,
    "if (auth.fee != 0) balanceOf[auth.token][relayer] += auth.fee;", ""],
  ["a withdrawal into the hub", VAULT, " || auth.to == address(this)", ""],
  ["a withdrawal to nobody", VAULT, "auth.to == address(0) || ", ""],
  ["a deposit for nobody", VAULT, "if (account == address(0)) revert BadAccount();", ""],
  ["a token may bring less", VAULT,
    "if (_held(token) != held + amount) revert TransferMismatch();", "held;"],
  ["a token may bring more", VAULT,
    "_held(token) != held + amount", "_held(token) < held + amount"],
  ["a used authorization reverts", VAULT,
    "if (IERC3009(token).authorizationState(auth.from, auth.nonce)) {\n            return;\n        }", ""],
  ["an authorization credits its submitter", VAULT,
    "_credit(token, auth.from, auth.value, held);", "_credit(token, msg.sender, auth.value, held);"],
  ["all tokens share a vault", VAULT,
    "uint256 balance = balanceOf[token][account];", "token = address(0); uint256 balance = balanceOf[token][account];"],
  ["wallets cannot sign", VAULT,
    "if (!SignatureChecker.isValidERC1271SignatureNow(owner, digest, signature)) {\n            revert BadSignature();\n        }",
    "revert BadSignature();"],
  ["a delegated account cannot sign", VAULT,
    "(signer == owner || signer == hotKey)) return;",
    "(signer == owner || signer == hotKey) && owner.code.length == 0) return;"],
  ["a failed recovery is nobody's signature", VAULT,
    "error == ECDSA.RecoverError.NoError && ", "error != ECDSA.RecoverError(4) && "],
  ["deposit can be re-entered", VAULT,
    "function deposit(address token, address account, uint256 amount) external nonReentrant {",
    "function deposit(address token, address account, uint256 amount) external {"],
  ["withdraw can be re-entered", VAULT,
    "function withdraw(address token, address to, uint256 amount) external nonReentrant {",
    "function withdraw(address token, address to, uint256 amount) external {"],

  ["the chain is not in the domain", TYPED, "versionHash, block.chainid, verifier", "versionHash, uint256(1), verifier"],
  ["an opening does not cover its fee", TYPED, "auth.openFee,", "uint96(0),"],
  ["an opening does not cover its expiry", TYPED, "auth.expiry,", "uint40(0),"],
  ["a top-up does not cover its channel", TYPED,
    "abi.encode(TOP_UP_TYPEHASH, id,", "abi.encode(TOP_UP_TYPEHASH, bytes32(0),"],
  ["a voucher does not cover its channel", TYPED,
    "abi.encode(VOUCHER_TYPEHASH, id,", "abi.encode(VOUCHER_TYPEHASH, bytes32(0),"],
];

const words = process.argv.slice(2);
const chosen = bugs.filter(([name]) => !words.length || words.some((word) => name.includes(word)));
const copy = mkdtempSync(join(tmpdir(), "souk-mutate-"));
process.on("exit", () => rmSync(copy, { recursive: true }));
for (const path of ["src", "test", "scripts", "bin", "foundry.toml"]) {
  cpSync(join(root, path), join(copy, path), { recursive: true });
}
symlinkSync(join(root, "node_modules"), join(copy, "node_modules"));

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

if (failure()) throw new Error("the tests fail without any bug");
let survivors = 0;
for (const [name, path, from, to] of chosen) {
  const file = join(copy, path);
  const good = readFileSync(file, "utf8");
  if (good.split(from).length !== 2) throw new Error(`${name}: ${path} has not one "${from}"`);
  writeFileSync(file, good.replace(from, () => to));
  const reason = failure();
  writeFileSync(file, good);
  if (!reason) survivors++;
  console.log(`${reason ? "caught  " : "SURVIVED"} ${name.padEnd(44)} ${reason ?? ""}`);
}
console.log(`${chosen.length - survivors} of ${chosen.length} bugs caught`);
if (survivors) process.exitCode = 1;
