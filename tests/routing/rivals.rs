//! The rules that are compared: the crate's router and what others do.

use std::collections::HashMap;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Beta, Distribution};
use souk::router::{Answered, Ask, Entry, Observation, Outcome, Prefer, Router, Settings};
use souk::types::{Clock, ManualClock, MicroUsd, ModelId, PeerId};

use super::world::{Request, Seller, Served};

/// A rule that chooses sellers and hears what became of it.
pub trait Rule {
    fn name(&self) -> &'static str;
    /// A new seller is there.
    fn meet(&mut self, _peer: PeerId) {}
    /// Time passes.
    fn tick(&mut self, _at_ms: u64) {}
    /// Position in `sellers`.
    fn choose(&mut self, request: &Request, sellers: &[&Seller], tried: &[PeerId])
    -> Option<usize>;
    fn observe(&mut self, request: &Request, seller: &Seller, served: &Served);
    /// Whether it would never choose this seller again (which then takes a new key).
    fn has_found_out(&self, peer: &PeerId) -> bool;
}

fn untried<'a>(
    sellers: &'a [&Seller],
    tried: &'a [PeerId],
) -> impl Iterator<Item = (usize, &'a Seller)> {
    let all = sellers.iter().enumerate().map(|(at, seller)| (at, *seller));
    all.filter(|(_, seller)| !tried.contains(&seller.peer))
}

/// The crate's router.
pub struct Souk {
    router: Router,
    clock: ManualClock,
    now_ms: u64,
    model: ModelId,
    prefer: Prefer,
}

impl Souk {
    pub fn new(prefer: Prefer, seed: u64) -> Self {
        // Far from zero, so that no time is mistaken for "never".
        let clock = ManualClock::new(super::run::EPOCH_MS);
        Self {
            router: Router::new(Settings::default(), Arc::new(clock.clone()), seed),
            clock,
            now_ms: 0,
            model: ModelId::new("m"),
            prefer,
        }
    }
}

impl Rule for Souk {
    fn name(&self) -> &'static str {
        match self.prefer {
            Prefer::Cheap => "souk, cheap",
            Prefer::Balanced => "souk, balanced",
            Prefer::Fast => "souk, fast",
        }
    }
    fn meet(&mut self, peer: PeerId) {
        self.router.meet([&peer]);
    }
    fn tick(&mut self, at_ms: u64) {
        self.clock.advance(at_ms - self.now_ms);
        self.now_ms = at_ms;
        self.router.refresh();
    }
    fn choose(
        &mut self,
        request: &Request,
        sellers: &[&Seller],
        tried: &[PeerId],
    ) -> Option<usize> {
        let ask = Ask {
            model: &self.model,
            client: "sim",
            input_tokens: request.input,
            output_max: 4_096,
            exact: true,
            prefer: self.prefer,
            deadline_s: 60.0,
            conversation: None,
            pinned: None,
        };
        let entries: Vec<Entry> = sellers
            .iter()
            .map(|seller| {
                let price = seller.prices(request.at_ms);
                Entry {
                    prefill: price.cost_in_out(request.input, 0),
                    ..Entry::plain(seller.peer, price)
                }
            })
            .collect();
        let choice = self.router.choose(&ask, &entries, tried)?;
        let entry = entries[choice.index];
        self.router.begin(&entry.seller, entry.prefill);
        Some(choice.index)
    }
    fn observe(&mut self, request: &Request, seller: &Seller, served: &Served) {
        let price = seller.prices(request.at_ms);
        let prefill = price.cost_in_out(request.input, 0);
        let outcome = match served.answer {
            None => Outcome::Failed {
                expected: price.cost_in_out(request.input, request.output),
                lost: MicroUsd::ZERO,
            },
            Some(answer) => {
                let answered = Answered {
                    ttft_s: Some(answer.ttft_s),
                    writing_s: served.seconds - answer.ttft_s,
                    input_tokens: request.input,
                    cached_tokens: 0,
                    output_tokens: request.output,
                    cost: answer.cost,
                    billed: answer.billed,
                    own: answer.own,
                    exact: true,
                };
                if answer.noticed {
                    let reason = "rubbish".to_owned();
                    Outcome::Doubtful {
                        answered,
                        reason,
                        is_grave: true,
                    }
                } else {
                    Outcome::Good(answered)
                }
            }
        };
        self.router.observe(&Observation {
            seller: seller.peer,
            model: &self.model,
            client: "sim",
            conversation: None,
            exposure: prefill,
            outcome,
        });
    }
    fn has_found_out(&self, peer: &PeerId) -> bool {
        let record = self.router.record(peer);
        record.is_some_and(|record| record.is_quarantined(self.clock.now_ms()))
    }
}

#[derive(Clone, Copy, Default)]
struct Tally {
    good: f64,
    bad: f64,
    seconds: f64,
}

