//! Addresses: which ones count, and to which network they belong.
//!
//! Private and loopback addresses count only when all our own listen or bootstrap addresses are private, or when
//! they were given to us directly (bootstrap, mdns, the caller). Otherwise strangers could make this node dial
//! into its owner's network. [`Guarded`] enforces that in the transport, below name resolution.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, Transport};
use parking_lot::Mutex;

/// Private addresses that were given to us directly; more are not remembered.
const TRUSTED_MAX: usize = 1_024;

/// A public /24 (IPv4) or /48 (IPv6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// The first three bytes of an IPv4 address.
    V4([u8; 3]),
    /// The first three groups of an IPv6 address.
    V6([u16; 3]),
}

/// The IP address a multiaddr begins with.
pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)),
        _ => None,
    }
}

/// The public network of an address; `None` for private, loopback and unresolved ones.
pub(crate) fn group_of(address: &Multiaddr) -> Option<Group> {
    let ip = ip_of(address)?;
    if is_private_ip(&ip) {
        return None;
    }
    Some(match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            Group::V4([a, b, c])
        }
        IpAddr::V6(ip) => {
            let [a, b, c, ..] = ip.segments();
            Group::V6([a, b, c])
        }
    })
}

fn is_private_v4(ip: &Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_unspecified()
        || ip.is_broadcast()
        || ip.is_multicast()
        || ip.is_documentation()
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
}

fn is_private_v6(ip: &Ipv6Addr) -> bool {
    ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_unique_local()
        || ip.is_unicast_link_local()
}

/// True for addresses that mean something only near their machine.
pub(crate) fn is_private_ip(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_private_v4(ip),
        IpAddr::V6(ip) => is_private_v6(ip),
    }
}

/// True for private IPs and for names of this machine or its network (`localhost`, one label).
pub(crate) fn is_private(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => {
            !name.contains('.') || name.ends_with(".localhost") || name.ends_with(".local")
        }
        Some(Protocol::Memory(_)) => true,
        _ => ip_of(address).is_some_and(|ip| is_private_ip(&ip)),
    }
}

/// True for loopback addresses.
pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_loopback())
}

/// True for `0.0.0.0` and `::`.
pub(crate) fn is_unspecified(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_unspecified())
}

/// Splits a trailing `/p2p/<peer>` off.
pub(crate) fn split_peer(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    match address.pop() {
        Some(Protocol::P2p(peer)) => (address, Some(peer)),
        Some(other) => {
            address.push(other);
            (address, None)
        }
        None => (address, None),
    }
}

/// Which addresses this node dials and passes on. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy(Arc<PolicyInner>);

#[derive(Debug, Default)]
struct PolicyInner {
    private_allowed: AtomicBool,
    trusted: Mutex<HashSet<Multiaddr>>,
}

impl Policy {
    /// From our own listen, external and bootstrap addresses. Without bootstrap addresses the network is whatever is
    /// near, unless we have a public address ourselves.
    pub(crate) fn new(
        listen: &[Multiaddr],
        external: &[Multiaddr],
        bootstrap: &[Multiaddr],
    ) -> Self {
        let policy = Self::default();
        let listens_private =
            !listen.is_empty() && listen.iter().all(|a| is_private(a) && !is_unspecified(a));
        let is_public = listen.iter().chain(external).any(|a| !is_private(a));
        let private = !is_public && (listens_private || bootstrap.iter().all(is_private));
        policy.0.private_allowed.store(private, Ordering::Relaxed);
        for address in bootstrap {
            policy.trust(address);
        }
        policy
    }
    /// True when the whole network is private.
    pub(crate) fn private_allowed(&self) -> bool {
        self.0.private_allowed.load(Ordering::Relaxed)
    }
    /// Remembers an address that was given to us directly.
    pub(crate) fn trust(&self, address: &Multiaddr) {
        let (bare, _) = split_peer(address.clone());
        let mut trusted = self.0.trusted.lock();
        if trusted.len() < TRUSTED_MAX {
            trusted.insert(bare);
        }
    }
    /// True when the address may be dialled and passed on.
    pub(crate) fn allows(&self, address: &Multiaddr) -> bool {
        if is_unspecified(address) {
            return false;
        }
        if !is_private(address) || self.private_allowed() {
            return true;
        }
        let (bare, _) = split_peer(address.clone());
        self.0.trusted.lock().contains(&bare)
    }
}

/// A transport that dials only what the policy allows.
pub(super) struct Guarded<T> {
    pub(super) inner: T,
    pub(super) policy: Policy,
}

impl<T: Transport + Unpin> Transport for Guarded<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, address)
    }
    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }
    fn dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        if self.policy.allows(&address) {
            self.inner.dial(address, opts)
        } else {
            Err(TransportError::MultiaddrNotSupported(address))
        }
    }
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn private_addresses_count_only_in_a_private_network() {
        let public = Policy::new(&[a("/ip4/0.0.0.0/tcp/1")], &[], &[a("/ip4/9.9.9.9/tcp/1")]);
        assert!(public.allows(&a("/ip4/1.1.1.1/tcp/1")));
        for private in [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/10.0.0.1/tcp/1",
            "/ip6/::1/tcp/1",
            "/ip4/100.64.0.1/tcp/1",
        ] {
            assert!(!public.allows(&a(private)), "{private}");
        }
        let lan = Policy::new(&[a("/ip4/0.0.0.0/tcp/1")], &[], &[a("/ip4/10.0.0.1/tcp/1")]);
        assert!(lan.allows(&a("/ip4/10.0.0.2/tcp/1")));
        let loopback = Policy::new(&[a("/ip4/127.0.0.1/tcp/1")], &[], &[]);
        assert!(loopback.allows(&a("/ip4/127.0.0.1/tcp/2")));
        assert!(!loopback.allows(&a("/ip4/0.0.0.0/tcp/2")));
        let first_public = Policy::new(&[a("/ip4/0.0.0.0/tcp/1")], &[a("/ip4/9.9.9.9/tcp/1")], &[]);
        assert!(!first_public.allows(&a("/ip4/10.0.0.2/tcp/1")));
    }

    #[test]
    fn a_private_address_given_directly_counts() {
        let policy = Policy::new(&[], &[], &[a("/dns4/boot.example.org/tcp/1")]);
        let near = a("/ip4/192.168.0.7/tcp/4001");
        assert!(!policy.allows(&near));
        policy.trust(&near);
        assert!(policy.allows(&near));
    }

    #[test]
    fn a_mapped_address_is_judged_by_its_ipv4() {
        assert!(is_private(&a("/ip6/::ffff:127.0.0.1/tcp/1")));
        assert_eq!(
            group_of(&a("/ip4/8.8.4.4/tcp/1")),
            Some(Group::V4([8, 8, 4]))
        );
        assert_eq!(group_of(&a("/ip4/10.8.4.4/tcp/1")), None);
    }
}
