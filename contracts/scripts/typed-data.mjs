// The EIP-712 types of the hub and of ERC-3009, written out a second time for viem.
import { parseSignature, toHex } from "viem";

const CHANNEL =
  "address buyer,address seller,address operator,address token,address voucherSigner," +
  "uint32 challengePeriod,bytes32 salt";
const fields = {
  Channel: CHANNEL,
  OpenAuth: "Channel channel,uint96 deposit,uint96 openFee,uint40 expiry,uint40 validBefore",
  TopUpAuth: "bytes32 channelId,uint96 deposit,uint40 expiry,uint40 validBefore",
  Voucher: "bytes32 channelId,uint96 cumulative",
  CloseAuth: "bytes32 channelId,uint96 cumulative,uint40 validBefore",
  RequestClose: "bytes32 channelId,uint40 validBefore",
  Withdraw:
    "address account,address token,address to,uint256 amount,address relayer,uint256 fee," +
    "uint256 nonce,uint40 validBefore",
  ReceiveWithAuthorization:
    "address from,address to,uint256 value,uint256 validAfter,uint256 validBefore," +
    "bytes32 nonce",
};

export const types = Object.fromEntries(
  Object.entries(fields).map(([name, text]) => [
    name,
    text.split(",").map((field) => {
      const [type, name] = field.split(" ");
      return { type, name };
    }),
  ]),
);

/** EIP-712's encodeType: the string whose hash goes into each digest. */
export const encodeType = (name) =>
  `${name}(${fields[name]})${name === "OpenAuth" ? `Channel(${CHANNEL})` : ""}`;

export const domains = (chainId, hub, usd) => ({
  hub: { name: "SoukChannelHub", version: "1", chainId, verifyingContract: hub },
  usd: { name: "Test USD", version: "2", chainId, verifyingContract: usd },
});

/** A signature's EIP-2098 form, as a voucher travels: the parity sits in the top bit of `s`. */
export const compact = (signature) => {
  const { r, s, yParity } = parseSignature(signature);
  return { r, vs: toHex(BigInt(s) | (BigInt(yParity) << 255n), { size: 32 }) };
};
