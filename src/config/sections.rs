//! The config's sections, one struct each. `Default` is the documented default of every key and
//! equals `config.example.toml`; whoever adds a key adds it there too (a test compares them).

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::{BuyBudget, SellLimits};
use super::routing::RoutingSection;
use super::values::{
    SecretRef, Switch, duration, opt_count, opt_path, opt_percent, opt_text, opt_usd, usd,
};
use crate::types::MicroUsd;

/// `[node]`: what every role shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSection {
    /// Keys, ledger and caches; `None` = the XDG data directory.
    #[serde(with = "opt_path")]
    pub data_dir: Option<PathBuf>,
    /// Multiaddrs to listen on.
    pub listen: Vec<String>,
    /// Multiaddrs by which others reach this node, when they differ from what it listens on.
    pub external: Vec<String>,
    /// Multiaddrs of peers to start from.
    pub bootstrap: Vec<String>,
    /// The network's name; nodes of different networks never meet.
    pub network: String,
    /// Whether this node serves the DHT.
    pub dht_server: Switch,
    /// Whether peers on the local network are looked for.
    pub mdns: Switch,
    /// Whether the router is asked to forward a port.
    pub upnp: bool,
    /// Passphrase of the key file.
    pub passphrase: SecretRef,
}

impl Default for NodeSection {
    fn default() -> Self {
        Self {
            data_dir: None,
            listen: vec![
                "/ip4/0.0.0.0/udp/0/quic-v1".to_owned(),
                "/ip4/0.0.0.0/tcp/0".to_owned(),
            ],
            external: Vec::new(),
            bootstrap: Vec::new(),
            network: "souk-1".to_owned(),
            dht_server: Switch::Auto,
            mdns: Switch::Auto,
            upnp: true,
            passphrase: SecretRef::Unset,
        }
    }
}

/// What the router looks for first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefer {
    /// The lowest price.
    Cheap,
    /// Price and speed together.
    #[default]
    Balanced,
    /// The shortest wait.
    Fast,
}

/// `[buy]`: the local proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuySection {
    /// Whether `node run` starts the buyer.
    pub enabled: bool,
    /// Address of the local proxy.
    pub host: String,
    /// Port of the local proxy; 0 = any free one.
    pub port: u16,
    /// More `Host` names by which the proxy may be called.
    pub hosts: Vec<String>,
    /// Token that clients must send.
    pub token: SecretRef,
    /// Clients with tokens of their own: `name=env:NAME` or `name=file:PATH`.
    pub clients: Vec<String>,
    /// Connections served at once.
    pub max_connections: u32,
    /// What the router looks for first.
    pub prefer: Prefer,
    /// Highest input price accepted, USD per million tokens.
    #[serde(with = "opt_usd")]
    pub max_price_in: Option<MicroUsd>,
    /// Highest output price accepted, USD per million tokens.
    #[serde(with = "opt_usd")]
    pub max_price_out: Option<MicroUsd>,
    /// Own names for models: `name=model`.
    pub aliases: Vec<String>,
    /// Models that `auto` stands for: the first that is on offer.
    pub auto: Vec<String>,
    /// Models whose ends are here and whose layers are bought from stages: `[ID=]PATH`.
    pub pipelines: Vec<String>,
    /// Preferred seller's peer id; others still serve when it fails.
    #[serde(with = "opt_text")]
    pub seller: Option<String>,
    /// Only these sellers (peer ids); empty = all.
    pub allow: Vec<String>,
    /// Never these sellers (peer ids).
    pub deny: Vec<String>,
    /// Wallets that may call with `SIGN-IN-WITH-X`, besides the node's own.
    pub wallets: Vec<String>,
    /// A wallet's signed permission for this node, sent with every request.
    #[serde(with = "opt_path")]
    pub delegation_file: Option<PathBuf>,
    /// The most that may be spent.
    pub budget: BuyBudget,
    /// How long the buyer waits for what.
    pub timeouts: BuyTimeouts,
    /// How sellers are chosen.
    pub routing: RoutingSection,
}

