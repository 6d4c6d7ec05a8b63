//! Objects and their versions.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::Error;

/// The version of an object: what makes two reads of the same URL the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// A strong entity tag (RFC 9110, section 8.8.3); for files, inode, modification time and size.
    ETag(Arc<str>),
    /// A store's version id, where there is no usable entity tag.
    Id(Arc<str>),
}

impl Version {
    /// The version stated by an `ETag` or a version id. Weak tags (`W/"…"`) never match in `If-Match`, so they are no version.
    pub fn new(etag: Option<&str>, id: Option<&str>) -> Option<Self> {
        match (etag, id) {
            (Some(tag), _) if !tag.is_empty() && !tag.starts_with("W/") => Some(Self::ETag(tag.into())),
            (_, Some(id)) if !id.is_empty() => Some(Self::Id(id.into())),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ETag(tag) => write!(f, "etag:{tag}"),
            Self::Id(id) => write!(f, "id:{id}"),
        }
    }
}

/// Reads the display form.
impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let version = match text.split_once(':') {
            Some(("etag", tag)) => Self::new(Some(tag), None),
            Some(("id", id)) => Self::new(None, Some(id)),
            _ => None,
        };
        version.ok_or_else(|| Error::invalid(format!("{text:?} is not an object's version")))
    }
}

/// One version of one object, as one footer tells it. Objects without a version are read, never cached, so they have no id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId {
    /// Canonical URL.
    pub url: Arc<str>,
    /// The version all of its bytes come from.
    pub version: Version,
    /// XXH3-64 of the footer that they are read by: what is read by a wrong one is something else.
    pub footer: u64,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.url, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_tags_are_no_version() {
        assert_eq!(Version::new(Some("W/\"a\""), None), None);
        assert_eq!(Version::new(Some("W/\"a\""), Some("7")), Some(Version::Id("7".into())));
        assert_eq!(Version::new(Some("\"a\""), Some("7")), Some(Version::ETag("\"a\"".into())));
        assert_eq!(Version::new(None, None), None);
    }

    #[test]
    fn display_forms_are_read() {
        for version in [Version::ETag("\"a:b\"".into()), Version::Id("id:7".into())] {
            assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
        }
        for text in ["", "a", "etag:", "id:", "etag:W/\"a\"", "ETAG:a"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
