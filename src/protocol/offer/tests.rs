//! What an offer promises about itself.
use super::*;
use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;

pub(crate) const NET: &str = "souk-test";
pub(crate) const NOW: u64 = 1_800_000_000_000;

pub(crate) fn seller(seed: u64) -> (SigningKey, PeerId) {
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let key = SigningKey::from_bytes(&bytes);
    let public =
        libp2p::identity::ed25519::PublicKey::try_from_bytes(key.verifying_key().as_bytes())
            .unwrap();
    let peer = libp2p::identity::PublicKey::from(public).to_peer_id();
    (key, peer)
}

pub(crate) fn offer(seed: u64, model: &str, seq: u64) -> Offer {
    let mut offer = Offer::new(NET, seller(seed).1, ModelId::new(model), seq);
    offer.price.output = 1_000_000;
    offer
}

pub(crate) fn signed(seed: u64, offer: Offer) -> SignedOffer {
    SignedOffer::sign(offer, |m| seller(seed).0.sign(m).to_bytes()).unwrap()
}

#[test]
fn a_signed_offer_round_trips_and_is_small() {
    let mut full = offer(1, "llama-3.1:8b", NOW);
    full.addrs = vec![vec![4; 20]; 4];
    let made = signed(1, full);
    assert!(made.bytes.len() <= 330, "{}", made.bytes.len());
    let read = SignedOffer::decode_and_verify(&made.bytes, NET, NOW).unwrap();
    assert_eq!(read, made);
    assert!(read.offer.is_live(NOW));
}

#[test]
fn each_wrong_part_is_refused_by_name() {
    let check = |o: Offer, now: u64| SignedOffer::decode_and_verify(&signed(1, o).bytes, NET, now);
    let good = offer(1, "m", NOW);
    assert!(check(good.clone(), NOW).is_ok());
    let other = Offer {
        network: "souk-1".into(),
        ..good.clone()
    };
    assert_eq!(check(other, NOW), Err(OfferError::OtherNetwork));
    let dear = Offer {
        price: PriceTable {
            input: PRICE_MAX + 1,
            ..good.price
        },
        ..good.clone()
    };
    assert_eq!(check(dear, NOW), Err(OfferError::Price));
    let old = Offer {
        version: 1,
        ..good.clone()
    };
    assert_eq!(check(old, NOW), Err(OfferError::Version(1)));
    let long = Offer {
        not_after: NOW + LIFETIME_MS_MAX + 1,
        ..good.clone()
    };
    assert_eq!(check(long, NOW), Err(OfferError::Times));
    assert_eq!(
        check(good.clone(), NOW - CLOCK_SKEW_MS - 1),
        Err(OfferError::Times)
    );
    assert_eq!(
        check(good.clone(), NOW + LIFETIME_MS_MAX + CLOCK_SKEW_MS),
        Err(OfferError::Expired)
    );
    let empty = Offer {
        model: ModelId::new(""),
        ..good
    };
    assert_eq!(check(empty, NOW), Err(OfferError::ModelName));
}

pub(crate) fn stage(seed: u64, manifest: u8, layers: std::ops::Range<u16>) -> Offer {
    let manifest = Hash32([manifest; 32]);
    let mut offer = offer(seed, stage_model(&manifest).as_str(), NOW);
    offer.caps = Capabilities::PIPELINE;
    offer.stage = Some(StageTerms {
        manifest,
        first: layers.start,
        end: layers.end,
        layers: 80,
        free_positions: 8_192,
        rows_per_s: 20,
        wires: Wires::F16.union(Wires::F32),
    });
    offer
}

