//! Golden vectors: what is signed never changes by accident. A changed digest is a new version of
//! the protocol, not a test to update.

use bytes::Bytes;

use super::receipt::{Ending, Receipt};
use super::session::{Accept, Open, SessionMessage};
use super::terms::ChainTerms;
use super::voucher::{CreditParty, HubDomain, HubTerms, Opening, TopUp, VoucherDomain};
use super::*;
use crate::keys::{self, Identity, PaymentKey};
use crate::types::{AttemptId, ChannelId, EvmAddress, Hash32, MicroUsd, PeerId, RequestId, Usage};

fn buyer() -> Identity {
    Identity::from_seed(&[1; 32])
}
fn seller() -> Identity {
    Identity::from_seed(&[2; 32])
}

fn head() -> RequestHead {
    RequestHead {
        version: WIRE_VERSION,
        network: "souk-1".into(),
        request_id: RequestId([3; 16]),
        attempt: 1,
        seller: seller().peer_id(),
        buyer: buyer().peer_id(),
        path: "/v1/messages".into(),
        model: "claude".into(),
        stream: true,
        headers: vec![("accept".into(), "text/event-stream".into())],
        body_sha256: Hash32([4; 32]),
        body_len: 5,
        offer_hash: Hash32([6; 32]),
        max_cost: MicroUsd(7),
        channel: ChannelId([8; 32]),
        cumulative_required: MicroUsd(9),
        nonce: [10; 16],
        iat_ms: 11,
        exp_ms: 12,
        delegation: None,
    }
}

fn receipt() -> Receipt {
    Receipt {
        request_id: RequestId([3; 16]),
        attempt_id: AttemptId([4; 16]),
        order_hash: Hash32([5; 32]),
        seller: seller().peer_id(),
        buyer: buyer().peer_id(),
        status: 200,
        ending: Ending::Complete,
        usage: Usage {
            input: 1,
            cache_read: 2,
            cache_write: 3,
            output: 4,
            reasoning: 1,
        },
        usage_from_upstream: true,
        own_output: 4,
        cost: MicroUsd(6),
        response_hash: Hash32([7; 32]),
        response_len: 8,
        at_ms: 9,
    }
}

fn hub() -> HubDomain {
    HubDomain {
        chain_id: 31_337,
        hub: EvmAddress([5; 20]),
    }
}

fn on_hub() -> ChannelDescriptor {
    let terms = HubTerms {
        buyer: EvmAddress([1; 20]),
        seller: EvmAddress([3; 20]),
        operator: EvmAddress([3; 20]),
        token: EvmAddress([4; 20]),
        voucher_signer: EvmAddress([2; 20]),
        challenge_period_s: 86_400,
    };
    ChannelDescriptor::on_hub(&terms, &buyer().peer_id(), &seller().peer_id(), 6, 7)
}

fn chain_open() -> Open {
    let descriptor = on_hub();
    let opening = Opening {
        device: 6,
        deposit: MicroUsd(500_000),
        open_fee: MicroUsd(10_000),
        expiry_s: 8,
        valid_before_s: 9,
        signature: EvmSignature([10; 65]),
        authorization: None,
    };
    let id = hub().channel_id(&descriptor);
    Open::sign(descriptor.to_bytes(), 7, id, &buyer()).with(opening)
}

fn top_up() -> TopUp {
    TopUp {
        channel: hub().channel_id(&on_hub()),
        deposit: MicroUsd(1_000_000),
        expiry_s: 8,
        valid_before_s: 9,
        signature: EvmSignature([11; 65]),
        authorization: None,
    }
}

/// A short fingerprint of bytes, to keep the vectors readable.
fn print(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(bytes))
        .get(..32)
        .map(str::to_owned)
        .unwrap_or_default()
}

