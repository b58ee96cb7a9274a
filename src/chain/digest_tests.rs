//! Our digests and signatures against those that the contract's own tool chain wrote down.

use serde_json::Value;

use super::digest::{HubDomain, TokenDomain};
use super::hub::{Authorization, OpenAuth, WithdrawAuth};
use crate::keys::PaymentKey;
use crate::protocol::voucher::{ChannelDescriptor, Voucher};
use crate::types::{ChannelId, EvmAddress, Hash32, MicroUsd};

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    let text = value.as_str().unwrap().strip_prefix("0x").unwrap();
    hex::decode(text).unwrap().try_into().unwrap()
}

fn int(value: &Value) -> u64 {
    value.as_str().unwrap().parse().unwrap()
}

fn evm(value: &Value) -> EvmAddress {
    EvmAddress(bytes(value))
}

fn descriptor(m: &Value) -> ChannelDescriptor {
    ChannelDescriptor {
        buyer: evm(&m["buyer"]),
        seller: evm(&m["seller"]),
        operator: evm(&m["operator"]),
        token: evm(&m["token"]),
        voucher_signer: evm(&m["voucherSigner"]),
        challenge_period_s: int(&m["challengePeriod"]).try_into().unwrap(),
        salt: Hash32(bytes(&m["salt"])),
    }
}

fn digest(hub: &HubDomain, usd: &TokenDomain, kind: &str, m: &Value) -> Hash32 {
    let channel = || ChannelId(bytes(&m["channelId"]));
    let money = |name: &str| MicroUsd(int(&m[name]));
    let voucher = || Voucher {
        channel: channel(),
        cumulative: money("cumulative"),
    };
    match kind {
        "Channel" => Hash32(hub.channel_id(&descriptor(m)).0),
        "OpenAuth" => hub.open(&OpenAuth {
            descriptor: descriptor(&m["channel"]),
            deposit: money("deposit"),
            open_fee: money("openFee"),
            expiry_s: int(&m["expiry"]),
            valid_before_s: int(&m["validBefore"]),
        }),
        "Voucher" => hub.voucher(&voucher()),
        "TopUpAuth" => {
            let (expiry, valid) = (int(&m["expiry"]), int(&m["validBefore"]));
            hub.top_up(&channel(), money("deposit"), expiry, valid)
        }
        "RequestClose" => hub.request_close(&channel(), int(&m["validBefore"])),
        "CloseAuth" => hub.close(&voucher(), int(&m["validBefore"])),
        "Withdraw" => hub.withdraw(&WithdrawAuth {
            account: evm(&m["account"]),
            token: evm(&m["token"]),
            to: evm(&m["to"]),
            amount: money("amount"),
            relayer: evm(&m["relayer"]),
            fee: money("fee"),
            nonce: int(&m["nonce"]),
            valid_before_s: int(&m["validBefore"]),
        }),
        "ReceiveWithAuthorization" => {
            assert_eq!(evm(&m["to"]), hub.hub);
            let auth = Authorization {
                from: evm(&m["from"]),
                amount: money("value"),
                valid_after_s: int(&m["validAfter"]),
                valid_before_s: int(&m["validBefore"]),
                nonce: Hash32(bytes(&m["nonce"])),
            };
            usd.receive(&auth, hub.hub)
        }
        other => panic!("{other} has no digest here"),
    }
}

#[test]
fn digests_and_signatures_equal_the_contracts_vectors() {
    let text = include_str!("../../contracts/vectors/eip712.json");
    let file: Value = serde_json::from_str(text).unwrap();
    let domain = |name: &str| &file["domains"][name];
    let hub = HubDomain {
        chain_id: int(&domain("hub")["chainId"]),
        hub: evm(&domain("hub")["verifyingContract"]),
    };
    let usd = TokenDomain {
        name: domain("usd")["name"].as_str().unwrap().to_owned(),
        version: domain("usd")["version"].as_str().unwrap().to_owned(),
        chain_id: int(&domain("usd")["chainId"]),
        token: evm(&domain("usd")["verifyingContract"]),
    };
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 8);
    for vector in vectors {
        let kind = vector["type"].as_str().unwrap();
        let ours = digest(&hub, &usd, kind, &vector["message"]);
        assert_eq!(ours, Hash32(bytes(&vector["digest"])), "{kind}");
        if let Some(signer) = vector["signer"].as_str() {
            let key = PaymentKey::from_bytes(&bytes(&file["keys"][signer])).unwrap();
            assert_eq!(
                key.sign_hash(&ours),
                bytes::<65>(&vector["signature"]),
                "{kind}"
            );
        }
    }
}
