//! What a seller cannot bring to the chain now, and why: told by `status`, and taken to a relayer
//! where only the coins for gas are missing. Pure; filled by the treasurer.

use std::collections::BTreeMap;

use crate::chain::coins;
use crate::chain::outbox::SubmitError;
use crate::types::ChannelId;

/// Channels remembered; a seller whose account is empty has the same reason for all of them.
const WAITS_MAX: usize = 1_024;

/// One channel's business that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wait {
    what: &'static str,
    why: String,
    lacks_gas: bool,
}

/// Everything that waits, by channel.
#[derive(Debug, Default)]
pub(super) struct Waits(BTreeMap<ChannelId, Wait>);

impl Waits {
    /// It could not be sent now. True when this was not known.
    pub fn later(&mut self, id: ChannelId, what: &'static str, error: &SubmitError) -> bool {
        let lacks_gas = matches!(error, SubmitError::NoGas { .. });
        let why = match error {
            SubmitError::NoGas {
                needed_wei,
                has_wei,
            } => format!(
                "this account has {} ETH and needs {} ETH for gas; send it some",
                coins(*has_wei),
                coins(*needed_wei)
            ),
            other => other.to_string(),
        };
        let wait = Wait {
            what,
            why,
            lacks_gas,
        };
        // A price of gas moves from second to second; that is no news.
        let is_news = self
            .0
            .get(&id)
            .is_none_or(|old| old.what != what || old.lacks_gas != lacks_gas);
        if self.0.len() < WAITS_MAX || self.0.contains_key(&id) {
            self.0.insert(id, wait);
        }
        is_news
    }
    /// Something of this channel was sent.
    pub fn sent(&mut self, id: &ChannelId) {
        self.0.remove(id);
    }
    /// Only these channels are still there.
    pub fn keep(&mut self, is_there: impl Fn(&ChannelId) -> bool) {
        self.0.retain(|id, _| is_there(id));
    }
    /// Channels whose end waits for nothing but gas.
    pub fn without_gas(&self) -> Vec<ChannelId> {
        let ends = self
            .0
            .iter()
            .filter(|(_, wait)| wait.lacks_gas && wait.what == CLOSE);
        ends.map(|(id, _)| *id).collect()
    }
    /// For people: how much waits, and the reason of the first; none when nothing does.
    pub fn in_words(&self) -> Option<String> {
        let (_, first) = self.0.first_key_value()?;
        let (what, why) = (first.what, &first.why);
        Some(match self.0.len() {
            1 => format!("a channel waits to {what}: {why}"),
            count => format!("{count} channels wait, the first to {what}: {why}"),
        })
    }
}

/// What is said of a channel's end.
pub(super) const CLOSE: &str = "close";

#[cfg(test)]
mod tests {
    use super::*;

    const NO_GAS: SubmitError = SubmitError::NoGas {
        needed_wei: 2_000_000_000_000_000,
        has_wei: 0,
    };

    #[test]
    fn what_waits_is_said_once_and_forgotten_when_it_is_sent() {
        let mut waits = Waits::default();
        let (one, two) = (ChannelId([1; 32]), ChannelId([2; 32]));
        assert_eq!(waits.in_words(), None);
        assert!(waits.later(one, CLOSE, &NO_GAS));
        let dearer = SubmitError::NoGas {
            needed_wei: 3_000_000_000_000_000,
            has_wei: 0,
        };
        assert!(
            !waits.later(one, CLOSE, &dearer),
            "the price alone is no news"
        );
        assert!(waits.later(two, "settle", &SubmitError::AboveCap));
        let text = waits.in_words().unwrap();
        assert!(
            text.contains("2 channels wait") && text.contains("0.003 ETH"),
            "{text}"
        );
        assert_eq!(waits.without_gas(), vec![one]);
        waits.sent(&one);
        assert!(waits.without_gas().is_empty());
        waits.keep(|_| false);
        assert_eq!(waits.in_words(), None);
    }
}
