//! A chain in memory, for fast tests of what stands above: blocks on demand, a pool of waiting
//! transactions, reorgs, scripted failures. It runs no contract: a transaction's logs and success
//! come from a function that the test gives.
//!
//! It keeps the rules that the outbox relies on: signatures, nonces, replacement for 10 % more.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

use super::transaction::{Unsigned, decode, keccak};
use super::{
    Answer, At, Block, BlockRef, Call, Chain, ChainError, Fees, LogQuery, NonceAt, RawLog, Receipt,
    SendRefusal,
};
use crate::types::{EvmAddress, Hash32};

/// What a transaction did.
#[derive(Clone, Debug, Default)]
pub struct Effect {
    /// It reverted.
    pub reverts: bool,
    /// Topics and data of its logs.
    pub logs: Vec<(Vec<Hash32>, Vec<u8>)>,
}

/// Says what a transaction does.
pub type Contract = Box<dyn Fn(EvmAddress, &Unsigned) -> Effect + Send + Sync>;

#[derive(Clone, Debug)]
struct Tx {
    sender: EvmAddress,
    hash: Hash32,
    fields: Unsigned,
}

#[derive(Clone, Debug)]
struct FakeBlock {
    header: Block,
    txs: Vec<(Tx, bool)>,
    logs: Vec<(EvmAddress, RawLog)>,
}

struct State {
    blocks: Vec<FakeBlock>,
    waiting: Vec<Tx>,
    failures: VecDeque<ChainError>,
    loose_logs: Vec<(EvmAddress, Vec<Hash32>, Vec<u8>)>,
    code: BTreeMap<EvmAddress, Vec<u8>>,
    balance: u128,
    fees: Fees,
    made: u64,
    is_pruned: bool,
}

/// A chain in memory.
pub struct FakeChain {
    chain_id: u64,
    safe_depth: u64,
    contract: Contract,
    state: Mutex<State>,
}

impl FakeChain {
    /// One empty block; what is `safe_depth` below the head is safe.
    #[must_use]
    pub fn new(chain_id: u64, safe_depth: u64, contract: Contract) -> Self {
        let state = State {
            blocks: vec![],
            waiting: vec![],
            failures: VecDeque::new(),
            loose_logs: vec![],
            code: BTreeMap::new(),
            balance: u128::MAX,
            fees: Fees {
                base: 1_000_000,
                priority: 100_000,
            },
            made: 0,
            is_pruned: false,
        };
        let chain = Self {
            chain_id,
            safe_depth,
            contract,
            state: Mutex::new(state),
        };
        chain.mine(1);
        chain
    }

    /// Makes the next calls fail, one error each.
    pub fn fail_next(&self, errors: impl IntoIterator<Item = ChainError>) {
        self.state.lock().failures.extend(errors);
    }

    /// Sets the gas price of everything that comes.
    pub fn set_fees(&self, fees: Fees) {
        self.state.lock().fees = fees;
    }

    /// Sets every account's wei.
    pub fn set_balance(&self, wei: u128) {
        self.state.lock().balance = wei;
    }

    /// Puts code at an address.
    pub fn set_code(&self, address: EvmAddress, code: Vec<u8>) {
        self.state.lock().code.insert(address, code);
    }

    /// Puts a log into the next block, as if somebody else had caused it.
    pub fn log(&self, address: EvmAddress, topics: Vec<Hash32>, data: Vec<u8>) {
        self.state.lock().loose_logs.push((address, topics, data));
    }

    /// Forgets what accounts were at earlier blocks, as full nodes do.
    pub fn prune(&self) {
        self.state.lock().is_pruned = true;
    }

    /// Forgets all waiting transactions.
    pub fn forget_waiting(&self) {
        self.state.lock().waiting.clear();
    }

    /// Makes `count` blocks; the first takes every waiting transaction whose turn it is.
    pub fn mine(&self, count: u64) {
        let mut state = self.state.lock();
        for _ in 0..count {
            state.mine(&self.contract);
        }
    }

    /// Replaces the newest `depth` blocks by as many others and one more, without their
    /// transactions; `back` puts those among the waiting ones again.
    pub fn reorg(&self, depth: u64, back: bool) {
        let mut state = self.state.lock();
        let len = u64::try_from(state.blocks.len()).unwrap_or(u64::MAX);
        let keep = usize::try_from(len.saturating_sub(depth).max(1)).unwrap_or(usize::MAX);
        let keep = keep.min(state.blocks.len());
        let gone = state.blocks.split_off(keep);
        let waiting = std::mem::take(&mut state.waiting);
        for _ in 0..=gone.len() {
            state.mine(&self.contract);
        }
        state.waiting = waiting;
        if back {
            let txs = gone.into_iter().flat_map(|block| block.txs);
            state.waiting.extend(txs.map(|(tx, _)| tx));
        }
    }

