//! Tool names and call ids in an alphabet and length that every dialect takes.
//!
//! A name that does not fit is replaced for the upstream and put back in its answer, per request.
//! Ids need no way back: they only tie a result to its call within one request.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::form::Text;

/// Longest tool name that every upstream takes.
const NAME_BYTES_MAX: usize = 64;
/// Longest call id that every upstream takes (OpenAI's limit).
const ID_BYTES_MAX: usize = 40;
/// Hex digits of a hash that keep two shortened names apart.
const TAG_CHARS: usize = 8;

/// The replaced tool names of one request, and its tools that take free text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// (as the upstream knows it, as the client wrote it).
    replaced: Vec<(Vec<u8>, Vec<u8>)>,
    /// Tools that take free text, by the client's name.
    custom: Vec<Vec<u8>>,
}

impl Names {
    /// The name for the upstream.
    pub(super) fn sent<'a>(&mut self, name: &'a [u8]) -> Text<'a> {
        let fit = fit(name, NAME_BYTES_MAX);
        if let Cow::Owned(sent) = &fit
            && !self.replaced.iter().any(|(known, _)| known == sent)
        {
            self.replaced.push((sent.clone(), name.to_vec()));
        }
        fit
    }
    pub(super) fn add_custom(&mut self, name: &[u8]) {
        self.custom.push(name.to_vec());
    }
    pub(super) fn is_custom(&self, original: &[u8]) -> bool {
        self.custom.iter().any(|name| name == original)
    }
    /// The client's name of a tool that the upstream called.
    pub(super) fn original<'a>(&'a self, sent: &'a [u8]) -> &'a [u8] {
        let found = self.replaced.iter().find(|(known, _)| known == sent);
        found.map_or(sent, |(_, original)| original)
    }
}

/// A call id for the upstream.
pub(super) fn id(client: &[u8]) -> Text<'_> {
    fit(client, ID_BYTES_MAX)
}

fn fit(text: &[u8], max: usize) -> Text<'_> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if !text.is_empty() && text.len() <= max && text.iter().all(plain) {
        return Cow::Borrowed(text);
    }
    let kept = text
        .iter()
        .map(|b| if plain(b) { *b } else { b'_' })
        .take(max - TAG_CHARS - 1);
    let tag = hex::encode(Sha256::digest(text));
    let tag = tag.bytes().take(TAG_CHARS);
    Cow::Owned(kept.chain([b'_']).chain(tag).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_fit_are_replaced_and_put_back() {
        let mut names = Names::default();
        let long = [b'x'; 100];
        for odd in [b"mcp.files/read".as_slice(), b"mcp.files:read", &long] {
            let sent = names.sent(odd).into_owned();
            assert!(sent.len() <= NAME_BYTES_MAX && sent != odd);
            assert_eq!(names.sent(odd), sent, "the same again");
            assert_eq!(names.original(&sent), odd);
        }
        assert_eq!(names.sent(b"read_file"), b"read_file".as_slice());
        assert_eq!(names.original(b"read_file"), b"read_file");
        assert_ne!(id(b"call.1"), id(b"call:1"), "two ids stay two");
        assert_eq!(id(b"call1"), b"call1".as_slice());
    }
}
