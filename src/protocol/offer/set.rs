//! A set of signed offers as one DHT value or catalogue answer: a small header, then length-prefixed offers.
//!
//! `version u8 ‖ count u32 ‖ cap u32 ‖ shards u16 ‖ (length u16 ‖ offer)*`, big endian. The reader is total:
//! any bytes decode to some set or to `None`, and a cut-off tail loses only itself.

use bytes::Bytes;

use super::OFFER_BYTES_MAX;

/// Longest set in a DHT reply, in bytes: below kad's 64 KiB packet with room for closer peers.
pub const SET_BYTES_MAX: usize = 48 * 1024;
/// Shorter than any signed offer: keeps a hostile set from holding thousands of scraps.
const OFFER_BYTES_MIN: usize = 128;
/// Version of this framing.
const SET_VERSION: u8 = 1;
/// Length of the header.
const HEADER_BYTES: usize = 11;

/// What a holder says about a key besides the offers it picked for the reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetHeader {
    /// Offers it holds under the key.
    pub count: u32,
    /// Offers it would hold at most.
    pub cap: u32,
    /// Further shards to look at when full.
    pub shards: u16,
}

impl SetHeader {
    /// True when the key is full, so that sellers and buyers use the further shards as well.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.cap > 0 && self.count >= self.cap
    }
}

/// A decoded set: the header and the raw offers, unchecked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfferSet {
    /// What the holder says.
    pub header: SetHeader,
    /// Raw offers; each must still be verified.
    pub offers: Vec<Bytes>,
}

/// Writes a set; offers that no longer fit into `bytes_max` are left out.
#[must_use]
pub fn encode_set<'a>(
    header: SetHeader,
    offers: impl IntoIterator<Item = &'a Bytes>,
    bytes_max: usize,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.push(SET_VERSION);
    out.extend_from_slice(&header.count.to_be_bytes());
    out.extend_from_slice(&header.cap.to_be_bytes());
    out.extend_from_slice(&header.shards.to_be_bytes());
    for offer in offers {
        let Ok(length) = u16::try_from(offer.len()) else {
            continue;
        };
        if offer.len() > OFFER_BYTES_MAX || out.len() + 2 + offer.len() > bytes_max {
            continue;
        }
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(offer);
    }
    out
}

/// Reads a set; `None` when it has no header of a known version.
#[must_use]
pub fn decode_set(bytes: &[u8]) -> Option<OfferSet> {
    let (version, rest) = bytes.split_first()?;
    if *version != SET_VERSION {
        return None;
    }
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let (cap, rest) = rest.split_first_chunk::<4>()?;
    let (shards, mut rest) = rest.split_first_chunk::<2>()?;
    let mut set = OfferSet {
        header: SetHeader {
            count: u32::from_be_bytes(*count),
            cap: u32::from_be_bytes(*cap),
            shards: u16::from_be_bytes(*shards),
        },
        offers: Vec::new(),
    };
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        if !(OFFER_BYTES_MIN..=OFFER_BYTES_MAX).contains(&length) {
            break;
        }
        let Some((offer, tail)) = tail.split_at_checked(length) else {
            break;
        };
        set.offers.push(Bytes::copy_from_slice(offer));
        rest = tail;
    }
    Some(set)
}
