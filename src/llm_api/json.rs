//! A borrowed JSON walker: structure and strings, nothing is built. One pass, depth ≤ 64, never a
//! panic. It checks brackets, commas and colons; scalars and escapes are the upstream's to judge.
//! Called by the request view, the splices, the usage tracker and the token counter.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use memchr::{memchr, memchr3};

/// Deepest nesting of a body, so that neither we nor an upstream's parser can be made to recurse.
pub const JSON_DEPTH_MAX: u32 = 64;

/// Why a JSON text was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum JsonError {
    /// The text ends inside a value.
    #[error("the JSON body ends too early; send the whole body")]
    Truncated,
    /// Something else was expected.
    #[error("the body is not valid JSON (byte {0}); check commas, quotes and brackets")]
    Malformed(usize),
    /// More than 64 levels.
    #[error("the JSON body is nested deeper than {JSON_DEPTH_MAX} levels; flatten it")]
    TooDeep,
}

/// What a walk over a value reports; all methods may stay empty. Depth 0 is the walked value.
pub(crate) trait Observe {
    /// A value begins; `key` is empty in arrays and at the top.
    fn value_start(&mut self, _depth: u32, _key: &[u8], _first: u8, _at: usize) {}
    /// A container or scalar ended just before `at`.
    fn value_end(&mut self, _depth: u32, _at: usize) {}
    /// A string value; `raw` is without its quotes, escapes as written.
    fn string(&mut self, _key: &[u8], _raw: &[u8]) {}
}

/// Sees nothing.
pub(crate) struct Blind;
impl Observe for Blind {}

