//! Which seller now, for this request? One number decides, in money, and a user can be told why.
//!
//! # Layout
//! - [`Router`] is the whole: [`Router::choose`] before an attempt, [`Router::begin`] when it goes
//!   out, [`Router::observe`] when it is over. `choose` holds the rules of a choice, `learn` what an
//!   observation changes.
//! - [`score`] is the formula, [`settings`] its constants, [`record`] what is known of a seller:
//!   [`quality`] (success), [`decay`] (latency), [`breaker`], [`capacity`].
//! - [`conversation`] knows who holds a prompt in its cache, [`explore`] what newcomers may cost.
//! - [`snapshot`] is all of it as bytes, for the cache.
//!
//! # Invariants
//! - Nothing is learned but from [`Observation`]s of own attempts; what says nothing about a seller
//!   (our own faults, a client that left) changes nothing.
//! - A newcomer gains nothing by undercutting: until it is proven its price counts at least as the
//!   proven sellers' median. A new key is a newcomer.
//! - What newcomers may cost in a day is bounded, and what is at stake with each one as well.
//!
//! No sockets, no disk; the clock and the seed are given, so a simulation runs the same code.

pub mod breaker;
pub mod capacity;
mod choose;
pub mod conversation;
pub mod decay;
pub mod explore;
mod learn;
pub mod number;
pub mod observation;
pub mod quality;
pub mod record;
pub mod score;
pub mod settings;
pub mod shortlist;
pub mod snapshot;

use std::num::NonZeroUsize;
use std::sync::Arc;

use hashbrown::HashMap;
use lru::LruCache;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;

pub use choose::{Choice, Skip};
pub use conversation::ConversationKey;
pub use observation::{Answered, Observation, Outcome};
pub use score::Score;
pub use settings::{Prefer, Settings};
pub use snapshot::Snapshot;

use conversation::Conversations;
use decay::LogMean;
use explore::Exploration;
use quality::Quality;
use record::{ModelRecord, SellerRecord};
use score::Market;

use crate::types::{Clock, MicroUsd, ModelId, PeerId, PriceTable, UnixMs};

/// Pairs of client and model whose answers' lengths are remembered.
const OUTPUTS_MAX: usize = 4_096;

/// A request, as far as a choice needs it.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The model.
    pub model: &'a ModelId,
    /// The local client.
    pub client: &'a str,
    /// Input tokens by our own estimate.
    pub input_tokens: u64,
    /// Most output tokens.
    pub output_max: u64,
    /// Whether tokens of this model can be counted exactly.
    pub exact: bool,
    /// What the user looks for.
    pub prefer: Prefer,
    /// Time left for the first event, s.
    pub deadline_s: f64,
    /// The conversation it belongs to.
    pub conversation: Option<ConversationKey>,
    /// Taken first while it may be asked at all.
    pub pinned: Option<PeerId>,
}

/// A seller that passed every gate of the request itself.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The seller.
    pub seller: PeerId,
    /// Its prices.
    pub price: PriceTable,
    /// What opening a channel costs.
    pub open_fee: MicroUsd,
    /// A channel is open, with headroom.
    pub has_channel: bool,
    /// Paid before the work: what a seller that vanishes has got.
    pub prefill: MicroUsd,
    /// Needs a translation that leaves something out; taken when no other is there.
    pub is_lossy: bool,
    /// Needs a translation.
    pub is_translated: bool,
}

impl Entry {
    /// A seller with an open channel that takes the request as it is, with nothing to prepay.
    #[must_use]
    pub const fn plain(seller: PeerId, price: PriceTable) -> Self {
        Self {
            seller,
            price,
            open_fee: MicroUsd::ZERO,
            has_channel: true,
            prefill: MicroUsd::ZERO,
            is_lossy: false,
            is_translated: false,
        }
    }
}

/// What is known of a model's sellers.
#[derive(Default)]
struct ModelState {
    records: HashMap<PeerId, ModelRecord>,
    market: Market,
    /// Typical cost of a request, micro-USD.
    cost: LogMean,
}

struct State {
    sellers: HashMap<PeerId, SellerRecord>,
    models: HashMap<ModelId, ModelState>,
    conversations: Conversations,
    /// Answers' lengths by client and model, tokens.
    outputs: LruCache<(String, ModelId), LogMean>,
    /// All newcomers together, since there is anybody else.
    newcomers: Quality,
    /// Somebody has been proven.
    some_proven: bool,
    exploration: Exploration,
    rng: SmallRng,
}

/// Chooses sellers and learns from what became of it. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    clock: Arc<dyn Clock>,
    /// Local, so that two buyers do not break ties alike.
    salt: u64,
    state: Mutex<State>,
}

impl Router {
    /// A router that knows nobody; `seed` is for its draws.
    #[must_use]
    pub fn new(settings: Settings, clock: Arc<dyn Clock>, seed: u64) -> Self {
        let outputs = NonZeroUsize::new(OUTPUTS_MAX).unwrap_or(NonZeroUsize::MIN);
        let state = State {
            sellers: HashMap::new(),
            models: HashMap::new(),
            conversations: Conversations::default(),
            outputs: LruCache::new(outputs),
            newcomers: Quality::default(),
            some_proven: false,
            exploration: Exploration::default(),
            rng: SmallRng::seed_from_u64(seed),
        };
        Self {
            inner: Arc::new(Inner {
                settings,
                clock,
                salt: seed,
                state: Mutex::new(state),
            }),
        }
    }

    /// The constants in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    fn now_ms(&self) -> UnixMs {
        self.inner.clock.now_ms()
    }
}

#[cfg(test)]
mod tests;
