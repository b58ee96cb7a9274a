//! Byte-pair vocabularies, small enough for every node: 4 MiB each, ready in some 10 ms.
//!
//! Text is cut into pieces by the vocabulary's published pattern; a piece that is a token counts 1,
//! any other is merged pair by pair, lowest rank first, which is what the rank order of a byte-pair
//! vocabulary means. The tokens come from the crate `bpe-openai`, and the tests compare counts with
//! it; its own tables take 80 MiB each. Called by [`super::tokens`].

mod merge;

use std::hash::BuildHasher;
use std::sync::LazyLock;

use hashbrown::{DefaultHashBuilder, HashTable};
use regex::Regex;

use merge::Merger;

/// Longer pieces (no text of people has them) are counted in parts, which bounds the memory that
/// merging takes to about 2 MiB. Each cut may count a token too many.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// The published pattern of `cl100k_base`, but for `\s+(?!\S)`: see [`Vocabulary::pieces`].
const CL100K_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
/// The published pattern of `o200k_base`, likewise.
const O200K_PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
);

/// `cl100k_base`: OpenAI's gpt-4 and gpt-3.5, embeddings.
pub(super) static CL100K: LazyLock<Vocabulary> = LazyLock::new(|| {
    let file = include_bytes!(concat!(env!("OUT_DIR"), "/cl100k_base"));
    Vocabulary::new(file, env!("SOUK_TOKENS_CL100K_BASE"), CL100K_PATTERN)
});
/// `o200k_base`: OpenAI since gpt-4o.
pub(super) static O200K: LazyLock<Vocabulary> = LazyLock::new(|| {
    let file = include_bytes!(concat!(env!("OUT_DIR"), "/o200k_base"));
    Vocabulary::new(file, env!("SOUK_TOKENS_O200K_BASE"), O200K_PATTERN)
});

/// One vocabulary.
pub(super) struct Vocabulary {
    /// All tokens' bytes, by rank.
    bytes: &'static [u8],
    /// Where the token of each rank begins, and the end of the last.
    starts: Vec<u32>,
    /// Ranks by the hash of their token.
    ranks: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// `None` when the pattern does not compile, which a test rules out.
    pattern: Option<Regex>,
}

impl Vocabulary {
    fn new(file: &'static [u8], count: &str, pattern: &str) -> Self {
        let count = count.parse().unwrap_or(0);
        let (lengths, bytes) = file.split_at_checked(count).unwrap_or_default();
        let mut starts = Vec::with_capacity(count + 1);
        let mut at = 0u32;
        starts.push(at);
        for length in lengths {
            at += u32::from(*length);
            starts.push(at);
        }
        let mut vocabulary = Self {
            bytes,
            starts,
            ranks: HashTable::with_capacity(count),
            hasher: DefaultHashBuilder::default(),
            pattern: Regex::new(pattern).ok(),
        };
        let mut ranks = std::mem::take(&mut vocabulary.ranks);
        for rank in 0..u32::try_from(count).unwrap_or(0) {
            let hash = |rank: &u32| vocabulary.hasher.hash_one(vocabulary.token(*rank));
            ranks.insert_unique(hash(&rank), rank, hash);
        }
        vocabulary.ranks = ranks;
        vocabulary
    }

    fn token(&self, rank: u32) -> &[u8] {
        let at = usize::try_from(rank).unwrap_or(usize::MAX);
        let place = |index: usize| {
            let start = self.starts.get(index).copied().unwrap_or_default();
            usize::try_from(start).unwrap_or(usize::MAX)
        };
        self.bytes
            .get(place(at)..place(at.saturating_add(1)))
            .unwrap_or_default()
    }

    /// The rank of the token that these bytes are.
    fn rank(&self, bytes: &[u8]) -> Option<u32> {
        let is_it = |rank: &u32| self.token(*rank) == bytes;
        self.ranks.find(self.hasher.hash_one(bytes), is_it).copied()
    }

    /// Counts the tokens of a text; special tokens are text like any other.
    pub(super) fn count(&self, text: &str) -> usize {
        let mut merger = Merger::default();
        self.pieces(text)
            .flat_map(|piece| piece.as_bytes().chunks(PIECE_BYTES_MAX))
            .map(|piece| match self.rank(piece) {
                Some(_) => 1,
                None => merger.count(piece, |bytes| self.rank(bytes)),
            })
            .sum()
    }

    /// Cuts a text by the pattern. The published one knows `\s+(?!\S)`: of a run of blanks in the
    /// midst of a line the last stays for what follows. Only such a run ends in a blank that is no
    /// line break, so it is recognised by that, and the pattern needs no look-ahead.
    fn pieces<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let found = self.pattern.as_ref()?.find_at(text, at)?;
            let mut piece = found.as_str();
            let mut chars = piece.chars();
            let last = chars.next_back()?;
            let is_run = last.is_whitespace() && !matches!(last, '\r' | '\n');
            if is_run && found.end() < text.len() && !chars.as_str().is_empty() {
                piece = chars.as_str();
            }
            at = found.start() + piece.len();
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests;
