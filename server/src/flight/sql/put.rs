//! `DoPut`: parameters for a prepared statement, and statements that answer nothing.

use std::sync::Arc;

use arrow::ipc::root_as_message;
use arrow_flight::sql::{Command, DoPutPreparedStatementResult, DoPutUpdateResult};
use arrow_flight::{FlightData, PutResult};
use flightcache_proto::{Error, ErrorKind, Result};
use futures::TryStreamExt as _;
use prost::Message as _;
use tonic::Streaming;

use super::{command, is_flight_sql, unsupported};
use crate::sql::{Handle, Parameters, Sql};

/// Answers a `DoPut`: the new handle of a prepared statement, or that no row was changed.
pub(in super::super) async fn put(sql: &Arc<Sql>, mut messages: Streaming<FlightData>) -> Result<PutResult> {
    let unreadable = |e: &dyn std::fmt::Display| Error::invalid(format!("DoPut cannot be read: {e}"));
    let first = messages.message().await.map_err(|status| unreadable(&status.message()))?;
    let first = first.ok_or_else(|| unreadable(&"it is empty"))?;
    let bytes = first.flight_descriptor.as_ref().map(|descriptor| descriptor.cmd.clone()).unwrap_or_default();
    if !is_flight_sql(&bytes) {
        return Err(Error::new(ErrorKind::Unsupported, "DoPut takes Flight SQL commands; this server is read only"));
    }
    let app_metadata = match command(&bytes)? {
        Command::CommandPreparedStatementQuery(prepared) => {
            let handle = Handle::parse(&prepared.prepared_statement_handle)?;
            let bound = match parameters(first, messages).await? {
                Some(values) => handle.bind(values)?,
                None => handle,
            };
            let handle = bound.encode_to_vec().into();
            DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) }.encode_to_vec()
        }
        Command::CommandStatementUpdate(statement) => update(sql, Handle::of(&statement.query)).await?,
        Command::CommandPreparedStatementUpdate(prepared) => {
            update(sql, Handle::parse(&prepared.prepared_statement_handle)?).await?
        }
        other => return Err(unsupported(&other)),
    };
    Ok(PutResult { app_metadata: app_metadata.into() })
}

/// Runs a statement that answers nothing.
async fn update(sql: &Arc<Sql>, handle: Handle) -> Result<Vec<u8>> {
    let prepared = sql.prepare(handle, true).await?;
    if !prepared.schema.fields().is_empty() {
        return Err(Error::invalid("an update is asked for, but the statement is a query"));
    }
    let mut answer = sql.run(prepared.handle, &Arc::default()).await?;
    while answer.batches.try_next().await?.is_some() {}
    Ok(DoPutUpdateResult { record_count: 0 }.encode_to_vec())
}

/// The one row of parameters in a stream; nothing in one that has a schema of no columns, or none.
async fn parameters(first: FlightData, mut rest: Streaming<FlightData>) -> Result<Option<Parameters>> {
    let unreadable = |e: &dyn std::fmt::Display| Error::invalid(format!("the parameters cannot be read: {e}"));
    let mut schema = None;
    let mut parameters = None;
    let mut next = Some(first);
    while let Some(FlightData { data_header, data_body, .. }) = next {
        next = rest.message().await.map_err(|status| unreadable(&status.message()))?;
        if data_header.is_empty() {
            continue;
        }
        let message = root_as_message(&data_header).map_err(|e| unreadable(&e))?;
        if let Some(told) = message.header_as_schema() {
            let has_columns = told.fields().is_some_and(|fields| !fields.is_empty());
            schema = Some(data_header.clone()).filter(|_| has_columns);
            continue;
        }
        let Some(batch) = message.header_as_record_batch() else {
            return Err(Error::new(ErrorKind::Unsupported, "parameters are values, not dictionaries"));
        };
        let Some(schema) = schema.clone().filter(|_| batch.length() != 0) else { continue };
        if batch.length() > 1 || parameters.is_some() {
            return Err(Error::new(ErrorKind::Unsupported, "several rows of parameters; a statement takes one at a time"));
        }
        parameters = Some(Parameters { schema, batch: data_header.clone(), body: data_body });
    }
    Ok(parameters)
}
