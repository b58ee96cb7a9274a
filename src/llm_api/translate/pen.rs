//! Reading and writing JSON for the translations: one pass in, one buffer out, no tree between.

use super::super::json::{Blind, Cursor, JSON_DEPTH_MAX, JsonError};

/// Calls `each` with every key of an object; `each` takes the value from the cursor.
pub(super) fn members<'a, E: From<JsonError>>(
    cursor: &mut Cursor<'a>,
    mut each: impl FnMut(&'a [u8], &mut Cursor<'a>) -> Result<(), E>,
) -> Result<(), E> {
    if cursor.peek() != Some(b'{') {
        skip(cursor)?;
        return Ok(());
    }
    cursor.expect(b'{')?;
    let mut first = true;
    while let Some(key) = cursor.next_key(&mut first)? {
        let key = cursor.slice(&key);
        each(key, cursor)?;
    }
    Ok(())
}

/// Calls `each` before every item of a list; anything else counts as an empty list.
pub(super) fn items<'a, E: From<JsonError>>(
    cursor: &mut Cursor<'a>,
    mut each: impl FnMut(&mut Cursor<'a>) -> Result<(), E>,
) -> Result<(), E> {
    if cursor.peek() != Some(b'[') {
        skip(cursor)?;
        return Ok(());
    }
    cursor.expect(b'[')?;
    let mut first = true;
    while cursor.next_item(&mut first, b']')? {
        each(cursor)?;
    }
    Ok(())
}

/// Takes one value, whatever it is, as it was written.
pub(super) fn skip<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], JsonError> {
    let span = cursor.value(JSON_DEPTH_MAX, &mut Blind)?;
    Ok(cursor.slice(&span))
}

/// Takes one value and says nothing of it.
pub(super) fn leave(cursor: &mut Cursor<'_>) -> Result<(), JsonError> {
    skip(cursor).map(|_| ())
}

/// Takes a string and gives its inside; `None` for anything else.
pub(super) fn text<'a>(cursor: &mut Cursor<'a>) -> Result<Option<&'a [u8]>, JsonError> {
    if cursor.peek() == Some(b'"') {
        let span = cursor.string()?;
        return Ok(Some(cursor.slice(&span)));
    }
    skip(cursor)?;
    Ok(None)
}

/// Takes a whole number; `None` for anything else.
pub(super) fn number(cursor: &mut Cursor<'_>) -> Result<Option<u64>, JsonError> {
    let raw = skip(cursor)?;
    Ok(std::str::from_utf8(raw).ok().and_then(|n| n.parse().ok()))
}

/// Writes JSON; commas come by themselves.
#[derive(Debug, Default)]
pub(super) struct Pen {
    pub out: Vec<u8>,
}

impl Pen {
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            out: Vec::with_capacity(bytes),
        }
    }
    fn comma(&mut self) {
        if !matches!(self.out.last(), None | Some(b'{' | b'[' | b':' | b' ')) {
            self.out.push(b',');
        }
    }
    /// Opens a `{` or a `[`.
    pub fn open(&mut self, bracket: u8) -> &mut Self {
        self.comma();
        self.out.push(bracket);
        self
    }
    pub fn close(&mut self, bracket: u8) -> &mut Self {
        self.out.push(bracket);
        self
    }
    /// A plain key; a value must follow.
    pub fn key(&mut self, key: &str) -> &mut Self {
        self.comma();
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self
    }
    /// A value that is JSON already.
    pub fn raw(&mut self, json: &[u8]) -> &mut Self {
        self.comma();
        self.out.extend_from_slice(json);
        self
    }
    /// A string from its inside.
    pub fn text(&mut self, inside: &[u8]) -> &mut Self {
        self.comma();
        self.out.push(b'"');
        self.out.extend_from_slice(inside);
        self.out.push(b'"');
        self
    }
    /// A string from the insides of several.
    pub fn texts(&mut self, insides: &[&[u8]]) -> &mut Self {
        self.comma();
        self.out.push(b'"');
        for inside in insides {
            self.out.extend_from_slice(inside);
        }
        self.out.push(b'"');
        self
    }
    /// `"key":"inside"`.
    pub fn pair(&mut self, key: &str, inside: &[u8]) -> &mut Self {
        self.key(key).text(inside)
    }
    /// `{"type":kind,"text":inside}`.
    pub fn text_part(&mut self, kind: &str, inside: &[u8]) -> &mut Self {
        self.open(b'{').pair("type", kind.as_bytes());
        self.pair("text", inside).close(b'}')
    }
    /// `"key":json`.
    pub fn field(&mut self, key: &str, json: &[u8]) -> &mut Self {
        self.key(key).raw(json)
    }
}
