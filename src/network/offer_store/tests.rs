//! What the merging store promises.
use super::*;
use crate::protocol::offer::tests::{NET, NOW, offer, signed};
use crate::protocol::offer::{catalogue_key, model_key};
use crate::types::ManualClock;
use proptest::prelude::*;

fn store(limits: StoreLimits) -> (OfferStore, ManualClock) {
    let clock = ManualClock::new(NOW);
    let store = OfferStore::new(NET, PeerId::random(), Arc::new(clock.clone()), limits);
    (store, clock)
}

fn small(offers_per_key: usize) -> StoreLimits {
    StoreLimits {
        offers_per_key,
        ..StoreLimits::default()
    }
}

fn read(store: &OfferStore, key: &OfferKey) -> crate::protocol::offer::OfferSet {
    let record = RecordStore::get(store, &RecordKey::new(key));
    record
        .map(|r| decode_set(&r.value).unwrap())
        .unwrap_or_default()
}

fn key(model: &str) -> OfferKey {
    model_key(NET, &ModelId::new(model), 0)
}

#[test]
fn many_sellers_share_one_key() {
    let (mut store, _) = store(StoreLimits::default());
    for seed in 0..100 {
        let made = signed(seed, offer(seed, "m", NOW));
        assert_eq!(
            store.merge(&key("m"), &made.bytes, None),
            Ok(Merged::Stored)
        );
        assert_eq!(store.merge(&key("m"), &made.bytes, None), Ok(Merged::Older));
    }
    let set = read(&store, &key("m"));
    assert_eq!((set.offers.len(), set.header.count), (100, 100));
    assert!(!set.header.is_full());
}

#[test]
fn only_a_higher_seq_replaces_an_offer() {
    let (mut store, _) = store(StoreLimits::default());
    let old = signed(1, offer(1, "m", NOW - 5));
    let new = signed(1, offer(1, "m", NOW));
    store.merge(&key("m"), &new.bytes, None).unwrap();
    assert_eq!(store.merge(&key("m"), &old.bytes, None), Ok(Merged::Older));
    assert_eq!(read(&store, &key("m")).offers, vec![new.bytes]);
}

#[test]
fn a_tombstone_replaces_the_offer_and_is_returned_for_an_hour() {
    let (mut store, clock) = store(StoreLimits::default());
    let made = offer(1, "m", NOW - 1);
    store
        .merge(&key("m"), &signed(1, made.clone()).bytes, None)
        .unwrap();
    let grave = signed(1, made.tombstone(NOW));
    store.merge(&key("m"), &grave.bytes, None).unwrap();
    let set = read(&store, &key("m"));
    assert_eq!((set.offers, set.header.count), (vec![grave.bytes], 0));
    clock.advance(crate::protocol::offer::LIFETIME_MS_MAX);
    store.sweep();
    assert_eq!(store.usage(), (0, 0));
}

#[test]
fn offers_under_a_foreign_key_or_unsigned_are_refused() {
    let (mut store, _) = store(StoreLimits::default());
    let made = signed(1, offer(1, "m", NOW));
    assert_eq!(
        store.merge(&key("n"), &made.bytes, None),
        Err(OfferError::WrongKey)
    );
    let mut broken = made.bytes.to_vec();
    *broken.last_mut().unwrap() ^= 1;
    assert_eq!(
        store.merge(&key("m"), &broken, None),
        Err(OfferError::Signature)
    );
    assert_eq!(store.usage().0, 0);
}

#[test]
fn a_full_key_evicts_the_crowded_network_and_spares_the_honest_seller() {
    let limits = StoreLimits {
        offers_per_group: 4,
        ..small(32)
    };
    let (mut store, _) = store(limits);
    let honest = signed(9_999, offer(9_999, "m", NOW));
    store
        .merge(&key("m"), &honest.bytes, Some(Group::V4([1, 1, 1])))
        .unwrap();
    for seed in 0..200 {
        let mut free = offer(seed, "m", NOW);
        free.price = crate::types::PriceTable::default();
        let raw = signed(seed, free).bytes;
        store
            .merge(&key("m"), &raw, Some(Group::V4([6, 6, 6])))
            .unwrap();
    }
    let set = read(&store, &key("m"));
    assert_eq!(set.offers.len(), 32);
    assert!(set.header.is_full());
    assert!(set.offers.contains(&honest.bytes));
}

