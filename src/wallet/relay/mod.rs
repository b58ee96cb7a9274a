//! `/souk/relay-tx/1`: sending what another account signed and has no gas for.
//!
//! [`check`] is the relayer's judgement, pure; [`serve`] its side of the stream; [`ask`] the other.
//!
//! # Invariants
//! - A relayer sends to the hub alone, and of its functions only those that need no particular
//!   sender; it can lose gas, never its own money.
//! - It is paid in the same transaction, to itself by name, at least what the gas costs by its own
//!   estimate; what would revert is refused before it costs anything.
//! - The asker signs the fee for the relayer that quoted it, never more than its limit.

pub mod ask;
pub mod check;
pub mod serve;

pub use ask::Asker;
pub use serve::Relayer;
