//! The free checks of an answer: claims that no honest upstream makes.
//!
//! Over-billing is no matter of these: the own count bounds what is paid, and the router compares
//! the two. Called by `books` when an answer is over.

use crate::types::Usage;

/// Output above the request's limit that is still believed, tokens: some upstreams end a word.
const OUTPUT_SLACK: u64 = 8;

/// What is wrong with an answer, or nothing. `max_tokens` is the request's own limit.
pub(super) fn answer(usage: &Usage, max_tokens: Option<u64>) -> Option<&'static str> {
    // Some dialects' limits leave reasoning out.
    let written = usage.output.saturating_sub(usage.reasoning);
    if max_tokens.is_some_and(|most| written > most.saturating_add(OUTPUT_SLACK)) {
        return Some("more output than the request allowed");
    }
    if usage.reasoning > usage.output {
        return Some("more reasoning than output");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_that_cannot_be_are_named() {
        let usage = |output, reasoning| Usage {
            input: 10,
            output,
            reasoning,
            ..Usage::default()
        };
        assert_eq!(answer(&usage(100, 20), Some(100)), None);
        assert_eq!(answer(&usage(300, 250), Some(100)), None);
        assert_eq!(answer(&usage(500, 0), None), None);
        assert!(answer(&usage(109, 0), Some(100)).is_some());
        assert!(answer(&usage(1, 2), None).is_some());
    }
}
