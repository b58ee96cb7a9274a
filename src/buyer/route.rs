//! Which sellers may serve a request at all: the gates before any score.
//!
//! Price caps, permission, what the model can do, dialect, context, credit, reach. Every seller that
//! a gate refuses keeps its reason, so that the client can be told. Who of the rest is asked is
//! [`crate::router`]'s choice, attempt by attempt.

use std::sync::Arc;

use super::asked::{Asked, OutputLimit};
use super::shelves::Shelf;
use crate::discovery::OfferBook;
use crate::llm_api::translate::TranslateError;
use crate::llm_api::{Dialect, Endpoint};
use crate::payment::payer::PayerHub;
use crate::protocol::offer::{Capabilities, SignedOffer};
use crate::router::{Entry, Prefer};
use crate::types::{MicroUsd, PeerId};

/// Output assumed when neither the request nor the offer limits it, tokens.
const OUTPUT_UNKNOWN: u64 = 8_192;

/// What the user accepts.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Highest input price, micro-USD per million tokens.
    pub max_price_in: Option<u64>,
    /// Highest output price, micro-USD per million tokens.
    pub max_price_out: Option<u64>,
    /// Tried first.
    pub seller: Option<PeerId>,
    /// What is looked for when the request does not say.
    pub prefer: Prefer,
    /// When not empty, only these.
    pub allow: Vec<PeerId>,
    /// Never these.
    pub deny: Vec<PeerId>,
    /// Most that is prepaid for one request.
    pub prepay_max: MicroUsd,
    /// Most that one request may cost.
    pub request_max: Option<MicroUsd>,
}

/// A seller that may serve this request.
#[derive(Clone)]
pub(super) struct Candidate {
    pub offer: Arc<SignedOffer>,
    /// The request as this seller takes it, when that is not as the client wrote it: in its
    /// dialect, without parameters that its upstream does not know.
    pub order: Option<Arc<Asked>>,
    /// Known before the work, at the input price.
    pub prefill: MicroUsd,
    /// The most this request may cost here.
    pub max_cost: MicroUsd,
    /// The most it can cost here, whatever it may.
    pub list_cost: MicroUsd,
    /// Input, estimated from the client's own body.
    pub input_tokens: u64,
    /// The most output it can have here.
    pub output_max: u64,
    /// A channel with room is open.
    has_channel: bool,
}

/// Why a seller was not chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Barred {
    Dialect,
    /// Speaks another dialect, and this request cannot be carried over.
    Untranslatable,
    /// Has no tools.
    Tools,
    /// Takes no images.
    Vision,
    /// Has no structured output.
    Json,
    /// Answers shorter than the request's limit.
    Output,
    Price,
    Policy,
    Context,
    Credit,
    Unreachable,
}

/// The candidates, and why the others are none.
#[derive(Default)]
pub(super) struct Route {
    pub candidates: Vec<Candidate>,
    pub barred: Vec<(PeerId, Barred)>,
    /// Sellers that fit and are set aside because they did not answer.
    pub set_aside: Vec<PeerId>,
    /// Why the request cannot be carried over.
    pub untranslatable: Option<TranslateError>,
}

impl Candidate {
    /// What the router needs to know of it.
    pub fn entry(&self) -> Entry {
        Entry {
            seller: self.offer.offer.seller,
            price: self.offer.offer.price,
            open_fee: MicroUsd::ZERO,
            has_channel: self.has_channel,
            prefill: self.prefill,
            is_lossy: self.is_lossy(),
            is_translated: self.is_translated(),
        }
    }
    /// True when the translation leaves something out.
    fn is_lossy(&self) -> bool {
        self.order
            .as_ref()
            .is_some_and(|order| !order.dropped.is_empty())
    }
    /// True when the seller speaks another dialect.
    fn is_translated(&self) -> bool {
        self.order
            .as_ref()
            .is_some_and(|order| order.way_back.is_some())
    }
}

impl Route {
    /// True when nothing but what the request asks for bars every seller: waiting will not help.
    pub fn asks_too_much(&self) -> bool {
        let beyond = |b: &Barred| {
            matches!(
                b,
                Barred::Dialect | Barred::Tools | Barred::Vision | Barred::Json | Barred::Output
            )
        };
        self.candidates.is_empty()
            && !self.barred.is_empty()
            && self.barred.iter().all(|(_, barred)| beyond(barred))
    }
    /// True when every seller was barred for `why`.
    pub fn all_barred_for(&self, why: Barred) -> bool {
        self.candidates.is_empty()
            && !self.barred.is_empty()
            && self.barred.iter().all(|(_, barred)| *barred == why)
    }
}

