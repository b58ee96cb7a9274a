//! What travels between the two nodes, and what happens to it on the way.
//!
//! An infer stream keeps its order and is cut at most once. A session does so too in tame seeds; in
//! wild ones each of its messages is dropped, doubled or overtaken on its own, which is worse than
//! any transport of the product. Signatures are left out: a voucher or receipt here is its content.

use std::collections::BTreeMap;

use souk::protocol::session::{SyncAttempt, SyncBuyer, SyncSeller};
use souk::protocol::voucher::{HubChannel, TopUp};
use souk::protocol::{EvmSignature, PeerErrorCode};
use souk::types::{AttemptId, ChannelId, MicroUsd};

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Buyer,
    Seller,
}

impl Side {
    pub const fn other(self) -> Self {
        match self {
            Self::Buyer => Self::Seller,
            Self::Seller => Self::Buyer,
        }
    }
}

/// A stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conn {
    Session(u64),
    Infer(AttemptId),
}

/// One message of either kind of stream.
#[derive(Clone, Debug)]
pub enum Msg {
    Open(Option<Box<ChainOpen>>),
    OpenAck { deposit: MicroUsd },
    SyncBuyer(SyncBuyer),
    SyncSeller(Box<SyncSeller>),
    Refused,
    Voucher(ChannelId, MicroUsd),
    VoucherAck,
    TopUp(Box<TopUp>),
    Close(ChannelId, Option<MicroUsd>),
    Receipt(Vec<u8>),
    Accept(Vec<(AttemptId, MicroUsd)>),
    AcceptAck(Vec<AttemptId>),
    Head { iat_ms: u64, channel: ChannelId },
    Nop,
    RespHead { whole: Option<MicroUsd> },
    Body { running: MicroUsd, pieces: usize },
    Need,
    End,
    Usage(Vec<u8>),
    Error(PeerErrorCode),
    Cancel { owes_input: bool },
}

/// What an OPEN on a chain names.
#[derive(Clone, Debug)]
pub struct ChainOpen {
    pub channel: HubChannel,
    /// The number of the opening.
    pub epoch: u64,
}

/// A voucher's signature: here its amount.
pub fn signature(cumulative: MicroUsd) -> EvmSignature {
    let mut bytes = [0; 65];
    bytes[..8].copy_from_slice(&cumulative.0.to_be_bytes());
    EvmSignature(bytes)
}

/// A receipt: here the attempt and its cost.
pub fn receipt(attempt: AttemptId, cost: MicroUsd) -> Vec<u8> {
    [&attempt.0[..], &cost.0.to_be_bytes()].concat()
}

pub fn read_receipt(bytes: &[u8]) -> (AttemptId, MicroUsd) {
    let (id, cost) = bytes.split_at(16);
    let cost = u64::from_be_bytes(cost.try_into().expect("eight bytes"));
    (
        AttemptId(id.try_into().expect("sixteen bytes")),
        MicroUsd(cost),
    )
}

/// A list of the seller's in an order that does not depend on hashing.
pub fn sorted(mut list: Vec<SyncAttempt>) -> Vec<SyncAttempt> {
    list.sort_by_key(|item| item.attempt);
    list
}

/// The streams that stand.
#[derive(Default)]
pub struct Wires {
    /// When the last message each way arrives: later ones may not overtake it.
    last: BTreeMap<(Conn, Side), u64>,
    open: BTreeMap<Conn, ()>,
}

impl Wires {
    pub fn stand(&mut self, conn: Conn) {
        self.open.insert(conn, ());
    }
    pub fn stands(&self, conn: Conn) -> bool {
        self.open.contains_key(&conn)
    }
    pub fn cut(&mut self, conn: Conn) -> bool {
        self.last.retain(|(c, _), _| *c != conn);
        self.open.remove(&conn).is_some()
    }
    pub fn all(&self) -> Vec<Conn> {
        self.open.keys().copied().collect()
    }
    /// When a message may arrive that would by itself arrive at `at`.
    pub fn in_order(&mut self, conn: Conn, to: Side, at: u64) -> u64 {
        let last = self.last.entry((conn, to)).or_default();
        *last = at.max(*last);
        *last
    }
}
