//! What a buyer can put into channels: its vault and its wallet as last read, less what it has
//! signed away and the chain does not show yet. Pure.
//!
//! Invariant: the sum of what is signed away and not shown is never above what was read, so no two
//! openings count on the same money.

use std::collections::HashMap;

use crate::types::{ChannelId, MicroUsd};

/// Where the money of an opening or a top-up comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// From the vault.
    pub vault: MicroUsd,
    /// From the wallet, by an authorisation.
    pub wallet: MicroUsd,
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    split: Split,
    /// The signature is void from then on, in seconds.
    void_s: u64,
}

/// The money of one buyer.
#[derive(Debug, Default)]
pub struct Purse {
    read: Option<Split>,
    /// By channel and the deposit it will have.
    promises: HashMap<(ChannelId, MicroUsd), Promise>,
}

impl Purse {
    /// What the chain shows now.
    pub fn learn(&mut self, vault: MicroUsd, wallet: MicroUsd) {
        self.read = Some(Split { vault, wallet });
    }
    /// What was last read; none before the chain has answered.
    #[must_use]
    pub const fn read(&self) -> Option<Split> {
        self.read
    }
    /// Signed away and not shown by the chain.
    #[must_use]
    pub fn promised(&self) -> Split {
        let all = self.promises.values();
        all.fold(Split::default(), |sum, one| Split {
            vault: sum.vault.saturating_add(one.split.vault),
            wallet: sum.wallet.saturating_add(one.split.wallet),
        })
    }
    /// What is left for new channels; none before the chain has answered.
    #[must_use]
    pub fn free(&self) -> Option<MicroUsd> {
        let left = self.left()?;
        Some(left.vault.saturating_add(left.wallet))
    }

    /// Sets `amount` aside for a channel whose deposit becomes `deposit`: from the vault first.
    /// None when there is not so much.
    pub fn promise(
        &mut self,
        channel: ChannelId,
        deposit: MicroUsd,
        amount: MicroUsd,
        void_s: u64,
    ) -> Option<Split> {
        let left = self.left()?;
        let vault = amount.min(left.vault);
        let wallet = amount.saturating_sub(vault);
        if wallet > left.wallet {
            return None;
        }
        let split = Split { vault, wallet };
        self.promises
            .insert((channel, deposit), Promise { split, void_s });
        Some(split)
    }
    /// Takes up a promise of an earlier life.
    pub fn remember(&mut self, channel: ChannelId, deposit: MicroUsd, split: Split, void_s: u64) {
        self.promises
            .insert((channel, deposit), Promise { split, void_s });
    }
    /// The chain shows this channel with a deposit of `shown`: smaller promises are kept or void.
    pub fn shown(&mut self, channel: &ChannelId, shown: MicroUsd) {
        self.promises
            .retain(|(id, deposit), _| id != channel || *deposit > shown);
    }
    /// The channel will not open, or is over.
    pub fn forget(&mut self, channel: &ChannelId) {
        self.promises.retain(|(id, _), _| id != channel);
    }
    /// Signatures that are void by `now_s` bind nothing any more.
    pub fn expire(&mut self, now_s: u64) {
        self.promises.retain(|_, one| one.void_s > now_s);
    }

    fn left(&self) -> Option<Split> {
        let (read, promised) = (self.read?, self.promised());
        Some(Split {
            vault: read.vault.saturating_sub(promised.vault),
            wallet: read.wallet.saturating_sub(promised.wallet),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn id(n: u8) -> ChannelId {
        ChannelId([n; 32])
    }

    #[test]
    fn the_vault_pays_first_and_nothing_is_promised_twice() {
        let mut purse = Purse::default();
        let m = MicroUsd;
        assert_eq!(
            purse.promise(id(1), m(5), m(5), 9),
            None,
            "nothing is known yet"
        );
        purse.learn(m(8), m(10));
        let split = |vault, wallet| {
            Some(Split {
                vault: m(vault),
                wallet: m(wallet),
            })
        };
        assert_eq!(purse.promise(id(1), m(5), m(5), 9), split(5, 0));
        assert_eq!(purse.promise(id(2), m(7), m(7), 9), split(3, 4));
        assert_eq!(purse.promise(id(3), m(7), m(7), 9), None);
        assert_eq!(purse.free(), Some(m(6)));
        purse.learn(m(3), m(10));
        purse.shown(&id(1), m(5));
        assert_eq!(purse.free(), Some(m(6)));
        purse.expire(9);
        assert_eq!(purse.free(), Some(m(13)));
    }

    proptest! {
        #[test]
        fn promises_never_exceed_what_was_read(
            vault in 0..1_000u64, wallet in 0..1_000u64,
            wants in proptest::collection::vec((any::<u8>(), 1..500u64), 0..40),
        ) {
            let mut purse = Purse::default();
            purse.learn(MicroUsd(vault), MicroUsd(wallet));
            for (n, want) in wants {
                let before = purse.free().unwrap();
                let known = purse.promises.contains_key(&(id(n), MicroUsd(want)));
                let got = purse.promise(id(n), MicroUsd(want), MicroUsd(want), 1);
                if !known {
                    prop_assert_eq!(got.is_some(), want <= before.0);
                }
                let sum = purse.promised();
                prop_assert!(sum.vault.0 <= vault && sum.wallet.0 <= wallet);
            }
        }
    }
}
