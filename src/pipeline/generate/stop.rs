//! Ends a text before a stop sequence, also one that comes in pieces. Pure.

/// Looks for stop sequences in a growing text.
#[derive(Debug, Default)]
pub(super) struct Stop {
    sequences: Vec<String>,
    /// Text that may be the beginning of one.
    held: String,
}

impl Stop {
    pub(super) fn new(sequences: Vec<String>) -> Self {
        let sequences = sequences.into_iter().filter(|one| !one.is_empty());
        Self {
            sequences: sequences.collect(),
            held: String::new(),
        }
    }

    /// Takes text and gives what is certain to come before any stop; true when one was found.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self
            .sequences
            .iter()
            .filter_map(|one| self.held.find(one.as_str()));
        if let Some(at) = found.min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let partial = self
            .sequences
            .iter()
            .map(|one| partial(&self.held, one))
            .max();
        let certain = self.held.len() - partial.unwrap_or(0);
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when nothing more comes.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that `sequence` begins with.
pub(super) fn partial(text: &str, sequence: &str) -> usize {
    let most = text.len().min(sequence.len().saturating_sub(1));
    (1..=most)
        .rev()
        .find(|bytes| {
            text.as_bytes()
                .ends_with(sequence.as_bytes().get(..*bytes).unwrap_or(&[0xFF]))
        })
        .filter(|bytes| text.is_char_boundary(text.len() - bytes))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(sequences: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut stop = Stop::new(sequences.iter().map(|one| (*one).to_owned()).collect());
        let mut given = vec![];
        for piece in pieces {
            let (text, is_over) = stop.push(piece);
            given.push(text);
            if is_over {
                return (given, true);
            }
        }
        given.push(stop.finish());
        (given, false)
    }

    #[test]
    fn a_sequence_over_several_pieces_ends_the_text_before_it() {
        let (given, is_over) = run(&["\n\nUser:"], &["Hi", "!\n", "\nUs", "er: you"]);
        assert!(is_over);
        assert_eq!(given, ["Hi", "!", "", ""]);
    }

    #[test]
    fn what_only_looks_like_one_is_given_after_all() {
        assert_eq!(run(&["END"], &["an EN", "D", ""]).0, ["an ", ""]);
        assert_eq!(run(&["ENDE"], &["an EN", "D!"]).0, ["an ", "END!", ""]);
        assert_eq!(run(&["END"], &["an EN"]).0, ["an ", "EN"]);
        assert_eq!(run(&[], &["all"]).0, ["all", ""]);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[ab🌍]{0,20}", stops in prop::collection::vec("[ab🌍]{1,3}", 0..3), cut in 1usize..4) {
            let chars: Vec<char> = text.chars().collect();
            let pieces: Vec<String> = chars.chunks(cut).map(|some| some.iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (given, is_over) = run(&stops, &pieces);
            let first = stops.iter().filter_map(|one| text.find(one)).min();
            prop_assert_eq!(is_over, first.is_some());
            // The sequence that is complete first ends it, which may begin after another's beginning.
            let given = given.concat();
            prop_assert!(text.starts_with(&given));
            prop_assert!(given.len() >= first.unwrap_or(text.len()));
            prop_assert!(!stops.iter().any(|one| given.contains(one)));
        }
    }
}
