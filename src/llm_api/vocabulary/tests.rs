//! Against the tables of `bpe-openai`.

use proptest::prelude::*;

use super::*;

fn pairs() -> [(&'static Vocabulary, &'static bpe_openai::Tokenizer); 2] {
    [
        (&CL100K, bpe_openai::cl100k_base()),
        (&O200K, bpe_openai::o200k_base()),
    ]
}

#[test]
fn every_token_has_its_rank() {
    for (ours, theirs) in pairs() {
        assert_eq!(ours.starts.len() - 1, theirs.bpe.num_tokens());
        for rank in 0..u32::try_from(theirs.bpe.num_tokens()).unwrap() {
            let token = theirs.bpe.token_bytes(rank);
            assert_eq!(ours.token(rank), token);
            assert_eq!(ours.rank(token), Some(rank));
        }
        assert_eq!(ours.rank(b"no token is as long and odd as this one"), None);
    }
}

#[test]
fn pieces_are_cut_as_published() {
    for text in [
        "",
        " ",
        "  a",
        "a  b   c    ",
        "\t\tif x:\n\n    y  \r\n  z",
        " \u{a0}\u{2003}x \u{3000}\n \u{3000}",
        "I'll DON'T they'RE 1234567 $12.50/mo//\n\n!!",
        "naïve café 東京の市場 souq السوق 🦀🦀 e\u{301}",
        "\u{2028}a\u{85} b",
    ] {
        for (ours, theirs) in pairs() {
            let cut: Vec<&str> = ours.pieces(text).collect();
            assert_eq!(cut, theirs.split(text).collect::<Vec<_>>(), "{text:?}");
        }
    }
}

#[test]
fn long_pieces_take_bounded_memory_and_little_more_tokens() {
    let text = "qzx".repeat(100_000);
    for (ours, theirs) in pairs() {
        let (count, exact) = (ours.count(&text), theirs.count(text.as_str()));
        assert!(count >= exact && count <= exact + 2 * text.len() / PIECE_BYTES_MAX);
    }
}

proptest! {
    #[test]
    fn counts_equal_the_reference_on_any_text(text in "(?s).{0,300}") {
        for (ours, theirs) in pairs() {
            prop_assert_eq!(ours.count(&text), theirs.count(text.as_str()));
        }
    }

    #[test]
    fn counts_equal_the_reference_on_words(
        text in "([a-zA-Z]{1,12}| {1,4}|\n{1,3}|\t|[0-9]{1,6}|'[a-z]{1,3}|[.,/!-]{1,4}|[äöüßéñ東京市場의مر]{1,5}){0,80}"
    ) {
        for (ours, theirs) in pairs() {
            prop_assert_eq!(ours.count(&text), theirs.count(text.as_str()));
        }
    }
}
