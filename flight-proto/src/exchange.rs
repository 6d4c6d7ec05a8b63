//! `DoExchange`: many requests and their answers over one stream, in the app metadata of its messages.
//!
//! ```text
//!  Requests {open, rows, scans, cancel, close} --> server --> Answers {schema, tags, counts, more, errors} + schema | batch
//! ```
//!
//! The first message's descriptor holds a command that decides between two forms of the same: protobuf, and JSON for clients
//! written by hand. Row reads travel as columns (tags, counts, rows), so that one costs a few bytes.

use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::pb;
use crate::scan::ScanRequest;

/// Bytes of one message of requests, at most: a server refuses the stream of a longer one.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Requests of one message, at most; and as many scans given up, and templates closed.
pub const MAX_REQUESTS: usize = 4_096;
/// Templates open at a time in one stream, at most.
pub const MAX_TEMPLATES: usize = 4_096;
/// What a request takes beside what it names: tags, counts, numbers, lengths.
const ENVELOPE_BYTES: usize = 64;

/// How requests and answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `flightcache.v1.ExchangeRequests` and `flightcache.v1.ExchangeAnswers`.
    Protobuf,
    /// The same as JSON objects. All answers of a stream have one schema then, as plain Flight clients expect.
    Json,
}

/// What a client asks in one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Requests {
    /// Templates to prepare, before anything else of this message is looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<RowTemplate>,
    /// Row reads, by template.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<RowReads>,
    /// Scans.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scans: Vec<TaggedTicket>,
    /// Tags of scans that nobody waits for any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cancel: Vec<u64>,
    /// Templates to forget, after everything else of this message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub close: Vec<u32>,
}

/// What row reads have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowTemplate {
    /// The client's number for it.
    pub template: u32,
    /// All but the rows.
    pub scan: ScanRequest,
}

/// Row reads by one template: the columns of a table of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowReads {
    /// The template's number.
    pub template: u32,
    /// One a read.
    pub tags: Vec<u64>,
    /// How many of `rows` belong to each read, in order. Never empty once parsed, unless there are no tags.
    #[serde(default)]
    pub counts: Vec<u32>,
    /// Row numbers.
    pub rows: Vec<u64>,
}

/// A scan and the tag its answers carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TaggedScan", into = "TaggedScan")]
pub struct TaggedTicket {
    /// The client's number for it.
    pub tag: u64,
    /// What `DoGet` takes. Not looked at yet: a bad ticket is that request's error.
    pub ticket: Vec<u8>,
}

/// The JSON of a [`TaggedTicket`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaggedScan {
    tag: u64,
    scan: Map<String, Value>,
}

/// What a server says in one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answers {
    /// The server's number for the schema of these answers. With a schema message: the number that it gets.
    pub schema: u32,
    /// The reads whose rows are in the batch, in order.
    pub tags: Vec<u64>,
    /// How many rows of the batch belong to each.
    pub counts: Vec<u32>,
    /// There is one tag, and its answer goes on in a later message.
    pub more: bool,
    /// Requests that failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Failure>,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its tag.
    pub tag: u64,
    /// What the caller should do.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

impl Form {
    /// The command in the descriptor of the first message.
    pub const fn command(self) -> &'static str {
        match self {
            Self::Protobuf => "flightcache.exchange.v1",
            Self::Json => "flightcache.exchange.v1+json",
        }
    }

    /// The form that a command asks for.
    pub fn of_command(command: &[u8]) -> Result<Self> {
        [Self::Protobuf, Self::Json].into_iter().find(|form| form.command().as_bytes() == command).ok_or_else(|| {
            let known = [Self::Protobuf, Self::Json].map(Self::command).join(", ");
            Error::invalid(format!("exchange: unknown command {:?}; there are {known}", String::from_utf8_lossy(command)))
        })
    }
}

