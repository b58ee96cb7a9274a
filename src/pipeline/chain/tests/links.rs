//! Links that take their time.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Two ends of a stream whose bytes take `delay`.
pub fn pipe(delay: Duration) -> (tokio::io::DuplexStream, tokio::io::DuplexStream) {
    const BYTES: usize = 1 << 20;
    if delay.is_zero() {
        return tokio::io::duplex(BYTES);
    }
    let (ours, near) = tokio::io::duplex(BYTES);
    let (far, theirs) = tokio::io::duplex(BYTES);
    let (mut from_us, mut to_us) = tokio::io::split(near);
    let (mut from_them, mut to_them) = tokio::io::split(far);
    let (send, mut queue) = mpsc::unbounded_channel::<(Instant, Bytes)>();
    tokio::spawn(async move {
        let mut buffer = BytesMut::with_capacity(BYTES);
        while from_us.read_buf(&mut buffer).await.is_ok_and(|n| n > 0) {
            let _ = send.send((Instant::now() + delay, buffer.split().freeze()));
        }
    });
    tokio::spawn(async move {
        while let Some((at, bytes)) = queue.recv().await {
            tokio::time::sleep_until(at.into()).await;
            if to_them.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move { tokio::io::copy(&mut from_them, &mut to_us).await });
    (ours, theirs)
}

/// A channel whose messages take `delay`.
pub fn lane<T: Send + 'static>(delay: Duration) -> (mpsc::UnboundedSender<T>, mpsc::Receiver<T>) {
    let (send, mut queue) = mpsc::unbounded_channel::<T>();
    let (out, receiver) = mpsc::channel(1_024);
    let (timed, mut late) = mpsc::unbounded_channel::<(Instant, T)>();
    tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            let _ = timed.send((Instant::now() + delay, message));
        }
    });
    tokio::spawn(async move {
        while let Some((at, message)) = late.recv().await {
            if !delay.is_zero() {
                tokio::time::sleep_until(at.into()).await;
            }
            if out.send(message).await.is_err() {
                return;
            }
        }
    });
    (send, receiver)
}
