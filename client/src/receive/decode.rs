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
}

impl Decoder {
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
                *self = Self { is_flat: is_flat(&schema), schema: Some(Arc::clone(&schema)), dictionaries: HashMap::new() };
                Ok(Payload::Schema(schema))
            }
            MessageHeader::DictionaryBatch => {
                let schema = self.schema.as_ref().ok_or("a dictionary came before the schema")?;
                let batch = message.header_as_dictionary_batch().ok_or("a dictionary is missing")?;
                check(batch.data().ok_or("a dictionary has no values")?, body.len())?;
                read_dictionary(body, batch, schema, &mut self.dictionaries, &message.version()).map_err(|e| e.to_string())?;
                Ok(Payload::Nothing)
            }
            MessageHeader::RecordBatch => {
                let schema = self.schema.as_ref().ok_or("a batch came before the schema")?;
                let batch = message.header_as_record_batch().ok_or("a batch is missing")?;
                check(batch, body.len())?;
                // What is refused there may still be read, or has its reason told, below.
                if self.is_flat
                    && let Ok(batch) = flat::read(batch, body, schema)
                {
                    return Ok(Payload::Batch(batch));
                }
                let version = message.version();
                let batch = RecordBatchDecoder::try_new(body, batch, Arc::clone(schema), &self.dictionaries, &version)
                    .and_then(RecordBatchDecoder::read_record_batch);
                batch.map(Payload::Batch).map_err(|e| e.to_string())
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