/// Gates the offers of the model: those at the front of its `shelf`, or all of them.
pub(super) fn route(
    asked: &Asked,
    policy: &Policy,
    book: &OfferBook,
    payer: &PayerHub,
    shelf: Option<&Shelf>,
) -> Route {
    let mut route = Route::default();
    let mut gate = |offer: &Arc<SignedOffer>| {
        let order = able(asked, offer)
            .and_then(|()| in_its_dialect(asked, offer, &mut route.untranslatable));
        let fits = order.and_then(|order| {
            let order = filtered(asked, order, offer.offer.caps);
            candidate(asked, order, policy, book, payer, offer)
        });
        let seller = offer.offer.seller;
        fits.map_err(|barred| {
            if barred == Barred::Unreachable {
                route.set_aside.push(seller);
            }
            route.barred.push((seller, barred));
        })
        .ok()
    };
    let offers = book.offers(&asked.model);
    route.candidates = match shelf {
        Some(shelf) => shelf.fitting(gate),
        None => offers.iter().filter_map(&mut gate).collect(),
    };
    route
}

/// Whether the model can do what the request asks for at all.
fn able(asked: &Asked, signed: &SignedOffer) -> Result<(), Barred> {
    let (offer, view) = (&signed.offer, &asked.view);
    let caps = offer.caps;
    if view.has_tools && !caps.contains(Capabilities::TOOLS) {
        return Err(Barred::Tools);
    }
    if view.image_count > 0 && !caps.may_see() {
        return Err(Barred::Vision);
    }
    if view.response_format_json && !caps.contains(Capabilities::JSON) {
        return Err(Barred::Json);
    }
    // A translated limit is cut to what the seller gives; bytes that pass keep theirs.
    let too_long = offer.max_output > 0
        && view
            .max_tokens
            .is_some_and(|asked| asked > u64::from(offer.max_output));
    if too_long && speaks(caps, asked.dialect) {
        return Err(Barred::Output);
    }
    Ok(())
}

/// The request without what the seller's upstream does not take.
fn filtered(asked: &Asked, order: Option<Arc<Asked>>, caps: Capabilities) -> Option<Arc<Asked>> {
    let cut = order.as_deref().unwrap_or(asked).filtered(caps);
    cut.map(Arc::new).or(order)
}

/// The request in the seller's dialect: `None` where that is the client's own.
fn in_its_dialect(
    asked: &Asked,
    signed: &SignedOffer,
    why_not: &mut Option<TranslateError>,
) -> Result<Option<Arc<Asked>>, Barred> {
    let offer = &signed.offer;
    if serves(offer.caps, asked.endpoint) {
        return Ok(None);
    }
    if !matches!(asked.endpoint, Endpoint::Dialect(_)) {
        return Err(Barred::Dialect);
    }
    let Some(dialect) = dialects(offer.caps).into_iter().next() else {
        return Err(Barred::Dialect);
    };
    let most = (offer.max_output > 0).then_some(u64::from(offer.max_output));
    let required = output_limit(asked, offer.max_output);
    let limit = OutputLimit {
        required: most.map_or(required, |most| required.min(most)),
        most,
    };
    let made = asked.translated(dialect, limit);
    made.map(Some).map_err(|error| {
        why_not.get_or_insert(error);
        Barred::Untranslatable
    })
}

