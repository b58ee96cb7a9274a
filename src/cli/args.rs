//! The flags of the roles, and the config keys that they set.

use clap::Args;
use toml::Value;

use crate::config::{Setting, model_entry};

/// Flags of `node sell`.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Selling")]
pub struct SellArgs {
    /// openrouter, anthropic, openai, ollama, llamacpp, vllm, pipeline, demo, or a base URL
    #[arg(long, value_name = "NAME|URL")]
    pub upstream: Option<String>,
    /// Replaces a preset's address
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// With --upstream pipeline: other peers compute the layers (`contribute`) and are paid
    #[arg(long)]
    pub split: bool,
    /// With --split: use only this peer's stages (repeatable)
    #[arg(long = "stage", value_name = "PEER")]
    pub stages: Vec<String>,
    /// With --split: how rows travel; int8 is half the bytes and a slightly other text [default: f16]
    #[arg(long, value_parser = ["f16", "f32", "int8"])]
    pub wire: Option<String>,
    /// The upstream's dialect
    #[arg(long, value_parser = crate::config::UPSTREAM_APIS)]
    pub api: Option<String>,
    /// Variable that holds the upstream's key
    #[arg(long, value_name = "VAR", conflicts_with = "api_key_file")]
    pub api_key_env: Option<String>,
    /// File that holds the upstream's key
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<String>,
    /// Model to sell (repeatable; none = all that the upstream lists); for a pipeline its files, as [ID=]PATH
    #[arg(long = "model", value_name = "ID[=UPSTREAM_ID]")]
    pub models: Vec<String>,
    /// Input price, USD per million tokens
    #[arg(long, value_name = "USD", conflicts_with_all = ["markup", "free"])]
    pub price_in: Option<String>,
    /// Output price, USD per million tokens
    #[arg(long, value_name = "USD", conflicts_with_all = ["markup", "free"])]
    pub price_out: Option<String>,
    /// Price of cached input [default: the input price]
    #[arg(long, value_name = "USD")]
    pub price_cached: Option<String>,
    /// Price of input written to the cache [default: 1.25 × the input price]
    #[arg(long, value_name = "USD")]
    pub price_cache_write: Option<String>,
    /// Over the upstream's own price list [default: 10%]
    #[arg(long, value_name = "PERCENT", conflicts_with = "free")]
    pub markup: Option<String>,
    /// Sell at price 0
    #[arg(long)]
    pub free: bool,
    /// Port of the seller's own pages on loopback, 0 = a free one [default: 5006]
    #[arg(long, value_name = "PORT")]
    pub http_port: Option<u16>,
    /// Context length in tokens
    #[arg(long, value_name = "N")]
    pub context: Option<u32>,
    /// Longest answer in tokens
    #[arg(long, value_name = "N")]
    pub max_output: Option<u32>,
    /// Requests served at once
    #[arg(long, value_name = "N")]
    pub max_concurrent: Option<u32>,
    /// Unsecured credit per buyer
    #[arg(long, value_name = "USD")]
    pub credit_limit: Option<String>,
    /// Unsecured credit over all buyers in a day
    #[arg(long, value_name = "USD")]
    pub credit_total: Option<String>,
}