impl Default for BuySection {
    fn default() -> Self {
        Self {
            enabled: true,
            host: "127.0.0.1".to_owned(),
            port: 5005,
            hosts: Vec::new(),
            token: SecretRef::Unset,
            clients: Vec::new(),
            max_connections: 12_000,
            prefer: Prefer::Balanced,
            max_price_in: None,
            max_price_out: None,
            aliases: Vec::new(),
            auto: Vec::new(),
            pipelines: Vec::new(),
            seller: None,
            allow: Vec::new(),
            deny: Vec::new(),
            wallets: Vec::new(),
            delegation_file: None,
            budget: BuyBudget::default(),
            timeouts: BuyTimeouts::default(),
            routing: RoutingSection::default(),
        }
    }
}

/// `[buy.timeouts]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuyTimeouts {
    /// Stream opened and answered by a first frame.
    #[serde(with = "duration")]
    pub open: Duration,
    /// A dial.
    #[serde(with = "duration")]
    pub dial: Duration,
    /// The head and its answer.
    #[serde(with = "duration")]
    pub head: Duration,
    /// The first token of an ordinary model.
    #[serde(with = "duration")]
    pub first_token: Duration,
    /// The first token of a model that thinks first.
    #[serde(with = "duration")]
    pub first_token_reasoning: Duration,
    /// All attempts of one request together, up to the first event.
    #[serde(with = "duration")]
    pub all_attempts: Duration,
    /// Silence within an answer.
    #[serde(with = "duration")]
    pub idle: Duration,
    /// A whole answer; zero = none.
    #[serde(with = "duration")]
    pub total: Duration,
}

impl Default for BuyTimeouts {
    fn default() -> Self {
        Self {
            open: Duration::from_secs(5),
            dial: Duration::from_secs(10),
            head: Duration::from_secs(10),
            first_token: Duration::from_secs(60),
            first_token_reasoning: Duration::from_secs(180),
            all_attempts: Duration::from_secs(100),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(30 * 60),
        }
    }
}

/// `[sell]`: the upstream and its prices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SellSection {
    /// Whether `node run` starts the seller (it also needs an upstream).
    pub enabled: bool,
    /// A preset's name or a base URL.
    #[serde(with = "opt_text")]
    pub upstream: Option<String>,
    /// Overrides a preset's address.
    #[serde(with = "opt_text")]
    pub base_url: Option<String>,
    /// The upstream's dialect: openai-chat, openai-responses or anthropic.
    #[serde(with = "opt_text")]
    pub api: Option<String>,
    /// Environment variable that holds the upstream's key.
    #[serde(with = "opt_text")]
    pub api_key_env: Option<String>,
    /// File that holds the upstream's key.
    #[serde(with = "opt_path")]
    pub api_key_file: Option<PathBuf>,
    /// With the upstream `pipeline`: layers are computed by other peers, who are paid.
    pub split: bool,
    /// Models to sell; empty = all that the upstream lists.
    pub models: Vec<SellModel>,
    /// Input price, USD per million tokens.
    #[serde(with = "opt_usd")]
    pub price_in: Option<MicroUsd>,
    /// Output price.
    #[serde(with = "opt_usd")]
    pub price_out: Option<MicroUsd>,
    /// Price of input read from the upstream's cache; `None` = the input price.
    #[serde(with = "opt_usd")]
    pub price_cached: Option<MicroUsd>,
    /// Price of input written to the upstream's cache; `None` = 1.25 times the input price.
    #[serde(with = "opt_usd")]
    pub price_cache_write: Option<MicroUsd>,
    /// Over the upstream's own price list, in hundredths of a percent.
    #[serde(with = "opt_percent")]
    pub markup: Option<u32>,
    /// How often the upstream's list is read again and offers are renewed.
    #[serde(with = "duration")]
    pub price_refresh: Duration,
    /// Sells at price 0.
    pub free: bool,
    /// Port of the seller's own pages on loopback; 0 = any free one.
    pub http_port: u16,
    /// Context length in tokens; 0 = unknown.
    pub context: u32,
    /// Longest answer in tokens; 0 = unknown.
    pub max_output: u32,
    /// Requests served at once.
    pub max_concurrent: u32,
    /// Only these buyers (peer ids); empty = all.
    pub allow: Vec<String>,
    /// Never these buyers (peer ids).
    pub deny: Vec<String>,
    /// Unsecured credit per buyer, in USD; `None` = decided by how public the node is.
    #[serde(with = "opt_usd")]
    pub credit_limit: Option<MicroUsd>,
    /// Unsecured credit over all buyers in a day, in USD; `None` = as above.
    #[serde(with = "opt_usd")]
    pub credit_total: Option<MicroUsd>,
    /// How much is served.
    pub limits: SellLimits,
}

