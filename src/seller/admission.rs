//! The checks a signed head passes, cheapest first: what costs nothing refuses the most.
//!
//! size (decoding) → version and network → buyer is the connection's peer, seller is me → times →
//! stale → nonce → offer → signature → delegation. Credit is checked by the payee pair, the body's
//! hash while the body streams in. Each refusal has its own code.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::catalogue::{Catalogue, Sold};
use super::replay::ReplayGuard;
use crate::protocol::limits::BODY_BYTES_MAX;
use crate::protocol::{
    DecodeError, PeerErrorCode, RequestHead, SignedHead, WIRE_VERSION, delegation,
};
use crate::types::{PeerId, UnixMs};

/// How far a head's times may be off, ms.
const CLOCK_TOLERANCE_MS: u64 = 60_000;
/// The longest life of a head, ms.
const HEAD_LIFE_MS_MAX: u64 = 60_000;

/// Who may buy.
#[derive(Clone, Debug, Default)]
pub struct BuyerPolicy {
    /// When not empty, only these.
    pub allow: Vec<PeerId>,
    /// Never these.
    pub deny: Vec<PeerId>,
}

impl BuyerPolicy {
    fn allows(&self, peer: &PeerId) -> bool {
        !self.deny.contains(peer) && (self.allow.is_empty() || self.allow.contains(peer))
    }
}

/// Who may buy what.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// A model's answers.
    pub answers: BuyerPolicy,
    /// Layers of a pipeline.
    pub layers: BuyerPolicy,
}

impl From<BuyerPolicy> for Policies {
    /// The same for everything.
    fn from(all: BuyerPolicy) -> Self {
        Self {
            answers: all.clone(),
            layers: all,
        }
    }
}

/// Everything a head is checked against.
pub struct Gate {
    me: PeerId,
    network: String,
    lives: Lives,
    policies: Policies,
    catalogue: Arc<Catalogue>,
    replay: Mutex<ReplayGuard>,
}

/// When this life of the seller began, and when the one before it ended.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// When this one began.
    pub started_ms: UnixMs,
    /// The latest admission of an earlier one; none when there was none.
    pub last_admission_ms: Option<UnixMs>,
}

/// A head that passed, with the offer it names.
pub struct Order {
    /// The verified head.
    pub signed: SignedHead,
    /// What was sold, at which price.
    pub sold: Arc<Sold>,
}

impl Gate {
    /// A gate for the node `me`.
    #[must_use]
    pub fn new(
        me: PeerId,
        network: String,
        lives: Lives,
        policies: impl Into<Policies>,
        catalogue: Arc<Catalogue>,
    ) -> Self {
        let replay = Mutex::new(ReplayGuard::default());
        Self {
            me,
            network,
            lives,
            policies: policies.into(),
            catalogue,
            replay,
        }
    }

    /// True for a head that an earlier life of this seller can have served: a head's clock may be
    /// ahead by `CLOCK_TOLERANCE_MS`, so it can outlive a restart that forgot its nonce. The ledger
    /// knows whether it did.
    #[must_use]
    pub fn may_be_of_an_earlier_life(&self, head: &RequestHead) -> bool {
        self.lives
            .last_admission_ms
            .is_some_and(|last| head.iat_ms <= last.saturating_add(CLOCK_TOLERANCE_MS))
    }

    /// Checks the payload of REQ_HEAD from the authenticated `peer`.
    ///
    /// # Errors
    /// The refusal to send back.
    pub fn check(
        &self,
        payload: &Bytes,
        peer: &PeerId,
        now_ms: UnixMs,
    ) -> Result<Order, PeerErrorCode> {
        let signed = SignedHead::decode(payload).map_err(|_| PeerErrorCode::Malformed)?;
        let head = &signed.head;
        if head.version != WIRE_VERSION || head.network != self.network {
            return Err(PeerErrorCode::WrongNetwork);
        }
        if head.buyer != *peer {
            return Err(PeerErrorCode::WrongBuyer);
        }
        if head.seller != self.me {
            return Err(PeerErrorCode::WrongSeller);
        }
        let Policies { answers, layers } = &self.policies;
        if !answers.allows(peer) && !layers.allows(peer) {
            return Err(PeerErrorCode::NotAllowed);
        }
        check_times(head.iat_ms, head.exp_ms, now_ms)?;
        if head.iat_ms < self.lives.started_ms {
            return Err(PeerErrorCode::Stale);
        }
        if usize::try_from(head.body_len).map_or(true, |len| len > BODY_BYTES_MAX) {
            return Err(PeerErrorCode::Malformed);
        }
        self.replay
            .lock()
            .take(peer, &head.nonce, now_ms)
            .map_err(|_| PeerErrorCode::Replayed)?;
        let sold = self
            .catalogue
            .by_offer(&head.offer_hash, now_ms)
            .filter(|sold| sold.offer.model.as_str() == head.model)
            .ok_or(PeerErrorCode::UnknownOffer)?;
        // Now that it is known what is wanted.
        let policy = if sold.offer.stage.is_some() {
            layers
        } else {
            answers
        };
        if !policy.allows(peer) {
            return Err(PeerErrorCode::NotAllowed);
        }
        if sold.withdrawn {
            return Err(PeerErrorCode::OfferWithdrawn);
        }
        signed.verify().map_err(|error| match error {
            DecodeError::BadSignature(_) => PeerErrorCode::BadSignature,
            _ => PeerErrorCode::Malformed,
        })?;
        if let Some(proof) = &head.delegation {
            delegation::verify(&proof.text, &proof.signature, now_ms, peer)
                .map_err(|_| PeerErrorCode::BadDelegation)?;
        }
        Ok(Order { signed, sold })
    }
}

fn check_times(iat_ms: UnixMs, exp_ms: UnixMs, now_ms: UnixMs) -> Result<(), PeerErrorCode> {
    let life = exp_ms.checked_sub(iat_ms).ok_or(PeerErrorCode::ClockSkew)?;
    if life > HEAD_LIFE_MS_MAX
        || iat_ms > now_ms.saturating_add(CLOCK_TOLERANCE_MS)
        || exp_ms < now_ms
    {
        return Err(PeerErrorCode::ClockSkew);
    }
    Ok(())
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
