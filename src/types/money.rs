//! Micro-USD: the only unit in which money is kept. Integers, checked arithmetic, no floats.
//!
//! `rust_decimal` parses and prints at the edge; nothing inside computes with it.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::{Deserialize, Serialize};

/// Decimal places of a micro-USD, equal to USDC's.
const DECIMALS: u32 = 6;

/// An amount of money in micro-USD (1 USD = 1 000 000). Never negative.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MicroUsd(pub u64);

/// Why a money amount was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum MoneyError {
    /// The text is no decimal number.
    #[error("`{0}` is not an amount in USD; write it like 0.25")]
    NotANumber(String),
    /// Negative amounts do not exist here.
    #[error("`{0}` is negative; amounts are 0 or more")]
    Negative(String),
    /// Finer than a micro-USD.
    #[error("`{0}` is finer than a micro-USD; use at most 6 decimals")]
    TooFine(String),
    /// Above what 64 bits hold.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

impl MicroUsd {
    /// No money.
    pub const ZERO: Self = Self(0);
    /// The largest amount.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes an amount of whole US dollars (saturating; for constants).
    #[must_use]
    pub const fn from_usd(usd: u64) -> Self {
        Self(usd.saturating_mul(1_000_000))
    }
    /// Adds, or `None` on overflow.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }
    /// Subtracts, or `None` below zero.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }
    /// Adds, stopping at the largest amount (for limits and comparisons, never for a balance).
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
    /// Subtracts, stopping at zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
    /// `self × num ÷ den`, rounded up, in 128 bits. A `den` of 0 counts as 1.
    #[must_use]
    pub fn mul_div_ceil(self, num: u64, den: u64) -> Self {
        let wide = u128::from(self.0) * u128::from(num);
        Self(u64::try_from(wide.div_ceil(u128::from(den.max(1)))).unwrap_or(u64::MAX))
    }
    /// The exact decimal in USD.
    #[must_use]
    pub fn to_decimal(self) -> Decimal {
        Decimal::from_i128_with_scale(i128::from(self.0), DECIMALS)
    }
    /// USD as a JSON number with at most 6 decimals (`0.000123`), exact text, not a float.
    #[must_use]
    pub fn to_json_number(self) -> String {
        self.to_decimal().normalize().to_string()
    }
    /// As SQLite keeps it. Amounts above `i64::MAX` do not occur (9.2 trillion USD); they saturate.
    #[must_use]
    pub fn to_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
    /// From SQLite; a negative value reads as 0 (the schema's CHECK forbids it).
    #[must_use]
    pub fn from_i64(value: i64) -> Self {
        Self(u64::try_from(value).unwrap_or(0))
    }
}

/// Prints exact USD with all 6 decimals: `0.000123`.
impl fmt::Display for MicroUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Parses USD: `1`, `0.25`, `$0.000001`.
impl FromStr for MicroUsd {
    type Err = MoneyError;
    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let bare = text.trim();
        let bare = bare.strip_prefix('$').unwrap_or(bare);
        let number =
            Decimal::from_str(bare).map_err(|_| MoneyError::NotANumber(text.to_owned()))?;
        if number.is_sign_negative() && !number.is_zero() {
            return Err(MoneyError::Negative(text.to_owned()));
        }
        let scaled = number
            .checked_mul(Decimal::from(1_000_000u64))
            .ok_or_else(|| MoneyError::TooLarge(text.to_owned()))?;
        if !scaled.fract().is_zero() {
            return Err(MoneyError::TooFine(text.to_owned()));
        }
        scaled
            .to_u64()
            .map(Self)
            .ok_or_else(|| MoneyError::TooLarge(text.to_owned()))
    }
}

impl Sum for MicroUsd {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_and_prints_exact_decimals() {
        assert_eq!("0.25".parse(), Ok(MicroUsd(250_000)));
        assert_eq!("$1".parse(), Ok(MicroUsd(1_000_000)));
        assert_eq!(MicroUsd(123).to_string(), "0.000123");
        assert_eq!(MicroUsd(1_500_000).to_json_number(), "1.5");
        assert!(matches!(
            "0.0000001".parse::<MicroUsd>(),
            Err(MoneyError::TooFine(_))
        ));
        assert!(matches!(
            "-1".parse::<MicroUsd>(),
            Err(MoneyError::Negative(_))
        ));
        assert!(matches!(
            "x".parse::<MicroUsd>(),
            Err(MoneyError::NotANumber(_))
        ));
        assert!(matches!(
            "99999999999999999999".parse::<MicroUsd>(),
            Err(MoneyError::TooLarge(_))
        ));
    }

    proptest! {
        #[test]
        fn text_round_trips(v in any::<u64>()) {
            prop_assert_eq!(MicroUsd(v).to_string().parse(), Ok(MicroUsd(v)));
        }
        #[test]
        fn mul_div_ceil_rounds_up(v in 0u64..1_000_000_000, n in 0u64..1_000_000, d in 1u64..1_000_000) {
            let exact = u128::from(v) * u128::from(n);
            let got = u128::from(MicroUsd(v).mul_div_ceil(n, d).0);
            prop_assert!(got * u128::from(d) >= exact);
            prop_assert!(got == 0 || (got - 1) * u128::from(d) < exact);
        }
    }
}
