//! The text of an answer, token by token, never half a character.
//!
//! A character may be spread over several tokens, and a token's text may depend on the one before
//! it (a space, say). So the text of the last few tokens is made with and without the new one, and
//! the difference is new, once it does not end within a character.

use super::Tokens;

/// What a decoder writes for bytes that are no character, or not yet.
const UNFINISHED: char = char::REPLACEMENT_CHARACTER;
/// Tokens that one character may be spread over: UTF-8 has at most four bytes. What is still no
/// character after these never becomes one.
const TOKENS_OF_CHARACTER_MAX: usize = 4;

/// Makes text of tokens as they come.
pub struct Detokenizer {
    tokens: Tokens,
    /// The last ones: those whose text was given out, then those whose text was not.
    recent: Vec<u32>,
    /// How many of `recent` were given out.
    given: usize,
}

impl Detokenizer {
    pub(super) const fn new(tokens: Tokens) -> Self {
        Self {
            tokens,
            recent: vec![],
            given: 0,
        }
    }

    /// Takes a token, and gives the text that is now certain; often none.
    pub fn push(&mut self, token: u32) -> String {
        if let Some(marker) = self.tokens.marker(token) {
            let mut text = self.finish();
            text.push_str(&marker);
            return text;
        }
        self.recent.push(token);
        let text = self.text_from_given(self.recent.len());
        if !text.ends_with(UNFINISHED) {
            // A text of nothing says nothing about the next one.
            return if text.is_empty() {
                text
            } else {
                self.give(self.recent.len(), text)
            };
        }
        let waiting = self.recent.len() - self.given;
        if waiting < TOKENS_OF_CHARACTER_MAX {
            return String::new();
        }
        // What waits begins with no character; the next one may have begun behind it.
        let begins = |at: &usize| {
            let tail = self.tokens.text(self.recent.get(*at..).unwrap_or_default());
            tail.chars().eq([UNFINISHED])
        };
        let at = (self.given + 1..self.recent.len()).find(begins);
        let at = at.unwrap_or(self.recent.len());
        let text = self.text_from_given(at);
        self.give(at, text)
    }

    /// Notes that the text of the tokens before `at` is out; the next one's may depend on them.
    fn give(&mut self, at: usize, text: String) -> String {
        self.recent.drain(..self.given);
        self.given = at - self.given;
        text
    }

    /// The rest, with a replacement for a character that the last tokens left unfinished.
    pub fn finish(&mut self) -> String {
        let text = self.text_from_given(self.recent.len());
        self.recent.clear();
        self.given = 0;
        text
    }

    fn text_from_given(&self, end: usize) -> String {
        let text = |end: usize| self.tokens.text(self.recent.get(..end).unwrap_or_default());
        let (before, all) = (text(self.given), text(end));
        all.get(before.len()..).unwrap_or_default().to_owned()
    }
}
