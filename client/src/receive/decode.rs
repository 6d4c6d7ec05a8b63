//! Arrow from messages: columns are slices of the messages' bodies.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{RecordBatchDecoder, read_dictionary};
use arrow::ipc::{self, MessageHeader, root_as_message};
use flightcache_proto::{Error, Result};

use super::assemble::Message;
use super::flat::{self, is_flat};
use super::folded::{Folded, is_folded};

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// The schema of the batches that follow.
    Schema(SchemaRef),
    /// Rows.
    Batch(RecordBatch),
    /// Nothing by itself: a dictionary, or figures only.
    Nothing,
}

/// What is known of a stream so far.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    schema: Option<SchemaRef>,
    /// `flat` reads its batches.
    is_flat: bool,
    dictionaries: HashMap<i64, ArrayRef>,
    /// Where columns come as dictionaries of what was announced.
    folded: Option<Folded>,
    /// Those are handed out as they come.
    keeps_dictionaries: bool,
}

impl Decoder {
    /// A decoder whose batches have dictionaries where they came so.
    pub(super) fn keeping_dictionaries() -> Self {
        Self { keeps_dictionaries: true, ..Self::default() }
    }

    /// The schema that came last.
    pub(super) fn schema(&self) -> Option<&SchemaRef> {
        self.schema.as_ref()
    }

    pub(crate) fn decode(&mut self, message: &Message) -> Result<Payload> {
        // The readers trust lengths and types to agree.
        let decoded = std::panic::catch_unwind(AssertUnwindSafe(|| self.try_decode(message)));
        let decoded = decoded.unwrap_or_else(|_| Err("its lengths and types contradict each other".to_owned()));
        decoded.map_err(|e| Error::internal(format!("the server's answer cannot be decoded: {e}")))
    }

    fn try_decode(&mut self, Message { header, body, .. }: &Message) -> Result<Payload, String> {
        let message = root_as_message(header).map_err(|e| e.to_string())?;
        match message.header_type() {
            MessageHeader::NONE => Ok(Payload::Nothing),
            MessageHeader::Schema => {
                let schema = Arc::new(fb_to_schema(message.header_as_schema().ok_or("a schema is missing")?));
                if is_folded(&schema) {
                    let announced = self.schema.as_ref().ok_or("dictionaries came before the schema")?;
                    self.is_flat = is_flat(&schema, true);
                    self.folded = Some(Folded::new(schema, announced)?);
                    return Ok(Payload::Nothing);
                }
                *self = Self {
                    is_flat: is_flat(&schema, false),
                    schema: Some(Arc::clone(&schema)),
                    keeps_dictionaries: self.keeps_dictionaries,
                    ..Self::default()
                };
                Ok(Payload::Schema(schema))
            }
            MessageHeader::DictionaryBatch => {
                let schema = self.schema.as_ref().ok_or("a dictionary came before the schema")?;
                let batch = message.header_as_dictionary_batch().ok_or("a dictionary is missing")?;
                check(batch.data().ok_or("a dictionary has no values")?, body.len())?;
                if let Some(folded) = &mut self.folded {
                    read_dictionary(body, batch, &folded.schema, &mut folded.dictionaries, &message.version())
                        .map_err(|e| e.to_string())?;
                    folded.renew(batch.id(), schema)?;
                    return Ok(Payload::Nothing);
                }
                read_dictionary(body, batch, schema, &mut self.dictionaries, &message.version()).map_err(|e| e.to_string())?;
                Ok(Payload::Nothing)
            }
            MessageHeader::RecordBatch => {
                let schema = self.schema.as_ref().ok_or("a batch came before the schema")?;
                let batch = message.header_as_record_batch().ok_or("a batch is missing")?;
                check(batch, body.len())?;
                let (sent, dictionaries) =
                    self.folded.as_ref().map_or((schema, &self.dictionaries), |folded| (&folded.schema, &folded.dictionaries));
                let flat = if self.is_flat { flat::read(batch, body, sent, dictionaries).ok() } else { None };
                let batch = match flat {
                    Some(batch) => batch,
                    // What is refused there may still be read, or has its reason told, here.
                    None => RecordBatchDecoder::try_new(body, batch, Arc::clone(sent), dictionaries, &message.version())
                        .and_then(RecordBatchDecoder::read_record_batch)
                        .map_err(|e| e.to_string())?,
                };
                let batch = match &self.folded {
                    Some(folded) if !self.keeps_dictionaries => folded.unfold(&batch, schema)?,
                    _ => batch,
                };
                Ok(Payload::Batch(batch))
            }
            other => Err(format!("a message is of the unexpected type {}", other.variant_name().unwrap_or("unknown"))),
        }
    }
}

/// Checks the commonest of what the readers take on trust: that what a batch shows lies within its body, and that no buffer says
/// how long it will be once it is decompressed.
fn check(batch: ipc::RecordBatch<'_>, body_bytes: usize) -> Result<(), String> {
    if batch.compression().is_some() {
        return Err("a batch is compressed, which was not asked for".to_owned());
    }
    let is_within = |buffer: &ipc::Buffer| {
        let (offset, length) = (u64::try_from(buffer.offset()).ok()?, u64::try_from(buffer.length()).ok()?);
        (offset.checked_add(length)? <= body_bytes as u64).then_some(())
    };
    if batch.length() >= 0 && batch.buffers().into_iter().flatten().all(|buffer| is_within(buffer).is_some()) {
        return Ok(());
    }
    Err(format!("a batch shows more than its body of {body_bytes} bytes"))
}
