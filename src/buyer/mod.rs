//! L4: local HTTP in, a seller's answer out.
//!
//! One request, top to bottom (`Buyer::serve`):
//! `guard → parse → route → for each candidate: attempt(open → authorise → send → relay, vouchers
//! alongside) → record`.
//!
//! [`crate::http`] stands at the door, `asked` is the parsed request, [`budget`] what may be spent
//! and `allowance` one attempt's share of it, [`route`] gates
//! the sellers, `choosing` asks the router for the next one, `attempt` tries it and `trial` tells the
//! router how that ended, `ahead` opens channels for the next one, `relay` passes its answer (to its `ending`; `whole` one that is not streamed,
//! `upstream_error` one that is an error), `books` keeps the account, `refusal` says what went wrong
//! in the client's own dialect, `warm` keeps connections to likely sellers, `canary` asks them what it knows, `market` answers the model list, `count_tokens` what a request would
//! measure, [`own`] a model whose ends are here, [`control`] everything else.
//! The work runs in a task of its own: when the client hangs up the handler is dropped, the task
//! sees it at once, cancels the seller and books what is owed.

mod ahead;
mod allowance;
mod asked;
mod attempt;
mod books;
pub mod budget;
mod canary;
mod check;
mod choosing;
pub mod control;
mod count_tokens;
mod ending;
mod explain;
mod market;
mod measures;
pub mod names;
mod nonces;
pub mod own;
mod refusal;
mod relay;
pub mod route;
mod sellers;
mod shelves;
mod sink;
mod streams;
mod trial;
mod upstream_error;
mod warm;
mod whole;
mod wire;
mod wishes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use ahead::Ahead;
use asked::{Asked, endpoint_of};
use attempt::{Attempted, attempt_deadline};
use budget::{Budget, Exceeded};
use choosing::Choosing;
use names::Names;
use nonces::Nonces;
use own::OwnModel;
use refusal::Refusal;
use route::{Barred, Candidate, Policy, Route};
use shelves::Shelves;
use sink::ClientSink;
use streams::KeptStreams;
use trial::Trial;
use warm::Used;

use crate::discovery::{Found, OfferBook};
use crate::http::body::Body;
use crate::http::{request_body, server};
use crate::keys::NodeKeys;
use crate::ledger::Ledger;
use crate::llm_api::{Endpoint, TokenCounter};
use crate::network::Handle;
use crate::payment::WindowSettings;
use crate::payment::payer::PayerHub;
use crate::protocol::head::DelegationProof;
use crate::router::Router;
use crate::tasks::Tasks;
use crate::types::{Clock, MicroUsd, ModelId, PeerId};

/// Attempts at sellers for one client request: three sellers, and when these were all, the best of
/// them once more.
const ATTEMPTS_MAX: u32 = 4;
/// Tokens in a KiB of text, where no offer says it.
const TOKENS_PER_KIB: u16 = 256;
/// A request for an unknown model waits this long for background discovery.
const DISCOVERY_WAIT: Duration = Duration::from_secs(3);

/// Sellers set aside that one request dials when there is nobody else, and how long it waits.
const REACH_SELLERS_MAX: usize = 4;
const REACH_WAIT: Duration = Duration::from_secs(3);

/// How long the buyer waits for what.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// Stream opened, and answered by a first frame.
    pub open: Duration,
    /// All attempts together, up to the first event.
    pub all_attempts: Duration,
    /// Silence within an answer.
    pub idle: Duration,
    /// A whole streamed answer; zero = none.
    pub total: Duration,
}

/// What a buyer needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network's name.
    pub network: String,
    /// Windows and limits.
    pub windows: WindowSettings,
    /// What the user accepts at first; [`Buyer::change`] replaces it.
    pub policy: Policy,
    /// The user's own names for models, at first.
    pub names: Names,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// A wallet's permission for this node's key, sent with every head.
    pub delegation: Option<DelegationProof>,
}

