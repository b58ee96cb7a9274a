//! The free checks of an answer: what no honest upstream makes, and what only a bad one makes often.
//!
//! A grave finding contradicts itself (more written than allowed, billed and empty, broken text): a
//! newcomer is set aside for it. Any other lowers only the chance that the seller is thought to
//! answer well, for an honest one has it now and then. Over-billing is no matter of these: the own
//! count bounds what is paid, and the router compares the two. Pure; called by `books` when an
//! answer is over.

use crate::llm_api::Dialect;
use crate::types::Usage;

/// Output above the request's limit that is still believed, tokens: some upstreams end a word.
const OUTPUT_SLACK: u64 = 8;
/// Claims above the own count by this factor, and so many tokens, are no matter of tokenizers.
const CLAIM_FACTOR: u64 = 8;
const CLAIM_SLACK: u64 = 64;
/// Shorter answers are not looked at for loops, characters: short ones are lists and refrains.
const LOOP_CHARS_MIN: usize = 1_000;
/// A loop is a block no longer than this, characters …
const LOOP_BLOCK_MAX: usize = 100;
/// … that fills the last so many of them.
const LOOP_TAIL: usize = 800;
/// Shorter answers are not compared with the question, characters.
const ECHO_CHARS_MIN: usize = 200;
/// Shorter answers are not looked at for broken characters.
const BROKEN_CHARS_MIN: usize = 32;
/// One broken character in so many is too much.
const BROKEN_ONE_IN: usize = 20;
/// Names of models that stand for whichever the upstream likes.
const ANY_MODEL: [&str; 3] = ["auto", "router", "latest"];
/// Letters and digits that two names of one model begin alike with, at least.
const ALIKE_CHARS: usize = 3;
/// Text that is looked at, bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// What an answer said, as the client's dialect has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// Its text, thoughts included; the last part of a long one.
    pub text: String,
    /// It called a tool.
    pub has_call: bool,
    /// Why it ended, in its dialect's words.
    pub finish: Option<String>,
    /// The model that it names.
    pub model: Option<String>,
}

/// What an answer is measured by.
pub(super) struct Answer<'a> {
    pub dialect: Dialect,
    pub said: &'a Said,
    /// As the upstream claims.
    pub usage: &'a Usage,
    /// Output by our own count.
    pub own_output: u64,
    /// The request's own limit.
    pub max_tokens: Option<u64>,
    /// The model that was ordered.
    pub model: &'a str,
    /// The request's messages as JSON.
    pub asked: &'a [u8],
}

/// Something wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// What, for people.
    pub what: &'static str,
    /// It contradicts itself.
    pub is_grave: bool,
}

impl Said {
    /// What is worth keeping of `text`.
    pub fn new(text: &str) -> Self {
        let mut from = text.len().saturating_sub(TEXT_BYTES_MAX);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        Self {
            text: text.get(from..).unwrap_or_default().to_owned(),
            ..Self::default()
        }
    }
}

/// What is wrong with an answer, or nothing; the gravest first.
pub(super) fn answer(answer: &Answer<'_>) -> Option<Finding> {
    let grave = |what| Finding {
        what,
        is_grave: true,
    };
    let light = |what| Finding {
        what,
        is_grave: false,
    };
    grave_fault(answer)
        .map(grave)
        .or_else(|| light_fault(answer).map(light))
}

