//! Sellers with scripted faults, and the requests of a buyer's day.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use souk::types::{MicroUsd, PeerId, PriceTable};

pub const HOUR_MS: u64 = 3_600_000;
pub const DAY_MS: u64 = 24 * HOUR_MS;
/// List price of the market, micro-USD per million input tokens; output costs four times this.
pub const PRICE: f64 = 500_000.0;

/// What a seller does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Honest,
    /// Bills this many times what it delivers.
    OverBilling(f64),
    /// Answers rubbish; a check notices this share of it. Comes back under a new key once it is
    /// set aside.
    Junk {
        noticed: f64,
    },
}

#[derive(Clone, Debug)]
pub struct Seller {
    pub peer: PeerId,
    pub kind: Kind,
    /// Of the list price.
    pub price: f64,
    pub ttft_s: f64,
    pub speed: f64,
    pub fails: f64,
    /// There from here on.
    pub since_ms: u64,
    /// Down from … to …
    pub outage_ms: Option<(u64, u64)>,
    /// From here on its price is multiplied.
    pub shock: Option<(u64, f64)>,
    pub served: u64,
    pub first_served_ms: Option<u64>,
}

impl Seller {
    pub fn new(price: f64) -> Self {
        Self {
            peer: PeerId::random(),
            kind: Kind::Honest,
            price,
            ttft_s: 0.6,
            speed: 60.0,
            fails: 0.005,
            since_ms: 0,
            outage_ms: None,
            shock: None,
            served: 0,
            first_served_ms: None,
        }
    }
    pub fn junk(price: f64, noticed: f64) -> Self {
        Self {
            kind: Kind::Junk { noticed },
            ..Self::new(price)
        }
    }
    pub fn is_junk(&self) -> bool {
        matches!(self.kind, Kind::Junk { .. })
    }
    pub fn prices(&self, at_ms: u64) -> PriceTable {
        let shock = self.shock.filter(|(from, _)| at_ms >= *from);
        let price = (PRICE * self.price * shock.map_or(1.0, |(_, factor)| factor)) as u64;
        PriceTable {
            input: price,
            cache_read: price,
            cache_write: price,
            output: price * 4,
        }
    }
    pub fn is_down(&self, at_ms: u64) -> bool {
        self.outage_ms
            .is_some_and(|(from, to)| (from..to).contains(&at_ms))
    }
}

/// One request of the buyer.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub at_ms: u64,
    pub input: u64,
    pub output: u64,
}

/// About 100 requests an hour over `days`, inputs of 2 000 to 20 000 tokens.
pub fn requests(days: u64, seed: u64) -> Vec<Request> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut at_ms = 0;
    let mut all = Vec::new();
    while at_ms < days * DAY_MS {
        at_ms += (-(rng.random::<f64>().max(1e-9)).ln() * 36_000.0) as u64;
        all.push(Request {
            at_ms,
            input: (2_000.0 * 10_f64.powf(rng.random::<f64>())) as u64,
            output: 100 + rng.random_range(0..500),
        });
    }
    all
}

/// What came of one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// None: it failed before the first byte.
    pub answer: Option<Answer>,
    pub seconds: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub good: bool,
    pub noticed: bool,
    pub ttft_s: f64,
    pub cost: MicroUsd,
    pub billed: MicroUsd,
    pub own: MicroUsd,
}

impl Seller {
    pub fn serve(&mut self, request: &Request, rng: &mut SmallRng) -> Served {
        if self.is_down(request.at_ms) || rng.random_bool(self.fails) {
            return Served {
                answer: None,
                seconds: 2.0,
            };
        }
        self.served += 1;
        self.first_served_ms.get_or_insert(request.at_ms);
        let scatter = 0.7 + 0.6 * rng.random::<f64>();
        let ttft_s = self.ttft_s * scatter;
        let fair = self
            .prices(request.at_ms)
            .cost_in_out(request.input, request.output);
        // The buyer pays at most its own count and its allowance.
        let own = MicroUsd((fair.0 as f64 * 1.05) as u64 + 50);
        let factor = match self.kind {
            Kind::OverBilling(factor) => factor,
            _ => 1.0,
        };
        let billed = MicroUsd((fair.0 as f64 * factor) as u64);
        let (good, noticed) = match self.kind {
            Kind::Junk { noticed } => (false, rng.random_bool(noticed)),
            _ => (true, false),
        };
        Served {
            answer: Some(Answer {
                good,
                noticed,
                ttft_s,
                cost: billed.min(own),
                billed,
                own,
            }),
            seconds: ttft_s + request.output as f64 / self.speed,
        }
    }
}

/// Eight honest sellers from 0.9 to 1.25 of the list price.
pub fn honest() -> Vec<Seller> {
    (0..8)
        .map(|n| Seller::new(0.9 + 0.05 * f64::from(n)))
        .collect()
}

/// The same, and six that sell rubbish 35 % below the list price under ever new keys.
pub fn with_junk(noticed: f64) -> Vec<Seller> {
    let mut sellers = honest();
    sellers.extend((0..6).map(|n| Seller::junk(0.65 + 0.01 * f64::from(n), noticed)));
    sellers
}

/// A bit of everything.
pub fn mixed() -> Vec<Seller> {
    let mut sellers = with_junk(0.5);
    sellers[0].outage_ms = Some((2 * DAY_MS, 2 * DAY_MS + 6 * HOUR_MS));
    sellers[1].shock = Some((3 * DAY_MS, 2.0));
    sellers[2].shock = Some((4 * DAY_MS, 0.8));
    sellers.push(Seller {
        fails: 0.3,
        ..Seller::new(0.85)
    });
    sellers.push(Seller {
        ttft_s: 6.0,
        speed: 12.0,
        ..Seller::new(0.85)
    });
    sellers.push(Seller {
        kind: Kind::OverBilling(1.4),
        ..Seller::new(0.85)
    });
    sellers
}