impl Default for SellSection {
    fn default() -> Self {
        Self {
            enabled: true,
            upstream: None,
            base_url: None,
            api: None,
            api_key_env: None,
            api_key_file: None,
            split: false,
            models: Vec::new(),
            price_in: None,
            price_out: None,
            price_cached: None,
            price_cache_write: None,
            markup: None,
            price_refresh: Duration::from_secs(20 * 60),
            free: false,
            http_port: 5006,
            context: 0,
            max_output: 0,
            max_concurrent: 256,
            allow: Vec::new(),
            deny: Vec::new(),
            credit_limit: None,
            credit_total: None,
            limits: SellLimits::default(),
        }
    }
}

/// One entry of `[[sell.models]]`; what is left out comes from `[sell]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SellModel {
    /// The model's name on the network.
    pub id: String,
    /// The upstream's name for it; `None` = the same.
    #[serde(with = "opt_text")]
    pub upstream_id: Option<String>,
    /// Input price, USD per million tokens.
    #[serde(with = "opt_usd")]
    pub price_in: Option<MicroUsd>,
    /// Output price.
    #[serde(with = "opt_usd")]
    pub price_out: Option<MicroUsd>,
    /// Price of cached input.
    #[serde(with = "opt_usd")]
    pub price_cached: Option<MicroUsd>,
    /// Price of input written to the cache.
    #[serde(with = "opt_usd")]
    pub price_cache_write: Option<MicroUsd>,
    /// Context length in tokens; 0 = `[sell] context`.
    pub context: u32,
    /// Longest answer in tokens; 0 = `[sell] max_output`.
    pub max_output: u32,
}

/// `[payment]`: how much may be at risk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PaymentSection {
    /// Which voucher key of the seed this device uses.
    pub device: u32,
    /// Least window of a stream, in USD.
    #[serde(with = "usd")]
    pub window_min: MicroUsd,
    /// Greatest window of a stream, in USD.
    #[serde(with = "usd")]
    pub window_max: MicroUsd,
    /// Least that all streams of a pair share, in USD.
    #[serde(with = "usd")]
    pub pair_min: MicroUsd,
    /// Most that all streams of a pair share, in USD.
    #[serde(with = "usd")]
    pub pair_max: MicroUsd,
    /// Most that is prepaid for one request, in USD.
    #[serde(with = "usd")]
    pub prepay_max: MicroUsd,
    /// Most prepayment to unproven sellers that may be lost in a day, in USD.
    #[serde(with = "usd")]
    pub bootstrap_loss_max: MicroUsd,
    /// Most that is served before a deposit is confirmed, in USD.
    #[serde(with = "usd")]
    pub unconfirmed_max: MicroUsd,
    /// Most of a deposit that counts while its block is not final, in USD.
    #[serde(with = "usd")]
    pub unsafe_max: MicroUsd,
    /// What a seller asks for opening a channel, in USD; it repays the gas.
    #[serde(with = "usd")]
    pub open_fee: MicroUsd,
    /// The highest such fee that this node pays, in USD.
    #[serde(with = "usd")]
    pub open_fee_max: MicroUsd,
    /// Least deposit of a channel, in USD.
    #[serde(with = "usd")]
    pub deposit_min: MicroUsd,
    /// Greatest deposit of a channel, in USD.
    #[serde(with = "usd")]
    pub deposit_max: MicroUsd,
    /// Greatest share of the free vault in one channel, in hundredths of a percent.
    #[serde(with = "opt_percent")]
    pub deposit_share: Option<u32>,
    /// How long a seller may bring its last voucher after the buyer asked for the end.
    #[serde(with = "duration")]
    pub challenge_period: Duration,
    /// How long a channel lasts when nobody asks for its end.
    #[serde(with = "duration")]
    pub lifetime: Duration,
    /// A channel that carried nothing for this long is closed.
    #[serde(with = "duration")]
    pub idle_close: Duration,
    /// A seller settles when vouchers of this worth are not settled, in USD.
    #[serde(with = "usd")]
    pub settle_min: MicroUsd,
    /// Sellers of a model with which a buyer has channels before it needs them; 0 = none.
    pub open_ahead: u32,
    /// What a relayer may take for sending this node's signed calls, in USD.
    #[serde(with = "usd")]
    pub relay_fee_max: MicroUsd,
}