    /// The height of the newest block.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.state.lock().head()
    }

    fn answer<T>(&self, find: impl FnOnce(&mut State) -> Result<T, ChainError>) -> Answer<'_, T>
    where
        T: Send + 'static,
    {
        let mut state = self.state.lock();
        let answer = match state.failures.pop_front() {
            Some(error) => Err(error),
            None => find(&mut state),
        };
        Box::pin(std::future::ready(answer))
    }
}

impl State {
    fn head(&self) -> u64 {
        u64::try_from(self.blocks.len())
            .unwrap_or(u64::MAX)
            .saturating_sub(1)
    }

    fn mine(&mut self, contract: &Contract) {
        self.made += 1;
        let number = u64::try_from(self.blocks.len()).unwrap_or(u64::MAX);
        let at = BlockRef {
            number,
            hash: keccak(&self.made.to_be_bytes()),
        };
        let parent = self
            .blocks
            .last()
            .map_or_else(Hash32::default, |block| block.header.at.hash);
        let mut txs = vec![];
        let mut logs: Vec<(EvmAddress, RawLog)> = vec![];
        let mut put = |address, tx, topics, data| {
            let index = u64::try_from(logs.len()).unwrap_or(u64::MAX);
            logs.push((
                address,
                RawLog {
                    block: at,
                    tx,
                    index,
                    topics,
                    data,
                },
            ));
        };
        for (address, topics, data) in std::mem::take(&mut self.loose_logs) {
            put(address, Hash32::default(), topics, data);
        }
        let mut counts: BTreeMap<EvmAddress, u64> = BTreeMap::new();
        self.waiting.sort_by_key(|tx| tx.fields.nonce);
        let mut left = vec![];
        for tx in std::mem::take(&mut self.waiting) {
            let mined = self.count(&tx.sender, u64::MAX);
            let next = counts.entry(tx.sender).or_insert(mined);
            if tx.fields.nonce != *next || tx.fields.max_fee < self.fees.base {
                if tx.fields.nonce >= *next {
                    left.push(tx);
                }
                continue;
            }
            *next += 1;
            let effect = contract(tx.sender, &tx.fields);
            if !effect.reverts {
                for (topics, data) in effect.logs {
                    put(tx.fields.to.unwrap_or_default(), tx.hash, topics, data);
                }
            }
            txs.push((tx, !effect.reverts));
        }
        self.waiting = left;
        let header = Block {
            at,
            parent,
            timestamp_s: number * 2,
            base_fee: self.fees.base,
        };
        self.blocks.push(FakeBlock { header, txs, logs });
    }

    fn count(&self, account: &EvmAddress, upto: u64) -> u64 {
        let blocks = self
            .blocks
            .iter()
            .filter(|block| block.header.at.number <= upto);
        let txs = blocks
            .flat_map(|block| &block.txs)
            .filter(|(tx, _)| tx.sender == *account);
        u64::try_from(txs.count()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, chain_id: u64, raw: &[u8]) -> Result<(), ChainError> {
        let (sender, hash, fields) = decode(raw)?;
        let not = |why| ChainError::NotTaken {
            why,
            message: format!("{why:?}"),
        };
        if fields.chain_id != chain_id {
            return Err(ChainError::Refused(
                "a transaction of another chain".to_owned(),
            ));
        }
        if fields.nonce < self.count(&sender, u64::MAX) {
            return Err(not(SendRefusal::NonceTooLow));
        }
        if self.waiting.iter().any(|tx| tx.hash == hash) {
            return Err(not(SendRefusal::AlreadyKnown));
        }
        if self.balance < u128::from(fields.gas_limit).saturating_mul(fields.max_fee) {
            return Err(not(SendRefusal::InsufficientFunds));
        }
        let same = |tx: &Tx| tx.sender == sender && tx.fields.nonce == fields.nonce;
        if let Some(old) = self.waiting.iter().find(|tx| same(tx))
            && fields.max_fee.saturating_mul(10) < old.fields.max_fee.saturating_mul(11)
        {
            return Err(not(SendRefusal::Underpriced));
        }
        self.waiting.retain(|tx| !same(tx));
        self.waiting.push(Tx {
            sender,
            hash,
            fields,
        });
        Ok(())
    }
}

/// Gas that every transaction takes here.
const GAS_USED: u64 = 50_000;

impl Chain for FakeChain {
    fn chain_id(&self) -> Answer<'_, u64> {
        let id = self.chain_id;
        self.answer(move |_| Ok(id))
    }

