//! Tickets: what `DoGet` takes.

use prost::Message as _;

use crate::error::{Error, Result};
use crate::pb;
use crate::scan::ScanRequest;

/// What `DoGet` takes: a whole scan, or one endpoint's share of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ticket {
    /// The whole scan from one connection.
    Scan(ScanRequest),
    /// One endpoint's share.
    Share(Share),
}

/// One endpoint's share of a scan.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// The scan it is a share of.
    pub scan: ScanRequest,
    /// The parts to read, in order.
    pub objects: Vec<ObjectShare>,
    /// Epoch of the slot map the share was planned with.
    pub epoch: u64,
    /// Arrow schema (encapsulated IPC message) of the columns the scan touches, where the share's own objects do not determine it.
    pub schema: Option<Vec<u8>>,
    /// Fingerprint of the answer's schema, which an overwritten object may no longer have; zero where the reader checks that itself.
    pub schema_hash: u64,
    /// When the scan was planned, in microseconds since 1970: what `now()` means in its filter.
    pub asked_at_us: i64,
}

/// The part of one object that belongs to a share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectShare {
    /// The object's canonical URL.
    pub url: String,
    /// Display form of the version the share was planned on; `None` for objects without one.
    pub version: Option<String>,
    /// Row groups to read; `None`: all of the object, which may then follow it to a newer version.
    pub row_groups: Option<Vec<u32>>,
}

impl Ticket {
    /// The scan that it is, or is a share of.
    pub fn request(&self) -> &ScanRequest {
        match self {
            Self::Scan(request) => request,
            Self::Share(share) => &share.scan,
        }
    }

    /// Reads a JSON scan when the bytes start with `{`, otherwise the opaque form [`Ticket::encode`] makes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.first() == Some(&b'{') {
            return ScanRequest::parse(bytes).map(Self::Scan);
        }
        let message = pb::Ticket::decode(bytes).map_err(|e| Error::invalid(format!("ticket cannot be read: {e}")))?;
        match message.kind {
            Some(pb::ticket::Kind::Scan(scan)) => Ok(Self::Scan(scan.try_into()?)),
            Some(pb::ticket::Kind::Share(share)) => {
                let scan = share.scan.ok_or_else(|| Error::invalid("ticket: a share without its scan"))?;
                let objects = share.objects.into_iter().map(|object| ObjectShare {
                    url: object.url,
                    version: (!object.version.is_empty()).then_some(object.version),
                    row_groups: (!object.whole).then_some(object.row_groups),
                });
                Ok(Self::Share(Share {
                    scan: scan.try_into()?,
                    objects: objects.collect(),
                    epoch: share.epoch,
                    schema: (!share.schema.is_empty()).then_some(share.schema),
                    schema_hash: share.schema_hash,
                    asked_at_us: share.asked_at_us,
                }))
            }
            None => Err(Error::invalid("ticket is empty")),
        }
    }

    /// The opaque form. Never starts with `{`.
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self.clone() {
            Self::Scan(scan) => pb::ticket::Kind::Scan(scan.into()),
            Self::Share(share) => pb::ticket::Kind::Share(pb::Share {
                scan: Some(share.scan.into()),
                objects: share
                    .objects
                    .into_iter()
                    .map(|object| pb::ObjectShare {
                        url: object.url,
                        version: object.version.unwrap_or_default(),
                        whole: object.row_groups.is_none(),
                        row_groups: object.row_groups.unwrap_or_default(),
                    })
                    .collect(),
                epoch: share.epoch,
                schema: share.schema.unwrap_or_default(),
                schema_hash: share.schema_hash,
                asked_at_us: share.asked_at_us,
            }),
        };
        pb::Ticket { kind: Some(kind) }.encode_to_vec()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_round_trip(
            objects in proptest::collection::vec(
                ("[a-z]{1,9}", proptest::option::of("[a-z]{1,9}"), proptest::option::of(proptest::collection::vec(any::<u32>(), 0..5))),
                0..4,
            ),
            epoch in any::<u64>(),
            asked_at_us in any::<i64>(),
        ) {
            let objects = objects.into_iter().map(|(url, version, row_groups)| ObjectShare { url, version, row_groups }).collect();
            let ticket = Ticket::Share(Share { scan: ScanRequest::new("s3://b/k/"), objects, epoch, schema: None, schema_hash: epoch, asked_at_us });
            let bytes = ticket.encode();
            prop_assert_ne!(bytes.first(), Some(&b'{'));
            prop_assert_eq!(Ticket::parse(&bytes).unwrap(), ticket);
        }

        #[test]
        fn any_bytes_parse_or_fail_typed(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Ticket::parse(&bytes);
        }
    }
}