/// A position in a JSON text.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8], pos: usize) -> Self {
        Self { bytes, pos }
    }
    pub(crate) const fn pos(&self) -> usize {
        self.pos
    }
    pub(crate) fn slice(&self, span: &Range<usize>) -> &'a [u8] {
        self.bytes.get(span.clone()).unwrap_or_default()
    }
    /// The next byte after white space, not consumed.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            let b = *self.bytes.get(self.pos)?;
            if b > b' ' || !matches!(b, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(b);
            }
            self.pos += 1;
        }
    }
    #[inline]
    fn need(&mut self) -> Result<u8, JsonError> {
        self.peek().ok_or(JsonError::Truncated)
    }
    /// Consumes `b`.
    #[inline]
    pub(crate) fn expect(&mut self, b: u8) -> Result<(), JsonError> {
        if self.need()? != b {
            return Err(JsonError::Malformed(self.pos));
        }
        self.pos += 1;
        Ok(())
    }
    /// Consumes a string and returns the span between its quotes.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<Range<usize>, JsonError> {
        self.expect(b'"')?;
        let start = self.pos;
        loop {
            let rest = self.bytes.get(self.pos..).unwrap_or_default();
            let hit = quote(rest).ok_or(JsonError::Truncated)?;
            let end = self.pos + hit;
            self.pos = end + 1;
            // A quote is escaped by an odd run of backslashes; runs are disjoint, so this is linear.
            let before = self.bytes.get(start..end).unwrap_or_default();
            let run = before.iter().rev().take_while(|b| **b == b'\\').count();
            if run % 2 == 0 {
                return Ok(start..end);
            }
        }
    }
    #[inline]
    fn key(&mut self) -> Result<Range<usize>, JsonError> {
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }
    fn scalar(&mut self) -> Result<(), JsonError> {
        let start = self.pos;
        while let Some(b) = self.bytes.get(self.pos) {
            if !matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.' | b'E') {
                break;
            }
            self.pos += 1;
        }
        if self.pos == start {
            return Err(JsonError::Malformed(start));
        }
        Ok(())
    }
    /// Steps to the next member of an object whose `{` was consumed; `None` consumes its `}`.
    pub(crate) fn next_key(&mut self, first: &mut bool) -> Result<Option<Range<usize>>, JsonError> {
        if self.next_item(first, b'}')? {
            let key = self.key()?;
            self.need()?;
            return Ok(Some(key));
        }
        Ok(None)
    }
    /// Steps to the next item of a container; false consumes `close`.
    pub(crate) fn next_item(&mut self, first: &mut bool, close: u8) -> Result<bool, JsonError> {
        let b = self.need()?;
        if b == close && *first {
            self.pos += 1;
            return Ok(false);
        }
        if *first {
            *first = false;
            return Ok(true);
        }
        self.pos += 1;
        match b {
            b',' => self.need().map(|_| true),
            _ if b == close => Ok(false),
            _ => Err(JsonError::Malformed(self.pos - 1)),
        }
    }
    /// Walks one value, whatever it is, at most `levels` containers deep; returns its span.
    pub(crate) fn value(
        &mut self,
        levels: u32,
        seen: &mut impl Observe,
    ) -> Result<Range<usize>, JsonError> {
        let levels = levels.min(JSON_DEPTH_MAX);
        let mut first_byte = self.need()?;
        let start = self.pos;
        let mut depth = 0u32;
        let mut objects = 0u64; // one bit a level, the lowest is the innermost: 1 object, 0 array
        let mut key = 0..0;
        loop {
            seen.value_start(depth, self.slice(&key), first_byte, self.pos);
            match first_byte {
                b'"' => {
                    let span = self.string()?;
                    seen.string(self.slice(&key), self.slice(&span));
                }
                b'{' | b'[' => {
                    if depth >= levels {
                        return Err(JsonError::TooDeep);
                    }
                    self.pos += 1;
                    let object = first_byte == b'{';
                    let close = if object { b'}' } else { b']' };
                    if self.need()? == close {
                        self.pos += 1;
                    } else {
                        depth += 1;
                        objects = objects << 1 | u64::from(object);
                        key = if object { self.key()? } else { 0..0 };
                        first_byte = self.need()?;
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            seen.value_end(depth, self.pos);
            loop {
                if depth == 0 {
                    return Ok(start..self.pos);
                }
                let in_object = objects & 1 == 1;
                let b = self.need()?;
                self.pos += 1;
                match b {
                    b',' => {
                        key = if in_object { self.key()? } else { 0..0 };
                        break;
                    }
                    b'}' if in_object => {}
                    b']' if !in_object => {}
                    _ => return Err(JsonError::Malformed(self.pos - 1)),
                }
                objects >>= 1;
                depth -= 1;
                seen.value_end(depth, self.pos);
            }
            first_byte = self.need()?;
        }
    }
}

/// Words of 8 bytes that are looked at in place; most strings and escapes end within them, and a
/// call to a vector search costs more than it saves there.
const SHORT_WORDS: usize = 4;
const ONES: u64 = 0x0101_0101_0101_0101;

/// Marks the bytes of `word` that equal `b`; exact up to and including the lowest mark.
#[inline]
const fn marks(word: u64, b: u8) -> u64 {
    let zero_here = word ^ (ONES.wrapping_mul(u64::from_le_bytes([b, 0, 0, 0, 0, 0, 0, 0])));
    zero_here.wrapping_sub(ONES) & !zero_here & (ONES << 7)
}

#[inline]
fn search(
    bytes: &[u8],
    mark: impl Fn(u64) -> u64,
    far: impl Fn(&[u8]) -> Option<usize>,
) -> Option<usize> {
    let mut rest = bytes;
    for word in 0..SHORT_WORDS {
        let Some((chunk, tail)) = rest.split_first_chunk::<8>() else {
            break;
        };
        let found = mark(u64::from_le_bytes(*chunk));
        if found != 0 {
            let byte = usize::try_from(found.trailing_zeros() / 8).unwrap_or(0);
            return Some(word * 8 + byte);
        }
        rest = tail;
    }
    far(rest).map(|at| bytes.len() - rest.len() + at)
}

/// The first quote.
#[inline]
fn quote(bytes: &[u8]) -> Option<usize> {
    search(bytes, |w| marks(w, b'"'), |rest| memchr(b'"', rest))
}

/// The first quote, backslash or newline.
#[inline]
pub(crate) fn string_stop(bytes: &[u8]) -> Option<usize> {
    search(
        bytes,
        |w| marks(w, b'"') | marks(w, b'\\') | marks(w, b'\n'),
        |rest| memchr3(b'"', b'\\', b'\n', rest),
    )
}

/// The span of the value at a path of object keys, or `None` (also for malformed text).
pub(crate) fn find(bytes: &[u8], path: &[&str]) -> Option<Range<usize>> {
    find_in(bytes, 0, path)
}

/// As [`find`], in the value that begins at `start`.
pub(crate) fn find_in(bytes: &[u8], start: usize, path: &[&str]) -> Option<Range<usize>> {
    let mut cursor = Cursor::new(bytes, start);
    let mut levels = JSON_DEPTH_MAX;
    for name in path {
        cursor.expect(b'{').ok()?;
        levels = levels.saturating_sub(1);
        let mut first = true;
        loop {
            let key = cursor.next_key(&mut first).ok()??;
            if cursor.slice(&key) == name.as_bytes() {
                break;
            }
            cursor.value(levels, &mut Blind).ok()?;
        }
    }
    cursor.value(levels, &mut Blind).ok()
}

/// Decodes the escapes of a raw JSON string; broken ones become U+FFFD, never an error.
pub(crate) fn unescape(raw: &[u8]) -> Cow<'_, str> {
    let Some(first) = memchr::memchr(b'\\', raw) else {
        return String::from_utf8_lossy(raw);
    };
    let (head, mut rest) = raw.split_at(first);
    let mut out = Vec::with_capacity(raw.len());
    out.extend_from_slice(head);
    while let Some((&b, tail)) = rest.split_first() {
        if b != b'\\' {
            let run = memchr::memchr(b'\\', rest).unwrap_or(rest.len());
            let (plain, after) = rest.split_at(run);
            out.extend_from_slice(plain);
            rest = after;
            continue;
        }
        let Some((&kind, after)) = tail.split_first() else {
            break;
        };
        rest = after;
        match kind {
            b'n' => out.push(b'\n'),
            b't' => out.push(b'\t'),
            b'r' => out.push(b'\r'),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'u' => rest = push_unicode(after, &mut out),
            other => out.push(other),
        }
    }
    Cow::Owned(
        String::from_utf8(out)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
    )
}

fn hex4(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, rest) = bytes.split_at_checked(4)?;
    let mut value = 0u32;
    for d in digits {
        value = value << 4 | char::from(*d).to_digit(16)?;
    }
    Some((value, rest))
}

