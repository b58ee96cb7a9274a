// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

/// @notice Who pays whom, and under which rules. Never stored: it travels in calldata and in the
/// log of the opening, and its EIP-712 digest is the channel's id.
/// @param buyer Vault account that funds the channel and owns what is left of it.
/// @param seller Vault account that earns.
/// @param operator The seller's hot key, which may only close; zero for none.
/// @param token ERC-20 token of both vault accounts.
/// @param voucherSigner The buyer's hot key, which signs vouchers (a plain key, no contract).
/// @param challengePeriod Seconds between a close request and the end of the channel.
/// @param salt Makes the id unique.
struct Channel {
    address buyer;
    address seller;
    address operator;
    address token;
    address voucherSigner;
    uint32 challengePeriod;
    bytes32 salt;
}

/// @notice What the buyer signs to open a channel. The id is unique, so it works once.
/// @param channel The channel.
/// @param deposit Token units that move from the buyer's vault into the channel.
/// @param openFee Part of the deposit that the seller earns at once, for the gas.
/// @param expiry Unix time from which anybody may return the rest to the buyer.
/// @param validBefore Unix time from which this authorisation is void.
struct OpenAuth {
    Channel channel;
    uint96 deposit;
    uint96 openFee;
    uint40 expiry;
    uint40 validBefore;
}

/// @notice A voucher with the channel it draws on.
/// @param channel The channel.
/// @param cumulative Token units the seller may take of the channel in all, not in addition.
/// @param r First half of the voucher signer's ECDSA signature.
/// @param vs Second half with the parity in the top bit (EIP-2098).
struct Claim {
    Channel channel;
    uint96 cumulative;
    bytes32 r;
    bytes32 vs;
}

/// @notice What an account signs to take money out of its vault without sending a transaction.
/// @param account Owner of the vault.
/// @param token ERC-20 token.
/// @param to Receives `amount`; unused when that is 0.
/// @param amount Token units that leave the hub; 0 to pay the relayer only.
/// @param relayer Earns `fee` in its vault; zero means whoever submits.
/// @param fee Token units, on top of `amount`.
/// @param nonce Any number this account has not used yet, in any order.
/// @param validBefore Unix time from which this authorisation is void.
struct Withdraw {
    address account;
    address token;
    address to;
    uint256 amount;
    address relayer;
    uint256 fee;
    uint256 nonce;
    uint40 validBefore;
}

/// @title EIP-712 hashes of everything that is signed for the hub
/// @notice Type strings are part of the protocol: other implementations repeat them byte by byte.
library TypedData {
    bytes32 internal constant DOMAIN_TYPEHASH = keccak256(
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    );
    bytes32 internal constant CHANNEL_TYPEHASH = keccak256(
        "Channel(address buyer,address seller,address operator,address token,address voucherSigner,uint32 challengePeriod,bytes32 salt)"
    );
    bytes32 internal constant OPEN_TYPEHASH = keccak256(
        "OpenAuth(Channel channel,uint96 deposit,uint96 openFee,uint40 expiry,uint40 validBefore)"
        "Channel(address buyer,address seller,address operator,address token,address voucherSigner,uint32 challengePeriod,bytes32 salt)"
    );
    bytes32 internal constant TOP_UP_TYPEHASH =
        keccak256("TopUpAuth(bytes32 channelId,uint96 deposit,uint40 expiry,uint40 validBefore)");
    bytes32 internal constant VOUCHER_TYPEHASH =
        keccak256("Voucher(bytes32 channelId,uint96 cumulative)");
    bytes32 internal constant CLOSE_TYPEHASH =
        keccak256("CloseAuth(bytes32 channelId,uint96 cumulative,uint40 validBefore)");
    bytes32 internal constant REQUEST_CLOSE_TYPEHASH =
        keccak256("RequestClose(bytes32 channelId,uint40 validBefore)");
    bytes32 internal constant WITHDRAW_TYPEHASH = keccak256(
        "Withdraw(address account,address token,address to,uint256 amount,address relayer,uint256 fee,uint256 nonce,uint40 validBefore)"
    );

    /// @notice The domain of `verifier` on this chain. Computed at each call, not cached in the
    /// code: so the deployed code is the same everywhere, and a fork of the chain gets its own.
    function domainSeparator(bytes32 nameHash, bytes32 versionHash, address verifier)
        internal
        view
        returns (bytes32)
    {
        return
            keccak256(abi.encode(DOMAIN_TYPEHASH, nameHash, versionHash, block.chainid, verifier));
    }

    /// @notice The digest that is signed.
    function digest(bytes32 domain, bytes32 structHash) internal pure returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(domain, structHash);
    }

    /// @notice The struct hash of a descriptor; its digest is the channel's id.
    function hash(Channel calldata channel) internal pure returns (bytes32) {
        return keccak256(abi.encode(CHANNEL_TYPEHASH, channel));
    }

    /// @notice The struct hash of an opening, given that of its channel.
    function hash(OpenAuth calldata auth, bytes32 channelHash) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                OPEN_TYPEHASH,
                channelHash,
                auth.deposit,
                auth.openFee,
                auth.expiry,
                auth.validBefore
            )
        );
    }

    /// @notice The struct hash of a withdrawal.
    function hash(Withdraw calldata auth) internal pure returns (bytes32) {
        return keccak256(abi.encode(WITHDRAW_TYPEHASH, auth));
    }

    /// @notice The struct hash of TopUpAuth.
    function hashTopUp(bytes32 id, uint96 deposit, uint40 expiry, uint40 validBefore)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(TOP_UP_TYPEHASH, id, deposit, expiry, validBefore));
    }

    /// @notice The struct hash of Voucher.
    function hashVoucher(bytes32 id, uint96 cumulative) internal pure returns (bytes32) {
        return keccak256(abi.encode(VOUCHER_TYPEHASH, id, cumulative));
    }

    /// @notice The struct hash of CloseAuth.
    function hashClose(bytes32 id, uint96 cumulative, uint40 validBefore)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(CLOSE_TYPEHASH, id, cumulative, validBefore));
    }

    /// @notice The struct hash of RequestClose.
    function hashRequestClose(bytes32 id, uint40 validBefore) internal pure returns (bytes32) {
        return keccak256(abi.encode(REQUEST_CLOSE_TYPEHASH, id, validBefore));
    }
}