impl SellArgs {
    /// The config keys that the given flags set.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let mut set = Flags::default();
        set.given("sell.upstream", "--upstream", self.upstream.clone());
        set.given("sell.base_url", "--base-url", self.base_url.clone());
        set.given("sell.api", "--api", self.api.clone());
        set.given("sell.split", "--split", self.split.then_some(true));
        let stages = (!self.stages.is_empty()).then(|| self.stages.clone());
        set.given("head.stages", "--stage", stages);
        set.given("head.wire", "--wire", self.wire.clone());
        if self.api_key_env.is_some() || self.api_key_file.is_some() {
            // The one replaces the other, also when the file says otherwise.
            let env = self.api_key_env.clone().unwrap_or_default();
            let file = self.api_key_file.clone().unwrap_or_default();
            set.given("sell.api_key_env", "--api-key-env", Some(env));
            set.given("sell.api_key_file", "--api-key-file", Some(file));
        }
        let models: Vec<Value> = self.models.iter().map(|text| model_entry(text)).collect();
        set.given(
            "sell.models",
            "--model",
            (!models.is_empty()).then_some(models),
        );
        self.price_settings(&mut set);
        set.given(
            "sell.http_port",
            "--http-port",
            self.http_port.map(i64::from),
        );
        set.given("sell.context", "--context", self.context.map(i64::from));
        set.given(
            "sell.max_output",
            "--max-output",
            self.max_output.map(i64::from),
        );
        let concurrent = self.max_concurrent.map(i64::from);
        set.given("sell.max_concurrent", "--max-concurrent", concurrent);
        set.given(
            "sell.credit_limit",
            "--credit-limit",
            self.credit_limit.clone(),
        );
        set.given(
            "sell.credit_total",
            "--credit-total",
            self.credit_total.clone(),
        );
        set.0
    }

    /// A way of pricing given by a flag replaces the other ways of the file.
    fn price_settings(&self, set: &mut Flags) {
        let unset = || Some(String::new());
        let priced = self.price_in.is_some() || self.price_out.is_some();
        if self.free || self.markup.is_some() {
            let flag = if self.free { "--free" } else { "--markup" };
            set.given("sell.price_in", flag, unset());
            set.given("sell.price_out", flag, unset());
            set.given("sell.markup", flag, self.markup.clone().or_else(unset));
            set.given("sell.free", flag, Some(self.free));
        } else if priced {
            set.given("sell.markup", "--price-in", unset());
            set.given("sell.free", "--price-in", Some(false));
        }
        set.given("sell.price_in", "--price-in", self.price_in.clone());
        set.given("sell.price_out", "--price-out", self.price_out.clone());
        set.given(
            "sell.price_cached",
            "--price-cached",
            self.price_cached.clone(),
        );
        let write = self.price_cache_write.clone();
        set.given("sell.price_cache_write", "--price-cache-write", write);
    }
}

/// Flags of `node contribute`.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Contributing")]
pub struct ContributeArgs {
    /// Directory with safetensors and config.json, or a GGUF file
    #[arg(long, value_name = "PATH")]
    pub model: Option<String>,
    /// Layers from 0, END not among them, or auto: those that are needed most [default: auto]
    #[arg(long, value_name = "FIRST..END|auto")]
    pub layers: Option<String>,
    /// Most memory for weights and sessions [default: half of what is free]
    #[arg(long, value_name = "GIB")]
    pub memory: Option<u32>,
    /// Positions that all sessions together may reserve
    #[arg(long, value_name = "N")]
    pub positions: Option<u32>,
    /// Price of prefill, USD per million rows through one layer [default: by the layer's size]
    #[arg(long, value_name = "USD", conflicts_with = "free")]
    pub price_in: Option<String>,
    /// Price of decode, the same way
    #[arg(long, value_name = "USD", conflicts_with = "free")]
    pub price_out: Option<String>,
    /// Serve at price 0
    #[arg(long)]
    pub free: bool,
    /// Serve only this peer (repeatable)
    #[arg(long, value_name = "PEER")]
    pub allow: Vec<String>,
    /// Never serve this peer (repeatable)
    #[arg(long, value_name = "PEER")]
    pub deny: Vec<String>,
    /// Port of the stage's own pages on loopback, 0 = a free one [default: 5007]
    #[arg(long, value_name = "PORT")]
    pub http_port: Option<u16>,
    /// Unsecured credit per payer
    #[arg(long, value_name = "USD")]
    pub credit_limit: Option<String>,
}

impl ContributeArgs {
    /// The config keys that the given flags set.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let list = |items: &[String]| (!items.is_empty()).then(|| items.to_vec());
        let mut set = Flags::default();
        set.given("contribute.model", "--model", self.model.clone());
        set.given("contribute.layers", "--layers", self.layers.clone());
        set.given("contribute.memory", "--memory", self.memory.map(i64::from));
        let positions = self.positions.map(i64::from);
        set.given("contribute.positions", "--positions", positions);
        if self.free {
            let unset = || Some(String::new());
            set.given("contribute.price_in", "--free", unset());
            set.given("contribute.price_out", "--free", unset());
            set.given("contribute.free", "--free", Some(true));
        } else if self.price_in.is_some() || self.price_out.is_some() {
            set.given("contribute.free", "--price-in", Some(false));
        }
        set.given("contribute.price_in", "--price-in", self.price_in.clone());
        set.given(
            "contribute.price_out",
            "--price-out",
            self.price_out.clone(),
        );
        set.given("contribute.allow", "--allow", list(&self.allow));
        set.given("contribute.deny", "--deny", list(&self.deny));
        let port = self.http_port.map(i64::from);
        set.given("contribute.http_port", "--http-port", port);
        let credit = self.credit_limit.clone();
        set.given("sell.credit_limit", "--credit-limit", credit);
        set.0
    }
}

