//! Souk: a peer-to-peer market for LLM inference. A seller puts an upstream on the network at its
//! price; a buyer runs a local proxy that forwards requests to sellers and pays them.
//!
//! # Layout
//!
//! Imports go downwards only, from the end of this list to its start; `tests/it/architecture.rs`
//! holds the list, fails on an upward import and knows where each foreign crate may be named.
//!
//! - [`failpoint`]: places where a test can kill the process.
//! - [`types`]: money, prices, usage, ids, the clock, secrets. No I/O, no async.
//! - [`tasks`], [`telemetry`]: named background tasks; logs and metrics.
//! - [`protocol`]: what travels between nodes, as bytes and as types; signed and verified.
//! - [`llm_api`]: the HTTP dialects of LLM providers, as pure functions over bytes.
//! - [`keys`]: one seed, and the identity and payment keys that come from it.
//! - [`ledger`]: the durable truth about money; all SQL of the crate.
//! - [`chain`]: the EVM side: RPC, the hub contract, a watcher of its events, an outbox.
//! - [`network`]: libp2p; moves bytes, knows no money.
//! - [`discovery`]: who sells what: announcing, looking up, the offers at hand.
//! - [`payment`]: who may owe whom how much; vouchers and how both books come to the same sum.
//! - [`router`]: which seller for a request, learned from what became of earlier ones.
//! - [`wallet`]: the node's money on its chain: balances, deposits, withdrawals, channels, relaying.
//! - [`http`]: the local front: guard, limits, bodies, server. Knows neither money nor peers.
//! - [`dashboard`]: the page that a role shows in a browser, drawn from what its `/api` answers.
//! - [`buyer`]: local HTTP in, a seller's answer out.
//! - [`seller`]: a buyer's stream in, the upstream's answer out, and what it earns.
//! - [`pipeline`]: one model's layers on several peers; so far the engine that computes them.
//! - [`config`], [`data_dir`], [`failure`]: settings, files, and what a command says when it fails.
//! - [`launch`]: what a role is started with.
//! - [`node`]: the composition root; builds the parts, spawns their tasks, ends them in order.
//! - [`cli`]: one file per command; `main.rs` only calls it.
//!
//! # Two flows
//!
//! A buyer's request (`buyer/mod.rs`):
//!
//! 1. [`http`] guards the port: host, origin, token, size.
//! 2. `buyer/asked` parses the request once, in its dialect.
//! 3. `buyer/route` finds the sellers whose offers ([`discovery`]) fit the request and its caps, and
//!    [`router`] says which of them is asked next; for sellers of another dialect [`llm_api::translate`] writes the request once more.
//! 4. For each choice of the router, four at most: [`buyer::budget`] reserves the bound, then
//!    `buyer/attempt` opens the session, signs the head, books the attempt in the [`ledger`],
//!    opens a stream and sends head and body.
//! 5. `buyer/relay` passes the answer event by event, translated where the dialects differ, and
//!    meters the seller's bytes; vouchers of [`payment`] go
//!    alongside, each durable before it is sent.
//! 6. `buyer/books` bounds the cost by its own count, checks the receipt and books the end.
//!
//! A seller's request (`seller/mod.rs`):
//!
//! 1. [`network`] accepts an infer stream and reads the head.
//! 2. [`seller::admission`] verifies it: signature, time, replay, offer. A free slot is taken, the
//!    body received and compared with its hash.
//! 3. [`payment`] admits it when credit and vouchers cover the input; the [`ledger`] books it.
//! 4. [`seller::upstream`] is called.
//! 5. `seller/reply` relays the answer, never further ahead than the vouchers held reach.
//! 6. `seller/account` prices the usage, signs the receipt, sends and books it.
//!
//! # Words
//!
//! One term, one meaning.
//!
//! - **node**: this process. **peer**: another node. **buyer**, **seller**: roles.
//! - **upstream**: the HTTP endpoint a seller forwards to. **provider**: an LLM vendor, or the
//!   DHT's provider record, nothing else. **dialect**: one vendor's form of requests and answers.
//! - **offer**: signed standing terms of a seller for a model. **quote**: a signed bound for one
//!   request.
//! - **candidate**, **route**, **attempt**, **failover**: a seller that fits, their order, one try,
//!   the next try. **admission**: a seller admits or rejects.
//! - **stream**, **frame**, **chunk**, **event**: of libp2p, of our protocol, of HTTP, of SSE.
//! - **channel**: a one-way relation from payer to payee, with a **deposit** (or credit) and a
//!   **cumulative** sum.
//! - **voucher**: a cumulative sum signed by the payer. **receipt**: the payee's signed proof of
//!   one request. **settlement**: what is booked as paid: open, top up, settle, close, reclaim.
//! - **usage**: parts of tokens. **price**: micro-USD per million tokens. **cost**: usage × price.
//! - **credit**: what a seller lets a buyer owe. **exposure**: what one side may lose now.
//!   **budget**: what a buyer lets itself spend.
//! - **ledger**, **entry**, **audit**: the books, a row, the check of all rows.
//! - **score**, **quarantine**, **ban**: how a peer is judged and kept away.
//! - **announce**, **look up**: put offers into the DHT, find them there.
//!
//! Units are suffixes, biggest word first: `idle_timeout_ms`, `exposure_micro_usd_max`.

pub mod failpoint;

pub mod types;

pub mod tasks;
pub mod telemetry;

pub mod keys;
pub mod llm_api;
pub mod protocol;

pub mod chain;
pub mod ledger;
pub mod network;

pub mod discovery;
pub mod payment;
pub mod router;
pub mod wallet;

pub mod http;

pub mod dashboard;

pub mod buyer;
pub mod pipeline;
pub mod seller;

pub mod config;
pub mod data_dir;
pub mod failure;

pub mod launch;

pub mod node;

pub mod cli;
