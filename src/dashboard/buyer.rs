//! The buyer's page: what was spent, on what, with whom, and where each cent is.

use serde_json::Value;

use super::html::{Cell, Section, Tile, table};
use super::plot::{Dot, dots, stack};
use super::role::{RoleView, Words, page};
use super::tables;
use super::values::{NONE, dollars, float, grouped, list, millis, number, short, text, usd};

/// What the page is drawn from.
pub struct BuyerView {
    /// What every role shows.
    pub role: RoleView,
    /// `/api/sellers`.
    pub sellers: Value,
    /// Sums of the days by model.
    pub by_model: Value,
    /// The same by seller.
    pub by_seller: Value,
    /// The same by client.
    pub by_client: Value,
}

const WORDS: Words = Words {
    role: "buyer",
    well: "ready",
    peer: "seller",
    verb: "Spent",
    money: ("spend", "Spend"),
};

/// Draws it.
#[must_use]
pub fn buyer_page(view: &BuyerView) -> String {
    let sections = vec![
        Section {
            id: "shares",
            title: "On what",
            body: format!(
                "{}{}{}",
                tables::sums("By model, 30 days", "Model", &view.by_model, false),
                tables::sums("By seller, 30 days", "Seller", &view.by_seller, true),
                tables::sums("By client, 30 days", "Client", &view.by_client, false),
            ),
        },
        Section {
            id: "sellers",
            title: "Sellers",
            body: sellers(list(&view.sellers, "sellers")),
        },
        Section {
            id: "channels",
            title: "Channels",
            body: channels(list(&view.role.channels, "channels")),
        },
    ];
    let offers = format!("{} offers", text(view.role.status.get("offers")));
    page(&WORDS, &view.role, offers, tiles(&view.role), sections)
}

/// The money line.
fn tiles(view: &RoleView) -> Vec<Tile> {
    let money = |key: &str| view.status.pointer(&format!("/money/{key}"));
    let daily = view.status.pointer("/budget/daily_micro_usd");
    let tile = |label, figure, remark: &str| Tile {
        label,
        figure,
        remark: remark.to_owned(),
    };
    let limit = match daily.and_then(Value::as_u64) {
        Some(daily) => format!("of {} a day", dollars(daily)),
        None => "no daily limit".to_owned(),
    };
    let channels = list(&view.channels, "channels");
    let sum = |key: &str| {
        let all: Vec<u64> = channels
            .iter()
            .filter_map(|c| c.get(key)?.as_u64())
            .collect();
        (!all.is_empty()).then(|| dollars(all.iter().sum()))
    };
    let mut tiles = vec![
        tile("Spent today", usd(money("spent_today_micro_usd")), &limit),
        tile(
            "Reserved",
            usd(money("reserved_micro_usd")),
            "for what runs, or prepaid",
        ),
        tile(
            "Owed",
            usd(money("owed_micro_usd")),
            "received on credit, not paid",
        ),
    ];
    if let Some(left) = sum("credit_micro_usd") {
        tiles.push(tile("Can be spent", left, "with all sellers, as it stands"));
    }
    tiles
}

fn sellers(all: &[Value]) -> String {
    let price = |seller: &Value| {
        let of = |key: &str| seller.get(key).and_then(Value::as_u64);
        of("price_in_micro_usd")?.checked_add(of("price_out_micro_usd")?)
    };
    let spots: Vec<Dot> = all
        .iter()
        .filter_map(|seller| {
            Some(Dot {
                name: short(seller.get("peer")),
                price: price(seller)?,
                speed: seller.get("tokens_per_second")?.as_u64()?,
                quality: float(seller.get("quality")),
                says: format!(
                    "{} in, {} out, {} tokens/s, quality {}",
                    usd(seller.get("price_in_micro_usd")),
                    usd(seller.get("price_out_micro_usd")),
                    number(seller.get("tokens_per_second")),
                    number(seller.get("quality")),
                ),
            })
        })
        .collect();
    let legend = "<ul class=\"legend\"><li class=\"good\">95 % or more answered well</li>\
                  <li class=\"fair\">80 % or more</li><li class=\"poor\">fewer</li>\
                  <li class=\"unknown\">not tried</li></ul>";
    let rows = all
        .iter()
        .map(|seller| {
            let models = list(seller, "models");
            let first = models.first().and_then(Value::as_str).unwrap_or(NONE);
            let more = models.len().saturating_sub(1);
            let named = if more > 0 {
                format!("{first} and {more} more")
            } else {
                first.to_owned()
            };
            let state = match seller.get("reason").and_then(Value::as_str) {
                Some(why) => format!("{}: {why}", text(seller.get("state"))),
                None => text(seller.get("state")),
            };
            vec![
                Cell::Text(short(seller.get("peer"))),
                Cell::Text(named),
                Cell::Figure(usd(seller.get("price_in_micro_usd"))),
                Cell::Figure(usd(seller.get("price_out_micro_usd"))),
                Cell::Figure(number(seller.get("quality"))),
                Cell::Figure(millis(seller.get("ttft_ms"))),
                Cell::Figure(number(seller.get("tokens_per_second"))),
                Cell::Figure(usd(seller.get("credit_micro_usd"))),
                Cell::Text(state),
            ]
        })
        .collect();
    let header = [
        "Seller",
        "Models",
        "In $/M",
        "Out $/M",
        "Quality",
        "First token",
        "Tokens/s",
        "Can be spent",
        "State",
    ];
    let listed = table("All sellers", &header, rows, "No seller is known yet.");
    let drawn = dots(&spots);
    let legend = if spots.is_empty() { "" } else { legend };
    format!("<div class=\"plots\"><div>{drawn}{legend}</div></div>{listed}")
}

/// Each channel, and where its cents are.
fn channels(all: &[Value]) -> String {
    let rows = all
        .iter()
        .map(|channel| {
            let of = |key: &str| channel.get(key).and_then(Value::as_u64).unwrap_or(0);
            let (deposit, signed) = (of("deposit_micro_usd"), of("signed_micro_usd"));
            let (received, accepted) = (of("received_micro_usd"), of("accepted_micro_usd"));
            let fee = of("open_fee_micro_usd");
            let agreed = accepted.saturating_add(fee);
            let parts = [
                ("fee", fee),
                ("accepted", accepted),
                ("received", received.saturating_sub(agreed)),
                ("signed", signed.saturating_sub(received)),
                ("free", deposit.saturating_sub(signed.max(received))),
            ];
            vec![
                Cell::Text(short(channel.get("peer"))),
                Cell::Text(format!(
                    "{}, {}",
                    text(channel.get("mode")),
                    text(channel.get("state"))
                )),
                Cell::Drawn(stack(&parts)),
                Cell::Figure(usd(channel.get("deposit_micro_usd"))),
                Cell::Figure(usd(channel.get("signed_micro_usd"))),
                Cell::Figure(usd(channel.get("accepted_micro_usd"))),
                Cell::Figure(usd(channel.get("onchain_settled_micro_usd"))),
                Cell::Figure(usd(channel.get("owed_micro_usd"))),
                Cell::Figure(grouped(of("live"))),
            ]
        })
        .collect();
    let header = [
        "Seller",
        "State",
        "Where it is",
        "Deposit or credit",
        "Signed",
        "Accepted",
        "Settled on chain",
        "Owed",
        "Running",
    ];
    let listed = table("Accounts with sellers", &header, rows, "No account yet.");
    if all.is_empty() {
        return listed;
    }
    format!("{listed}{}", tables::MONEY_LEGEND)
}
