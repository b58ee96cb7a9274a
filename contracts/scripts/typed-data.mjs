// The EIP-712 types of the hub and of ERC-3009, written out a second time for viem.
const field = (text) => {
  const [type, name] = text.split(" ");
  return { type, name };
};
const struct = (text) => text.split(",").map(field);

export const types = {
  Channel: struct(
    "address buyer,address seller,address operator,address token,address voucherSigner,uint32 challengePeriod,bytes32 salt",
  ),
  OpenAuth: struct(
    "Channel channel,uint96 deposit,uint96 openFee,uint40 expiry,uint40 validBefore",
  ),
  TopUpAuth: struct("bytes32 channelId,uint96 deposit,uint40 expiry,uint40 validBefore"),
  Voucher: struct("bytes32 channelId,uint96 cumulative"),
  CloseAuth: struct("bytes32 channelId,uint96 cumulative,uint40 validBefore"),
  RequestClose: struct("bytes32 channelId,uint40 validBefore"),
  Withdraw: struct(
    "address account,address token,address to,uint256 amount,address relayer,uint256 fee,uint256 nonce,uint40 validBefore",
  ),
  ReceiveWithAuthorization: struct(
    "address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce",
  ),
};

export const domains = (chainId, hub, usd) => ({
  hub: { name: "SoukChannelHub", version: "1", chainId, verifyingContract: hub },
  usd: { name: "Test USD", version: "2", chainId, verifyingContract: usd },
});

/** An ERC-3009 authorisation to the hub, as `depositWithAuthorization` takes it. */
export const authorisation = (from, value, validBefore, nonce) => ({
  from, value, validAfter: 0n, validBefore: BigInt(validBefore), nonce,
});
