//! What a market's requests cost, waiting included, against the best seller in hindsight.

use super::Sellers;

/// What a second is worth by default, micro-USD.
const SECOND: f64 = 500.0;

/// Money and waiting of a market's requests, by seller.
pub struct Costs {
    /// Good answers, and what all attempts cost together: micro-USD, waiting included.
    by_seller: Vec<(u32, f64)>,
}

impl Costs {
    pub fn of(market: &Sellers) -> Self {
        let rows = market.buyer.home();
        let rows = rows.ledger(&["requests", "--json", "--limit", "100000"]);
        let mut by_seller = vec![(0, 0.0); market.sellers.len()];
        for row in rows.as_array().unwrap() {
            let mut sellers = market.sellers.iter();
            let peer = row["seller"].as_str();
            let Some(at) = sellers.position(|s| Some(s.node.peer_id()) == peer) else {
                continue;
            };
            let billed = row["billed_micro_usd"].as_f64().unwrap_or(0.0);
            let waited_ms = row["total_ms"].as_f64().unwrap_or(0.0);
            by_seller[at].0 += u32::from(row["status"] == 200);
            by_seller[at].1 += billed + SECOND * waited_ms / 1_000.0;
        }
        Self { by_seller }
    }

    /// What a good answer costs at each seller, all its attempts counted.
    fn each(&self) -> impl Iterator<Item = f64> {
        let sellers = self.by_seller.iter().filter(|(good, _)| *good >= 5);
        sellers.map(|(good, cost)| cost / f64::from(*good))
    }

    /// What was spent above the best seller's price for the same answers, as a share of that.
    pub fn regret(&self) -> f64 {
        let (good, cost) = self
            .by_seller
            .iter()
            .fold((0, 0.0), |(good, cost), (g, c)| (good + g, cost + c));
        let best = self.each().min_by(f64::total_cmp).unwrap();
        cost / (best * f64::from(good)) - 1.0
    }
}

impl std::fmt::Display for Costs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (good, cost)) in self.by_seller.iter().enumerate() {
            let each = cost / f64::from((*good).max(1));
            writeln!(
                f,
                "seller {at}: {good} answers at {each:.1} micro-USD, waiting included"
            )?;
        }
        write!(
            f,
            "regret against the best in hindsight: {:.1} %",
            100.0 * self.regret()
        )
    }
}
