//! Stage sessions as the seller's orders: what an order's stream and money are to a session.

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{Cover, End, HeadSide, Reserved, Stages};
use crate::network::Stream;
use crate::pipeline::error::PipelineError;
use crate::protocol::PeerErrorCode;
use crate::seller::stage::{
    StageEnd, StageInput, StageOrder, StageOutput, StageRefused, StageService, StageSession,
};
use crate::types::{PeerId, Usage};

/// A head that found no room asks again after this, ms: a session may end at any time.
const FULL_RETRY_MS: u64 = 1_000;

impl StageService for Stages {
    fn open(
        &self,
        order: StageOrder,
    ) -> BoxFuture<'_, Result<Box<dyn StageSession>, StageRefused>> {
        Box::pin(async move {
            let reserved = self.reserve(&order.body).await.map_err(refusal)?;
            let session: Box<dyn StageSession> = Box::new(reserved);
            Ok(session)
        })
    }

    fn rows(&self, _from: PeerId, stream: Stream) -> BoxFuture<'static, ()> {
        // Who it is does not matter: the key that the head gave it does.
        let stages = self.clone();
        Box::pin(async move { stages.take_rows(stream).await })
    }
}

fn refusal(error: PipelineError) -> StageRefused {
    tracing::debug!(%error, "a stage session was refused");
    let (code, retry_after_ms) = match error {
        PipelineError::Full { .. } => (PeerErrorCode::Overloaded, FULL_RETRY_MS),
        PipelineError::Stopped => (PeerErrorCode::Draining, 0),
        _ => (PeerErrorCode::Malformed, 0),
    };
    StageRefused {
        code,
        retry_after_ms,
    }
}

impl StageSession for Reserved {
    fn run<'a>(
        self: Box<Self>,
        input: StageInput<'a>,
        output: StageOutput<'a>,
    ) -> BoxFuture<'a, StageEnd> {
        Box::pin(async move {
            match Reserved::run(*self, Order { input, output }).await {
                End::Closed => StageEnd::Closed,
                End::Left => StageEnd::Left,
                End::Unpaid(code) => StageEnd::Unpaid(code),
                End::Failed(code) => StageEnd::Failed(code),
            }
        })
    }
}

/// An order's stream and its money.
struct Order<'a> {
    input: StageInput<'a>,
    output: StageOutput<'a>,
}

const fn end_of(end: StageEnd) -> End {
    match end {
        StageEnd::Closed => End::Closed,
        StageEnd::Left => End::Left,
        StageEnd::Unpaid(code) => End::Unpaid(code),
        StageEnd::Failed(code) => End::Failed(code),
    }
}

impl HeadSide for Order<'_> {
    async fn read(&mut self) -> Result<Bytes, End> {
        self.input.read().await.map_err(end_of)
    }
    fn put(&mut self, bytes: &[u8]) {
        self.output.put(bytes);
    }
    async fn flush(&mut self) -> Result<(), End> {
        self.output.flush().await.map_err(end_of)
    }
    fn state(&mut self, usage: Usage) -> Result<Cover, End> {
        self.output.state(usage).map_err(end_of)
    }
}
