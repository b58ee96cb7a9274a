//! What a model at a seller can do: paths, inputs, and the parameters that its upstream takes.

use serde::{Deserialize, Serialize};

/// What a model at a seller can do, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capabilities(pub u32);

/// Parameters of requests by their names in any dialect, with their bits. What is not named here is
/// taken by every upstream, or (as `parallel_tool_calls`) means too much to be left out.
const PARAMETERS: [(&str, Capabilities); 18] = [
    ("temperature", Capabilities(1 << 16)),
    ("top_p", Capabilities(1 << 17)),
    ("top_k", Capabilities(1 << 18)),
    ("min_p", Capabilities(1 << 19)),
    ("stop", Capabilities(1 << 20)),
    ("stop_sequences", Capabilities(1 << 20)),
    ("seed", Capabilities(1 << 21)),
    ("frequency_penalty", Capabilities(1 << 22)),
    ("presence_penalty", Capabilities(1 << 23)),
    ("repetition_penalty", Capabilities(1 << 24)),
    ("logit_bias", Capabilities(1 << 25)),
    ("logprobs", Capabilities(1 << 26)),
    ("top_logprobs", Capabilities(1 << 26)),
    ("reasoning", Capabilities(1 << 27)),
    ("reasoning_effort", Capabilities(1 << 27)),
    ("include_reasoning", Capabilities(1 << 27)),
    ("verbosity", Capabilities(1 << 28)),
    ("top_a", Capabilities(1 << 29)),
];

bits!(Capabilities);

impl Capabilities {
    /// OpenAI chat completions.
    pub const DIALECT_CHAT: Self = Self(1);
    /// Anthropic messages.
    pub const DIALECT_MESSAGES: Self = Self(1 << 1);
    /// OpenAI responses.
    pub const DIALECT_RESPONSES: Self = Self(1 << 2);
    /// Tool calls.
    pub const TOOLS: Self = Self(1 << 3);
    /// Images in the input.
    pub const VISION: Self = Self(1 << 4);
    /// Structured output.
    pub const JSON: Self = Self(1 << 5);
    /// OpenAI embeddings.
    pub const EMBEDDINGS: Self = Self(1 << 6);
    /// Layers lie on several peers: a stage itself, or a model whose prompts pass through stages.
    pub const PIPELINE: Self = Self(1 << 7);
    /// OpenAI completions: text goes on without a chat around it.
    pub const COMPLETIONS: Self = Self(1 << 8);
    /// The upstream does not say whether the model takes images; it is asked when one comes.
    pub const VISION_UNSAID: Self = Self(1 << 9);
    /// The bits of parameters are complete: what has none is not taken.
    pub const PARAMETERS_LISTED: Self = Self(1 << 31);

    /// The bits of a complete list of parameters; nothing is said by an empty one.
    #[must_use]
    pub fn of_parameters(listed: &[String]) -> Self {
        if listed.is_empty() {
            return Self::default();
        }
        PARAMETERS
            .iter()
            .filter(|(name, _)| listed.iter().any(|l| l == name))
            .fold(Self::PARAMETERS_LISTED, |all, (_, bit)| all.union(*bit))
    }
    /// True unless the upstream is known not to take this parameter.
    #[must_use]
    pub fn takes_parameter(self, name: &str) -> bool {
        !self.contains(Self::PARAMETERS_LISTED)
            || PARAMETERS
                .iter()
                .find(|(known, _)| *known == name)
                .is_none_or(|(_, bit)| self.contains(*bit))
    }
    /// The names of the parameters taken, where the upstream lists them.
    #[must_use]
    pub fn parameters(self) -> Vec<&'static str> {
        let listed = |(name, bit): &(&'static str, Self)| self.contains(*bit).then_some(*name);
        if self.contains(Self::PARAMETERS_LISTED) {
            PARAMETERS.iter().filter_map(listed).collect()
        } else {
            Vec::new()
        }
    }
    /// True unless the upstream is known not to take images.
    #[must_use]
    pub const fn may_see(self) -> bool {
        self.contains(Self::VISION) || self.contains(Self::VISION_UNSAID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_parameters_says_what_is_not_taken() {
        let said = Capabilities::of_parameters(&["seed".to_owned(), "max_tokens".to_owned()]);
        assert!(said.takes_parameter("seed") && !said.takes_parameter("top_k"));
        assert!(said.takes_parameter("max_tokens") && said.takes_parameter("messages"));
        let nothing = Capabilities::of_parameters(&[]);
        assert!(nothing.takes_parameter("top_k"));
        assert_eq!(nothing, Capabilities::default());
    }

    #[test]
    fn no_two_meanings_share_a_bit() {
        let paths = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512].iter().sum::<u32>();
        for (name, bit) in PARAMETERS {
            assert_eq!(bit.0.count_ones(), 1, "{name}");
            assert_eq!(
                bit.0 & (paths | Capabilities::PARAMETERS_LISTED.0),
                0,
                "{name}"
            );
        }
    }
}
