//! Each way a head can be wrong has its own code, and nothing wrong passes.

use super::*;
use crate::keys::Identity;
use crate::llm_api::Dialect;
use crate::protocol::RequestHead;
use crate::seller::catalogue::{ModelForSale, OfferFrame};
use crate::types::{ChannelId, Hash32, MicroUsd, ModelId, PriceTable, RequestId};

const NOW: UnixMs = 1_800_000_000_000;

const FIRST_LIFE: Lives = Lives {
    started_ms: NOW - 1_000,
    last_admission_ms: None,
};

struct World {
    gate: Gate,
    buyer: Identity,
    seller: Identity,
    catalogue: Arc<Catalogue>,
    offer: Hash32,
}

fn world() -> World {
    let (buyer, seller) = (Identity::generate(), Identity::generate());
    let catalogue = Arc::new(Catalogue::new(seller.clone()));
    let offers = catalogue.publish(&[model("m")], &frame(), NOW);
    let me = seller.peer_id();
    let policy = BuyerPolicy::default();
    let gate = Gate::new(
        me,
        "net".into(),
        Lives {
            started_ms: NOW - 1_000,
            last_admission_ms: Some(NOW - 2_000),
        },
        policy,
        Arc::clone(&catalogue),
    );
    World {
        gate,
        buyer,
        seller,
        catalogue,
        offer: offers[0].hash,
    }
}

fn model(id: &str) -> ModelForSale {
    ModelForSale {
        id: ModelId::new(id),
        upstream_id: id.into(),
        price: PriceTable {
            input: 1,
            cache_read: 1,
            cache_write: 1,
            output: 1,
        },
        list: None,
        context: 0,
        max_output: 0,
        can: crate::protocol::offer::Capabilities::TOOLS,
        stage: None,
    }
}

fn frame() -> OfferFrame {
    OfferFrame {
        network: "net".into(),
        dialect: Dialect::Chat,
        completions: true,
        reasoning_cap: 0,
        terms_hash: Hash32::default(),
        free: false,
        addrs: Vec::new(),
    }
}

impl World {
    fn head(&self, counter: u64) -> RequestHead {
        let mut nonce = [1; 16];
        nonce[8..].copy_from_slice(&counter.to_be_bytes());
        RequestHead {
            version: WIRE_VERSION,
            network: "net".into(),
            request_id: RequestId([2; 16]),
            attempt: 1,
            seller: self.seller.peer_id(),
            buyer: self.buyer.peer_id(),
            path: "/v1/chat/completions".into(),
            model: "m".into(),
            stream: true,
            headers: Vec::new(),
            body_sha256: Hash32::default(),
            body_len: 0,
            offer_hash: self.offer,
            max_cost: MicroUsd(1),
            channel: ChannelId::default(),
            cumulative_required: MicroUsd::ZERO,
            nonce,
            iat_ms: NOW,
            exp_ms: NOW + 55_000,
            delegation: None,
        }
    }
    fn check(&self, head: RequestHead, now_ms: UnixMs) -> Result<(), PeerErrorCode> {
        let signed = SignedHead::sign(head, &self.buyer);
        self.gate
            .check(&signed.bytes, &self.buyer.peer_id(), now_ms)
            .map(|_| ())
    }
    fn code(&self, change: impl FnOnce(&mut RequestHead)) -> PeerErrorCode {
        let mut head = self.head(1);
        change(&mut head);
        self.check(head, NOW).expect_err("must be refused")
    }
}

#[test]
fn a_good_head_passes_once_and_its_replay_is_refused() {
    let world = world();
    assert_eq!(world.check(world.head(1), NOW), Ok(()));
    assert_eq!(
        world.check(world.head(1), NOW),
        Err(PeerErrorCode::Replayed)
    );
    assert_eq!(world.check(world.head(2), NOW), Ok(()));
}

/// Puts one thing wrong in a head; the peer is a stranger.
type Change = fn(&mut RequestHead, PeerId);

