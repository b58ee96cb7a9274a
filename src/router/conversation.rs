//! Which seller holds a conversation's prompt in its upstream's cache.
//!
//! Clients send no session header and rewrite what they retry, so a conversation is known by what
//! stays: model, beginning of the system prompt, first message (`llm_api::conversation_key`).

use std::num::NonZeroUsize;

use lru::LruCache;

use super::number::real;
use super::observation::Answered;
use super::settings::Settings;
use crate::types::{PeerId, UnixMs};

/// Conversations remembered; those without a turn for longest go first.
const CONVERSATIONS_MAX: usize = 16_384;
/// Weight of the newest turn in the share of hits.
const HIT_STEP: f64 = 0.5;

/// A conversation: a hash of what stays the same in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConversationKey(pub u64);

struct Turn {
    seller: PeerId,
    /// Tokens that the next turn repeats.
    held: u64,
    /// Share of them that was read from the cache.
    hits: f64,
    at_ms: UnixMs,
}

/// The conversations under way.
pub struct Conversations {
    turns: LruCache<ConversationKey, Turn>,
}

impl Default for Conversations {
    fn default() -> Self {
        let size = NonZeroUsize::new(CONVERSATIONS_MAX).unwrap_or(NonZeroUsize::MIN);
        Self {
            turns: LruCache::new(size),
        }
    }
}

impl Conversations {
    /// Who holds this conversation, and how many tokens of it will probably be read from its cache.
    #[must_use]
    pub fn holder(
        &self,
        key: ConversationKey,
        now_ms: UnixMs,
        settings: &Settings,
    ) -> Option<(PeerId, f64)> {
        let turn = self.turns.peek(&key)?;
        let fresh = now_ms.saturating_sub(turn.at_ms) <= settings.cache_life_ms;
        fresh.then(|| (turn.seller, turn.hits * real(turn.held)))
    }

    /// A turn was answered.
    pub fn turn(
        &mut self,
        key: ConversationKey,
        seller: PeerId,
        answer: &Answered,
        now_ms: UnixMs,
        settings: &Settings,
    ) {
        let held = answer.input_tokens.saturating_add(answer.output_tokens);
        let before = self.turns.peek(&key).filter(|turn| turn.seller == seller);
        let hits = match before {
            Some(turn) if turn.held > 0 => {
                let share = (real(answer.cached_tokens) / real(turn.held)).min(1.0);
                HIT_STEP.mul_add(share - turn.hits, turn.hits)
            }
            _ => settings.cache_hit_prior,
        };
        let turn = Turn {
            seller,
            held,
            hits,
            at_ms: now_ms,
        };
        self.turns.put(key, turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_whoever_answered_last_until_the_cache_is_cold() {
        let settings = Settings::default();
        let key = ConversationKey(1);
        let mut conversations = Conversations::default();
        assert!(conversations.holder(key, 0, &settings).is_none());
        let (first, second) = (PeerId::random(), PeerId::random());
        let answer = |cached| Answered {
            input_tokens: 900,
            output_tokens: 100,
            cached_tokens: cached,
            ..Answered::default()
        };
        conversations.turn(key, first, &answer(0), 1, &settings);
        assert_eq!(
            conversations.holder(key, 2, &settings),
            Some((first, 800.0))
        );
        // The upstream has no cache after all: less is expected each time.
        conversations.turn(key, first, &answer(0), 2, &settings);
        assert_eq!(
            conversations.holder(key, 3, &settings),
            Some((first, 400.0))
        );
        conversations.turn(key, second, &answer(0), 3, &settings);
        assert_eq!(conversations.holder(key, 3, &settings).unwrap().0, second);
        let cold = 4 + settings.cache_life_ms;
        assert!(conversations.holder(key, cold, &settings).is_none());
    }
}
