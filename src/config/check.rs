//! Checks layers of the config against the known keys, collecting every problem instead of
//! stopping at the first, and the rules that concern more than one key. Called by `config::load`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use toml::{Table, Value};

use super::{Config, Origin, Problem, SellModel, Setting, UPSTREAM_APIS, UPSTREAM_PRESETS};
use crate::types::PeerId;

/// Names further away than this are no help as a suggestion.
const SUGGESTION_DISTANCE_MAX: usize = 4;

/// Longest network name; it travels in every offer.
const NETWORK_NAME_BYTES_MAX: usize = 32;

/// The one key that holds tables in an array.
const MODELS_PATH: &str = "sell.models";

/// Environment variables that stand for another key than their name says.
const ENV_ALIASES: [(&str, &str); 1] = [("SOUK_DATA_DIR", "node.data_dir")];

/// Collects settings and problems, layer by layer; later layers win.
pub(super) struct Checker {
    merged: Table,
    known: BTreeMap<String, Value>,
    sections: Vec<String>,
    origins: BTreeMap<String, Origin>,
    problems: Vec<Problem>,
}

impl Checker {
    pub(super) fn new(defaults: Table) -> Self {
        let known = leaves(&defaults).into_iter().collect();
        Self {
            sections: section_paths(&defaults, ""),
            merged: defaults,
            known,
            origins: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    pub(super) fn problem(&mut self, path: &str, message: String, origin: Origin) {
        self.problems.push(Problem {
            path: path.to_owned(),
            message,
            origin,
        });
    }

    /// Takes over every valid key of a config file.
    pub(super) fn file(&mut self, text: &str, origin: &Origin) {
        match text.parse::<Table>() {
            Ok(table) => self.walk(&table, "", origin),
            Err(error) => {
                let message = error.to_string().trim_end().to_owned();
                self.problem("", message, origin.clone());
            }
        }
    }

    /// Takes over `SOUK_<SECTION>_<KEY>` variables.
    pub(super) fn env(&mut self, env: &[(String, String)]) {
        let by_name: BTreeMap<String, String> = self
            .known
            .keys()
            .map(|path| (env_name(path), path.clone()))
            .chain(ENV_ALIASES.map(|(name, path)| (name.to_owned(), path.to_owned())))
            .collect();
        let prefixes: Vec<String> = self.sections.iter().map(|s| env_name(s) + "_").collect();
        for (name, text) in env {
            let origin = Origin::Env(name.clone());
            if let Some(path) = by_name.get(name) {
                match self.env_value(path, text) {
                    Ok(value) => self.set(Setting {
                        path: path.clone(),
                        value,
                        origin,
                    }),
                    Err(message) => self.problem(path, message, origin),
                }
            } else if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                let near = nearest(name, by_name.keys().map(String::as_str));
                self.problem("", unknown("variable", near), origin);
            }
        }
    }

    fn env_value(&self, path: &str, text: &str) -> Result<Value, String> {
        match self.known.get(path) {
            _ if path == MODELS_PATH => Ok(Value::Array(
                split_list(text).map(|id| model_entry(&id)).collect(),
            )),
            Some(Value::Integer(_)) => text
                .trim()
                .parse()
                .map(Value::Integer)
                .map_err(|_| format!("`{text}` is not a whole number")),
            Some(Value::Boolean(_)) => match text.trim() {
                "1" | "true" | "yes" | "on" => Ok(Value::Boolean(true)),
                "0" | "false" | "no" | "off" => Ok(Value::Boolean(false)),
                _ => Err(format!("`{text}` is neither true nor false")),
            },
            Some(Value::Array(_)) => {
                Ok(Value::Array(split_list(text).map(Value::String).collect()))
            }
            _ => Ok(Value::String(text.to_owned())),
        }
    }

    fn walk(&mut self, table: &Table, prefix: &str, origin: &Origin) {
        for (key, value) in table {
            let path = join(prefix, key);
            if self.known.contains_key(&path) {
                self.set(Setting {
                    path,
                    value: value.clone(),
                    origin: origin.clone(),
                });
            } else if self.sections.contains(&path) {
                match value {
                    Value::Table(inner) => self.walk(inner, &path, origin),
                    _ => self.problem(
                        &path,
                        format!("is a section; write it as [{path}]"),
                        origin.clone(),
                    ),
                }
            } else {
                let names = self.known.keys().chain(&self.sections).map(String::as_str);
                let near = nearest(&path, names);
                self.problem(&path, unknown("key", near), origin.clone());
            }
        }
    }

    /// Takes over one key if it is known and its value reads.
    pub(super) fn set(&mut self, setting: Setting) {
        let Setting {
            path,
            value,
            origin,
        } = setting;
        if !self.known.contains_key(&path) {
            let near = nearest(&path, self.known.keys().map(String::as_str));
            return self.problem(&path, unknown("key", near), origin);
        }
        let before = self.problems.len();
        if path == MODELS_PATH {
            self.check_models(&value, &origin);
        }
        if self.problems.len() > before {
            return;
        }
        let mut alone = Table::new();
        insert(&mut alone, &path, value.clone());
        if let Err(error) = alone.try_into::<Config>() {
            return self.problem(&path, error.message().trim_end().to_owned(), origin);
        }
        insert(&mut self.merged, &path, value);
        self.origins.insert(path, origin);
    }

    fn check_models(&mut self, value: &Value, origin: &Origin) {
        let known = Table::try_from(SellModel::default()).unwrap_or_default();
        for (index, entry) in value.as_array().into_iter().flatten().enumerate() {
            let path = format!("{MODELS_PATH}[{index}]");
            let Some(table) = entry.as_table() else {
                let message = "is a table; write { id = \"…\", price_in = … }".to_owned();
                self.problem(&path, message, origin.clone());
                continue;
            };
            for (key, value) in table {
                let path = join(&path, key);
                if !known.contains_key(key) {
                    let near = nearest(key, known.keys().map(String::as_str));
                    self.problem(&path, unknown("key", near), origin.clone());
                    continue;
                }
                let alone = Table::from_iter([(key.clone(), value.clone())]);
                if let Err(error) = alone.try_into::<SellModel>() {
                    let message = error.message().trim_end().to_owned();
                    self.problem(&path, message, origin.clone());
                }
            }
            if table
                .get("id")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .is_empty()
            {
                self.problem(&path, "has no id".to_owned(), origin.clone());
            }
        }
    }

    /// The merged table without the wrong values, who set what, and every problem found.
    pub(super) fn finish(self) -> (Table, BTreeMap<String, Origin>, Vec<Problem>) {
        (self.merged, self.origins, self.problems)
    }
}

/// Rules over more than one key, or that a type cannot say.
pub(super) fn rules(config: &Config, origins: &BTreeMap<String, Origin>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut wrong = |path: &str, message: String| {
        problems.push(Problem {
            path: path.to_owned(),
            message,
            origin: origins.get(path).cloned().unwrap_or(Origin::Default),
        });
    };
    node_rules(config, &mut wrong);
    buy_rules(config, &mut wrong);
    sell_rules(config, &mut wrong);
    super::limits::rules(config, &mut wrong);
    super::contribute::rules(config, &mut wrong);
    super::head::rules(config, &mut wrong);
    super::chain_rules::payment(config, &mut wrong);
    super::chain_rules::chain(config, &mut wrong);
    problems
}

fn node_rules(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    let node = &config.node;
    for (path, list) in [
        ("node.listen", &node.listen),
        ("node.external", &node.external),
        ("node.bootstrap", &node.bootstrap),
    ] {
        for address in list.iter().filter(|a| !a.starts_with('/')) {
            let hint = "a multiaddr looks like /ip4/203.0.113.7/udp/4001/quic-v1";
            wrong(path, format!("`{address}` is no multiaddr; {hint}"));
        }
    }
    if node.listen.is_empty() {
        wrong("node.listen", "needs at least one multiaddr".to_owned());
    }
    if node.network.is_empty() || node.network.len() > NETWORK_NAME_BYTES_MAX {
        let message = format!("must have 1 to {NETWORK_NAME_BYTES_MAX} characters");
        wrong("node.network", message);
    }
}

fn buy_rules(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    let buy = &config.buy;
    if !is_loopback(&buy.host) && buy.token.is_unset() && buy.clients.is_empty() {
        let message = format!(
            "`{}` can be reached from outside, so clients must send a token: set buy.token to \
             \"env:NAME\" or \"file:PATH\", or use 127.0.0.1",
            buy.host
        );
        wrong("buy.host", message);
    }
    let peers = buy
        .seller
        .iter()
        .map(|peer| ("buy.seller", peer))
        .chain(buy.allow.iter().map(|peer| ("buy.allow", peer)))
        .chain(buy.deny.iter().map(|peer| ("buy.deny", peer)))
        .chain(config.sell.allow.iter().map(|peer| ("sell.allow", peer)))
        .chain(config.sell.deny.iter().map(|peer| ("sell.deny", peer)));
    for (path, peer) in peers {
        if peer.parse::<PeerId>().is_err() {
            wrong(
                path,
                format!("`{peer}` is no peer id; they look like 12D3Koo…"),
            );
        }
    }
    for alias in &buy.aliases {
        let is_pair = alias
            .split_once('=')
            .is_some_and(|(name, model)| !name.trim().is_empty() && !model.trim().is_empty());
        if !is_pair {
            wrong(
                "buy.aliases",
                format!("`{alias}` must be \"name=model\", such as \"gpt=openai/gpt-4o\""),
            );
        }
    }
    if buy.max_connections == 0 {
        wrong("buy.max_connections", "must be at least 1".to_owned());
    }
    let times = &buy.timeouts;
    for (path, time) in [
        ("buy.timeouts.open", times.open),
        ("buy.timeouts.dial", times.dial),
        ("buy.timeouts.head", times.head),
        ("buy.timeouts.first_token", times.first_token),
        (
            "buy.timeouts.first_token_reasoning",
            times.first_token_reasoning,
        ),
        ("buy.timeouts.all_attempts", times.all_attempts),
        ("buy.timeouts.idle", times.idle),
    ] {
        if time.is_zero() {
            wrong(path, "must be more than 0".to_owned());
        }
    }
}

fn sell_rules(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    let sell = &config.sell;
    let is_url = |text: &str| text.starts_with("http://") || text.starts_with("https://");
    if let Some(upstream) = sell.upstream.as_deref()
        && !is_url(upstream)
        && !UPSTREAM_PRESETS.contains(&upstream)
    {
        let near = nearest(upstream, UPSTREAM_PRESETS);
        let known = UPSTREAM_PRESETS.join(", ");
        let near = near.map_or_else(String::new, |n| format!("did you mean {n}? If not, "));
        let message = format!("`{upstream}` is unknown; {near}write a URL or one of {known}");
        wrong("sell.upstream", message);
    }
    if let Some(url) = sell.base_url.as_deref().filter(|url| !is_url(url)) {
        let message = format!("`{url}` is no URL; it starts with http:// or https://");
        wrong("sell.base_url", message);
    }
    if let Some(api) = sell
        .api
        .as_deref()
        .filter(|api| !UPSTREAM_APIS.contains(api))
    {
        let message = format!("`{api}` is not one of {}", UPSTREAM_APIS.join(", "));
        wrong("sell.api", message);
    }
    if sell.api_key_env.is_some() && sell.api_key_file.is_some() {
        let message = "api_key_env is set too; give one of them".to_owned();
        wrong("sell.api_key_file", message);
    }
    let priced = sell.price_in.is_some() || sell.price_out.is_some();
    if sell.free && (priced || sell.markup.is_some()) {
        let message = "contradicts a price or a markup; give one of them".to_owned();
        wrong("sell.free", message);
    }
    if priced && sell.markup.is_some() {
        let message = "is over the upstream's list, but a price is given too".to_owned();
        wrong("sell.markup", message);
    }
    if sell.price_in.is_some() != sell.price_out.is_some() {
        let missing = if sell.price_in.is_some() {
            "sell.price_out"
        } else {
            "sell.price_in"
        };
        wrong(
            missing,
            "is missing: input and output are priced together".to_owned(),
        );
    }
    if sell.max_concurrent == 0 {
        wrong("sell.max_concurrent", "must be at least 1".to_owned());
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Every key path with its value; tables are sections, anything else is a key.
pub(super) fn leaves(table: &Table) -> Vec<(String, Value)> {
    fn collect(table: &Table, prefix: &str, out: &mut Vec<(String, Value)>) {
        for (key, value) in table {
            let path = join(prefix, key);
            match value {
                Value::Table(inner) => collect(inner, &path, out),
                leaf => out.push((path, leaf.clone())),
            }
        }
    }
    let mut out = Vec::new();
    collect(table, "", &mut out);
    out
}

fn section_paths(table: &Table, prefix: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (key, value) in table {
        if let Value::Table(inner) = value {
            let path = join(prefix, key);
            out.extend(section_paths(inner, &path));
            out.push(path);
        }
    }
    out
}

fn insert(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

fn env_name(path: &str) -> String {
    format!("SOUK_{}", path.replace('.', "_").to_uppercase())
}

fn split_list(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
}

/// `ID[=UPSTREAM_ID]` as an entry of `[[sell.models]]`.
#[must_use]
pub fn model_entry(text: &str) -> Value {
    let (id, upstream) = text.split_once('=').unwrap_or((text, ""));
    Value::Table(Table::from_iter([
        ("id".to_owned(), Value::from(id.trim())),
        ("upstream_id".to_owned(), Value::from(upstream.trim())),
    ]))
}

fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    known
        .into_iter()
        .map(|candidate| {
            // A right key in the wrong section is nearer than its whole path is.
            let moved = strsim::damerau_levenshtein(&last(name), &last(candidate)) + 1;
            let whole = strsim::damerau_levenshtein(name, candidate);
            (whole.min(moved), whole, candidate)
        })
        .min()
        .filter(|(distance, _, candidate)| {
            *distance <= SUGGESTION_DISTANCE_MAX && *distance < candidate.len().div_ceil(2)
        })
        .map(|(_, _, candidate)| candidate)
}

fn unknown(what: &str, near: Option<&str>) -> String {
    match near {
        Some(near) => format!("unknown {what}; did you mean {near}?"),
        None => format!("unknown {what}; `node config show` lists all"),
    }
}