#[test]
fn a_stage_has_a_name_of_its_own_and_possible_layers() {
    let check = |o: Offer| SignedOffer::decode_and_verify(&signed(1, o).bytes, NET, NOW);
    let good = stage(1, 7, 10..20);
    assert_eq!(good.model.as_str(), format!("stage/{}", "07".repeat(16)));
    let mut full = good.clone();
    full.addrs = vec![vec![4; 20]; 4];
    let made = signed(1, full);
    assert!(made.bytes.len() <= 400, "{}", made.bytes.len());
    assert!(SignedOffer::decode_and_verify(&made.bytes, NET, NOW).is_ok());

    let terms = good.stage.unwrap();
    let with = |terms: StageTerms| Offer {
        stage: Some(terms),
        ..good.clone()
    };
    let wires = |wires: u8| StageTerms {
        wires: Wires(wires),
        ..terms
    };
    let wrong = [
        with(StageTerms { first: 20, ..terms }),
        with(StageTerms { end: 81, ..terms }),
        with(StageTerms {
            layers: LAYERS_MAX + 1,
            ..terms
        }),
        with(StageTerms {
            manifest: Hash32([8; 32]),
            ..terms
        }),
        with(wires(0)),
        with(wires(0b1001)),
        Offer {
            stage: None,
            ..good.clone()
        },
        Offer {
            model: ModelId::new("m"),
            ..good.clone()
        },
        Offer {
            caps: Capabilities::PIPELINE.union(Capabilities::DIALECT_CHAT),
            ..good.clone()
        },
        Offer {
            stage: None,
            caps: Capabilities::DIALECT_CHAT,
            ..good.clone()
        },
    ];
    for (at, offer) in wrong.into_iter().enumerate() {
        assert_eq!(check(offer), Err(OfferError::Stage), "case {at}");
    }
    assert!(is_stage_model(&good.model) && !is_stage_model(&ModelId::new("stage/door")));
}

#[test]
fn a_foreign_signature_is_refused() {
    let made = SignedOffer::sign(offer(1, "m", NOW), |m| seller(2).0.sign(m).to_bytes()).unwrap();
    assert_eq!(
        SignedOffer::decode_and_verify(&made.bytes, NET, NOW),
        Err(OfferError::Signature)
    );
}

#[test]
fn a_tombstone_is_valid_for_an_hour_but_never_live() {
    let grave = signed(1, offer(1, "m", NOW).tombstone(NOW));
    let later = NOW + LIFETIME_MS_MAX - 1;
    let read = SignedOffer::decode_and_verify(&grave.bytes, NET, later).unwrap();
    assert!(read.offer.is_tombstone() && read.offer.is_kept(later) && !read.offer.is_live(NOW));
    assert!(read.offer.seq > NOW);
}

#[test]
fn an_offer_belongs_under_its_own_keys_only() {
    let made = signed(1, offer(1, "m", NOW));
    let model = ModelId::new("m");
    let under =
        |key: OfferKey| SignedOffer::decode_under(&made.bytes, Some(&key), NET, NOW).is_ok();
    assert!(under(model_key(NET, &model, 0)));
    assert!(under(catalogue_key(NET, &model)));
    assert!(under(model_key(
        NET,
        &model,
        extra_shard(&made.offer.seller)
    )));
    assert!(!under(model_key(NET, &ModelId::new("n"), 0)));
    assert_eq!(model_keys(NET, &model).filter(|k| under(*k)).count(), 2);
    assert_eq!(catalogue_keys(NET).filter(|k| under(*k)).count(), 1);
}

#[test]
fn a_set_keeps_what_fits_and_its_header() {
    let offers: Vec<Bytes> = (0..300)
        .map(|i| signed(i, offer(i, "m", NOW)).bytes)
        .collect();
    let header = SetHeader {
        count: 300,
        cap: 512,
        shards: 16,
    };
    let bytes = encode_set(header, &offers, SET_BYTES_MAX);
    assert!(bytes.len() <= SET_BYTES_MAX);
    let set = decode_set(&bytes).unwrap();
    assert_eq!(set.header, header);
    assert!(set.offers.len() > 150 && set.offers.iter().all(|o| offers.contains(o)));
}

proptest! {
    #[test]
    fn noise_never_panics_and_never_verifies(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(SignedOffer::decode_and_verify(&bytes, NET, NOW).is_err());
        let _ = decode_set(&bytes);
    }
    #[test]
    fn a_changed_byte_is_refused(at in 0usize..10_000, bit in 0u8..8) {
        let made = signed(1, offer(1, "m", NOW));
        let mut bytes = made.bytes.to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(SignedOffer::decode_and_verify(&bytes, NET, NOW).is_err());
    }
    #[test]
    fn a_set_of_noise_decodes_to_bounded_offers(mut bytes in proptest::collection::vec(any::<u8>(), 11..2_000)) {
        bytes[0] = 1;
        let set = decode_set(&bytes).unwrap();
        prop_assert!(set.offers.iter().all(|o| o.len() <= OFFER_BYTES_MAX));
    }
}
