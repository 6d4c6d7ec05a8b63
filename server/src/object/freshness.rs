//! How stale an answer may be.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The bound on staleness of a source's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Freshness {
    /// Objects never change once written.
    Immutable,
    /// A version counts as current for this long after the store last confirmed it.
    Ttl(Duration),
    /// Every request asks the store.
    Always,
}

impl Freshness {
    /// How long a listing may be reused. Listings of immutable objects are still bounded, since new objects appear.
    pub fn listing_ttl(self) -> Duration {
        match self {
            Self::Immutable => Duration::from_mins(1),
            Self::Ttl(ttl) => ttl,
            Self::Always => Duration::ZERO,
        }
    }

    /// Whether a version the store confirmed `age` ago may be served without asking again.
    pub fn covers(self, age: Duration) -> bool {
        match self {
            Self::Immutable => true,
            Self::Ttl(ttl) => age < ttl,
            Self::Always => false,
        }
    }
}

impl Default for Freshness {
    fn default() -> Self {
        Self::Ttl(Duration::from_mins(1))
    }
}

impl FromStr for Freshness {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "immutable" => Ok(Self::Immutable),
            "always" => Ok(Self::Always),
            _ => match text.strip_prefix("ttl=").map(humantime::parse_duration) {
                Some(Ok(ttl)) => Ok(Self::Ttl(ttl)),
                _ => Err(format!("`{text}` is not a freshness: use immutable, always or ttl=<duration> such as ttl=60s")),
            },
        }
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Immutable => f.write_str("immutable"),
            Self::Ttl(ttl) => write!(f, "ttl={}", humantime::format_duration(*ttl)),
            Self::Always => f.write_str("always"),
        }
    }
}

impl TryFrom<String> for Freshness {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Freshness> for String {
    fn from(freshness: Freshness) -> Self {
        freshness.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_round_trip() {
        for text in ["immutable", "always", "ttl=1m", "ttl=250ms"] {
            assert_eq!(text.parse::<Freshness>().unwrap().to_string(), text);
        }
        assert_eq!("ttl=60s".parse::<Freshness>().unwrap(), Freshness::default());
        for text in ["", "ttl", "ttl=", "ttl=soon", "never"] {
            assert!(text.parse::<Freshness>().is_err(), "{text}");
        }
    }

    #[test]
    fn age_is_bounded() {
        assert!(Freshness::Immutable.covers(Duration::MAX));
        assert!(!Freshness::Always.covers(Duration::ZERO));
        let ttl = Freshness::Ttl(Duration::from_secs(1));
        assert!(ttl.covers(Duration::from_millis(999)) && !ttl.covers(Duration::from_secs(1)));
    }
}
