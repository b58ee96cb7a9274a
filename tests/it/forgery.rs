//! Everything signed is good as it was signed and in no other form: each flipped bit, each cut, one
//! byte more, another signer, another place and another time are refused.

use bytes::Bytes;
use souk::keys::{Identity, PaymentKey, personal_hash, to_checksum};
use souk::protocol::delegation::{self, DelegatedRole, Delegation, Draft};
use souk::protocol::offer::{Offer, SignedOffer};
use souk::protocol::receipt::{Ending, Receipt};
use souk::protocol::session::{Accept, Open};
use souk::protocol::voucher::{CreditParty, VoucherDomain};
use souk::protocol::{
    ChannelDescriptor, EvmSignature, RequestHead, SessionMessage, SignedHead, SignedReceipt,
    SignedTerms, Terms, Voucher, WIRE_VERSION,
};
use souk::types::{
    AttemptId, ChannelId, EvmAddress, Hash32, MicroUsd, ModelId, PeerId, PriceTable, RequestId,
    Usage,
};

const NET: &str = "souk-1";
const NOW: u64 = 1_800_000_000_000;

/// What the receiver of a signed thing says of bytes.
type Check = dyn Fn(&[u8]) -> Result<(), String>;

/// A signed thing as bytes, and the check that its receiver makes.
struct Signed {
    what: &'static str,
    bytes: Vec<u8>,
    check: Box<Check>,
}

fn signed<E: ToString>(
    what: &'static str,
    bytes: Vec<u8>,
    check: impl Fn(&[u8]) -> Result<(), E> + 'static,
) -> Signed {
    let check = move |bytes: &[u8]| check(bytes).map_err(|error| error.to_string());
    Signed {
        what,
        bytes,
        check: Box::new(check),
    }
}

fn identity(n: u8) -> Identity {
    Identity::from_seed(&[n; 32])
}
fn wallet(n: u8) -> PaymentKey {
    PaymentKey::from_bytes(&[n; 32]).unwrap()
}
/// Buyer and seller of every case; the rest are strangers.
const BUYER: u8 = 1;
const SELLER: u8 = 2;
const STRANGER: u8 = 3;

fn peer(n: u8) -> PeerId {
    identity(n).peer_id()
}

fn offer(by: u8, network: &str, made_ms: u64) -> SignedOffer {
    let offer = Offer {
        not_after: made_ms + 3_000_000,
        price: PriceTable {
            input: 100_000,
            output: 400_000,
            ..PriceTable::default()
        },
        ..Offer::new(network, peer(by), ModelId::new("m"), made_ms)
    };
    SignedOffer::sign(offer, |message| identity(by).sign(message)).unwrap()
}

fn terms(by: u8) -> SignedTerms {
    let terms = Terms {
        seller: peer(by),
        payment_address: wallet(by).address(),
        credit_limit: MicroUsd(1_000_000),
        open_fee: MicroUsd::ZERO,
        reasoning_cap: 0,
        data_policy: "none kept".to_owned(),
        supported_parameters: vec!["temperature".to_owned()],
        chain: None,
    };
    SignedTerms::sign(terms, &identity(by))
}

fn head(by: u8, signer: u8) -> SignedHead {
    let head = RequestHead {
        version: WIRE_VERSION,
        network: NET.to_owned(),
        request_id: RequestId([4; 16]),
        attempt: 1,
        seller: peer(SELLER),
        buyer: peer(by),
        path: "/v1/chat/completions".to_owned(),
        model: "m".to_owned(),
        stream: true,
        headers: vec![("accept".to_owned(), "text/event-stream".to_owned())],
        body_sha256: Hash32([5; 32]),
        body_len: 10,
        offer_hash: Hash32([6; 32]),
        max_cost: MicroUsd(1_000),
        channel: channel().credit_id(),
        cumulative_required: MicroUsd::ZERO,
        nonce: [7; 16],
        iat_ms: NOW,
        exp_ms: NOW + 55_000,
        delegation: None,
    };
    SignedHead::sign(head, &identity(signer))
}

fn party(n: u8) -> CreditParty {
    CreditParty {
        peer: peer(n),
        payment: wallet(n).address(),
        voucher_signer: wallet(n + 10).address(),
    }
}
fn channel() -> ChannelDescriptor {
    ChannelDescriptor::credit(&party(BUYER), &party(SELLER), 0)
}

