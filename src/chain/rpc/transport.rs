//! JSON-RPC over HTTP with bounded answers: an RPC node is a stranger, and what it sends must not
//! fill the memory. Otherwise as alloy's own transport.

use std::task::{Context, Poll};

use alloy::rpc::json_rpc::{RequestPacket, ResponsePacket};
use alloy::transports::{TransportError, TransportErrorKind, TransportFut};
use tower::Service;

/// Longest answer: 20 000 logs of the hub with their JSON are 16 MB.
pub(super) const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Why an answer was not read to its end.
#[derive(Debug, thiserror::Error)]
#[error("the answer is longer than {0} bytes")]
struct TooLong(usize);

/// One RPC node.
#[derive(Clone, Debug)]
pub(super) struct Bounded {
    client: reqwest::Client,
    url: reqwest::Url,
    bytes_max: usize,
}

impl Bounded {
    pub(super) const fn new(client: reqwest::Client, url: reqwest::Url, bytes_max: usize) -> Self {
        Self {
            client,
            url,
            bytes_max,
        }
    }

    async fn ask(self, request: RequestPacket) -> Result<ResponsePacket, TransportError> {
        let body = serde_json::to_vec(&request).map_err(TransportError::ser_err)?;
        let mut answer = self
            .client
            .post(self.url)
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .map_err(TransportErrorKind::custom)?;
        let status = answer.status();
        let mut bytes = vec![];
        while let Some(chunk) = answer.chunk().await.map_err(TransportErrorKind::custom)? {
            if bytes.len().saturating_add(chunk.len()) > self.bytes_max {
                return Err(TransportErrorKind::custom(TooLong(self.bytes_max)));
            }
            bytes.extend_from_slice(&chunk);
        }
        match serde_json::from_slice(&bytes) {
            Ok(packet) => Ok(packet),
            // Many nodes put a JSON-RPC error behind a status of their own; this one did not.
            Err(_) if !status.is_success() => Err(TransportErrorKind::http_error(
                status.as_u16(),
                String::new(),
            )),
            Err(error) => Err(TransportError::deser_err(error, String::new())),
        }
    }
}

impl Service<RequestPacket> for Bounded {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RequestPacket) -> Self::Future {
        Box::pin(self.clone().ask(request))
    }
}
