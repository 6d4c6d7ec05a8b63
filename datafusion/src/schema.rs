//! Schemas as Arrow IPC messages' metadata.

use arrow::datatypes::Schema;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};

/// The message of a schema.
pub(crate) fn write(schema: &Schema) -> Vec<u8> {
    let mut tracker = DictionaryTracker::new(false);
    let options = IpcWriteOptions::default();
    IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &options).ipc_message
}

/// The schema of a message from anywhere.
pub(crate) fn read(message: &[u8]) -> Result<Schema, String> {
    let message = arrow::ipc::root_as_message(message).map_err(|e| format!("it cannot be read: {e}"))?;
    let schema = message.header_as_schema().ok_or("it is none")?;
    // The converter trusts its input to name types it knows.
    std::panic::catch_unwind(|| arrow::ipc::convert::fb_to_schema(schema)).map_err(|_| "it has unknown types".to_owned())
}
