//! What `sol!` makes of the committed artifacts; only `hub` and `digest` see it.
#![allow(missing_docs, reason = "generated types")]
#![allow(clippy::all, clippy::pedantic, reason = "generated code")]
#![allow(clippy::indexing_slicing, clippy::as_conversions, clippy::panic)]

alloy::sol!(ChannelHub, "contracts/artifacts/ChannelHub.json");
alloy::sol!(TestUSD, "contracts/artifacts/TestUSD.json");

/// What is signed and not part of the contract's ABI; type strings must equal the contract's.
pub(in crate::chain) mod signed {
    alloy::sol! {
        struct TopUpAuth {
            bytes32 channelId;
            uint96 deposit;
            uint40 expiry;
            uint40 validBefore;
        }
        struct Voucher {
            bytes32 channelId;
            uint96 cumulative;
        }
        struct CloseAuth {
            bytes32 channelId;
            uint96 cumulative;
            uint40 validBefore;
        }
        struct RequestClose {
            bytes32 channelId;
            uint40 validBefore;
        }
        struct ReceiveWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }
    }
}
