//! The market that is killed: one buyer, one seller, and a chain where they pay on one.

use std::time::Duration;

use crate::harness::books;
use crate::harness::chain::Market as Chain;
use crate::harness::market::{Dialect, Seller, UPSTREAM_KEY, start_buyer, wait_for_sellers};
use crate::harness::node::{Home, Node};
use crate::harness::upstream::{Script, Upstream};
use souk::types::MicroUsd;

/// USD per million tokens: an answer costs about a cent, a voucher is due with every request.
const PRICES: (&str, &str) = ("20.00", "80.00");
/// Events a second of a stream: an answer takes about half a second, so most kills hit some.
const PACE: f64 = 120.0;
/// A dead peer is noticed within 12 s, receipts repeat every 5 s, and the machine is busy.
const AGREED_DEADLINE: Duration = Duration::from_secs(90);
/// Credit that lasts for the whole run.
const CREDIT: [&str; 4] = ["--credit-limit", "1000", "--credit-total", "2000"];
/// Tokens that last for the whole run, USD.
const TOKENS_USD: u64 = 1_000;
/// Blocks below the head that the nodes count as final.
const CONFIRMATIONS: u64 = 2;
/// Deposits last for a few hundred answers and are raised now and then; vouchers are settled every
/// few dozen; a channel that rests is closed and the next request opens another, but not before two
/// restarted nodes have found each other.
const PAYMENT: &str =
    "[payment]\ndeposit_min = \"2\"\nsettle_min = \"0.2\"\nidle_close = \"12s\"\n";

/// The nodes and what is between them.
pub struct Market {
    _bootstrap: Node,
    pub seller: Seller,
    pub buyer: Node,
    /// None pays by unsecured credit.
    pub chain: Option<Chain>,
}

/// What both ledgers say when they agree.
pub struct Sums {
    /// Billed in all, micro-USD.
    pub billed: u64,
    /// Attempts billed above 0.
    pub charged: usize,
}

impl Market {
    /// Starts it; on a chain the buyer has tokens and no gas, the seller gas and no tokens.
    pub async fn start(on_chain: bool) -> Self {
        let bootstrap = Node::start(&["bootstrap"]);
        let script = Script::default().paced(PACE).key(UPSTREAM_KEY);
        let upstream = Upstream::start(script).await;
        let (chain, node, mut buyer) = if on_chain {
            let (chain, seller, buyer) = on_a_chain(bootstrap.listen(), &upstream).await;
            (Some(chain), seller, buyer)
        } else {
            let listen = bootstrap.listen();
            let seller = Seller::node(listen, Dialect::Chat, PRICES, &upstream, &CREDIT);
            (None, seller, start_buyer(listen, &[]))
        };
        let mut seller = Seller { node, upstream };
        seller.node.keep_ports();
        buyer.keep_ports();
        wait_for_sellers(&buyer, 1).await;
        Self {
            _bootstrap: bootstrap,
            seller,
            buyer,
            chain,
        }
    }

    /// Both ledgers agree, nothing is charged twice, and all verifies, with the chain where there is
    /// one.
    pub async fn check(&self) -> Result<Sums, String> {
        let (buyer, seller) = (self.buyer.home(), self.seller.node.home());
        let (bought, sold) = books::agreed(&[buyer], &[seller], AGREED_DEADLINE).await?;
        let twice = books::charged_twice(&bought);
        if !twice.is_empty() {
            return Err(format!("charged twice: {twice:?}"));
        }
        if books::billed(&bought) != books::billed(&sold) {
            return Err("the sums differ".to_owned());
        }
        books::verify(buyer)?;
        books::verify(seller)?;
        let charged = bought.values().filter(|row| row.billed > Some(0)).count();
        Ok(Sums {
            billed: books::billed(&bought),
            charged,
        })
    }

    /// What both nodes said last, for a breach.
    pub fn last_words(&self) -> String {
        let (buyer, seller) = (self.buyer.stderr_tail(), self.seller.node.stderr_tail());
        format!("the buyer:\n{buyer}\nthe seller:\n{seller}")
    }
}

/// What the buyer's wallet holds at first.
pub fn tokens() -> MicroUsd {
    MicroUsd::from_usd(TOKENS_USD)
}

async fn on_a_chain(bootstrap: &str, upstream: &Upstream) -> (Chain, Node, Node) {
    let chain = Chain::start().await;
    let (seller, buyer) = (Home::new(), Home::new());
    chain.mint(&buyer, tokens()).await;
    chain.world.anvil.mine(CONFIRMATIONS);
    chain.world.anvil.fund(&seller.evm_address);
    chain.hold_blocks();
    chain.let_blocks_come();
    for home in [&seller, &buyer] {
        // Where the short commands find it too: `ledger verify` compares with the chain.
        let section = chain.section(&chain.world.anvil.url(), CONFIRMATIONS);
        home.configure(&format!("{section}{PAYMENT}"));
    }
    let seller = Seller::node_at(seller, bootstrap, upstream, PRICES, &[]);
    let args = ["buy", "--port", "0", "--bootstrap", bootstrap];
    let buyer = Node::start_at(buyer, &args);
    (chain, seller, buyer)
}