fn candidate(
    asked: &Asked,
    order: Option<Arc<Asked>>,
    policy: &Policy,
    book: &OfferBook,
    payer: &PayerHub,
    signed: &Arc<SignedOffer>,
) -> Result<Candidate, Barred> {
    let offer = &signed.offer;
    if policy.deny.contains(&offer.seller)
        || (!policy.allow.is_empty() && !policy.allow.contains(&offer.seller))
    {
        return Err(Barred::Policy);
    }
    if policy
        .max_price_in
        .is_some_and(|cap| offer.price.input > cap)
        || policy
            .max_price_out
            .is_some_and(|cap| offer.price.output > cap)
    {
        return Err(Barred::Price);
    }
    // The order's own body is what is paid for.
    let body = order.as_deref().unwrap_or(asked);
    let input = body.prefill_tokens(offer.tokens_per_kib, offer.image_tokens);
    // The prefill over-estimates text by about a third: only a clear excess is refused here.
    if offer.context > 0 && input / 2 > u64::from(offer.context) {
        return Err(Barred::Context);
    }
    let prefill = offer.price.cost_in_out(input, 0);
    let output = output_limit(asked, offer.max_output);
    let list = offer.price.cost_in_out(0, output).saturating_add(MicroUsd(
        prefill.0.max(
            input
                .saturating_mul(offer.price.input_max())
                .div_ceil(1_000_000),
        ),
    ));
    let cap = asked.max_cost.into_iter().chain(policy.request_max).min();
    let max_cost = cap.map_or(list, |cap| cap.min(list));
    if cap.is_some_and(|cap| prefill > cap) {
        return Err(Barred::Price);
    }
    if prefill > policy.prepay_max {
        return Err(Barred::Price);
    }
    let headroom = payer.known(&offer.seller).and_then(|pair| pair.headroom());
    if !offer.price.is_free() && headroom.is_some_and(|left| left <= prefill) {
        return Err(Barred::Credit);
    }
    // Last, so that it is said only of sellers that fit otherwise.
    if book.is_dead(&offer.seller) {
        return Err(Barred::Unreachable);
    }
    // By the client's own body, so that a translation's few bytes decide nothing.
    let input_tokens = asked.prefill_tokens(offer.tokens_per_kib, offer.image_tokens);
    Ok(Candidate {
        offer: Arc::clone(signed),
        order,
        prefill,
        max_cost,
        list_cost: list,
        input_tokens,
        output_max: output,
        has_channel: headroom.is_some(),
    })
}

/// The most output this request can have.
fn output_limit(asked: &Asked, offered: u32) -> u64 {
    let offered = if offered == 0 {
        OUTPUT_UNKNOWN
    } else {
        u64::from(offered)
    };
    asked
        .view
        .max_tokens
        .map_or(offered, |asked| asked.min(offered.max(OUTPUT_UNKNOWN)))
}

fn serves(caps: Capabilities, endpoint: Endpoint) -> bool {
    match endpoint {
        Endpoint::Dialect(dialect) => speaks(caps, dialect),
        Endpoint::Completions => caps.contains(Capabilities::COMPLETIONS),
        Endpoint::Embeddings => caps.contains(Capabilities::EMBEDDINGS),
    }
}

fn speaks(caps: Capabilities, dialect: Dialect) -> bool {
    caps.contains(match dialect {
        Dialect::Chat => Capabilities::DIALECT_CHAT,
        Dialect::Messages => Capabilities::DIALECT_MESSAGES,
        Dialect::Responses => Capabilities::DIALECT_RESPONSES,
    })
}

impl Route {
    /// Counts of what barred the sellers, for the client's message.
    pub fn reasons(&self) -> String {
        let counted = Barred::ALL.map(|why| {
            let of = self.barred.iter().filter(|(_, barred)| *barred == why);
            (of.count(), why.text())
        });
        let parts: Vec<String> = counted
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, text)| format!("{count} {text}"))
            .collect();
        parts.join(", ")
    }
}

impl Barred {
    const ALL: [Self; 11] = [
        Self::Price,
        Self::Policy,
        Self::Unreachable,
        Self::Credit,
        Self::Context,
        Self::Dialect,
        Self::Tools,
        Self::Vision,
        Self::Json,
        Self::Output,
        Self::Untranslatable,
    ];

    /// For people, after a number or a seller's name.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Price => "above the price cap",
            Self::Policy => "not allowed",
            Self::Unreachable => "not reachable",
            Self::Credit => "without credit left",
            Self::Context => "with too short a context",
            Self::Dialect => "not serving this path",
            Self::Tools => "without tools",
            Self::Vision => "without images",
            Self::Json => "without structured output",
            Self::Output => "with too short answers",
            Self::Untranslatable => "in a dialect that cannot carry it",
        }
    }
}

/// The dialects in a set of capabilities.
#[must_use]
pub(super) fn dialects(caps: Capabilities) -> Vec<Dialect> {
    [Dialect::Chat, Dialect::Messages, Dialect::Responses]
        .into_iter()
        .filter(|dialect| speaks(caps, *dialect))
        .collect()
}