impl Requests {
    /// Reads app metadata.
    pub fn parse(form: Form, bytes: &[u8]) -> Result<Self> {
        let mut requests: Self = match form {
            // An array would be taken for the values of the keys.
            Form::Json if !bytes.trim_ascii_start().starts_with(b"{") => {
                return Err(Error::invalid("exchange: requests are a JSON object"));
            }
            Form::Json => serde_json::from_slice(bytes)
                .map_err(|e| Error::invalid(format!("exchange: requests are not valid JSON: {e}")))?,
            Form::Protobuf => {
                let message = pb::ExchangeRequests::decode(bytes)
                    .map_err(|e| Error::invalid(format!("exchange: requests are not flightcache.v1.ExchangeRequests: {e}")))?;
                message.try_into()?
            }
        };
        if requests.open.iter().any(|open| open.scan.rows.is_some()) {
            return Err(Error::invalid("exchange: a template has rows; they belong to its reads"));
        }
        requests.rows.iter_mut().try_for_each(RowReads::check)?;
        Ok(requests)
    }

    /// Refuses more than one message may hold.
    pub fn check_count(&self) -> Result<()> {
        let requests = self.rows.iter().map(|reads| reads.tags.len()).sum::<usize>() + self.scans.len();
        let most = requests.max(self.cancel.len()).max(self.close.len());
        if most > MAX_REQUESTS {
            return Err(Error::invalid(format!("exchange: {most} requests in a message; at most {MAX_REQUESTS}")));
        }
        Ok(())
    }

    /// App metadata that [`Requests::parse`] reads.
    pub fn encode(self, form: Form) -> Vec<u8> {
        match form {
            // Maps with string keys and numbers: nothing that JSON lacks.
            Form::Json => serde_json::to_vec(&self).unwrap_or_default(),
            Form::Protobuf => pb::ExchangeRequests::from(self).encode_to_vec(),
        }
    }
}

impl RowTemplate {
    /// Bytes it takes in a message, at most.
    pub fn encoded_bytes(scan: &ScanRequest) -> usize {
        ENVELOPE_BYTES + pb::ScanRequest::from(scan.clone()).encoded_len()
    }
}

impl TaggedTicket {
    /// Bytes it takes in a message, at most.
    pub fn encoded_bytes(ticket: &[u8]) -> usize {
        ENVELOPE_BYTES + ticket.len()
    }
}

impl RowReads {
    /// Bytes that a read of these rows takes in a message, at most.
    pub fn encoded_bytes(rows: &[u64]) -> usize {
        ENVELOPE_BYTES + rows.iter().map(|&row| prost::encoding::encoded_len_varint(row)).sum::<usize>()
    }

    fn check(&mut self) -> Result<()> {
        if self.counts.is_empty() {
            self.counts = vec![1; self.tags.len()];
        }
        let rows: u64 = self.counts.iter().map(|&count| u64::from(count)).sum();
        if self.counts.len() != self.tags.len() || rows != self.rows.len() as u64 {
            let (tags, counts) = (self.tags.len(), self.counts.len());
            let message = format!("exchange: {tags} tags, {counts} counts that make {rows}, and {} rows", self.rows.len());
            return Err(Error::invalid(message));
        }
        Ok(())
    }
}

impl Answers {
    /// Reads app metadata.
    pub fn parse(form: Form, bytes: &[u8]) -> Result<Self> {
        match form {
            Form::Json => serde_json::from_slice(bytes).map_err(|e| Error::internal(format!("exchange: no answers: {e}"))),
            Form::Protobuf => {
                let message =
                    pb::ExchangeAnswers::decode(bytes).map_err(|e| Error::internal(format!("exchange: no answers: {e}")))?;
                Ok(message.into())
            }
        }
    }

    /// App metadata that [`Answers::parse`] reads.
    pub fn encode(self, form: Form) -> Vec<u8> {
        match form {
            Form::Json => serde_json::to_vec(&self).unwrap_or_default(),
            Form::Protobuf => pb::ExchangeAnswers::from(self).encode_to_vec(),
        }
    }
}

impl Failure {
    /// The failure of the request with this tag.
    pub fn new(tag: u64, error: Error) -> Self {
        Self { tag, kind: error.kind, message: error.message }
    }