/// The parts a buyer is made of.
pub struct Parts {
    /// Knows who sells what.
    pub book: OfferBook,
    /// Keeps the money.
    pub payer: PayerHub,
    /// Opens streams.
    pub network: Handle,
    /// Keeps the record.
    pub ledger: Ledger,
    /// Signs heads.
    pub keys: NodeKeys,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Runs requests.
    pub tasks: Tasks,
    /// What may be spent.
    pub budget: Budget,
    /// Chooses among sellers.
    pub router: Router,
    /// Counts tokens.
    pub counter: TokenCounter,
    /// Models whose ends are here.
    pub own: Vec<Arc<dyn OwnModel>>,
    /// Answers everything that is no model request.
    pub control: Arc<dyn server::Handler>,
}

/// Answers clients. Cheap to clone.
#[derive(Clone)]
pub struct Buyer {
    shared: Arc<Shared>,
}

struct Shared {
    book: OfferBook,
    payer: PayerHub,
    network: Handle,
    ledger: Ledger,
    keys: NodeKeys,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    settings: Settings,
    budget: Budget,
    router: Router,
    counter: TokenCounter,
    own: Vec<Arc<dyn OwnModel>>,
    control: Arc<dyn server::Handler>,
    nonces: Nonces,
    streams: KeptStreams,
    shelves: Shelves,
    ahead: Ahead,
    wishes: wishes::Current,
    used: Used,
    in_flight: AtomicU64,
}