#[test]
fn eviction_by_chance_never_looks_at_the_price() {
    let mut dear_kept = 0;
    for round in 0..40u64 {
        let (mut store, _) = store(small(10));
        for seed in 0..20 {
            let mut made = offer(round * 100 + seed, "m", NOW);
            made.price.output = if seed % 2 == 0 { 0 } else { 1_000_000_000 };
            let raw = signed(round * 100 + seed, made).bytes;
            store.merge(&key("m"), &raw, None).unwrap();
        }
        dear_kept += store.keys[&key("m")]
            .entries
            .values()
            .filter(|e| e.price > 0)
            .count();
    }
    assert!((140..260).contains(&dear_kept), "{dear_kept} of 400");
}

#[test]
fn a_long_reply_is_a_mix_of_cheap_old_and_random_offers() {
    let (mut store, clock) = store(StoreLimits::default());
    for seed in 0..400 {
        let mut made = offer(seed, "m", NOW);
        made.price.output = 1_000 + seed;
        made.quantisation = "0123456789abcdef".into();
        made.addrs = vec![vec![1; 24]; 4];
        store
            .merge(&key("m"), &signed(seed, made).bytes, None)
            .unwrap();
        clock.advance(1);
    }
    let record = RecordStore::get(&store, &RecordKey::new(&key("m"))).unwrap();
    assert!(record.value.len() <= SET_BYTES_MAX);
    let set = decode_set(&record.value).unwrap();
    assert_eq!(set.header.count, 400);
    let mut distinct = std::collections::HashSet::new();
    for _ in 0..40 {
        distinct.extend(read(&store, &key("m")).offers);
    }
    assert!(distinct.len() > 390, "{}", distinct.len());
}

#[test]
fn keys_and_bytes_stay_under_their_caps() {
    let limits = StoreLimits {
        keys: 20,
        bytes: 30_000,
        ..small(8)
    };
    let (mut store, _) = store(limits);
    for seed in 0..300u64 {
        let model = format!("m{}", seed % 60);
        let raw = signed(seed, offer(seed, &model, NOW)).bytes;
        store.merge(&key(&model), &raw, None).unwrap();
        let id = ModelId::new(&model);
        store.merge(&catalogue_key(NET, &id), &raw, None).unwrap();
        assert!(store.keys.len() <= 20 && store.bytes <= 30_000);
        assert_eq!(store.keys.len(), store.slots.len());
        for (slot, k) in store.slots.iter().enumerate() {
            assert_eq!(store.keys[k].slot, slot);
        }
    }
    let held: usize = store
        .keys
        .values()
        .flat_map(|s| s.entries.values())
        .map(Entry::cost)
        .sum();
    assert_eq!(held, store.bytes);
    assert!(!store.catalogue(10_000).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn noise_is_never_stored(k in proptest::collection::vec(any::<u8>(), 0..40), v in proptest::collection::vec(any::<u8>(), 0..900)) {
        let (mut store, _) = store(StoreLimits::default());
        prop_assert!(store.merge(&k, &v, None).is_err());
        prop_assert_eq!(store.merge_set(&k, &v, None), 0);
        prop_assert_eq!(store.usage(), (0, 0));
    }
    #[test]
    fn any_order_of_merges_ends_in_the_same_newest_set(order in Just((0..24usize).collect::<Vec<_>>()).prop_shuffle()) {
        let (mut store, _) = store(StoreLimits::default());
        let all: Vec<_> = (0..24u64).map(|i| signed(i % 6, offer(i % 6, "m", NOW - 100 + i))).collect();
        for i in order {
            store.merge(&key("m"), &all[i].bytes, None).unwrap();
        }
        let mut got = read(&store, &key("m")).offers;
        let mut want: Vec<_> = all[18..].iter().map(|o| o.bytes.clone()).collect();
        got.sort();
        want.sort();
        prop_assert_eq!(got, want);
    }
}