impl Default for PaymentSection {
    fn default() -> Self {
        Self {
            device: 0,
            window_min: MicroUsd(500),
            window_max: MicroUsd(10_000),
            pair_min: MicroUsd(50_000),
            pair_max: MicroUsd(250_000),
            prepay_max: MicroUsd(500_000),
            bootstrap_loss_max: MicroUsd(1_000_000),
            unconfirmed_max: MicroUsd(50_000),
            unsafe_max: MicroUsd(100_000),
            open_fee: MicroUsd(10_000),
            open_fee_max: MicroUsd(50_000),
            deposit_min: MicroUsd(500_000),
            deposit_max: MicroUsd::from_usd(20),
            deposit_share: Some(2_000),
            challenge_period: Duration::from_secs(24 * 3_600),
            lifetime: Duration::from_secs(30 * 24 * 3_600),
            idle_close: Duration::from_secs(7 * 24 * 3_600),
            settle_min: MicroUsd::from_usd(1),
            open_ahead: 2,
            relay_fee_max: MicroUsd(50_000),
        }
    }
}

/// `[chain]`: where deposits lie. Without an RPC node there is no chain, and payment is unsecured
/// credit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChainSection {
    /// JSON-RPC nodes, the preferred one first; empty = no chain.
    pub rpc: Vec<String>,
    /// The chain's number; 0 = not set.
    pub chain_id: u64,
    /// The `ChannelHub` contract.
    #[serde(with = "opt_text")]
    pub hub: Option<String>,
    /// The token that is paid with.
    #[serde(with = "opt_text")]
    pub token: Option<String>,
    /// The block the hub was deployed in, or any before it.
    pub start_block: u64,
    /// Blocks below the newest that count as final; `None` = what the RPC nodes call safe.
    #[serde(with = "opt_count")]
    pub confirmations: Option<u64>,
    /// Time between looks at the chain.
    #[serde(with = "duration")]
    pub poll: Duration,
    /// How long an RPC node may take for one answer.
    #[serde(with = "duration")]
    pub call_timeout: Duration,
    /// Most blocks whose events are asked for at once.
    pub log_range: u64,
    /// Most gwei ever offered for a unit of gas.
    pub gas_price_max: u64,
    /// How long the oldest transaction waits before it offers more.
    #[serde(with = "duration")]
    pub bump_after: Duration,
    /// What a coin of the chain costs, in USD: compares gas with what it gains.
    #[serde(with = "usd")]
    pub coin_price: MicroUsd,
}

impl Default for ChainSection {
    fn default() -> Self {
        Self {
            rpc: Vec::new(),
            chain_id: 0,
            hub: None,
            token: None,
            start_block: 0,
            confirmations: None,
            poll: Duration::from_secs(4),
            call_timeout: Duration::from_secs(10),
            log_range: 2_000,
            gas_price_max: 50,
            bump_after: Duration::from_secs(60),
            coin_price: MicroUsd::from_usd(3_000),
        }
    }
}

/// `[ledger]`: the durable record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerSection {
    /// How long a row that nobody waits for may stay in memory.
    #[serde(with = "duration")]
    pub linger: Duration,
}

impl Default for LedgerSection {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(10),
        }
    }
}
