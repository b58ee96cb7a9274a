//! LIMITS: nothing that a peer or a client sends allocates more than this table says.

/// A request body or a whole answer, bytes: images as data URIs fit, a disk image does not.
pub const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A signed request head, bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Headers carried in a head or a response head.
pub const HEADERS_MAX: usize = 64;
/// One header's name and value together, bytes.
pub const HEADER_BYTES_MAX: usize = 8 * 1024;
/// One frame's payload, bytes; longer is a protocol violation.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Signed terms, bytes.
pub const TERMS_BYTES_MAX: usize = 16 * 1024;
/// A session message, bytes: one frame.
pub const SESSION_BYTES_MAX: usize = FRAME_PAYLOAD_BYTES_MAX;
/// A message about a transaction to be sent, bytes: eight calls of 1 KiB fit twice.
pub const RELAY_BYTES_MAX: usize = 16 * 1024;
/// Calls in such a transaction.
pub const RELAY_CALLS_MAX: usize = 8;
/// Attempts listed in one SYNC or ACCEPT; the next message carries the rest.
pub const ATTEMPTS_PER_MESSAGE_MAX: usize = 128;
/// Streams one peer may have open at once.
pub const STREAMS_PER_PEER_MAX: usize = 256;
/// Streams all peers together may have open at once.
pub const STREAMS_PER_NODE_MAX: usize = 10_000;
/// Counters remembered per buyer process for replay refusal (8 KiB as a bit set).
pub const REPLAY_WINDOW: u64 = 65_536;
/// Live processes remembered per buyer.
pub const REPLAY_PROCESSES_MAX: usize = 16;
/// A stage message without its rows, bytes: the longest holds all addresses of an offer.
pub const STAGE_HEADER_BYTES_MAX: usize = 1024;
/// Rows of a catch-up or of one chunk of a prefill: enough to keep an engine busy, few enough that
/// the next stage begins soon. A stage's window covers one.
pub const STAGE_CHUNK_ROWS_MAX: u32 = 64;
/// Rows of one stage message, bytes: 256 rows of 8192 16-bit numbers.
pub const STAGE_ROWS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Positions of one stage session: the longest contexts that models have.
pub const STAGE_POSITIONS_MAX: u32 = 1 << 20;
/// Layers of a model: three times what the deepest has.
pub const STAGE_LAYERS_MAX: u16 = 512;
/// Text from a peer that is shown or stored, characters.
pub const PEER_TEXT_CHARS_MAX: usize = 200;

/// Cuts a peer's text to [`PEER_TEXT_CHARS_MAX`] and replaces control characters.
#[must_use]
pub fn tame_text(text: &str) -> String {
    text.chars()
        .take(PEER_TEXT_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