/// Pushes the character of a `\u` whose digits begin `bytes`, joining a surrogate pair.
fn push_unicode<'a>(bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    let mut push = |c: char| out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    let Some((high, rest)) = hex4(bytes) else {
        push(char::REPLACEMENT_CHARACTER);
        return bytes;
    };
    if (0xD800..0xDC00).contains(&high)
        && let Some((low, after)) = rest.strip_prefix(b"\\u".as_slice()).and_then(hex4)
        && (0xDC00..0xE000).contains(&low)
    {
        let joined = 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00);
        push(char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER));
        return after;
    }
    push(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER));
    rest
}

/// A JSON string literal of `text`, quotes included.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Replaces spans (ascending, not overlapping) in one allocation; no edits share the bytes.
pub(crate) fn splice(bytes: &Bytes, edits: &[(Range<usize>, &[u8])]) -> Bytes {
    if edits.is_empty() {
        return bytes.clone();
    }
    let grown: usize = edits.iter().map(|(_, with)| with.len()).sum();
    let mut out = Vec::with_capacity(bytes.len() + grown);
    let mut done = 0;
    for (span, with) in edits {
        out.extend_from_slice(bytes.get(done..span.start).unwrap_or_default());
        out.extend_from_slice(with);
        done = span.end;
    }
    out.extend_from_slice(bytes.get(done..).unwrap_or_default());
    Bytes::from(out)
}

/// A length as 64 bits.
pub(crate) fn len64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nesting_stops_at_64_levels() {
        let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        let walk = |t: &str| Cursor::new(t.as_bytes(), 0).value(JSON_DEPTH_MAX, &mut Blind);
        assert!(walk(&deep(64)).is_ok());
        assert_eq!(walk(&deep(65)), Err(JsonError::TooDeep));
        assert_eq!(walk("{\"a\":[1,2}"), Err(JsonError::Malformed(9)));
        assert_eq!(walk("{\"a\":"), Err(JsonError::Truncated));
        assert!(walk("[1,]").is_err());
        assert!(walk("{,}").is_err());
    }

    #[test]
    fn a_path_is_found_by_key_and_never_inside_text() {
        let text = br#"{"a":"\"model\":\"x\"","b":{"model":"no"},"model":"yes"}"#;
        let span = find(text, &["model"]).unwrap();
        assert_eq!(&text[span], br#""yes""#);
        assert!(find(text, &["b", "nothing"]).is_none());
        assert!(find(b"[1]", &["a"]).is_none());
    }

    fn any_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".*".prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::hash_map(".*", inner, 0..6)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn short_searches_find_the_first_stop(bytes in prop::collection::vec(prop_oneof![Just(b'"'), Just(b'\\'), Just(b'\n'), any::<u8>(), Just(b'#'), Just(b'!')], 0..80), skip in 0usize..60) {
            let mut bytes = bytes;
            bytes.splice(0..0, std::iter::repeat_n(b'a', skip));
            prop_assert_eq!(quote(&bytes), memchr(b'"', &bytes));
            prop_assert_eq!(string_stop(&bytes), memchr3(b'"', b'\\', b'\n', &bytes));
        }
        #[test]
        fn every_valid_text_is_walked_to_its_end(v in any_value(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&v) } else { serde_json::to_string(&v) }.unwrap();
            let span = Cursor::new(text.as_bytes(), 0).value(JSON_DEPTH_MAX, &mut Blind);
            prop_assert_eq!(span, Ok(0..text.len()));
        }
        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200), s in "[\\[\\]{}\",:\\\\a1u ]{0,60}") {
            let _ = Cursor::new(&noise, 0).value(JSON_DEPTH_MAX, &mut Blind);
            let _ = Cursor::new(s.as_bytes(), 0).value(JSON_DEPTH_MAX, &mut Blind);
            let _ = find(s.as_bytes(), &["a", "b"]);
            let _ = unescape(&noise);
            let _ = unescape(s.as_bytes());
        }
        #[test]
        fn unescape_agrees_with_serde(s in any::<String>(), ascii in any::<bool>()) {
            let text = if ascii {
                let mut units = [0u16; 2];
                let body: String = s.chars().flat_map(|c| c.encode_utf16(&mut units).iter().map(|u| format!("\\u{u:04x}")).collect::<Vec<_>>()).collect();
                format!("\"{body}\"")
            } else { quoted(&s) };
            prop_assert_eq!(unescape(&text.as_bytes()[1..text.len() - 1]), s);
        }
    }
}
