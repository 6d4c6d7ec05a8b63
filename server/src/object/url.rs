//! URLs of requests, checked before any I/O.
//!
//! Keys are taken literally, as the store has them: nothing is percent-decoded. What another layer could decode into a
//! way out of a source (`..`, encoded separators) is therefore refused instead of interpreted.

use flightcache_proto::{Error, ErrorKind, Result};

/// A checked request URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestUrl<'a> {
    /// The whole URL.
    pub(crate) text: &'a str,
    pub(crate) kind: UrlKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UrlKind {
    Object,
    Prefix,
    Glob,
}

/// Keys have at most 1,024 bytes; globs may need more.
const MAX_URL_BYTES: usize = 4 << 10;

const GLOB_CHARS: [char; 4] = ['*', '?', '[', '{'];

impl<'a> RequestUrl<'a> {
    /// Checks the shape; which source it belongs to is decided by [`super::Sources::resolve`].
    pub(crate) fn parse(text: &'a str) -> Result<Self> {
        let denied = |why: &str| Err(Error::new(ErrorKind::Denied, format!("{text:?}: {why}")));
        if text.len() > MAX_URL_BYTES {
            return Err(Error::invalid(format!("a URL of {} bytes; at most {MAX_URL_BYTES} are read", text.len())));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(Error::invalid(format!("{text:?} is not a URL such as s3://bucket/key.parquet")));
        };
        if !matches!(scheme, "s3" | "file") {
            return denied("only s3:// and file:// sources can be declared");
        }
        if rest.chars().any(|c| c.is_control() || c == '\\') {
            return denied("control characters and backslashes are not allowed");
        }
        let lower = rest.to_ascii_lowercase();
        if ["%2e", "%2f", "%5c", "%00"].iter().any(|encoded| lower.contains(encoded)) {
            return denied("encoded separators and dots are not allowed");
        }
        let (authority, key) = rest.split_once('/').unwrap_or((rest, ""));
        if scheme == "s3" && authority.is_empty() || scheme == "file" && !authority.is_empty() {
            return denied("the bucket or host part does not fit the scheme");
        }
        if key.split('/').any(|segment| matches!(segment, "." | "..")) {
            return denied("relative path segments are not allowed");
        }
        if key.contains("//") || key.starts_with('/') {
            return Err(Error::invalid(format!("{text:?}: empty path segments are not supported")));
        }
        let kind = if key.contains(GLOB_CHARS) {
            UrlKind::Glob
        } else if key.is_empty() || key.ends_with('/') {
            UrlKind::Prefix
        } else {
            UrlKind::Object
        };
        Ok(Self { text, kind })
    }

    /// For globs: the longest part that ends in `/` before the first wildcard.
    pub(crate) fn literal_prefix(&self) -> &'a str {
        let end = self.text.find(GLOB_CHARS).unwrap_or(self.text.len());
        let slash = self.text[..end].rfind('/').map_or(0, |at| at + 1);
        &self.text[..slash]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shapes() {
        let kind = |text| RequestUrl::parse(text).map(|url| url.kind);
        assert_eq!(kind("s3://lake/t.parquet"), Ok(UrlKind::Object));
        assert_eq!(kind("s3://lake/trips/"), Ok(UrlKind::Prefix));
        assert_eq!(kind("s3://lake/"), Ok(UrlKind::Prefix));
        assert_eq!(kind("s3://lake/trips/*.parquet"), Ok(UrlKind::Glob));
        assert_eq!(kind("file:///data/a b.parquet"), Ok(UrlKind::Object));
        let glob = RequestUrl::parse("s3://lake/trips/y=20?4/x*.parquet").unwrap();
        assert_eq!(glob.literal_prefix(), "s3://lake/trips/");
    }

    #[test]
    fn ways_out_are_denied() {
        for text in [
            "s3://lake/../other/t.parquet",
            "s3://lake/a/./b",
            "s3://lake/%2e%2e/other",
            "s3://lake/a%2Fb",
            "s3://lake/a%5cb",
            "s3://lake/a\\..\\b",
            "s3://lake/a\0b",
            "file://host/etc/passwd",
            "http://169.254.169.254/latest",
            "s3:///key",
        ] {
            assert_eq!(RequestUrl::parse(text).unwrap_err().kind, ErrorKind::Denied, "{text}");
        }
        assert_eq!(RequestUrl::parse("t.parquet").unwrap_err().kind, ErrorKind::InvalidRequest);
        assert_eq!(RequestUrl::parse("s3://lake/a//b").unwrap_err().kind, ErrorKind::InvalidRequest);
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_typed(text in "\\PC{0,40}") {
            if let Ok(url) = RequestUrl::parse(&text) {
                prop_assert!(text.starts_with(url.literal_prefix()));
            }
        }
    }
}