    /// What went wrong, as the server states it.
    pub fn into_error(self) -> Error {
        Error::new(self.kind, self.message).stated()
    }
}

impl TryFrom<TaggedScan> for TaggedTicket {
    type Error = serde_json::Error;

    fn try_from(scan: TaggedScan) -> Result<Self, serde_json::Error> {
        Ok(Self { tag: scan.tag, ticket: serde_json::to_vec(&scan.scan)? })
    }
}

impl From<TaggedTicket> for TaggedScan {
    fn from(ticket: TaggedTicket) -> Self {
        Self { tag: ticket.tag, scan: serde_json::from_slice(&ticket.ticket).unwrap_or_default() }
    }
}

impl TryFrom<pb::ExchangeRequests> for Requests {
    type Error = Error;

    fn try_from(message: pb::ExchangeRequests) -> Result<Self> {
        let open = message.open.into_iter().map(|open| {
            let scan = open.scan.ok_or_else(|| Error::invalid("exchange: a template without its scan"))?;
            Ok(RowTemplate { template: open.template, scan: scan.try_into()? })
        });
        let rows = message.rows.into_iter().map(|reads| {
            let pb::RowReads { template, tags, counts, rows } = reads;
            RowReads { template, tags, counts, rows }
        });
        let scans = message.scans.into_iter().map(|scan| TaggedTicket { tag: scan.tag, ticket: scan.ticket });
        Ok(Self {
            open: open.collect::<Result<_>>()?,
            rows: rows.collect(),
            scans: scans.collect(),
            cancel: message.cancel,
            close: message.close,
        })
    }
}

impl From<Requests> for pb::ExchangeRequests {
    fn from(requests: Requests) -> Self {
        let open = requests.open.into_iter();
        let rows = requests.rows.into_iter().map(|reads| {
            let RowReads { template, tags, counts, rows } = reads;
            // One each is what no counts say.
            let counts = if counts.iter().all(|&count| count == 1) { Vec::new() } else { counts };
            pb::RowReads { template, tags, counts, rows }
        });
        Self {
            open: open.map(|open| pb::RowTemplate { template: open.template, scan: Some(open.scan.into()) }).collect(),
            rows: rows.collect(),
            scans: requests.scans.into_iter().map(|scan| pb::TaggedTicket { tag: scan.tag, ticket: scan.ticket }).collect(),
            cancel: requests.cancel,
            close: requests.close,
        }
    }
}

impl From<pb::ExchangeAnswers> for Answers {
    fn from(message: pb::ExchangeAnswers) -> Self {
        let pb::ExchangeAnswers { schema, tags, counts, more, errors } = message;
        let errors = errors.into_iter().map(|failure| {
            let kind = ErrorKind::ALL.into_iter().find(|kind| kind.as_str() == failure.kind);
            Failure { tag: failure.tag, kind: kind.unwrap_or(ErrorKind::Internal), message: failure.message }
        });
        Self { schema, tags, counts, more, errors: errors.collect() }
    }
}