/// Flags of `node buy`.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Buying")]
pub struct BuyArgs {
    /// Port of the local proxy, 0 = a free one [default: 5005]
    #[arg(long)]
    pub port: Option<u16>,
    /// Address of the local proxy; others than loopback need a token [default: 127.0.0.1]
    #[arg(long)]
    pub host: Option<String>,
    /// What to look for first [default: balanced]
    #[arg(long, value_parser = ["cheap", "balanced", "fast"])]
    pub prefer: Option<String>,
    /// Highest input price, USD per million tokens
    #[arg(long, value_name = "USD")]
    pub max_price_in: Option<String>,
    /// Highest output price, USD per million tokens
    #[arg(long, value_name = "USD")]
    pub max_price_out: Option<String>,
    /// Most to spend in a day
    #[arg(long, value_name = "USD")]
    pub budget_daily: Option<String>,
    /// Model whose files are here and whose layers are bought from stages (repeatable)
    #[arg(long = "pipeline", value_name = "[ID=]PATH")]
    pub pipelines: Vec<String>,
    /// Preferred seller; others still serve when it fails
    #[arg(long, value_name = "PEER")]
    pub seller: Option<String>,
    /// Buy only from this seller (repeatable)
    #[arg(long, value_name = "PEER")]
    pub allow: Vec<String>,
    /// Never buy from this seller (repeatable)
    #[arg(long, value_name = "PEER")]
    pub deny: Vec<String>,
}

impl BuyArgs {
    /// The config keys that the given flags set.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let list = |items: &[String]| (!items.is_empty()).then(|| items.to_vec());
        let mut set = Flags::default();
        set.given("buy.port", "--port", self.port.map(i64::from));
        set.given("buy.host", "--host", self.host.clone());
        set.given("buy.prefer", "--prefer", self.prefer.clone());
        set.given(
            "buy.max_price_in",
            "--max-price-in",
            self.max_price_in.clone(),
        );
        set.given(
            "buy.max_price_out",
            "--max-price-out",
            self.max_price_out.clone(),
        );
        set.given(
            "buy.budget.daily",
            "--budget-daily",
            self.budget_daily.clone(),
        );
        set.given("buy.pipelines", "--pipeline", list(&self.pipelines));
        set.given("buy.seller", "--seller", self.seller.clone());
        set.given("buy.allow", "--allow", list(&self.allow));
        set.given("buy.deny", "--deny", list(&self.deny));
        set.0
    }
}

/// Flags of `node run`: the roles, and everything that they know.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Sell (with --upstream or the config's upstream); without --sell and --buy the config decides
    #[arg(long = "sell")]
    pub with_sell: bool,
    /// Buy
    #[arg(long = "buy")]
    pub with_buy: bool,
    /// The seller's flags.
    #[command(flatten)]
    pub sell: SellArgs,
    /// The buyer's flags.
    #[command(flatten)]
    pub buy: BuyArgs,
}

impl RunArgs {
    /// The config keys that the given flags set.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let mut set = Flags(self.sell.settings());
        set.0.extend(self.buy.settings());
        if self.with_sell || self.with_buy {
            set.given("sell.enabled", "--sell", Some(self.with_sell));
            set.given("buy.enabled", "--buy", Some(self.with_buy));
        }
        set.0
    }
}

/// Flags of `node demo`.
#[derive(Clone, Debug, Default, Args)]
pub struct DemoArgs {
    /// Port of the local proxy, 0 = a free one [default: 5005]
    #[arg(long)]
    pub port: Option<u16>,
}

impl DemoArgs {
    /// The config keys that the given flags set.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        let mut set = Flags::default();
        set.given("buy.port", "--port", self.port.map(i64::from));
        set.0
    }
}

/// Collects the flags that were given.
#[derive(Default)]
struct Flags(Vec<Setting>);

impl Flags {
    fn given(&mut self, path: &str, flag: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.0.push(Setting::flag(path, flag, value));
        }
    }
}

/// `node models`.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Say for each seller of this model what its score is made of, or why it is not asked.
    #[arg(long, value_name = "MODEL")]
    pub explain: Option<String>,
    /// Show which layers of which models peers compute for pipelines.
    #[arg(long, conflicts_with = "explain")]
    pub pipelines: bool,
}
