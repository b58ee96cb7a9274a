//! What the pages of both roles have in common: the head, what runs, money over time, the wallet,
//! and the last requests. A role's own sections stand between.

use serde_json::Value;

use super::html::{Head, Section, Tile, frame};
use super::sums::OverTime;
use super::tables;
use super::values::{NONE, dollars, list, text, uptime};

/// What every page is drawn from: the answers of `/api`, and the times that the plots show.
pub struct RoleView {
    /// `/api/wallet`, perhaps some seconds old; null without a chain.
    pub wallet: Value,
    /// `/api/status`.
    pub status: Value,
    /// `/api/channels`.
    pub channels: Value,
    /// `/api/requests`, newest first.
    pub requests: Value,
    /// Sums by quarter, hour and day.
    pub over_time: OverTime,
}

/// The words of a role.
pub(super) struct Words {
    /// What the node is to the market.
    pub role: &'static str,
    /// Its `state` when all is well.
    pub well: &'static str,
    /// The field of a request that names the other side.
    pub peer: &'static str,
    /// What happened to the money.
    pub verb: &'static str,
    /// Id and title of the section of money over time.
    pub money: (&'static str, &'static str),
}

/// The whole page: `fact` is the role's own part of the head's line.
pub(super) fn page(
    words: &Words,
    view: &RoleView,
    fact: String,
    mut tiles: Vec<Tile>,
    own: Vec<Section>,
) -> String {
    let of = |key: &str| text(view.status.get(key));
    let (state, peer) = (of("state"), of("peer"));
    let up = view.status.get("uptime_s").and_then(Value::as_u64);
    let head = Head {
        role: words.role,
        peer: &peer,
        state: &state,
        is_well: state == words.well,
        facts: vec![
            format!("payment: {}", of("mode")),
            fact,
            format!("{} peers", of("peers")),
            format!("up {}", up.map_or_else(|| NONE.to_owned(), uptime)),
            format!("version {}", of("version")),
        ],
    };
    tiles.extend(wallet_tile(&view.wallet));
    let (live, over) = tables::split(list(&view.requests, "requests"));
    let (id, title) = words.money;
    let mut sections = vec![
        Section {
            id: "live",
            title: "Running now",
            body: tables::requests("Requests that run", words.peer, &live, "No request runs."),
        },
        Section {
            id,
            title,
            body: view.over_time.plots(words.verb),
        },
    ];
    sections.extend(own);
    sections.push(Section {
        id: "requests",
        title: "Last requests",
        body: tables::last_requests(words.peer, &over),
    });
    frame(&head, &tiles, &sections)
}

/// What is on the chain; none without one.
fn wallet_tile(wallet: &Value) -> Option<Tile> {
    let of = |key: &str| wallet.get(key).and_then(Value::as_u64);
    let (outside, vault) = (of("wallet_micro_usd")?, of("vault_micro_usd")?);
    Some(Tile {
        label: "Wallet and vault",
        figure: dollars(outside.saturating_add(vault)),
        remark: format!("{} of it in the vault", dollars(vault)),
    })
}
