//! Words about transactions and events of a chain that both the chain's side and the ledger use.

/// What a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Deploys a contract.
    Deploy,
    /// Opens a channel, with a deposit into the vault if needed.
    Open,
    /// Raises a channel's deposit.
    TopUp,
    /// Brings vouchers to the chain.
    Settle,
    /// Closes a channel.
    Close,
    /// Asks for a close.
    RequestClose,
    /// Brings an expired channel's rest back.
    Reclaim,
    /// Pays into a vault.
    Deposit,
    /// Pays out of a vault.
    Withdraw,
    /// Fills a nonce that is missing: a transfer of nothing to oneself.
    FillGap,
    /// Sends what another account signed, for a fee.
    Relay,
    /// Anything else.
    Other,
}

impl Purpose {
    const ALL: [Self; 12] = [
        Self::Deploy,
        Self::Open,
        Self::TopUp,
        Self::Settle,
        Self::Close,
        Self::RequestClose,
        Self::Reclaim,
        Self::Deposit,
        Self::Withdraw,
        Self::FillGap,
        Self::Relay,
        Self::Other,
    ];

    /// The word in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Open => "open",
            Self::TopUp => "top_up",
            Self::Settle => "settle",
            Self::Close => "close",
            Self::RequestClose => "request_close",
            Self::Reclaim => "reclaim",
            Self::Deposit => "deposit",
            Self::Withdraw => "withdraw",
            Self::FillGap => "fill_gap",
            Self::Relay => "relay",
            Self::Other => "other",
        }
    }
    /// From that word; unknown words are [`Purpose::Other`].
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        let known = Self::ALL.into_iter().find(|one| one.as_str() == word);
        known.unwrap_or(Self::Other)
    }
}

/// A step in an intent's life after it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// In a block, and it did what it should.
    Mined,
    /// In a block, and the contract refused.
    Reverted,
    /// Its block is gone: it waits again.
    Reorged,
    /// Its block is final. Nothing follows.
    Confirmed,
    /// A final transaction that is not ours has its nonce. Nothing follows.
    Displaced,
}

impl Step {
    const ALL: [Self; 5] = [
        Self::Mined,
        Self::Reverted,
        Self::Reorged,
        Self::Confirmed,
        Self::Displaced,
    ];

    /// The word in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mined => "mined",
            Self::Reverted => "reverted",
            Self::Reorged => "reorged",
            Self::Confirmed => "confirmed",
            Self::Displaced => "displaced",
        }
    }
    /// From that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == word)
    }
    /// True when nothing follows.
    #[must_use]
    pub const fn is_last(self) -> bool {
        matches!(self, Self::Confirmed | Self::Displaced)
    }
}

/// How far an event is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// In a block.
    Seen,
    /// In a final block.
    Confirmed,
    /// Its block is gone.
    Removed,
}

impl Stage {
    const ALL: [Self; 3] = [Self::Seen, Self::Confirmed, Self::Removed];

    /// The word in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Confirmed => "confirmed",
            Self::Removed => "removed",
        }
    }
    /// From that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == word)
    }
}
