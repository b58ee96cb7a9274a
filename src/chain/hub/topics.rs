//! What to ask a node's log index for, so that it sends the events of one account alone.

use alloy::sol_types::SolEvent;

use super::abi::ChannelHub as hub;
use crate::chain::Topics;
use crate::types::{ChannelId, EvmAddress, Hash32};

const fn kind<E: SolEvent>() -> Hash32 {
    Hash32(E::SIGNATURE_HASH.0)
}

/// An address as a topic: on the right of a word.
fn word(account: EvmAddress) -> Hash32 {
    let mut word = [0; 32];
    if let Some(last) = word.last_chunk_mut::<20>() {
        *last = account.0;
    }
    Hash32(word)
}

/// Together these find every event that names an account: its channels' openings, its deposits and
/// its withdrawals; and all withdrawals, because a relayer's name is no topic.
#[must_use]
pub fn about_account(account: EvmAddress) -> Vec<Topics> {
    let any = Vec::new;
    let me = vec![word(account)];
    vec![
        // Buyer of an opening, owner of what is deposited or withdrawn.
        [any(), any(), me.clone(), any()],
        [vec![kind::<hub::ChannelOpened>()], any(), any(), me],
        [vec![kind::<hub::Withdrawn>()], any(), any(), any()],
    ]
}

/// The events of these channels.
#[must_use]
pub fn about_channels(channels: &[ChannelId]) -> Topics {
    let any = Vec::new;
    let ids = channels.iter().map(|id| Hash32(id.0)).collect();
    [any(), ids, any(), any()]
}