fn grave_fault(answer: &Answer<'_>) -> Option<&'static str> {
    let usage = answer.usage;
    // Some dialects' limits leave reasoning out.
    let written = usage.output.saturating_sub(usage.reasoning);
    let too_much = |most: u64| written > most.saturating_add(OUTPUT_SLACK);
    if answer.max_tokens.is_some_and(too_much) {
        return Some("more output than the request allowed");
    }
    if usage.reasoning > usage.output {
        return Some("more reasoning than output");
    }
    if written > CLAIM_SLACK && answer.said.text.is_empty() && !answer.said.has_call {
        return Some("output was billed and none came");
    }
    if is_broken(&answer.said.text) {
        return Some("its text is broken characters");
    }
    None
}

fn light_fault(answer: &Answer<'_>) -> Option<&'static str> {
    let (usage, said) = (answer.usage, answer.said);
    let written = usage.output.saturating_sub(usage.reasoning);
    let believed = answer.own_output.saturating_mul(CLAIM_FACTOR);
    if !said.has_call && written > believed.saturating_add(CLAIM_SLACK) {
        return Some("far more output was billed than came");
    }
    let finish = said.finish.as_deref().unwrap_or_default();
    let ended_for_call = match answer.dialect {
        Dialect::Chat => matches!(finish, "tool_calls" | "function_call"),
        Dialect::Messages => finish == "tool_use",
        Dialect::Responses => false,
    };
    if ended_for_call && !said.has_call {
        return Some("it ended for a tool call that never came");
    }
    if matches!(finish, "error" | "failed") {
        return Some("it ended with an error");
    }
    let ended_at_limit = matches!(finish, "length" | "max_tokens" | "incomplete");
    if ended_at_limit && loops(&said.text) {
        return Some("it repeated itself until its limit");
    }
    let named = said.model.as_deref().filter(|named| !named.is_empty());
    if named.is_some_and(|named| !is_alike(named, answer.model)) {
        return Some("it names another model");
    }
    if echoes(&said.text, answer.asked) {
        return Some("it is the question again");
    }
    None
}

fn is_broken(text: &str) -> bool {
    let (mut all, mut broken) = (0_usize, 0_usize);
    for c in text.chars() {
        all += 1;
        let is_control = c.is_control() && !matches!(c, '\n' | '\r' | '\t');
        broken += usize::from(is_control || c == char::REPLACEMENT_CHARACTER);
    }
    all >= BROKEN_CHARS_MIN && broken * BROKEN_ONE_IN > all
}

/// The end of the text is one short block over and over.
fn loops(text: &str) -> bool {
    if text.chars().count() < LOOP_CHARS_MIN {
        return false;
    }
    let mut tail: Vec<char> = text.chars().rev().take(LOOP_TAIL).collect();
    tail.reverse();
    (1..=LOOP_BLOCK_MAX).any(|block| {
        let later = tail.iter().skip(block);
        later.zip(&tail).all(|(later, earlier)| later == earlier)
    })
}

/// Two names may be of one model: vendors add dates, sizes and their own names.
fn is_alike(named: &str, ordered: &str) -> bool {
    let base = |name: &str| {
        let name = name.rsplit('/').next().unwrap_or(name).to_lowercase();
        let plain = name.chars().filter(char::is_ascii_alphanumeric);
        plain.collect::<String>()
    };
    let (named, ordered) = (base(named), base(ordered));
    let any = ANY_MODEL.iter().any(|any| ordered.ends_with(any));
    let alike = named.chars().zip(ordered.chars());
    let alike = alike.take_while(|(a, b)| a == b).count();
    let contains = named.contains(&ordered) || ordered.contains(&named);
    any || contains || alike >= ALIKE_CHARS
}

/// The answer stands in the request, word for word.
fn echoes(text: &str, asked: &[u8]) -> bool {
    let text = text.trim();
    if text.chars().count() < ECHO_CHARS_MIN {
        return false;
    }
    let quoted = serde_json::to_string(text).unwrap_or_default();
    let inside = quoted.trim_matches('"').as_bytes();
    memchr::memmem::find(asked, inside).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        said: Said,
        usage: Usage,
        own_output: u64,
        max_tokens: Option<u64>,
        asked: String,
    }

    fn case(text: &str) -> Case {
        let output = u64::try_from(text.len() / 4).unwrap();
        Case {
            said: Said {
                finish: Some("stop".to_owned()),
                model: Some("gpt-4o-2024-08-06".to_owned()),
                ..Said::new(text)
            },
            usage: Usage {
                input: 10,
                output,
                ..Usage::default()
            },
            own_output: output,
            max_tokens: None,
            asked: "[]".to_owned(),
        }
    }

    impl Case {
        fn found(&self) -> Option<(&'static str, bool)> {
            let found = answer(&Answer {
                dialect: Dialect::Chat,
                said: &self.said,
                usage: &self.usage,
                own_output: self.own_output,
                max_tokens: self.max_tokens,
                model: "market/gpt-4o",
                asked: self.asked.as_bytes(),
            });
            found.map(|finding| (finding.what, finding.is_grave))
        }
        fn finds(&self, what: &str, is_grave: bool) {
            let (found, grave) = self.found().unwrap_or(("nothing", false));
            assert!(found.contains(what), "{found}");
            assert_eq!(grave, is_grave);
        }
    }

    const PROSE: &str = "The river bends twice before it meets the sea, and at each bend stood a \
        mill whose wheel has long been sold. Nobody remembers who built them, though the older of \
        the two carries a date above its door that may be a year or a joke.";

    #[test]
    fn an_honest_answer_passes() {
        assert_eq!(case(PROSE).found(), None);
        assert_eq!(case("Yes.").found(), None);
        assert_eq!(case("是的，这条河在入海前转了两个弯。").found(), None);
        // Asked for, and over when it was enough.
        assert_eq!(case(&"ha ".repeat(1_000)).found(), None);
        let mut empty = case("");
        empty.usage.output = 0;
        assert_eq!(empty.found(), None);
    }

    #[test]
    fn claims_that_cannot_be_are_grave() {
        let mut claim = case(PROSE);
        claim.usage.output = 100;
        claim.max_tokens = Some(100);
        assert_eq!(claim.found(), None);
        claim.usage.output = 109;
        claim.finds("more output than", true);
        claim.usage.reasoning = 50;
        assert_eq!(claim.found(), None);
        claim.usage.reasoning = 110;
        claim.finds("more reasoning", true);
        let mut empty = case("");
        empty.usage.output = 500;
        empty.finds("none came", true);
        empty.said.has_call = true;
        assert_eq!(empty.found(), None);
        case(&"\u{fffd}\u{1}a".repeat(40)).finds("broken", true);
    }

    #[test]
    fn what_a_bad_upstream_does_often_counts_against_it() {
        let mut claim = case(PROSE);
        claim.usage.output = 2_000;
        claim.finds("far more", false);

        let mut looping = case(&format!("{PROSE} {}", "and so on, ".repeat(200)));
        assert_eq!(looping.found(), None);
        looping.said.finish = Some("length".to_owned());
        looping.finds("repeated itself", false);
        let mut long = case(&PROSE.repeat(10));
        long.said.finish = Some("length".to_owned());
        assert_eq!(long.found(), None);

        let mut calls = case(PROSE);
        calls.said.finish = Some("tool_calls".to_owned());
        calls.finds("tool call", false);
        calls.said.has_call = true;
        assert_eq!(calls.found(), None);

        let mut echo = case(PROSE);
        echo.asked = serde_json::json!([{"role": "user", "content": PROSE}]).to_string();
        echo.finds("question", false);

        for (named, is_alike) in [("llama-3.1-8b", false), ("GPT-4o", true), ("", true)] {
            let mut other = case(PROSE);
            other.said.model = Some(named.to_owned());
            assert_eq!(other.found().is_none(), is_alike, "{named}");
        }
    }
}
