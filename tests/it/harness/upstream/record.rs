//! What a scripted upstream remembers: requests, the exact bytes it answered, and sockets.

use std::time::Instant;

use bytes::Bytes;

/// One request and what was answered.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The connection it came on.
    pub connection: u64,
    /// When the head and body had arrived.
    pub at: Instant,
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The headers in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The request body.
    pub body: Bytes,
    /// The status that was answered, once it was.
    pub status: Option<u16>,
    /// Every body byte handed to the socket, without chunk framing.
    pub sent: Vec<u8>,
    /// When each piece of `sent` was handed over, and its length.
    pub pieces: Vec<(Instant, usize)>,
    /// When the answer was complete.
    pub finished: Option<Instant>,
    /// When the answer was dropped unfinished: the client went away, or the script cut it.
    pub abandoned: Option<Instant>,
}

impl Exchange {
    /// Returns whether this asked for inference rather than for the model list.
    pub fn is_inference(&self) -> bool {
        self.method == "POST"
    }

    /// Returns a header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Returns the request body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One client socket.
#[derive(Clone, Debug)]
pub struct ConnectionRecord {
    /// Counts from 0 in the order of accepting.
    pub id: u64,
    /// When it was accepted.
    pub opened: Instant,
    /// When the client's end was seen closed, or our own end was closed.
    pub closed: Option<Instant>,
}

/// Everything recorded so far.
#[derive(Default)]
pub struct Log {
    /// Requests in order of arrival.
    pub exchanges: Vec<Exchange>,
    /// Sockets in order of accepting.
    pub connections: Vec<ConnectionRecord>,
    next_connection: u64,
    /// Exchanges dropped by [`Log::forget`]: indices handed out before stay valid.
    forgotten: usize,
}

impl Log {
    /// Adds a socket and returns its number.
    pub fn open_connection(&mut self) -> u64 {
        let id = self.next_connection;
        self.next_connection += 1;
        self.connections.push(ConnectionRecord {
            id,
            opened: Instant::now(),
            closed: None,
        });
        id
    }

    /// Notes that a socket closed; the first time counts.
    pub fn close_connection(&mut self, id: u64) {
        let now = Instant::now();
        if let Some(c) = self.connections.iter_mut().find(|c| c.id == id) {
            c.closed.get_or_insert(now);
        }
    }

    /// Adds a request and returns its key for [`Log::exchange`].
    pub fn begin(&mut self, exchange: Exchange) -> usize {
        self.exchanges.push(exchange);
        self.forgotten + self.exchanges.len() - 1
    }

    /// Returns a request by key, unless it was forgotten.
    pub fn exchange(&mut self, key: usize) -> Option<&mut Exchange> {
        self.exchanges.get_mut(key.checked_sub(self.forgotten)?)
    }

    /// Drops all requests and all closed sockets.
    pub fn forget(&mut self) {
        self.forgotten += self.exchanges.len();
        self.exchanges.clear();
        self.connections.retain(|c| c.closed.is_none());
    }
}