impl Buyer {
    /// Puts a buyer together.
    #[must_use]
    pub fn new(parts: Parts, settings: Settings) -> Self {
        let Parts {
            book,
            payer,
            network,
            ledger,
            keys,
            clock,
            tasks,
            budget,
            router,
            counter,
            own,
            control,
        } = parts;
        let (nonces, in_flight) = (Nonces::new(), AtomicU64::new(0));
        let streams = KeptStreams::default();
        let shelves = Shelves::new(router.clone(), book.clone(), Arc::clone(&clock));
        let wishes = wishes::Current::new(settings.policy.clone(), settings.names.clone());
        let shared = Shared {
            book,
            payer,
            network,
            ledger,
            keys,
            clock,
            tasks,
            settings,
            budget,
            router,
            counter,
            own,
            control,
            nonces,
            streams,
            shelves,
            ahead: Ahead::default(),
            wishes,
            used: Used::default(),
            in_flight,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Client requests being answered now.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Takes over what the user wants now; requests that run keep what they began with.
    pub fn change(&self, policy: Policy, names: Names) {
        self.shared.wishes.set(policy, names);
    }

    /// Reads the body, then answers in a task that outlives a client that hangs up.
    async fn proxy(self, request: Request<Incoming>, endpoint: Endpoint) -> Response<Body> {
        let dialect = endpoint.dialect();
        let (parts, incoming) = request.into_parts();
        let body = match request_body::read_body(incoming).await {
            Ok(body) => body,
            Err(refusal) => return refusal.response(parts.uri.path()),
        };
        let trailers = parts
            .headers
            .get(http::header::TE)
            .is_some_and(|te| te == "trailers");
        let (mut sink, answer) = ClientSink::new(trailers);
        let buyer = self.clone();
        self.shared.tasks.spawn("request", async move {
            buyer.shared.in_flight.fetch_add(1, Ordering::Relaxed);
            let _measured = measures::InFlight::begin();
            let now_ms = buyer.shared.clock.now_ms();
            match Asked::parse(endpoint, &parts.headers, body, now_ms) {
                Ok(asked) => {
                    let shared = &buyer.shared;
                    let asked = asked
                        .of_client(parts.extensions.get())
                        .meaning(&shared.wishes.get().names, |model| shared.has(model));
                    buyer.serve(Arc::new(asked), &mut sink).await;
                }
                Err(error) => {
                    Refusal::bad_request(error.to_string())
                        .send(&mut sink, dialect)
                        .await
                }
            }
            buyer.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        });
        answer.await.unwrap_or_else(|_| {
            let body =
                crate::llm_api::error::envelope(dialect, 500, "internal", "the request was lost");
            let mut response = Response::new(Body::full(body));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        })
    }

    /// One request from route to record.
    async fn serve(&self, asked: Arc<Asked>, sink: &mut ClientSink) {
        sink.header("x-souk-request-id", &asked.id.to_string());
        if asked.stream {
            sink.start_beating(asked.dialect);
        }
        if let Some(own) = own::find(&self.shared, &asked.model) {
            return own::serve(&self.shared, &asked, &**own, sink).await;
        }
        let route = match sink.while_alive(self.find(&asked)).await {
            Err(_gone) => return,
            Ok(Ok(route)) => route,
            Ok(Err(refusal)) => return refusal.send(sink, asked.dialect).await,
        };
        self.attempt_each(asked, route, sink).await;
    }

    /// The candidates, cheapest first; waits a little when the model is not known yet.
    async fn find(&self, asked: &Asked) -> Result<Route, Refusal> {
        let shared = &*self.shared;
        shared.book.want(&asked.model);
        shared.used.note(&asked.model, shared.clock.now_ms());
        match shared.book.find(&asked.model, DISCOVERY_WAIT).await {
            Found::Offers(_) => {}
            Found::Unknown => {
                let known: Vec<_> = shared.book.models().into_iter().map(|m| m.model).collect();
                return Err(Refusal::unknown_model(&asked.model, &known));
            }
            Found::NotReady => {
                return Err(Refusal::no_seller(
                    "no peer answered yet; `node status` shows the connections",
                ));
            }
        }
        let mut route = shared.route(asked);
        if route.candidates.is_empty() && self.reach(&route.set_aside).await {
            route = shared.route(asked);
        }
        if !route.candidates.is_empty() {
            return Ok(route);
        }
        Err(self.why_nobody(asked, &route))
    }

    /// With nobody else left, sellers that did not answer lately are dialled once more; true when
    /// one is there again.
    async fn reach(&self, set_aside: &[PeerId]) -> bool {
        let Shared { book, network, .. } = &*self.shared;
        let due = set_aside
            .iter()
            .filter(|seller| book.peers().may_probe(seller));
        let dials: Vec<_> = due
            .take(REACH_SELLERS_MAX)
            .map(|seller| {
                network
                    .connect(seller)
                    .map_ok(|()| book.mark_alive(seller))
                    .boxed()
            })
            .collect();
        if dials.is_empty() {
            return false;
        }
        let reached = tokio::time::timeout(REACH_WAIT, futures::future::select_ok(dials)).await;
        matches!(reached, Ok(Ok(_)))
    }

    fn why_nobody(&self, asked: &Asked, route: &Route) -> Refusal {
        if route.all_barred_for(Barred::Context) {
            return Refusal::context_too_long(asked.prefill_tokens(TOKENS_PER_KIB, 0));
        }
        if route.asks_too_much() {
            return Refusal::bad_request(format!(
                "no seller of `{}` can do this: {}; GET /v1/models says what each model can do",
                asked.model,
                route.reasons()
            ));
        }
        let other_dialect = |b: &&Barred| matches!(b, Barred::Dialect | Barred::Untranslatable);
        let barred = route.barred.iter().map(|(_, barred)| barred);
        let mut fitting = barred.filter(|b| !other_dialect(b)).peekable();
        if let (None, Some(why)) = (fitting.peek(), &route.untranslatable) {
            return Refusal::bad_request(why.to_string());
        }
        if fitting.peek().is_some() && fitting.all(|barred| *barred == Barred::Credit) {
            if self.shared.payer.pays_on_chain() {
                return Refusal::no_seller(
                    "the deposits with every seller of this model are used up; each is raised \
                     while the wallet holds more: `node wallet balance`",
                );
            }
            return Refusal::credit_exhausted();
        }
        Refusal::no_seller(format!(
            "no seller of `{}` fits: {}",
            asked.model,
            route.reasons()
        ))
    }

    /// Tries one candidate after the other, each time the router's choice, until one answers or the
    /// attempts are used up.
    async fn attempt_each(&self, asked: Arc<Asked>, route: Route, sink: &mut ClientSink) {
        let shared = &self.shared;
        let all = Instant::now() + shared.settings.timeouts.all_attempts;
        let mut choosing = Choosing::new(shared, &asked, &route);
        for number in 1..=ATTEMPTS_MAX {
            let Some(candidate) = choosing.next() else {
                break;
            };
            if let Err(exceeded) = shared.can_afford(&asked, candidate) {
                let refusal = Refusal::budget_exceeded(&exceeded);
                return refusal.send(sink, asked.dialect).await;
            }
            sink.header("x-souk-attempts", &number.to_string());
            let order = candidate.order.as_ref().unwrap_or(&asked);
            sink.header("x-souk-dropped", &order.dropped.join(", "));
            let trial = Trial::begin(&shared.router, &asked, candidate);
            let deadline = attempt_deadline(all, choosing.has_more(number));
            match attempt::run(shared, order, candidate, number, &trial, deadline, sink).await {
                Attempted::Done => return choosing.open_ahead(shared),
                Attempted::TooDear(exceeded) => {
                    let refusal = Refusal::too_dear(exceeded.as_ref());
                    return refusal.send(sink, asked.dialect).await;
                }
                Attempted::Failed(failure) => {
                    tracing::info!(
                        request = %asked.id,
                        seller = %failure.seller,
                        reason = failure.reason,
                        "attempt failed"
                    );
                    measures::failed_over(failure.kind);
                    trial.failed_as(failure.kind);
                    choosing.failed(failure);
                }
            }
        }
        choosing.refusal().send(sink, asked.dialect).await;
    }
}

impl Shared {
    /// Whether the model is on offer, or one of our own.
    fn has(&self, model: &ModelId) -> bool {
        own::find(self, model).is_some() || !self.book.offers(model).is_empty()
    }
    /// Whether the budget allows an attempt at `candidate` to begin.
    fn can_afford(&self, asked: &Asked, candidate: &Candidate) -> Result<(), Exceeded> {
        let least = allowance::least(candidate, self.window(candidate));
        let purpose = allowance::purpose(asked, candidate);
        self.budget.check(&purpose, least)
    }
    /// How far a stream of `candidate` may run ahead of its payment.
    fn window(&self, candidate: &Candidate) -> MicroUsd {
        let price = &candidate.offer.offer.price;
        if price.is_free() {
            MicroUsd::ZERO
        } else {
            self.settings.windows.stream(price)
        }
    }
    /// The sellers that may serve a request.
    fn route(&self, asked: &Asked) -> Route {
        let wishes = self.wishes.get();
        let policy = &wishes.policy;
        let tokens = asked.prefill_tokens(TOKENS_PER_KIB, 0);
        let prefer = asked.prefer.unwrap_or(policy.prefer);
        let shelf = self.shelves.get(&asked.model, tokens, prefer, &self.tasks);
        route::route(asked, policy, &self.book, &self.payer, shelf.as_deref())
    }
}

impl server::Handler for Buyer {
    fn handle(&self, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
        let path = request.uri().path();
        if request.method() == Method::POST
            && let Some(endpoint) = endpoint_of(request.uri())
        {
            return self.clone().proxy(request, endpoint).boxed();
        }
        if request.method() == Method::POST && count_tokens::is_asked(path) {
            return count_tokens::answer(self.shared.counter.clone(), request).boxed();
        }
        if request.method() == Method::GET
            && let Some(answer) = explain::answer(&self.shared, request.uri())
        {
            return std::future::ready(answer).boxed();
        }
        if request.method() == Method::GET
            && let Some(answer) = market::models(&self.shared, path, request.headers())
        {
            return std::future::ready(answer).boxed();
        }
        self.shared.control.handle(request)
    }
}