    fn block(&self, at: At) -> Answer<'_, Option<Block>> {
        let depth = self.safe_depth;
        self.answer(move |state| {
            let number = match at {
                At::Latest => state.head(),
                At::Safe => state.head().saturating_sub(depth),
                At::Number(number) => number,
            };
            let mut blocks = state.blocks.iter();
            Ok(blocks
                .find(|block| block.header.at.number == number)
                .map(|block| block.header))
        })
    }

    fn logs(&self, query: LogQuery) -> Answer<'_, Vec<RawLog>> {
        self.answer(move |state| {
            let blocks = state.blocks.iter();
            let range = query.from..=query.to;
            let blocks = blocks.filter(|block| range.contains(&block.header.at.number));
            let logs = blocks.flat_map(|block| &block.logs);
            let fits = |log: &RawLog| {
                let mut places = query.topics.iter().enumerate();
                places.all(|(place, wanted)| {
                    let found = log.topics.get(place);
                    wanted.is_empty() || found.is_some_and(|found| wanted.contains(found))
                })
            };
            let ours = logs.filter(|(address, log)| *address == query.address && fits(log));
            Ok(ours.map(|(_, log)| log.clone()).collect())
        })
    }

    fn code(&self, address: EvmAddress) -> Answer<'_, Vec<u8>> {
        self.answer(move |state| Ok(state.code.get(&address).cloned().unwrap_or_default()))
    }

    fn call_at(&self, _call: Call, _at: At) -> Answer<'_, Vec<u8>> {
        self.answer(|_| {
            Err(ChainError::Refused(
                "this chain runs no contract".to_owned(),
            ))
        })
    }

    fn estimate_gas(&self, call: Call) -> Answer<'_, u64> {
        let fields = Unsigned {
            chain_id: self.chain_id,
            nonce: 0,
            to: call.to,
            value: call.value,
            data: call.data,
            gas_limit: 0,
            max_fee: 0,
            max_priority_fee: 0,
        };
        let reverts = (self.contract)(call.from, &fields).reverts;
        self.answer(move |_| {
            if reverts {
                return Err(ChainError::Reverted("as scripted".to_owned()));
            }
            Ok(GAS_USED)
        })
    }

    fn fees(&self) -> Answer<'_, Fees> {
        self.answer(|state| Ok(state.fees))
    }

    fn nonce(&self, account: EvmAddress, at: NonceAt) -> Answer<'_, u64> {
        self.answer(move |state| {
            let mined = state.count(&account, u64::MAX);
            Ok(match at {
                NonceAt::Latest => mined,
                NonceAt::Number(_) if state.is_pruned => {
                    return Err(ChainError::Refused("missing trie node".to_owned()));
                }
                NonceAt::Number(number) => state.count(&account, number),
                NonceAt::Pending => {
                    let waits = |nonce| {
                        let mut txs = state.waiting.iter();
                        txs.any(|tx| tx.sender == account && tx.fields.nonce == nonce)
                    };
                    (mined..).find(|nonce| !waits(*nonce)).unwrap_or(mined)
                }
            })
        })
    }

    fn balance(&self, _account: EvmAddress) -> Answer<'_, u128> {
        self.answer(|state| Ok(state.balance))
    }

    fn send(&self, raw: Vec<u8>) -> Answer<'_, ()> {
        let chain_id = self.chain_id;
        self.answer(move |state| state.take(chain_id, &raw))
    }

    fn receipt(&self, tx: Hash32) -> Answer<'_, Option<Receipt>> {
        self.answer(move |state| {
            for block in &state.blocks {
                let found = block.txs.iter().find(|(one, _)| one.hash == tx);
                if let Some((_, succeeded)) = found {
                    return Ok(Some(Receipt {
                        block: block.header.at,
                        succeeded: *succeeded,
                        gas_used: GAS_USED,
                        gas_price: block.header.base_fee,
                        created: None,
                    }));
                }
            }
            Ok(None)
        })
    }
}
