//! A model whose two ends are in this process: it is answered here, and only its layers are bought.
//!
//! Nobody else sees its text. `request → chat dialect → OwnModel → (events | whole) → client's
//! dialect`, with the cost of the layers where a seller's price would stand. The layers' attempts are
//! the rows of the ledger; the request has none of its own, so each micro-USD is booked once. Called
//! by the flow of [`super`]; `node` brings the models.

use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{Response, StatusCode, header};
use hyper::body::Body as _;

use super::Shared;
use super::asked::{Asked, OutputLimit};
use super::budget::Purpose;
use super::refusal::{Refusal, json_headers};
use super::sink::{ClientSink, event_stream_headers};
use crate::http::body::Body;
use crate::llm_api::translate::{self, StreamTranslator};
use crate::llm_api::{self, Dialect, Endpoint, EventSplitter, UsageTracker, sse};
use crate::protocol::limits::BODY_BYTES_MAX;
use crate::types::{MicroUsd, ModelId, PriceTable, RequestId, Usage};

/// Output written into a translated request whose dialect has no limit, tokens.
const OUTPUT_DEFAULT: u64 = 2_048;

/// A model whose ends this node has.
pub trait OwnModel: Send + Sync {
    /// What is listed of it now.
    fn card(&self) -> Card;
    /// Answers a request of the chat dialect. Dropping the future or the answer ends the work.
    fn chat(&self, order: Order) -> BoxFuture<'static, Answer>;
}

/// How a model is listed.
#[derive(Clone, Debug)]
pub struct Card {
    /// Its name here.
    pub model: ModelId,
    /// What its layers cost by the best way there is now, micro-USD per million tokens.
    pub price: PriceTable,
    /// Rows find a way through all of its layers now.
    pub is_whole: bool,
    /// Stages of it that are on offer.
    pub stages: usize,
    /// Context window, tokens.
    pub context: u32,
    /// It can call tools.
    pub has_tools: bool,
}

/// One request for a model of one's own.
#[derive(Clone, Debug)]
pub struct Order {
    /// The client's request; the layers' attempts carry it.
    pub request: RequestId,
    /// The local client, as ledger and limits name it.
    pub client: String,
    /// The body, in the chat dialect, for the model's name here.
    pub body: Bytes,
    /// Most that it may cost.
    pub max_cost: Option<MicroUsd>,
}

/// What answers an [`Order`].
pub struct Answer {
    /// In the chat dialect: events, a whole answer, or an error.
    pub response: Response<Body>,
    /// What its layers have cost so far.
    pub cost: Cost,
}

/// Asks for a cost.
pub type Cost = Arc<dyn Fn() -> MicroUsd + Send + Sync>;

/// The own model of this name.
pub(super) fn find<'a>(shared: &'a Shared, model: &ModelId) -> Option<&'a Arc<dyn OwnModel>> {
    shared.own.iter().find(|own| own.card().model == *model)
}

/// Answers a request for an own model.
pub(super) async fn serve(
    shared: &Shared,
    asked: &Arc<Asked>,
    own: &dyn OwnModel,
    sink: &mut ClientSink,
) {
    let refused = match ordered(shared, asked, own) {
        Ok((order, inner)) => {
            let answer = sink.while_alive(own.chat(order)).await;
            let Ok(Answer { response, cost }) = answer else {
                return;
            };
            let is_stream = response.headers().get(header::CONTENT_TYPE)
                == event_stream_headers().get(header::CONTENT_TYPE);
            let passing = Passing {
                shared,
                asked: &inner,
                cost,
            };
            if is_stream {
                passing.events(response, sink).await
            } else {
                passing.whole(response, sink).await
            }
        }
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = refused {
        refusal.send(sink, asked.dialect).await;
    }
}

/// The order, and the request as it is in the chat dialect.
fn ordered(
    shared: &Shared,
    asked: &Arc<Asked>,
    own: &dyn OwnModel,
) -> Result<(Order, Arc<Asked>), Refusal> {
    if !matches!(asked.endpoint, Endpoint::Dialect(_)) {
        let message = "this model answers /v1/chat/completions, /v1/messages and /v1/responses";
        return Err(Refusal::bad_request(message));
    }
    let inner = if asked.dialect == Dialect::Chat {
        Arc::clone(asked)
    } else {
        let limit = OutputLimit {
            required: asked.view.max_tokens.unwrap_or(OUTPUT_DEFAULT),
            most: None,
        };
        let made = asked.translated(Dialect::Chat, limit);
        made.map_err(|error| Refusal::bad_request(error.to_string()))?
    };
    let card = own.card();
    let wishes = shared.wishes.get();
    let limits = asked.max_cost.into_iter().chain(wishes.policy.request_max);
    let order = Order {
        request: asked.id,
        client: asked.client.clone(),
        body: llm_api::rewrite_model(&inner.body, &inner.view, card.model.as_str()),
        max_cost: limits.min(),
    };
    Ok((order, inner))
}

/// One answer on its way to the client.
struct Passing<'a> {
    shared: &'a Shared,
    /// In the chat dialect.
    asked: &'a Asked,
    cost: Cost,
}