/// What the simpler rules know of a seller: counts that never fade.
#[derive(Default)]
struct Book(HashMap<PeerId, Tally>);

impl Book {
    fn of(&self, peer: &PeerId) -> Tally {
        self.0.get(peer).copied().unwrap_or_default()
    }
    fn observe(&mut self, peer: PeerId, served: &Served) {
        let tally = self.0.entry(peer).or_default();
        if served.answer.is_some_and(|answer| !answer.noticed) {
            tally.good += 1.0;
        } else {
            tally.bad += 1.0;
        }
        let seen = tally.good + tally.bad;
        tally.seconds += (served.seconds - tally.seconds) / seen;
    }
    /// Three bad answers of at most six.
    fn has_found_out(&self, peer: &PeerId) -> bool {
        let tally = self.of(peer);
        tally.bad >= 3.0 && tally.bad >= tally.good
    }
}

fn cost(request: &Request, seller: &Seller) -> f64 {
    let price = seller.prices(request.at_ms);
    price.cost_in_out(request.input, request.output).0 as f64
}

macro_rules! rule {
    ($name:ident, $text:literal, $self:ident, $request:ident, $sellers:ident, $tried:ident, $body:block) => {
        pub struct $name {
            book: Book,
            #[allow(dead_code, reason = "some rules draw nothing")]
            rng: SmallRng,
        }
        impl $name {
            pub fn new(seed: u64) -> Self {
                let rng = SmallRng::seed_from_u64(seed);
                Self {
                    book: Book::default(),
                    rng,
                }
            }
        }
        impl Rule for $name {
            fn name(&self) -> &'static str {
                $text
            }
            fn choose(
                &mut $self,
                $request: &Request,
                $sellers: &[&Seller],
                $tried: &[PeerId],
            ) -> Option<usize> $body
            fn observe(&mut self, _: &Request, seller: &Seller, served: &Served) {
                self.book.observe(seller.peer, served);
            }
            fn has_found_out(&self, peer: &PeerId) -> bool {
                self.book.has_found_out(peer)
            }
        }
    };
}

rule!(Cheapest, "cheapest first", self, request, sellers, tried, {
    let book = &self.book;
    untried(sellers, tried)
        .filter(|(_, seller)| !book.has_found_out(&seller.peer))
        .min_by(|(_, a), (_, b)| cost(request, a).total_cmp(&cost(request, b)))
        .map(|(at, _)| at)
});

// Weights as in the configurations of existing routers: price 0.3, latency 0.25, success 0.3,
// experience 0.15, each against the best on offer.
rule!(Weights, "fixed weights", self, request, sellers, tried, {
    let least = |value: &dyn Fn(&Seller) -> f64| {
        let all = untried(sellers, tried).map(|(_, seller)| value(seller));
        all.fold(f64::INFINITY, f64::min)
    };
    let wait = |seller: &Seller| {
        let tally = self.book.of(&seller.peer);
        if tally.seconds > 0.0 {
            tally.seconds
        } else {
            8.0
        }
    };
    let (cheapest, quickest) = (least(&|s| cost(request, s)), least(&wait));
    let score = |seller: &Seller| {
        let tally = self.book.of(&seller.peer);
        let seen = tally.good + tally.bad;
        let success = (tally.good + 1.0) / (seen + 2.0);
        0.3 * cheapest / cost(request, seller)
            + 0.25 * quickest / wait(seller)
            + 0.3 * success
            + 0.15 * (seen / 20.0).min(1.0)
    };
    untried(sellers, tried)
        .max_by(|(_, a), (_, b)| score(a).total_cmp(&score(b)))
        .map(|(at, _)| at)
});

rule!(Thompson, "plain Thompson", self, request, sellers, tried, {
    let mut best = None;
    for (at, seller) in untried(sellers, tried) {
        let tally = self.book.of(&seller.peer);
        let beta = Beta::new(1.0 + tally.good, 1.0 + tally.bad).unwrap();
        let total = cost(request, seller) / beta.sample(&mut self.rng).max(0.01);
        if best.is_none_or(|(least, _)| total < least) {
            best = Some((total, at));
        }
    }
    best.map(|(_, at)| at)
});

rule!(
    TwoChoices,
    "two random choices",
    self,
    _request,
    sellers,
    tried,
    {
        let fit: Vec<(usize, &Seller)> = untried(sellers, tried)
            .filter(|(_, seller)| !self.book.has_found_out(&seller.peer))
            .collect();
        if fit.is_empty() {
            return None;
        }
        let mut draw = || fit[self.rng.random_range(0..fit.len())];
        let (a, b) = (draw(), draw());
        let wait = |seller: &Seller| self.book.of(&seller.peer).seconds;
        Some(if wait(a.1) <= wait(b.1) { a.0 } else { b.0 })
    }
);
