//! The chain, as a model: vaults and channels by the hub's rules, blocks, a pool, and reorgs.
//!
//! It is the judge, not the thing under test: what a transaction does is decided here by the rules of
//! the contract (a deposit comes out of a vault, a voucher pays at most the deposit, an id opens
//! once, after a close request a challenge period passes, each nonce is used once). The nodes see it
//! through the production watcher and outbox machines only.

use std::collections::BTreeMap;

use souk::chain::hub::HubLog;
use souk::chain::{BlockRef, RawLog, Receipt, SendRefusal};
use souk::types::{ChannelId, EvmAddress, Hash32, MicroUsd};

use super::contract::{Call, Contract, Reverted};
use super::rng::Rng;

/// Blocks below the head that count as final; no reorg goes so deep.
pub const FINAL_DEPTH: u64 = 4;

/// A transaction that waits or is in a block. The seller's carry a nonce; a relayer's are its own
/// matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tx {
    nonce: Option<u64>,
    call: usize,
    hash: Hash32,
}

#[derive(Clone, Debug)]
struct Block {
    at: BlockRef,
    txs: Vec<(Tx, bool)>,
    logs: Vec<HubLog>,
    before: Contract,
}

/// The chain.
pub struct ModelChain {
    blocks: Vec<Block>,
    pub state: Contract,
    pool: Vec<Tx>,
    calls: Vec<Call>,
    made: u64,
    finals: BTreeMap<ChannelId, MicroUsd>,
    pub reorgs: u64,
}