impl Passing<'_> {
    /// A whole answer or an error, once it is complete.
    async fn whole(&self, response: Response<Body>, sink: &mut ClientSink) -> Result<(), Refusal> {
        let (parts, mut body) = response.into_parts();
        let mut all = BytesMut::new();
        loop {
            match sink.while_alive(next(&mut body)).await {
                Err(_gone) => return Ok(()),
                Ok(Some(Ok(piece))) if all.len() + piece.len() <= BODY_BYTES_MAX => {
                    all.extend_from_slice(&piece);
                }
                Ok(None) => break,
                Ok(Some(_)) => return Err(broken()),
            }
        }
        let body = all.freeze();
        if !parts.status.is_success() {
            return Err(self.refusal(parts.status, &body));
        }
        let usage = llm_api::usage::extract(Dialect::Chat, &body).unwrap_or_default();
        let cost = (self.cost)();
        let sent = match &self.asked.way_back {
            Some(way) => translate::answer(&body, way, &usage, cost).map_err(|_| broken())?,
            None => llm_api::splice_cost(&body, cost),
        };
        sink.header("x-souk-cost-usd", &cost.to_json_number());
        sink.respond(StatusCode::OK, json_headers(), sent);
        Ok(())
    }

    /// A stream, event by event. Its first event says nothing, so the head waits for the second: an
    /// answer that fails before its first word is refused with a status of its own.
    async fn events(&self, response: Response<Body>, sink: &mut ClientSink) -> Result<(), Refusal> {
        let mut body = response.into_body();
        let mut splitter = EventSplitter::new();
        let mut pen = Pen {
            way: self.asked.way_back.clone().map(StreamTranslator::new),
            tracker: UsageTracker::new(Dialect::Chat),
            wants_usage: self.asked.wants_usage,
            events: 0,
            is_done: false,
            out: Vec::new(),
        };
        loop {
            let piece = match sink.while_alive(next(&mut body)).await {
                Err(_gone) => return Ok(()),
                Ok(Some(Ok(piece))) => piece,
                Ok(None) if pen.is_done => break,
                Ok(_) => return Err(broken()),
            };
            let events: Result<Vec<Bytes>, _> = splitter.push(piece).collect();
            for event in events.map_err(|_| broken())? {
                if sse::is_error(&event) {
                    let said = sse::data(&event).unwrap_or_default();
                    return Err(self.refusal(StatusCode::BAD_GATEWAY, said));
                }
                pen.write(&event, &self.cost).map_err(|_| broken())?;
            }
            if pen.events < 2 || pen.out.is_empty() {
                continue;
            }
            sink.commit(StatusCode::OK, event_stream_headers());
            if sink
                .send(std::mem::take(&mut pen.out).into())
                .await
                .is_err()
            {
                return Ok(());
            }
        }
        sink.finish(Some((self.cost)().to_json_number())).await;
        Ok(())
    }

    /// What an error of the chat dialect says, as the client is told.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> Refusal {
        #[derive(serde::Deserialize, Default)]
        struct Said {
            #[serde(default)]
            message: String,
            #[serde(default)]
            code: String,
        }
        #[derive(serde::Deserialize)]
        struct Body {
            error: Said,
        }
        let said =
            serde_json::from_slice::<Body>(body).map_or_else(|_| Said::default(), |b| b.error);
        let message = said.message;
        match (said.code.as_str(), status.as_u16()) {
            ("budget_exceeded", _) => {
                let purpose = Purpose {
                    model: self.asked.model.clone(),
                    client: self.asked.client.clone(),
                };
                let tight = self.shared.budget.check(&purpose, MicroUsd(u64::MAX)).err();
                Refusal::over_budget(message, tight.map_or(0, |tight| tight.seconds))
            }
            ("context_length_exceeded", _) => {
                Refusal::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
            }
            (_, 400..=422) => Refusal::bad_request(message),
            ("overloaded" | "upstream_unavailable", _) => Refusal::no_seller(message),
            _ => Refusal::new(StatusCode::BAD_GATEWAY, "sellers_failed", message),
        }
    }
}

/// Writes events in the client's dialect.
struct Pen {
    way: Option<StreamTranslator>,
    tracker: UsageTracker,
    wants_usage: bool,
    /// Events so far.
    events: usize,
    is_done: bool,
    out: Vec<u8>,
}

impl Pen {
    fn write(&mut self, event: &Bytes, cost: &Cost) -> Result<(), ()> {
        self.events += 1;
        self.tracker.push(event);
        let is_done = sse::is_done(Dialect::Chat, event);
        self.is_done |= is_done;
        let Some(way) = &mut self.way else {
            if !sse::has_usage(event) {
                self.out.extend_from_slice(event);
            } else if self.wants_usage || !sse::is_usage_only(event) {
                self.out
                    .extend_from_slice(&llm_api::splice_cost(event, cost()));
            }
            return Ok(());
        };
        way.push(event, &mut self.out).map_err(|_| ())?;
        if is_done {
            let usage: Usage = self.tracker.usage().unwrap_or_default();
            way.finish(&usage, cost(), &mut self.out);
        }
        Ok(())
    }
}

/// The next piece of a body.
async fn next(body: &mut Body) -> Option<Result<Bytes, ()>> {
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) => return Some(Ok(data)),
            // Fields after the body.
            Ok(Err(_)) => {}
            Err(_) => return Some(Err(())),
        }
    }
}

fn broken() -> Refusal {
    let message = "the answer broke off; ask again";
    Refusal::new(StatusCode::BAD_GATEWAY, "sellers_failed", message)
}
