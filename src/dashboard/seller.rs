//! The seller's page: what was earned, over what it cost upstream, how busy it is and whom it
//! refuses.

use serde_json::Value;

use super::html::{Cell, Section, Tile, table};
use super::plot::stack;
use super::role::{RoleView, Words, page};
use super::tables;
use super::values::{NONE, approx, dollars, grouped, list, short, text, usd};

/// What the page is drawn from.
pub struct SellerView {
    /// What every role shows.
    pub role: RoleView,
    /// Sums of the days by model.
    pub by_model: Value,
    /// The same by buyer.
    pub by_buyer: Value,
}

const WORDS: Words = Words {
    role: "seller",
    well: "selling",
    peer: "buyer",
    verb: "Earned",
    money: ("earnings", "Earnings"),
};

/// Draws it.
#[must_use]
pub fn seller_page(view: &SellerView) -> String {
    let status = &view.role.status;
    let sections = vec![
        Section {
            id: "margins",
            title: "Margins",
            body: margins(list(status, "margins")),
        },
        Section {
            id: "shares",
            title: "From what",
            body: format!(
                "{}{}",
                tables::sums("By model, 30 days", "Model", &view.by_model, false),
                tables::sums("By buyer, 30 days", "Buyer", &view.by_buyer, true),
            ),
        },
        Section {
            id: "load",
            title: "Load and refusals",
            body: load(status),
        },
        Section {
            id: "channels",
            title: "Channels",
            body: channels(list(&view.role.channels, "channels")),
        },
    ];
    let on_sale = format!("{} models on sale", list(status, "models").len());
    page(&WORDS, &view.role, on_sale, tiles(status), sections)
}

fn tiles(status: &Value) -> Vec<Tile> {
    let money = |key: &str| usd(status.pointer(&format!("/money/{key}")));
    let tile = |label, figure, remark: &str| Tile {
        label,
        figure,
        remark: remark.to_owned(),
    };
    let of = |key: &str| status.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (busy, slots) = (of("in_flight"), of("slots"));
    vec![
        tile(
            "Earned today",
            money("earned_today_micro_usd"),
            "accepted by buyers",
        ),
        tile("Owed", money("owed_micro_usd"), "delivered, not paid for"),
        tile(
            "In doubt",
            money("in_doubt_micro_usd"),
            "delivered, not accepted yet",
        ),
        tile("Written off", money("written_off_micro_usd"), "ever"),
        tile(
            "In use",
            format!("{} of {}", grouped(busy), grouped(slots)),
            "requests at the upstream",
        ),
    ]
}

/// What is earned over the upstream's own list prices.
fn margins(all: &[Value]) -> String {
    let rows = all
        .iter()
        .map(|row| {
            let earned = row.get("earned_micro_usd").and_then(Value::as_u64);
            let cost = row.get("upstream_micro_usd").and_then(Value::as_u64);
            let (margin, share) = match (earned, cost) {
                (Some(earned), Some(cost)) => (signed(earned, cost), share(earned, cost)),
                _ => (NONE.to_owned(), NONE.to_owned()),
            };
            vec![
                Cell::Text(text(row.get("model"))),
                Cell::Figure(usd(row.get("earned_micro_usd"))),
                Cell::Figure(usd(row.get("upstream_micro_usd"))),
                Cell::Figure(margin),
                Cell::Figure(share),
            ]
        })
        .collect();
    let header = [
        "Model",
        "Earned",
        "Upstream's list price",
        "Margin",
        "Share",
    ];
    table(
        "Earned over the upstream's list prices, since the start of the ledger",
        &header,
        rows,
        "Nothing was sold yet.",
    )
}

fn signed(earned: u64, cost: u64) -> String {
    match earned.checked_sub(cost) {
        Some(gain) => dollars(gain),
        None => format!("−{}", dollars(cost.saturating_sub(earned))),
    }
}

fn share(earned: u64, cost: u64) -> String {
    if cost == 0 {
        return NONE.to_owned();
    }
    let share = (approx(earned) / approx(cost) - 1.0) * 100.0;
    format!("{share:.1} %")
}