impl From<Answers> for pb::ExchangeAnswers {
    fn from(answers: Answers) -> Self {
        let Answers { schema, tags, counts, more, errors } = answers;
        let errors = errors.into_iter().map(|failure| pb::Failure {
            tag: failure.tag,
            kind: failure.kind.as_str().to_owned(),
            message: failure.message,
        });
        Self { schema, tags, counts, more, errors: errors.collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMS: [Form; 2] = [Form::Protobuf, Form::Json];

    proptest! {
        #[test]
        fn requests_round_trip(
            reads in proptest::collection::vec((any::<u64>(), proptest::collection::vec(any::<u64>(), 0..4)), 0..6),
            template in any::<u32>(),
            tag in any::<u64>(),
        ) {
            let requests = Requests {
                open: vec![RowTemplate { template, scan: ScanRequest::new("s3://b/k") }],
                rows: vec![RowReads {
                    template,
                    tags: reads.iter().map(|(tag, _)| *tag).collect(),
                    counts: reads.iter().map(|(_, rows)| rows.len() as u32).collect(),
                    rows: reads.iter().flat_map(|(_, rows)| rows).copied().collect(),
                }],
                scans: vec![TaggedTicket { tag, ticket: br#"{"url":"s3://b/"}"#.to_vec() }],
                cancel: vec![tag],
                close: vec![template],
            };
            for form in FORMS {
                prop_assert_eq!(&Requests::parse(form, &requests.clone().encode(form)).unwrap(), &requests);
            }
        }

        #[test]
        fn answers_round_trip(tags in proptest::collection::vec(any::<u64>(), 0..6), schema in any::<u32>(), more in any::<bool>()) {
            let errors = tags.iter().zip(ErrorKind::ALL).map(|(&tag, kind)| Failure::new(tag, Error::new(kind, "why")));
            let answers = Answers { schema, counts: vec![7; tags.len()], errors: errors.collect(), tags, more };
            for form in FORMS {
                prop_assert_eq!(&Answers::parse(form, &answers.clone().encode(form)).unwrap(), &answers);
            }
        }

        #[test]
        fn any_bytes_parse_or_fail_typed(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for form in FORMS {
                let _ = (Requests::parse(form, &bytes), Answers::parse(form, &bytes));
            }
        }
    }

    #[test]
    fn requests_take_no_more_than_they_are_taken_for() {
        let rows: Vec<u64> = (0..200).map(|row| u64::MAX >> (row % 64)).collect();
        let scan = ScanRequest { filter: Some("a".repeat(100_000)), ..ScanRequest::new("s3://b/k") };
        let ticket = scan.filter.clone().unwrap_or_default().into_bytes();
        let taken = RowReads::encoded_bytes(&rows) + RowTemplate::encoded_bytes(&scan) + TaggedTicket::encoded_bytes(&ticket);
        let reads = RowReads { template: u32::MAX, tags: vec![u64::MAX], counts: vec![200], rows };
        let requests = Requests {
            open: vec![RowTemplate { template: u32::MAX, scan }],
            rows: vec![reads],
            scans: vec![TaggedTicket { tag: u64::MAX, ticket }],
            ..Requests::default()
        };
        let encoded = requests.encode(Form::Protobuf).len();
        assert!(encoded <= taken && taken < encoded + 200, "{encoded} {taken}");
    }

    #[test]
    fn the_documented_json_is_read() {
        let json = br#"{"open": [{"template": 1, "scan": {"url": "s3://b/k", "columns": ["a"]}}],
                        "rows": [{"template": 1, "tags": [7, 8], "rows": [3, 4]}],
                        "scans": [{"tag": 9, "scan": {"url": "s3://b/k", "limit": 2}}]}"#;
        let requests = Requests::parse(Form::Json, json).unwrap();
        assert_eq!(requests.rows[0].counts, [1, 1]);
        let ticket = crate::Ticket::parse(&requests.scans[0].ticket).unwrap();
        assert_eq!(ticket, crate::Ticket::Scan(ScanRequest { limit: Some(2), ..ScanRequest::new("s3://b/k") }));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for bad in [
            r#"{"rows": [{"template": 1, "tags": [7], "rows": []}]}"#,
            r#"{"rows": [{"template": 1, "tags": [7], "counts": [2], "rows": [1]}]}"#,
            r#"{"rows": [{"template": 1, "tags": [7], "counts": [1, 1], "rows": [1, 2]}]}"#,
            r#"{"rows": [{"template": 1, "tags": [7, 8], "counts": [4294967295, 4294967295], "rows": [1]}]}"#,
            r#"{"open": [{"template": 1, "scan": {"url": "s3://b/k", "rows": [1]}}]}"#,
            r#"{"scans": [{"tag": 1}]}"#,
            r#"{"row": []}"#,
            "[]",
            "",
        ] {
            assert_eq!(Requests::parse(Form::Json, bad.as_bytes()).unwrap_err().kind, ErrorKind::InvalidRequest, "{bad}");
        }
        assert!(Form::of_command(b"flightcache.exchange.v1").is_ok() && Form::of_command(b"").is_err());
    }
}
