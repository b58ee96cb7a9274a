//! What a chain shows, as plain data: blocks, logs, receipts, fees. No type of a foreign crate, so
//! that payment rules and the in-memory chain need none.

use crate::types::{EvmAddress, Hash32};

/// A block by number and hash; two blocks of one number differ in their hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRef {
    /// Height.
    pub number: u64,
    /// Commits to everything below.
    pub hash: Hash32,
}

/// The header fields that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Number and hash.
    pub at: BlockRef,
    /// Hash of the block below.
    pub parent: Hash32,
    /// Seconds since 1970, as the block claims.
    pub timestamp_s: u64,
    /// Wei per gas that are burned.
    pub base_fee: u128,
}

/// Which block is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest.
    Latest,
    /// The newest that the node calls safe.
    Safe,
    /// The one of this height.
    Number(u64),
}

/// A log as the contract wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawLog {
    /// The block it is in.
    pub block: BlockRef,
    /// The transaction that caused it.
    pub tx: Hash32,
    /// Place among all logs of the block.
    pub index: u64,
    /// Event signature and indexed fields.
    pub topics: Vec<Hash32>,
    /// The other fields.
    pub data: Vec<u8>,
}

/// Logs of one contract in a range of blocks, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// The contract.
    pub address: EvmAddress,
    /// First block.
    pub from: u64,
    /// Last block.
    pub to: u64,
    /// Which of them; the default is all.
    pub topics: Topics,
}

/// What a log must have in each of its four places: one of these; nothing is anything.
pub type Topics = [Vec<Hash32>; 4];

/// What became of a transaction in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The block.
    pub block: BlockRef,
    /// False when it reverted.
    pub succeeded: bool,
    /// Gas it used.
    pub gas_used: u64,
    /// Wei per gas it paid.
    pub gas_price: u128,
    /// The contract it made.
    pub created: Option<EvmAddress>,
}

/// What a transaction must offer now, in wei per gas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fees {
    /// The newest block's base fee.
    pub base: u128,
    /// A usual tip.
    pub priority: u128,
}

/// A call that changes nothing, or one to be estimated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who would call.
    pub from: EvmAddress,
    /// The contract; none makes one.
    pub to: Option<EvmAddress>,
    /// Function and arguments.
    pub data: Vec<u8>,
    /// Wei.
    pub value: u128,
}

/// Up to which block an account's transactions are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceAt {
    /// In blocks.
    Latest,
    /// In blocks up to this height.
    Number(u64),
    /// In blocks and waiting.
    Pending,
}

/// Wei as whole coins: exact, without trailing zeros.
#[must_use]
pub fn coins(wei: u128) -> String {
    const WEI_PER_COIN: u128 = 1_000_000_000_000_000_000;
    let text = format!("{}.{:018}", wei / WEI_PER_COIN, wei % WEI_PER_COIN);
    let text = text.trim_end_matches('0');
    text.strip_suffix('.').unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::coins;

    #[test]
    fn coins_are_exact() {
        assert_eq!(coins(0), "0");
        assert_eq!(coins(1), "0.000000000000000001");
        assert_eq!(coins(1_500_000_000_000_000_000), "1.5");
    }
}