fn load(status: &Value) -> String {
    let of = |key: &str| status.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (busy, slots) = (of("in_flight"), of("slots"));
    let counts = format!(
        "<p><meter min=\"0\" max=\"{slots}\" value=\"{busy}\">{busy} of {slots}</meter> \
         {} of {} places in use; since the start {} served, {} refused, {} cut short by buyers.</p>",
        grouped(busy),
        grouped(slots),
        grouped(of("served")),
        grouped(of("refused")),
        grouped(of("cancelled")),
    );
    let reasons = status.get("refused_by").and_then(Value::as_object);
    let mut reasons: Vec<(&String, u64)> = reasons
        .into_iter()
        .flatten()
        .map(|(reason, count)| (reason, count.as_u64().unwrap_or(0)))
        .collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rows = reasons
        .iter()
        .map(|(reason, count)| {
            vec![
                Cell::Text((*reason).clone()),
                Cell::Text(meaning(reason).to_owned()),
                Cell::Figure(grouped(*count)),
            ]
        })
        .collect();
    let header = ["Reason", "Means", "Times"];
    let listed = table("Refusals by reason", &header, rows, "Nobody was refused.");
    format!("{counts}{listed}")
}

/// What the owner can make of a reason.
fn meaning(reason: &str) -> &'static str {
    match reason {
        "credit_exhausted" => "the buyer owes as much as it may; book its payment when it paid",
        "overloaded" => "all places were taken; --max-concurrent gives more",
        "unknown_channel" => "the buyer has no account here, or its session was just renewed",
        "voucher_late" => "the buyer's payment came too late",
        "unknown_offer" | "offer_withdrawn" => "the buyer held an offer that is over",
        "clock_skew" => "one of the two clocks is wrong",
        "above_max_cost" => "the input alone costs more than the buyer allows",
        "wrong_network" => "a node of another network or version",
        "bad_signature" | "wrong_buyer" | "wrong_seller" | "body_mismatch" | "malformed"
        | "bad_delegation" => "the request was forged or broken",
        "replayed" | "stale" => "the request was sent twice, or before a restart",
        "not_allowed" => "the buyer is on the deny list",
        "draining" => "this node was shutting down",
        "internal" => "a fault of this node; see its log",
        _ => "",
    }
}

fn channels(all: &[Value]) -> String {
    let rows = all
        .iter()
        .map(|channel| {
            let of = |key: &str| channel.get(key).and_then(Value::as_u64).unwrap_or(0);
            let (accepted, delivered) = (of("accepted_micro_usd"), of("delivered_micro_usd"));
            let held = of("voucher_micro_usd");
            let fee = of("open_fee_micro_usd");
            let agreed = accepted.saturating_add(fee);
            let parts = [
                ("fee", fee),
                ("accepted", accepted),
                ("received", delivered.saturating_sub(agreed)),
                ("signed", held.saturating_sub(delivered)),
                (
                    "free",
                    of("deposit_micro_usd").saturating_sub(held.max(delivered)),
                ),
            ];
            vec![
                Cell::Text(short(channel.get("peer"))),
                Cell::Text(text(channel.get("mode"))),
                Cell::Drawn(stack(&parts)),
                Cell::Figure(usd(channel.get("deposit_micro_usd"))),
                Cell::Figure(usd(channel.get("voucher_micro_usd"))),
                Cell::Figure(usd(channel.get("accepted_micro_usd"))),
                Cell::Figure(usd(channel.get("onchain_settled_micro_usd"))),
                Cell::Figure(usd(channel.get("owed_micro_usd"))),
                Cell::Figure(usd(channel.get("in_doubt_micro_usd"))),
            ]
        })
        .collect();
    let header = [
        "Buyer",
        "Payment",
        "Where it is",
        "Deposit or credit",
        "Vouchers held",
        "Accepted",
        "Settled on chain",
        "Owed",
        "In doubt",
    ];
    let listed = table("Accounts of buyers", &header, rows, "No buyer yet.");
    if all.is_empty() {
        return listed;
    }
    format!("{listed}{}", tables::MONEY_LEGEND)
}
