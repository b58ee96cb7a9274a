//! One run: every request is served by whoever the rule chooses, and the money is counted.

use rand::SeedableRng;
use rand::rngs::SmallRng;
use souk::types::PeerId;

use super::rivals::Rule;
use super::world::{Request, Seller};

/// Virtual time of the first request.
pub const EPOCH_MS: u64 = 1_800_000_000_000;
/// Attempts for one request.
const ATTEMPTS_MAX: usize = 3;
/// A rule's tick, ms.
const TICK_MS: u64 = 5_000;
/// A seller that was found out is back under a new key after this, ms.
const NEW_KEY_MS: u64 = 60_000;

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub requests: u64,
    pub good: u64,
    pub unanswered: u64,
    pub spent: u64,
    /// Paid for rubbish and above what was delivered.
    pub lost: u64,
    /// What the good answers would have cost at the cheapest honest seller then up.
    pub cheapest: u64,
    /// What the same answers cost here.
    pub for_good: u64,
    pub seconds: f64,
    pub keys: u64,
}

impl Account {
    pub fn good_share(&self) -> f64 {
        self.good as f64 / self.requests as f64
    }
    pub fn lost_share(&self) -> f64 {
        self.lost as f64 / self.spent as f64
    }
    pub fn above_cheapest(&self) -> f64 {
        self.for_good as f64 / self.cheapest as f64 - 1.0
    }
    pub fn row(&self, name: &str) -> String {
        format!(
            "{name:20} {:8.2} {:8.2} {:7.2} % {:8.2} % {:9.1} % {:9.2} {:6}",
            self.spent as f64 / 1e6,
            self.lost as f64 / 1e6,
            100.0 * self.lost_share(),
            100.0 * self.good_share(),
            100.0 * self.above_cheapest(),
            self.seconds / self.requests as f64,
            self.keys,
        )
    }
}

/// The head of a table of [`Account::row`]s.
pub const HEAD: &str =
    "rule                  spent $   lost $     lost  good ans.  + cheapest   s/answer   keys";

/// Serves all `requests` by `rule`; `sellers` is left as it was at the end.
pub fn run(
    rule: &mut dyn Rule,
    sellers: &mut [Seller],
    requests: &[Request],
    seed: u64,
) -> Account {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut account = Account::default();
    let mut met = vec![false; sellers.len()];
    let mut ticked_ms = 0;
    let mut new_key_at: Vec<Option<u64>> = vec![None; sellers.len()];
    for request in requests {
        if request.at_ms >= ticked_ms + TICK_MS || account.requests == 0 {
            ticked_ms = request.at_ms;
            rule.tick(ticked_ms);
        }
        for (at, seller) in sellers.iter_mut().enumerate() {
            if new_key_at[at].is_some_and(|due| request.at_ms >= due) {
                (seller.peer, met[at], new_key_at[at]) = (PeerId::random(), false, None);
                account.keys += 1;
            }
            if !met[at] && request.at_ms >= seller.since_ms {
                rule.meet(seller.peer);
                met[at] = true;
            }
        }
        account.requests += 1;
        serve(rule, sellers, request, &mut account, &mut rng);
        for (at, seller) in sellers.iter().enumerate() {
            if seller.is_junk() && new_key_at[at].is_none() && rule.has_found_out(&seller.peer) {
                new_key_at[at] = Some(request.at_ms + NEW_KEY_MS);
            }
        }
    }
    account
}

fn serve(
    rule: &mut dyn Rule,
    sellers: &mut [Seller],
    request: &Request,
    account: &mut Account,
    rng: &mut SmallRng,
) {
    let mut tried = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        let there: Vec<&Seller> = sellers
            .iter()
            .filter(|seller| request.at_ms >= seller.since_ms)
            .collect();
        let Some(at) = rule.choose(request, &there, &tried) else {
            break;
        };
        let peer = there[at].peer;
        let seller = sellers.iter_mut().find(|s| s.peer == peer).unwrap();
        let served = seller.serve(request, rng);
        rule.observe(request, seller, &served);
        tried.push(peer);
        account.seconds += served.seconds;
        let Some(answer) = served.answer else {
            continue;
        };
        account.spent += answer.cost.0;
        let fair = seller
            .prices(request.at_ms)
            .cost_in_out(request.input, request.output);
        if answer.good {
            account.good += 1;
            account.lost += answer.cost.0.saturating_sub(fair.0);
            account.for_good += answer.cost.0;
            account.cheapest += cheapest(sellers, request);
        } else {
            account.lost += answer.cost.0;
        }
        return;
    }
    account.unanswered += 1;
}

fn cheapest(sellers: &[Seller], request: &Request) -> u64 {
    let honest = sellers.iter().filter(|seller| {
        !seller.is_junk() && request.at_ms >= seller.since_ms && !seller.is_down(request.at_ms)
    });
    honest
        .map(|seller| {
            let price = seller.prices(request.at_ms);
            price.cost_in_out(request.input, request.output).0
        })
        .min()
        .unwrap()
}
