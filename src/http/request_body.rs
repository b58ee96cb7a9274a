//! Reads a request's body: whole, at most [`BODY_BYTES_MAX`], and in the time it may take.
//!
//! Invariants: memory grows with what arrived, never with what was declared; a refused body is
//! thrown away up to a limit, so that the client reads its answer instead of a reset connection.
//! Called by handlers ([`read_body`]) and by [`super::server`] for refused requests.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT};
use http_body_util::BodyExt as _;
use hyper::body::Body as HttpBody;

use super::guard::{Refusal, single};

/// Largest request body (NETWORK's limits table).
pub const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A client that sends nothing for this long within a body has stalled.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// 32 MiB take 3 s at 100 Mbit/s; a body that drips in takes a connection for at most this long.
const BODY_TOTAL_TIMEOUT: Duration = Duration::from_secs(120);
/// A body is put together in a buffer that starts no larger than this, whatever length it declares.
const BODY_BUFFER_BYTES_FIRST: usize = 256 * 1024;
/// A refused body is read and thrown away up to here, so that the client sees the answer and not a
/// reset connection.
const DISCARD_BYTES_MAX: usize = 2 * BODY_BYTES_MAX;
/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(3);
/// Reads a whole body of at most [`BODY_BYTES_MAX`], in the time it may take.
///
/// A body that comes as one piece is not copied. Not cancel safe: what was read is lost.
///
/// # Errors
/// [`Refusal::TooLarge`], [`Refusal::Slow`] or [`Refusal::Broken`].
pub async fn read_body<B>(body: B) -> Result<Bytes, Refusal>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    read_limited(body, BODY_BYTES_MAX, BODY_IDLE_TIMEOUT, BODY_TOTAL_TIMEOUT).await
}

async fn read_limited<B>(
    mut body: B,
    limit: usize,
    idle: Duration,
    total: Duration,
) -> Result<Bytes, Refusal>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let read = async {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        loop {
            let frame = tokio::time::timeout(idle, body.frame()).await;
            let data = match frame.map_err(|_| Refusal::Slow)? {
                None => break,
                Some(Err(_)) => return Err(Refusal::Broken),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            let so_far = first.len() + all.len();
            if so_far.saturating_add(data.len()) > limit {
                return Err(Refusal::TooLarge);
            }
            if so_far == 0 {
                first = data;
                continue;
            }
            if !first.is_empty() {
                let declared = body.size_hint().lower().saturating_add(1);
                let declared = usize::try_from(declared).unwrap_or(usize::MAX);
                let room = declared.min(BODY_BUFFER_BYTES_FIRST);
                all.reserve(first.len() + data.len() + room);
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    };
    let result = tokio::time::timeout(total, read).await;
    let result = result.unwrap_or(Err(Refusal::Slow));
    if result == Err(Refusal::TooLarge) {
        discard(&mut body).await;
    }
    result
}

/// Throws a refused request's body away, so that its answer is not lost in a reset connection. A
/// client that waits for `100 Continue` has not sent it yet, and never will.
pub(super) async fn discard_body<B>(headers: &HeaderMap, mut body: B)
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let is_hopeless = declared_length(headers).is_some_and(|length| length > DISCARD_BYTES_MAX);
    if !headers.contains_key(EXPECT) && !is_hopeless {
        discard(&mut body).await;
    }
}

async fn discard<B>(body: &mut B)
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let read = async {
        let mut seen = 0usize;
        while let Some(Ok(frame)) = body.frame().await {
            seen = seen.saturating_add(frame.data_ref().map_or(0, Bytes::len));
            if seen > DISCARD_BYTES_MAX {
                break;
            }
        }
    };
    drop(tokio::time::timeout(DISCARD_TIMEOUT, read).await);
}

/// The length that a request declares for its body.
pub(super) fn declared_length(headers: &HeaderMap) -> Option<usize> {
    let text = single(headers, &CONTENT_LENGTH).ok()??;
    // A length that no integer holds is too long as well.
    Some(text.trim().parse().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::Body;

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit_and_in_time() {
        let (short, long) = (Duration::from_millis(30), Duration::from_secs(60));
        let read = |pieces: &'static [&'static [u8]], finish: bool| async move {
            let (sender, body) = Body::stream();
            for piece in pieces {
                sender.send(Bytes::from_static(piece)).await.unwrap();
            }
            if finish {
                sender.finish(None).await.unwrap();
                return read_limited(body, 4, long, long).await;
            }
            let result = read_limited(body, 4, short, short).await;
            drop(sender);
            result
        };
        assert_eq!(read(&[], true).await.unwrap(), "");
        assert_eq!(read(&[b"abcd"], true).await.unwrap(), "abcd");
        assert_eq!(read(&[b"ab", b"c", b"d"], true).await.unwrap(), "abcd");
        assert_eq!(read(&[b"ab", b"cde"], true).await, Err(Refusal::TooLarge));
        assert_eq!(read(&[b"abcde"], true).await, Err(Refusal::TooLarge));
        assert_eq!(read(&[b"ab"], false).await, Err(Refusal::Slow));
        let (sender, body) = Body::stream();
        sender.cut();
        assert_eq!(
            read_limited(body, 4, long, long).await,
            Err(Refusal::Broken)
        );
    }
}