fn hash(kind: u8, number: u64) -> Hash32 {
    let mut bytes = [kind; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Hash32(bytes)
}

impl ModelChain {
    pub fn new(buyer_vault: MicroUsd, buyer_wallet: MicroUsd) -> Self {
        let state = Contract {
            buyer_vault,
            buyer_wallet,
            ..Contract::default()
        };
        let at = BlockRef {
            number: 0,
            hash: hash(1, 0),
        };
        let genesis = Block {
            at,
            txs: Vec::new(),
            logs: Vec::new(),
            before: state.clone(),
        };
        Self {
            blocks: vec![genesis],
            state,
            pool: Vec::new(),
            calls: Vec::new(),
            made: 0,
            finals: BTreeMap::new(),
            reorgs: 0,
        }
    }

    /// A call as calldata.
    pub fn encode(&mut self, call: Call) -> Vec<u8> {
        self.calls.push(call);
        let index = u64::try_from(self.calls.len() - 1).unwrap_or(u64::MAX);
        index.to_be_bytes().to_vec()
    }

    fn decode(&self, data: &[u8]) -> Option<usize> {
        let index = u64::from_be_bytes(*data.first_chunk()?);
        let index = usize::try_from(index).ok()?;
        (index < self.calls.len()).then_some(index)
    }

    /// What would become of a call now.
    pub fn simulate(&self, data: &[u8], now_s: u64) -> Result<(), Reverted> {
        let Some(index) = self.decode(data) else {
            return Ok(());
        };
        let mut copy = self.state.clone();
        copy.execute(&self.calls[index], now_s).map(|_| ())
    }

    pub fn head(&self) -> u64 {
        self.blocks.last().map_or(0, |block| block.at.number)
    }
    pub fn final_block(&self) -> u64 {
        self.head().saturating_sub(FINAL_DEPTH)
    }
    pub fn block(&self, number: u64) -> Option<BlockRef> {
        let index = usize::try_from(number).ok()?;
        self.blocks.get(index).map(|block| block.at)
    }
    pub fn logs(&self, from: u64, to: u64) -> Vec<HubLog> {
        let range = self
            .blocks
            .iter()
            .filter(|block| (from..=to).contains(&block.at.number));
        range.flat_map(|block| block.logs.clone()).collect()
    }
    /// The highest deposit that a final block ever showed: no reorg takes it back.
    pub fn final_deposit(&self, id: &ChannelId) -> MicroUsd {
        self.finals.get(id).copied().unwrap_or_default()
    }
    fn note_finals(&mut self) {
        let above = usize::try_from(self.final_block() + 1).unwrap_or(usize::MAX);
        let state = self
            .blocks
            .get(above)
            .map_or(&self.state, |block| &block.before);
        for (id, one) in &state.channels {
            let known = self.finals.entry(*id).or_default();
            *known = one.deposit.max(*known);
        }
    }
    /// The seller's transactions in blocks up to `number`.
    pub fn nonce_at(&self, number: u64) -> u64 {
        let above = usize::try_from(number + 1).unwrap_or(usize::MAX);
        self.blocks
            .get(above)
            .map_or(self.state.nonce, |block| block.before.nonce)
    }
    pub fn pending_nonce(&self) -> u64 {
        let mut next = self.state.nonce;
        while self.pool.iter().any(|tx| tx.nonce == Some(next)) {
            next += 1;
        }
        next
    }
    pub fn receipt(&self, tx: &Hash32) -> Option<Receipt> {
        self.blocks.iter().rev().find_map(|block| {
            let found = block.txs.iter().find(|(one, _)| one.hash == *tx);
            found.map(|(_, succeeded)| Receipt {
                block: block.at,
                succeeded: *succeeded,
                gas_used: 1,
                gas_price: 1,
                created: None,
            })
        })
    }

    /// A transaction of the seller's, as signed bytes and their name.
    pub fn sign(&mut self, nonce: u64, data: &[u8]) -> (Hash32, Vec<u8>) {
        self.made += 1;
        let name = hash(2, self.made);
        let raw = [&nonce.to_be_bytes()[..], &name.0, data].concat();
        (name, raw)
    }
    /// Takes a signed transaction into the pool.
    pub fn send(&mut self, raw: &[u8]) -> Result<(), SendRefusal> {
        let (nonce, rest) = raw.split_first_chunk::<8>().expect("a nonce");
        let (name, data) = rest.split_first_chunk::<32>().expect("a name");
        let (nonce, hash) = (u64::from_be_bytes(*nonce), Hash32(*name));
        if nonce < self.state.nonce {
            return Err(SendRefusal::NonceTooLow);
        }
        if self.pool.iter().any(|tx| tx.hash == hash) {
            return Err(SendRefusal::AlreadyKnown);
        }
        let call = self.decode(data).unwrap_or(usize::MAX);
        // Its fees are higher, or it could not have been made.
        self.pool.retain(|tx| tx.nonce != Some(nonce));
        self.pool.push(Tx {
            nonce: Some(nonce),
            call,
            hash,
        });
        Ok(())
    }
    /// A transaction that somebody else brings.
    pub fn relay(&mut self, call: Call) {
        self.made += 1;
        let hash = hash(3, self.made);
        self.calls.push(call);
        let call = self.calls.len() - 1;
        self.pool.push(Tx {
            nonce: None,
            call,
            hash,
        });
    }
    /// The pool forgets what waits.
    pub fn drop_pool(&mut self) {
        self.pool.clear();
    }
    pub fn pool_len(&self) -> usize {
        self.pool.len()
    }

    /// The next block takes what is ready.
    pub fn mine(&mut self, now_s: u64) {
        self.made += 1;
        let at = BlockRef {
            number: self.head() + 1,
            hash: hash(1, self.made),
        };
        let mut block = Block {
            at,
            txs: Vec::new(),
            logs: Vec::new(),
            before: self.state.clone(),
        };
        while let Some(place) = self.pool.iter().position(|tx| self.is_ready(tx)) {
            let tx = self.pool.remove(place);
            let done = match self.calls.get(tx.call) {
                Some(call) => self.state.execute(call, now_s),
                // Fills a missing nonce.
                None => Ok(Vec::new()),
            };
            self.state.nonce += u64::from(tx.nonce.is_some());
            block.txs.push((tx, done.is_ok()));
            for event in done.unwrap_or_default() {
                let raw = RawLog {
                    block: at,
                    tx: tx.hash,
                    index: u64::try_from(block.logs.len()).unwrap_or(u64::MAX),
                    topics: Vec::new(),
                    data: Vec::new(),
                };
                block.logs.push(HubLog { raw, event });
            }
        }
        self.blocks.push(block);
        let next = self.state.nonce;
        self.pool
            .retain(|tx| tx.nonce.is_none_or(|nonce| nonce >= next));
        self.note_finals();
    }

    fn is_ready(&self, tx: &Tx) -> bool {
        tx.nonce.is_none_or(|nonce| nonce == self.state.nonce)
    }

    /// Takes the newest blocks back, never a final one; their transactions wait again, or are
    /// forgotten.
    pub fn reorg(&mut self, rng: &mut Rng, now_s: u64) {
        let deepest = FINAL_DEPTH.min(self.head());
        if deepest == 0 {
            return;
        }
        self.reorgs += 1;
        let depth = rng.between(1, deepest);
        for _ in 0..depth {
            let Some(block) = self.blocks.pop() else {
                return;
            };
            self.state = block.before;
            let forgotten = rng.chance(300);
            if !forgotten {
                self.pool.extend(block.txs.into_iter().map(|(tx, _)| tx));
            }
        }
        // The new branch is longer; what was taken back comes in another order.
        if rng.chance(500) {
            self.pool.reverse();
        }
        let empty = rng.between(0, 1);
        for _ in 0..empty {
            let waiting = std::mem::take(&mut self.pool);
            self.mine(now_s);
            self.pool = waiting;
        }
        for _ in empty..=depth {
            self.mine(now_s);
        }
    }
}

/// Where everything is signed for.
pub const HUB: souk::protocol::voucher::HubDomain = souk::protocol::voucher::HubDomain {
    chain_id: 31_337,
    hub: EvmAddress([9; 20]),
};
