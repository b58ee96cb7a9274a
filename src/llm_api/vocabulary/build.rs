//! Writes the published vocabularies in the form that `vocabulary` embeds, when the crate is built.
//!
//! They come with the crate `bpe-openai`, whose own tables take 80 MiB of memory for each; counting
//! needs the tokens alone. A file is: one byte with the length of each token, by rank, then all
//! tokens' bytes one after the other.
#![allow(clippy::expect_used, reason = "a build that cannot go on ends here")]

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=src/llm_api/vocabulary/build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (name, tokenizer) in [
        ("cl100k_base", bpe_openai::cl100k_base()),
        ("o200k_base", bpe_openai::o200k_base()),
    ] {
        let count = u32::try_from(tokenizer.bpe.num_tokens()).expect("ranks are u32");
        let mut lengths = Vec::new();
        let mut bytes = Vec::new();
        for rank in 0..count {
            let token = tokenizer.bpe.token_bytes(rank);
            lengths.push(u8::try_from(token.len()).expect("no token is longer than 255 bytes"));
            bytes.extend_from_slice(token);
        }
        lengths.extend_from_slice(&bytes);
        let path = out.join(name);
        std::fs::write(&path, &lengths).expect("the build folder can be written");
        println!(
            "cargo::rustc-env=SOUK_TOKENS_{}={count}",
            name.to_uppercase()
        );
    }
}