/// OPEN as one message; the receiver works the channel out from the descriptor.
fn check_open(bytes: &[u8], buyer: &PeerId) -> Result<(), String> {
    let message = SessionMessage::decode(&Bytes::copy_from_slice(bytes));
    let Ok(SessionMessage::Open(open)) = message else {
        return Err("no OPEN".to_owned());
    };
    let descriptor = ChannelDescriptor::from_bytes(&open.descriptor).map_err(|e| e.to_string())?;
    if open.epoch != 0 {
        return Err("another epoch".to_owned());
    }
    open.verify(descriptor.credit_id(), buyer)
        .map_err(|e| e.to_string())
}

fn voucher_message(channel: ChannelId, cumulative: u64, signer: &PaymentKey) -> Vec<u8> {
    let cumulative = MicroUsd(cumulative);
    let signature = Voucher {
        channel,
        cumulative,
    }
    .sign(VoucherDomain::Credit, signer);
    let message = SessionMessage::Voucher {
        channel,
        cumulative,
        signature,
    };
    message.encode()
}

fn check_voucher(bytes: &[u8], channel: ChannelId, signer: &EvmAddress) -> Result<(), String> {
    let message = SessionMessage::decode(&Bytes::copy_from_slice(bytes));
    match message {
        Ok(SessionMessage::Voucher {
            channel: named,
            cumulative,
            signature,
        }) if named == channel => {
            let voucher = Voucher {
                channel,
                cumulative,
            };
            voucher
                .verify(VoucherDomain::Credit, &signature, signer)
                .map_err(|e| e.to_string())
        }
        Ok(_) => Err("another channel or message".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn receipt(by: u8, attempt: u8) -> SignedReceipt {
    let receipt = Receipt {
        request_id: RequestId([4; 16]),
        attempt_id: AttemptId([attempt; 16]),
        order_hash: Hash32([8; 32]),
        seller: peer(by),
        buyer: peer(BUYER),
        status: 200,
        ending: Ending::Complete,
        usage: Usage {
            input: 10,
            output: 20,
            ..Usage::default()
        },
        usage_from_upstream: true,
        own_output: 20,
        cost: MicroUsd(9),
        response_hash: Hash32([9; 32]),
        response_len: 100,
        at_ms: NOW,
    };
    SignedReceipt::sign(receipt, &identity(by))
}

fn accept_message(signer: u8) -> Vec<u8> {
    let items = vec![
        (AttemptId([1; 16]), MicroUsd(9)),
        (AttemptId([2; 16]), MicroUsd(0)),
    ];
    SessionMessage::Accept(Accept::sign(items, &identity(signer))).encode()
}

fn check_accept(bytes: &[u8], buyer: &PeerId) -> Result<(), String> {
    match SessionMessage::decode(&Bytes::copy_from_slice(bytes)) {
        Ok(SessionMessage::Accept(accept)) => accept.verify(buyer).map_err(|e| e.to_string()),
        _ => Err("no ACCEPT".to_owned()),
    }
}

/// A wallet's permission for `node`: signature ‖ text.
fn delegated(node: u8, signer: u8) -> Vec<u8> {
    let address = to_checksum(&wallet(STRANGER).address());
    let (_, text) = Delegation::draft(&Draft {
        namespace: delegation::Namespace::Eip155,
        address: &address,
        chain_id: "8453",
        domain: "127.0.0.1:5005",
        uri: "http://127.0.0.1:5005/",
        nonce: "0123456789abcdef",
        issued_ms: NOW,
        expires_ms: NOW + 86_400_000,
        node: peer(node),
        role: DelegatedRole::Buy,
        daily_cap: MicroUsd(5_000_000),
    })
    .unwrap();
    let signature = wallet(signer).sign_hash(&personal_hash(text.as_bytes()));
    [&signature[..], text.as_bytes()].concat()
}

fn check_delegation(bytes: &[u8], now_ms: u64, node: &PeerId) -> Result<(), String> {
    let (signature, text) = bytes.split_at_checked(65).ok_or("too short")?;
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
    delegation::verify(text, signature, now_ms, node)
        .map(|_| ())
        .map_err(|e| e.to_string())
}

fn check_head(bytes: &[u8]) -> Result<(), String> {
    let head = SignedHead::decode(&Bytes::copy_from_slice(bytes)).map_err(|e| e.to_string())?;
    head.verify().map_err(|e| e.to_string())
}

/// Every signed thing in its good form.
fn all() -> Vec<Signed> {
    let bytes = Bytes::copy_from_slice;
    let id = channel().credit_id();
    let open = Open::sign(channel().to_bytes(), 0, id, &identity(BUYER));
    vec![
        signed("offer", offer(SELLER, NET, NOW).bytes.to_vec(), move |b| {
            SignedOffer::decode_and_verify(&bytes(b), NET, NOW).map(|_| ())
        }),
        signed("terms", terms(SELLER).bytes.to_vec(), move |b| {
            SignedTerms::decode_and_verify(&bytes(b), &peer(SELLER)).map(|_| ())
        }),
        signed("head", head(BUYER, BUYER).bytes.to_vec(), check_head),
        signed("open", SessionMessage::Open(open).encode(), |b| {
            check_open(b, &peer(BUYER))
        }),
        signed(
            "voucher",
            voucher_message(id, 500, &wallet(BUYER + 10)),
            move |b| check_voucher(b, id, &wallet(BUYER + 10).address()),
        ),
        signed("accept", accept_message(BUYER), |b| {
            check_accept(b, &peer(BUYER))
        }),
        signed("receipt", receipt(SELLER, 1).bytes.to_vec(), move |b| {
            SignedReceipt::decode_and_verify(&bytes(b), &peer(SELLER)).map(|_| ())
        }),
        signed("delegation", delegated(BUYER, STRANGER), |b| {
            check_delegation(b, NOW, &peer(BUYER))
        }),
    ]
}

#[test]
fn everything_signed_is_good_as_it_was_signed() {
    for thing in all() {
        assert_eq!((thing.check)(&thing.bytes), Ok(()), "{}", thing.what);
    }
}

#[test]
fn no_flipped_bit_of_anything_signed_is_taken() {
    for thing in all() {
        let mut flipped = 0;
        for bit in 0..thing.bytes.len() * 8 {
            let mut bytes = thing.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!((thing.check)(&bytes).is_err(), "{}: bit {bit}", thing.what);
            flipped += 1;
        }
        println!("{}: {flipped} flipped bits refused", thing.what);
    }
}

#[test]
fn nothing_signed_is_taken_in_part_or_with_more() {
    for thing in all() {
        for length in 0..thing.bytes.len() {
            assert!(
                (thing.check)(&thing.bytes[..length]).is_err(),
                "{} {length}",
                thing.what
            );
        }
        let more = [&thing.bytes[..], &[0]].concat();
        assert!((thing.check)(&more).is_err(), "{}: a byte more", thing.what);
        let twice = [&thing.bytes[..], &thing.bytes[..]].concat();
        assert!((thing.check)(&twice).is_err(), "{}: twice", thing.what);
    }
}

/// The refusal must name the reason, so that none is refused by accident.
fn refused(what: &str, result: Result<(), String>, reason: &str) {
    let error = result.expect_err(what);
    assert!(
        error.contains(reason),
        "{what}: {error:?} does not say {reason:?}"
    );
}

fn as_text<T, E: ToString>(result: Result<T, E>) -> Result<(), String> {
    result.map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn what_somebody_else_signed_is_refused() {
    let id = channel().credit_id();
    let forged_offer = SignedOffer::sign(offer(SELLER, NET, NOW).offer, |message| {
        identity(STRANGER).sign(message)
    });
    let forged_terms = SignedTerms::sign(terms(SELLER).terms, &identity(STRANGER));
    let forged_receipt = SignedReceipt::sign(receipt(SELLER, 1).receipt, &identity(STRANGER));
    let forged_open = Open::sign(channel().to_bytes(), 0, id, &identity(STRANGER));
    let seller = peer(SELLER);
    let offer = as_text(SignedOffer::decode_and_verify(
        &forged_offer.unwrap().bytes,
        NET,
        NOW,
    ));
    refused("offer", offer, "signature");
    let terms = as_text(SignedTerms::decode_and_verify(&forged_terms.bytes, &seller));
    refused("terms", terms, "bad signature on terms");
    let forged_head = check_head(&head(BUYER, STRANGER).bytes);
    refused("head", forged_head, "bad signature on request head");
    let open = check_open(&SessionMessage::Open(forged_open).encode(), &peer(BUYER));
    refused("open", open, "bad signature on open");
    let bytes = voucher_message(id, 500, &wallet(STRANGER));
    let voucher = check_voucher(&bytes, id, &wallet(BUYER + 10).address());
    refused("voucher", voucher, "bad signature on voucher");
    let accept = check_accept(&accept_message(STRANGER), &peer(BUYER));
    refused("accept", accept, "bad signature on accept");
    let receipt = as_text(SignedReceipt::decode_and_verify(
        &forged_receipt.bytes,
        &seller,
    ));
    refused("receipt", receipt, "bad signature on receipt");
    let permission = check_delegation(&delegated(BUYER, BUYER), NOW, &peer(BUYER));
    refused("delegation", permission, "sign");
}

#[test]
fn what_was_signed_for_another_seller_channel_node_or_network_is_refused() {
    let elsewhere = ChannelDescriptor::credit(&party(BUYER), &party(STRANGER), 0).credit_id();
    let next_epoch = ChannelDescriptor::credit(&party(BUYER), &party(SELLER), 1).credit_id();
    let (id, key) = (channel().credit_id(), wallet(BUYER + 10));
    for other in [elsewhere, next_epoch] {
        assert_ne!(other, id);
        // The signature of another channel under this channel's name.
        let cumulative = MicroUsd(500);
        let signature: EvmSignature = Voucher {
            channel: other,
            cumulative,
        }
        .sign(VoucherDomain::Credit, &key);
        let moved = SessionMessage::Voucher {
            channel: id,
            cumulative,
            signature,
        }
        .encode();
        let result = check_voucher(&moved, id, &key.address());
        refused("voucher", result, "bad signature on voucher");
    }
    let result = as_text(SignedTerms::decode_and_verify(
        &terms(STRANGER).bytes,
        &peer(SELLER),
    ));
    refused("terms of another seller", result, "bad signature on terms");
    let other = receipt(STRANGER, 1).bytes;
    let result = as_text(SignedReceipt::decode_and_verify(&other, &peer(SELLER)));
    refused(
        "receipt of another seller",
        result,
        "bad signature on receipt",
    );
    let foreign = offer(SELLER, "elsewhere", NOW).bytes;
    let result = as_text(SignedOffer::decode_and_verify(&foreign, NET, NOW));
    refused("offer of another network", result, "network");
    let open = Open::sign(channel().to_bytes(), 0, id, &identity(BUYER));
    let result = check_open(&SessionMessage::Open(open).encode(), &peer(STRANGER));
    refused("another peer's OPEN", result, "bad signature on open");
    let result = check_accept(&accept_message(BUYER), &peer(STRANGER));
    refused("another peer's ACCEPT", result, "bad signature on accept");
    let result = check_delegation(&delegated(BUYER, STRANGER), NOW, &peer(STRANGER));
    refused("another node's delegation", result, "node");
}

#[test]
fn one_signature_does_not_pass_for_another_kind_of_message() {
    let things = all();
    for from in &things {
        for to in &things {
            if from.what == to.what {
                continue;
            }
            assert!(
                (to.check)(&from.bytes).is_err(),
                "{} as {}",
                from.what,
                to.what
            );
            // The signature alone, in front of the other's content.
            if from.bytes.len() >= 64 && to.bytes.len() > 64 {
                let grafted = [&from.bytes[..64], &to.bytes[64..]].concat();
                assert!(
                    (to.check)(&grafted).is_err(),
                    "{} on {}",
                    from.what,
                    to.what
                );
            }
        }
    }
}

#[test]
fn what_is_too_early_or_too_late_is_refused() {
    let minute = 60_000;
    let early = offer(SELLER, NET, NOW + 3 * minute).bytes;
    let result = as_text(SignedOffer::decode_and_verify(&early, NET, NOW));
    assert!(result.is_err(), "an offer of the future: {result:?}");
    let late = offer(SELLER, NET, NOW).bytes;
    let result = as_text(SignedOffer::decode_and_verify(
        &late,
        NET,
        NOW + 53 * minute,
    ));
    assert!(result.is_err(), "an offer that is over: {result:?}");
    let permission = delegated(BUYER, STRANGER);
    for (now_ms, when) in [(NOW + 86_400_001, "late"), (NOW - 10 * minute, "early")] {
        let result = check_delegation(&permission, now_ms, &peer(BUYER));
        assert!(result.is_err(), "a delegation too {when}: {result:?}");
    }
}