#[test]
fn signed_messages_have_golden_bytes() {
    let descriptor = ChannelDescriptor::credit(
        &CreditParty {
            peer: buyer().peer_id(),
            payment: EvmAddress([1; 20]),
            voucher_signer: EvmAddress([2; 20]),
        },
        &CreditParty {
            peer: seller().peer_id(),
            payment: EvmAddress([3; 20]),
            voucher_signer: EvmAddress([3; 20]),
        },
        0,
    );
    let key = PaymentKey::from_bytes(&[5; 32]).unwrap();
    let voucher = Voucher {
        channel: ChannelId([8; 32]),
        cumulative: MicroUsd(123),
    };
    let open = Open::sign(descriptor.to_bytes(), 0, descriptor.credit_id(), &buyer());
    let accept = Accept::sign(vec![(AttemptId([4; 16]), MicroUsd(6))], &buyer());
    let terms = Terms {
        seller: seller().peer_id(),
        payment_address: EvmAddress([3; 20]),
        credit_limit: MicroUsd(1),
        open_fee: MicroUsd(0),
        reasoning_cap: 2,
        data_policy: "p".into(),
        supported_parameters: vec!["tools".into()],
        chain: None,
    };
    let on_chain = Terms {
        chain: Some(ChainTerms {
            domain: hub(),
            token: EvmAddress([4; 20]),
            operator: EvmAddress([3; 20]),
            challenge_period_s: 86_400,
            deposit_min: MicroUsd(100_000),
            unconfirmed_max: MicroUsd(50_000),
        }),
        ..terms.clone()
    };
    insta::assert_debug_snapshot!(vec![
        ("head", print(&SignedHead::sign(head(), &buyer()).bytes)),
        (
            "receipt",
            print(&SignedReceipt::sign(receipt(), &seller()).bytes)
        ),
        ("terms", print(&SignedTerms::sign(terms, &seller()).bytes)),
        ("descriptor", print(&descriptor.to_bytes())),
        ("channel id", descriptor.credit_id().to_string()),
        ("open", print(&SessionMessage::Open(open).encode())),
        ("accept", print(&SessionMessage::Accept(accept).encode())),
        (
            "voucher digest",
            VoucherDomain::Credit.voucher(&voucher).to_string()
        ),
        (
            "voucher",
            print(&voucher.sign(VoucherDomain::Credit, &key).0)
        ),
        (
            "chain terms",
            print(&SignedTerms::sign(on_chain, &seller()).bytes)
        ),
        ("chain channel id", hub().channel_id(&on_hub()).to_string()),
        (
            "chain open",
            print(&SessionMessage::Open(chain_open()).encode())
        ),
        ("top up", print(&SessionMessage::TopUp(top_up()).encode())),
        ("chain voucher digest", hub().voucher(&voucher).to_string()),
    ]);
}

#[test]
fn signed_messages_round_trip_and_refuse_other_signers() {
    let signed = SignedHead::sign(head(), &buyer());
    let back = SignedHead::decode(&signed.bytes).unwrap();
    assert_eq!(back.head, head());
    assert!(back.verify().is_ok());
    let signed = SignedReceipt::sign(receipt(), &seller());
    let me = seller().peer_id();
    assert_eq!(
        SignedReceipt::decode_and_verify(&signed.bytes, &me)
            .unwrap()
            .receipt,
        receipt()
    );
    assert!(SignedReceipt::decode_and_verify(&signed.bytes, &PeerId::random()).is_err());
    let forged = SignedReceipt::sign(receipt(), &buyer());
    assert!(SignedReceipt::decode_and_verify(&forged.bytes, &me).is_err());
    let accept = Accept::sign(vec![(AttemptId([4; 16]), MicroUsd(6))], &buyer());
    assert!(accept.verify(&buyer().peer_id()).is_ok());
    assert!(accept.verify(&me).is_err());
}

#[test]
fn a_signature_for_one_domain_fails_in_every_other() {
    let domains = [
        domain::REQUEST,
        domain::TERMS,
        domain::OPEN,
        domain::ACCEPT,
        domain::RECEIPT,
    ];
    for signed in domains {
        let signature = buyer().sign(&domain::message(signed, b"payload"));
        for checked in domains {
            let message = domain::message(checked, b"payload");
            let ok = keys::verify(&buyer().peer_id(), &message, &signature).is_ok();
            assert_eq!(ok, signed == checked);
        }
    }
}

proptest::proptest! {
    #[test]
    fn no_decoder_panics_on_noise(noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2048)) {
        let bytes = Bytes::from(noise);
        let _ = SignedHead::decode(&bytes);
        let _ = SessionMessage::decode(&bytes);
        let _ = ResponseHead::decode(&bytes);
        let _ = PeerError::decode(&bytes);
        let _ = ChannelDescriptor::from_bytes(&bytes);
        let _ = SignedReceipt::decode_and_verify(&bytes, &seller().peer_id());
        let _ = SignedTerms::decode_and_verify(&bytes, &seller().peer_id());
    }
}
