//! The model as an OpenAI chat service on loopback: what the seller's ordinary upstream code calls.
//!
//! One request, top to bottom: `read → tokens → begin → (events | whole)`. A client that goes away
//! drops the answer, which frees its room wherever its layers are.

mod answer;
mod request;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use super::error::PipelineError;
use super::generate::{self, Answer, Event, GenerateError, Model};
use super::patron::Patron;
use crate::http::body::{Body, BodySender};
use crate::http::request_body::read_body;
use crate::http::server::Handler;
use crate::llm_api::{Dialect, error};
use crate::tasks::{Tasks, off_thread_if};
use crate::types::Clock;
use answer::{Frame, Whole};
use request::Asked;

/// Turning a longer body to tokens takes more than ~100 µs.
const LONG_BODY_BYTES: usize = 4 * 1024;
/// When to come again after a refusal for want of room, seconds: an answer's usual length.
const FULL_RETRY_S: u64 = 5;

/// Serves one model under one name. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    name: Arc<str>,
    model: Model,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
}

impl Service {
    /// Puts a service together; streams run on `tasks`.
    #[must_use]
    pub fn new(name: &str, model: Model, clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        Self {
            name: name.into(),
            model,
            clock,
            tasks,
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answered = match (method, path.as_str()) {
            (Method::GET, "/v1/models") => return self.list(),
            (Method::POST, "/v1/chat/completions") => {
                let broken = |_| {
                    let message = "the body is too large or was cut".to_owned();
                    Refusal::new(413, "request_too_large", message)
                };
                match read_body(request.into_body()).await.map_err(broken) {
                    Ok(body) => self.chat(body, Patron::house()).await,
                    Err(refusal) => Err(refusal),
                }
            }
            _ => {
                let message = "here are /v1/chat/completions and /v1/models".to_owned();
                Err(Refusal::new(404, "not_found", message))
            }
        };
        answered.unwrap_or_else(Refusal::into_response)
    }

    /// No prices: they are the seller's, by its flags.
    fn list(&self) -> Response<Body> {
        let model = json!({
            "id": &*self.name, "object": "model", "created": 0, "owned_by": "pipeline",
            "context_length": self.model.context(),
            "supported_endpoints": ["/v1/chat/completions"],
        });
        let list = json!({"object": "list", "data": [model]});
        json_response(StatusCode::OK, list.to_string())
    }

    /// Answers a body of the chat dialect for somebody in this process. Dropping the future or the
    /// answer ends the work.
    pub async fn answer(&self, body: Bytes, patron: Patron) -> Response<Body> {
        let answered = self.chat(body, patron).await;
        answered.unwrap_or_else(Refusal::into_response)
    }

    async fn chat(&self, body: Bytes, patron: Patron) -> Result<Response<Body>, Refusal> {
        let (asked, prompt) = self.read(body).await?;
        let frame = Frame {
            id: format!("chatcmpl-{:032x}", rand::random::<u128>()),
            created_s: self.clock.now_ms() / 1_000,
            model: self.name.to_string(),
        };
        let begun = self.model.begin(generate::Request {
            prompt,
            answer_max: asked.answer_max,
            sampling: asked.sampling,
            stop: asked.stop,
            has_tools: asked.tools.is_some(),
            patron,
        });
        let mut answer = begun.await?;
        if !asked.is_stream {
            let mut whole = Whole::default();
            while let Some(event) = answer.next().await? {
                if let Some(body) = whole.push(&frame, event) {
                    return Ok(json_response(StatusCode::OK, body));
                }
            }
            return Err(PipelineError::Stopped.into());
        }
        let (sender, body) = Body::stream();
        self.tasks.spawn("pipeline-answer", async move {
            stream(answer, &frame, asked.has_usage, sender).await;
        });
        Ok(response(StatusCode::OK, "text/event-stream", body))
    }

    /// What is asked, and its tokens.
    async fn read(&self, body: Bytes) -> Result<(Asked, Vec<u32>), Refusal> {
        let service = self.clone();
        let is_long = body.len() > LONG_BODY_BYTES;
        let chance = rand::random();
        let read = off_thread_if(is_long, move || {
            Some(
                request::read(&body, &service.name, chance).and_then(|asked| {
                    let tokens = service.model.tokens();
                    let prompt = tokens.prompt(&asked.messages, asked.tools.as_deref());
                    let prompt = prompt.map_err(|error| Refusal::bad(error.to_string()))?;
                    Ok((asked, prompt))
                }),
            )
        });
        read.await
            .unwrap_or_else(|| Err(PipelineError::Stopped.into()))
    }
}

impl Handler for Service {
    fn handle(&self, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
        let service = self.clone();
        Box::pin(async move { service.respond(request).await })
    }
}

/// Writes an answer as it comes, as long as somebody reads.
async fn stream(mut answer: Answer, frame: &Frame, has_usage: bool, sender: BodySender) {
    if sender.send(frame.opening()).await.is_err() {
        return;
    }
    let mut calls = 0;
    loop {
        let next = tokio::select! {
            biased;
            () = sender.closed() => return,
            next = answer.next() => next,
        };
        match next {
            Ok(Some(event)) => {
                if sender
                    .send(frame.event(&event, calls, has_usage))
                    .await
                    .is_err()
                {
                    return;
                }
                match event {
                    Event::Call { .. } => calls += 1,
                    Event::End { .. } => {
                        let _ = sender.finish(None).await;
                        return;
                    }
                    Event::Text(_) => {}
                }
            }
            Ok(None) => return sender.cut(),
            Err(why) => {
                tracing::warn!(error = %why, "an answer broke off");
                let refusal = Refusal::from(why);
                let event = error::error_event(
                    Dialect::Chat,
                    refusal.status,
                    refusal.code,
                    &refusal.message,
                );
                let _ = sender.send(event).await;
                return sender.cut();
            }
        }
    }
}

/// Why a request has no answer.
#[derive(Debug)]
struct Refusal {
    status: u16,
    code: &'static str,
    message: String,
}

impl Refusal {
    const fn new(status: u16, code: &'static str, message: String) -> Self {
        Self {
            status,
            code,
            message,
        }
    }
    const fn bad(message: String) -> Self {
        Self::new(400, "invalid_request", message)
    }
    fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = error::envelope(Dialect::Chat, self.status, self.code, &self.message);
        let mut response = json_response(status, body);
        if self.status == 503 {
            response
                .headers_mut()
                .insert(RETRY_AFTER, FULL_RETRY_S.into());
        }
        response
    }
}

impl From<PipelineError> for Refusal {
    fn from(error: PipelineError) -> Self {
        let message = error.to_string();
        match error {
            PipelineError::Full { .. } => Self::new(503, "overloaded", message),
            PipelineError::TooLong { .. } => Self::new(400, "context_length_exceeded", message),
            PipelineError::Budget(_) => Self::new(503, "budget_exceeded", message),
            PipelineError::Lost(_) => Self::new(503, "upstream_unavailable", message),
            _ => Self::new(500, "internal", message),
        }
    }
}

impl From<GenerateError> for Refusal {
    fn from(error: GenerateError) -> Self {
        let message = error.to_string();
        match error {
            GenerateError::Context { .. } => Self::new(400, "context_length_exceeded", message),
            GenerateError::Empty => Self::bad(message),
            GenerateError::Pipeline(error) => error.into(),
        }
    }
}

fn json_response(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    response(status, "application/json", Body::full(body))
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, value);
    response
}
