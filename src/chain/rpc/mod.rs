//! The real chain: JSON-RPC over HTTP with several nodes, one at a time.
//!
//! One node is used as long as it is good, so that one poll sees one view; on a failure the call
//! goes to the next. A node is set aside when it fails, serves another chain, or is far behind the
//! others. With no node left an error says what each did; nothing here waits or retries later, the
//! callers' polls do. `node` makes one per configured chain.

mod class;
mod convert;
mod pool;
mod transport;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use alloy::eips::BlockNumberOrTag;
use alloy::network::Ethereum;
use alloy::primitives::B256;
use alloy::providers::{Provider, RootProvider};
use alloy::rpc::client::RpcClient;
use alloy::transports::{RpcError, TransportErrorKind, TransportResult};

use self::class::sort;
use self::convert::{block, filter, number_at, raw_log, receipt, request};
use self::pool::{Pool, Report};
use self::transport::{ANSWER_BYTES_MAX, Bounded};
use super::hub::convert::address;
use super::{
    Answer, At, Block, Call, Chain, ChainError, Fees, LogQuery, NonceAt, RawLog, Receipt, Retry,
};
use crate::types::{Clock, EvmAddress, Hash32};

/// How long a node may take for one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A usual tip where a node does not know one: 0.001 gwei, what rollups take.
const PRIORITY_FEE_DEFAULT: u128 = 1_000_000;

/// Which nodes, and how they are judged.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://` or `https://`, the preferred one first.
    pub urls: Vec<String>,
    /// The chain they must serve.
    pub chain_id: u64,
    /// How long a node may take for one call.
    pub call_timeout: Duration,
    /// How many blocks a node may be behind the best.
    pub lag_blocks_max: u64,
    /// How long a node that failed is left alone.
    pub rest_ms: u64,
    /// Longest answer of a node that is read.
    pub answer_bytes_max: usize,
}

impl Settings {
    /// Usual settings for these nodes of this chain.
    #[must_use]
    pub const fn new(urls: Vec<String>, chain_id: u64) -> Self {
        Self {
            urls,
            chain_id,
            call_timeout: CALL_TIMEOUT,
            // Ten seconds of a rollup with a block every 2 s, a minute of a slower chain.
            lag_blocks_max: 5,
            rest_ms: 30_000,
            answer_bytes_max: ANSWER_BYTES_MAX,
        }
    }
}

/// Asks a node which chain it serves, for a user who knows only the URL.
///
/// # Errors
/// When the URL is none, or nobody answers there.
pub async fn chain_id_of(url: &str, timeout: Duration) -> Result<u64, ChainError> {
    let url: reqwest::Url = url
        .parse()
        .map_err(|error| ChainError::Refused(format!("this is no URL: {error}")))?;
    let shown = shown(&url);
    let client = client(timeout)?;
    let transport = Bounded::new(client, url, ANSWER_BYTES_MAX);
    let provider: RootProvider<Ethereum> = RootProvider::new(RpcClient::new(transport, true));
    let answer = provider.get_chain_id().await;
    answer.map_err(|error| sort(&shown, &error))
}

fn client(timeout: Duration) -> Result<reqwest::Client, ChainError> {
    reqwest::Client::builder()
        .timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .build()
        .map_err(|error| ChainError::Refused(format!("HTTP client: {error}")))
}

struct Node {
    shown: String,
    provider: RootProvider<Ethereum>,
}

/// Several nodes of one chain.
pub struct Rpc {
    nodes: Vec<Node>,
    pool: Pool,
    settings: Settings,
}

