//! L0: the words everything else is written in. No I/O, no async, no sockets.
//!
//! Money is integer micro-USD ([`MicroUsd`]), prices are micro-USD per million tokens
//! ([`PriceTable`]), token counts never overlap ([`Usage`]), and time comes from a [`Clock`] that
//! tests can move. Identifiers are newtypes so that a request can never be taken for an attempt.

mod clock;
pub mod day;
mod ids;
mod money;
mod onchain;
mod price;
mod secret;
mod usage;

pub use clock::{Clock, ManualClock, SystemClock, UnixMs};
pub use ids::{
    AttemptId, ChannelId, EvmAddress, Hash32, IdError, IntentId, ModelId, PeerId, RequestId,
};
pub use money::{MicroUsd, MoneyError};
pub use onchain::{Purpose, Stage, Step};
pub use price::{PriceTable, TOKENS_PER_PRICE};
pub use secret::Secret;
pub use usage::Usage;