#[test]
fn each_wrong_field_has_its_own_code() {
    let stranger = PeerId::random();
    let cases: [(PeerErrorCode, Change); 9] = [
        (PeerErrorCode::WrongNetwork, |h, _| h.version = 9),
        (PeerErrorCode::WrongNetwork, |h, _| {
            h.network = "other".into()
        }),
        (PeerErrorCode::WrongBuyer, |h, p| h.buyer = p),
        (PeerErrorCode::WrongSeller, |h, p| h.seller = p),
        (PeerErrorCode::ClockSkew, |h, _| h.iat_ms = NOW + 61_000),
        (PeerErrorCode::ClockSkew, |h, _| {
            h.exp_ms = h.iat_ms + 60_001
        }),
        (PeerErrorCode::Stale, |h, _| h.iat_ms = NOW - 2_000),
        (PeerErrorCode::UnknownOffer, |h, _| {
            h.offer_hash = Hash32([9; 32])
        }),
        (PeerErrorCode::UnknownOffer, |h, _| h.model = "other".into()),
    ];
    for (code, change) in cases {
        assert_eq!(world().code(|head| change(head, stranger)), code);
    }
}

#[test]
fn a_late_head_is_refused() {
    let world = world();
    assert_eq!(
        world.check(world.head(1), NOW + 55_001),
        Err(PeerErrorCode::ClockSkew)
    );
}

#[test]
fn no_altered_byte_passes() {
    let world = world();
    let good = SignedHead::sign(world.head(1), &world.buyer).bytes;
    for at in 0..good.len() {
        let mut altered = good.to_vec();
        altered[at] ^= 1;
        let refused = world
            .gate
            .check(&altered.into(), &world.buyer.peer_id(), NOW);
        assert!(refused.is_err(), "byte {at}");
    }
}

#[test]
fn another_peer_cannot_use_a_head_and_a_changed_head_has_a_bad_signature() {
    let world = world();
    let signed = SignedHead::sign(world.head(1), &world.buyer);
    let other = world
        .gate
        .check(&signed.bytes, &PeerId::random(), NOW)
        .map(|_| ());
    assert_eq!(other, Err(PeerErrorCode::WrongBuyer));
    let forged = SignedHead::sign(world.head(1), &Identity::generate());
    let forged = world
        .gate
        .check(&forged.bytes, &world.buyer.peer_id(), NOW)
        .map(|_| ());
    assert_eq!(forged, Err(PeerErrorCode::BadSignature));
}

#[test]
fn a_withdrawn_model_is_named_and_an_old_price_is_honoured() {
    let world = world();
    let mut dearer = model("m");
    dearer.price.output = 5;
    world.catalogue.publish(&[dearer], &frame(), NOW + 1);
    assert_eq!(world.check(world.head(1), NOW + 2), Ok(()));
    world.catalogue.publish(&[model("n")], &frame(), NOW + 3);
    assert_eq!(
        world.check(world.head(2), NOW + 4),
        Err(PeerErrorCode::OfferWithdrawn)
    );
}

#[test]
fn denied_buyers_and_those_off_the_list_are_refused() {
    let world = world();
    for policy in [
        BuyerPolicy {
            allow: vec![PeerId::random()],
            deny: vec![],
        },
        BuyerPolicy {
            allow: vec![],
            deny: vec![world.buyer.peer_id()],
        },
    ] {
        let catalogue = Arc::clone(&world.catalogue);
        let gate = Gate::new(
            world.seller.peer_id(),
            "net".into(),
            FIRST_LIFE,
            policy,
            catalogue,
        );
        let signed = SignedHead::sign(world.head(1), &world.buyer);
        let refused = gate
            .check(&signed.bytes, &world.buyer.peer_id(), NOW)
            .map(|_| ());
        assert_eq!(refused, Err(PeerErrorCode::NotAllowed));
    }
}

#[test]
fn regression_a_head_dated_ahead_is_looked_up_after_a_restart() {
    let world = world();
    let last = NOW - 2_000;
    let mut head = world.head(1);
    for (iat_ms, looked_up) in [
        (last, true),
        (last + CLOCK_TOLERANCE_MS, true),
        (last + CLOCK_TOLERANCE_MS + 1, false),
    ] {
        head.iat_ms = iat_ms;
        assert_eq!(world.gate.may_be_of_an_earlier_life(&head), looked_up);
    }
}

#[test]
fn a_first_life_looks_nothing_up() {
    let world = world();
    let gate = Gate::new(
        world.seller.peer_id(),
        "net".into(),
        FIRST_LIFE,
        BuyerPolicy::default(),
        Arc::clone(&world.catalogue),
    );
    assert!(!gate.may_be_of_an_earlier_life(&world.head(1)));
}
