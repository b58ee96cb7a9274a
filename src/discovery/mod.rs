//! Who sells what: the seller's [`Announcer`] and the buyer's [`OfferBook`].
//!
//! The DHT is a hint, never a step of a request: offers are pulled in the background, verified, kept in memory and
//! persisted through [`OfferCache`]; a request reads them in O(1). Only a request for a model nobody has seen yet
//! waits, with a deadline, for a background look-up ([`OfferBook::find`]). A missed scan removes nobody: an offer
//! goes when it expires or is withdrawn, a seller is set aside when it fails ([`PeerBook`]).
//! Called by `node` (runners), buyer (`OfferBook`) and seller (`Announcer`).

mod announce;
mod cache;
mod catalogue;
mod look_up;
mod offer_book;
mod peer_book;
mod refresh;

pub use announce::{Announcer, AnnouncerRunner, Published};
pub use cache::{NoCache, OfferCache};
pub use catalogue::{ModelSummary, OfferList};
pub use offer_book::{Found, OfferBook};
pub use peer_book::PeerBook;
pub use refresh::OfferBookRunner;

#[cfg(test)]
mod tests;
