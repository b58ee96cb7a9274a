//! Which addresses a peer was last seen at, and when we were last connected to it.
//!
//! Shared by the handle (offers bring addresses, the caller saves the list) and the runner (identify, connections).
//! Invariants: at most [`PEERS_REMEMBERED_MAX`] peers, [`ADDRESSES_PER_PEER_MAX`] addresses each, least recently
//! used forgotten first.

use std::num::NonZeroUsize;

use libp2p::{Multiaddr, PeerId};
use lru::LruCache;
use parking_lot::Mutex;

use super::address::split_peer;
use super::limits::{ADDRESSES_PER_PEER_MAX, PEERS_REMEMBERED_MAX};
use crate::types::UnixMs;

/// Peers in an export: enough to find the network again.
const EXPORT_MAX: usize = 256;

#[derive(Clone, Default)]
struct Known {
    addresses: Vec<Multiaddr>,
    last_ok: UnixMs,
}

/// The book.
pub(super) struct AddressBook {
    peers: Mutex<LruCache<PeerId, Known>>,
}

impl Default for AddressBook {
    fn default() -> Self {
        let size = NonZeroUsize::new(PEERS_REMEMBERED_MAX).unwrap_or(NonZeroUsize::MIN);
        Self {
            peers: Mutex::new(LruCache::new(size)),
        }
    }
}

impl AddressBook {
    /// Adds addresses, newest first; the oldest beyond the cap are forgotten.
    pub(super) fn learn(&self, peer: &PeerId, addresses: impl IntoIterator<Item = Multiaddr>) {
        let mut peers = self.peers.lock();
        let known = peers.get_or_insert_mut(*peer, Known::default);
        for address in addresses.into_iter().take(ADDRESSES_PER_PEER_MAX) {
            let (bare, owner) = split_peer(address);
            if owner.is_some_and(|owner| owner != *peer) {
                continue;
            }
            known.addresses.retain(|a| *a != bare);
            known.addresses.insert(0, bare);
        }
        known.addresses.truncate(ADDRESSES_PER_PEER_MAX);
    }
    /// Notes a working connection.
    pub(super) fn connected(&self, peer: &PeerId, now: UnixMs) {
        self.peers
            .lock()
            .get_or_insert_mut(*peer, Known::default)
            .last_ok = now;
    }
    /// The addresses of a peer.
    pub(super) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.peers
            .lock()
            .get(peer)
            .map(|k| k.addresses.clone())
            .unwrap_or_default()
    }
    /// Peers that worked, the latest first.
    pub(super) fn export(&self) -> Vec<(PeerId, Vec<String>)> {
        let peers = self.peers.lock();
        let mut list: Vec<_> = peers
            .iter()
            .filter(|(_, k)| k.last_ok > 0 && !k.addresses.is_empty())
            .collect();
        list.sort_by_key(|(_, k)| std::cmp::Reverse(k.last_ok));
        list.into_iter()
            .take(EXPORT_MAX)
            .map(|(p, k)| (*p, k.addresses.iter().map(ToString::to_string).collect()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_keeps_the_latest_addresses_and_exports_peers_that_worked() {
        let book = AddressBook::default();
        let (a, b) = (PeerId::random(), PeerId::random());
        for port in 0..20 {
            book.learn(&a, [format!("/ip4/1.2.3.4/tcp/{port}").parse().unwrap()]);
        }
        book.learn(
            &a,
            [format!("/ip4/1.2.3.4/tcp/99/p2p/{b}").parse().unwrap()],
        );
        assert_eq!(book.addresses(&a).len(), ADDRESSES_PER_PEER_MAX);
        assert_eq!(book.addresses(&a)[0].to_string(), "/ip4/1.2.3.4/tcp/19");
        assert!(book.export().is_empty());
        book.connected(&a, 5);
        assert_eq!(book.export()[0].0, a);
    }
}