impl Rpc {
    /// Sets up the nodes; nothing is asked yet.
    ///
    /// # Errors
    /// When a URL is no HTTP URL, or there is none, or TLS cannot be set up.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, ChainError> {
        let refused = |why: String| ChainError::Refused(why);
        let client = client(settings.call_timeout)?;
        let mut nodes = vec![];
        for text in &settings.urls {
            let url: reqwest::Url = text
                .parse()
                .map_err(|error| refused(format!("an RPC address is no URL: {error}")))?;
            if !matches!(url.scheme(), "http" | "https") {
                return Err(refused(format!("{} is no HTTP URL", shown(&url))));
            }
            let shown = shown(&url);
            let transport = Bounded::new(client.clone(), url, settings.answer_bytes_max);
            let provider = RootProvider::new(RpcClient::new(transport, true));
            nodes.push(Node { shown, provider });
        }
        if nodes.is_empty() {
            return Err(refused("no RPC URL is configured".to_owned()));
        }
        let pool = Pool::new(
            nodes.len(),
            settings.lag_blocks_max,
            settings.rest_ms,
            clock,
        );
        Ok(Self {
            nodes,
            pool,
            settings,
        })
    }

    /// Asks every node for its head, so that the pool knows who is behind.
    async fn compare(&self) {
        let asks = self
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| async move {
                if self.check_chain(index, node).await.is_err() {
                    return;
                }
                if let Ok(head) = node.provider.get_block_number().await {
                    self.pool.report(index, Report::Head(head));
                }
            });
        futures::future::join_all(asks).await;
    }

    /// Compares the node's chain with ours, once.
    async fn check_chain(&self, index: usize, node: &Node) -> Result<(), ChainError> {
        if self.pool.is_checked(index) {
            return Ok(());
        }
        let answer = node.provider.get_chain_id().await;
        let found = answer.map_err(|error| {
            self.pool.report(index, Report::Failed);
            sort(&node.shown, &error)
        })?;
        if found != self.settings.chain_id {
            self.pool.report(index, Report::OtherChain);
            return Err(ChainError::WrongChain {
                url: node.shown.clone(),
                expected: self.settings.chain_id,
                found,
            });
        }
        self.pool.report(index, Report::Checked);
        Ok(())
    }

    /// Makes a call at the first node that answers.
    async fn ask<'a, T, F, Fut>(&'a self, call: F) -> Result<T, ChainError>
    where
        F: Fn(&'a RootProvider<Ethereum>) -> Fut,
        Fut: Future<Output = TransportResult<T>>,
    {
        if self.nodes.len() > 1 && self.pool.compare_is_due() {
            self.compare().await;
        }
        let mut faults: Vec<String> = vec![];
        let mut last = None;
        for index in self.pool.order() {
            let Some(node) = self.nodes.get(index) else {
                continue;
            };
            let answer = match self.check_chain(index, node).await {
                Ok(()) => call(&node.provider)
                    .await
                    .map_err(|error| sort(&node.shown, &error)),
                Err(error) => Err(error),
            };
            match answer {
                Ok(value) => {
                    self.pool.report(index, Report::Answered);
                    return Ok(value);
                }
                Err(error) if error.retry() == Retry::NextUrl => {
                    if !matches!(error, ChainError::WrongChain { .. }) {
                        self.pool.report(index, Report::Failed);
                    }
                    tracing::debug!(%error, "an RPC node failed");
                    faults.push(error.to_string());
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match (last, faults.len()) {
            (Some(error @ ChainError::WrongChain { .. }), 1) => Err(error),
            _ => Err(ChainError::Unreachable(faults.join("; "))),
        }
    }
}

/// A URL as it may be shown: keys sit in the path, the query and the user part.
fn shown(url: &reqwest::Url) -> String {
    let port = url
        .port()
        .map_or_else(String::new, |port| format!(":{port}"));
    format!(
        "{}://{}{port}",
        url.scheme(),
        url.host_str().unwrap_or_default()
    )
}

fn null_is_none<T>(answer: TransportResult<Option<T>>) -> TransportResult<Option<T>> {
    match answer {
        Err(RpcError::NullResp) => Ok(None),
        other => other,
    }
}

const fn tag(at: At) -> BlockNumberOrTag {
    match at {
        At::Latest => BlockNumberOrTag::Latest,
        At::Safe => BlockNumberOrTag::Safe,
        At::Number(number) => BlockNumberOrTag::Number(number),
    }
}

fn malformed(what: &str) -> RpcError<TransportErrorKind> {
    RpcError::local_usage_str(what)
}

impl Chain for Rpc {
    fn chain_id(&self) -> Answer<'_, u64> {
        Box::pin(self.ask(|node| async move { node.get_chain_id().await }))
    }

    fn block(&self, at: At) -> Answer<'_, Option<Block>> {
        let tag = tag(at);
        Box::pin(async move {
            let found = self
                .ask(|node| async move { null_is_none(node.get_block_by_number(tag).await) })
                .await?;
            Ok(found.map(|found| block(&found)))
        })
    }

    fn logs(&self, query: LogQuery) -> Answer<'_, Vec<RawLog>> {
        Box::pin(async move {
            let filter = &filter(query);
            self.ask(|node| async move {
                let logs = node.get_logs(filter).await?;
                let logs: Option<Vec<RawLog>> = logs.iter().map(raw_log).collect();
                logs.ok_or_else(|| malformed("a log without its block"))
            })
            .await
        })
    }

    fn code(&self, at: EvmAddress) -> Answer<'_, Vec<u8>> {
        Box::pin(
            self.ask(move |node| async move { Ok(node.get_code_at(address(at)).await?.to_vec()) }),
        )
    }

    fn call_at(&self, call: Call, at: At) -> Answer<'_, Vec<u8>> {
        let request = request(&call);
        Box::pin(async move {
            let request = &request;
            // The library's own default is the pending block: what is in no block counts for nothing.
            let block = tag(at).into();
            let call =
                |node| async move { RootProvider::call(node, request.clone()).block(block).await };
            Ok(self.ask(call).await?.to_vec())
        })
    }

    fn estimate_gas(&self, call: Call) -> Answer<'_, u64> {
        let request = request(&call);
        Box::pin(async move {
            let request = &request;
            self.ask(|node| async move { node.estimate_gas(request.clone()).await })
                .await
        })
    }

    fn fees(&self) -> Answer<'_, Fees> {
        Box::pin(async move {
            let newest = self.block(At::Latest).await?;
            let tip = self.ask(|node| async move { node.get_max_priority_fee_per_gas().await });
            let priority = match tip.await {
                Ok(tip) => tip,
                Err(error) if matches!(error, ChainError::Unreachable(_)) => return Err(error),
                Err(_) => PRIORITY_FEE_DEFAULT,
            };
            let base = newest.map_or(0, |newest| newest.base_fee);
            Ok(Fees { base, priority })
        })
    }

    fn nonce(&self, account: EvmAddress, at: NonceAt) -> Answer<'_, u64> {
        Box::pin(self.ask(move |node| async move {
            node.get_transaction_count(address(account))
                .block_id(number_at(at))
                .await
        }))
    }

    fn balance(&self, account: EvmAddress) -> Answer<'_, u128> {
        Box::pin(self.ask(move |node| async move {
            Ok(node.get_balance(address(account)).await?.saturating_to())
        }))
    }

    fn send(&self, raw: Vec<u8>) -> Answer<'_, ()> {
        Box::pin(async move {
            let raw = &raw;
            self.ask(|node| async move { node.send_raw_transaction(raw).await.map(|_| ()) })
                .await
        })
    }

    fn receipt(&self, tx: Hash32) -> Answer<'_, Option<Receipt>> {
        Box::pin(async move {
            let hash = B256::from(tx.0);
            let found = self
                .ask(|node| async move { null_is_none(node.get_transaction_receipt(hash).await) })
                .await?;
            Ok(found.and_then(|found| receipt(&found)))
        })
    }
}
