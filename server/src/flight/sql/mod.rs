//! Flight SQL: commands and tickets that are `Any` messages of `arrow.flight.protocol.sql`.
//!
//! Statements are run by [`crate::sql`]; their handles hold all there is to them, so that nothing is kept between requests and
//! any server answers any of them.

mod actions;
mod answer;
mod metadata;
mod put;

use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow_flight::sql::{Any, Command, ProstMessageExt as _, TicketStatementQuery};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, SchemaResult, Ticket as FlightTicket};
use bytes::Bytes;
use flightcache_proto::{Error, ErrorKind, Result};
use prost::Message as _;

pub(super) use actions::{ACTIONS, run};
pub(super) use answer::open;
pub(super) use put::put;

use super::service::encapsulated;
use crate::scan::ipc_schema;
use crate::sql::{Handle, Prepared, Sql};

/// How the type URLs of all Flight SQL messages begin.
const TYPE_URL: &[u8] = b"type.googleapis.com/arrow.flight.protocol.sql.";
/// The key of an `Any` message's type URL.
const TYPE_URL_KEY: u8 = 0x0a;

/// Whether a ticket or command is a Flight SQL message: by its first bytes, which no ticket or scan of ours has.
pub(super) fn is_flight_sql(bytes: &[u8]) -> bool {
    bytes.first() == Some(&TYPE_URL_KEY) && bytes.get(2..).is_some_and(|rest| rest.starts_with(TYPE_URL))
}

fn command(bytes: &[u8]) -> Result<Command> {
    let any = Any::decode(bytes).map_err(|e| Error::invalid(format!("not a Flight SQL message: {e}")))?;
    Command::try_from(any).map_err(|e| Error::invalid(format!("not a Flight SQL message: {e}")))
}

fn unsupported(command: &Command) -> Error {
    let name = command.type_url().rsplit('.').next().unwrap_or_default().to_owned();
    Error::new(ErrorKind::Unsupported, format!("{name} is not supported here"))
}

/// Plans what a descriptor's command asks for.
pub(super) async fn info(sql: &Arc<Sql>, descriptor: FlightDescriptor) -> Result<FlightInfo> {
    let (schema, ticket) = plan(sql, &descriptor.cmd).await?;
    // Without a location: to be had where it was asked, or of any other server.
    let endpoint = FlightEndpoint { ticket: Some(FlightTicket { ticket }), ..FlightEndpoint::default() };
    Ok(FlightInfo {
        schema: encapsulated(&ipc_schema(&schema)?),
        flight_descriptor: Some(descriptor),
        endpoint: vec![endpoint],
        total_records: -1,
        total_bytes: -1,
        ordered: true,
        ..FlightInfo::default()
    })
}

/// The schema of what a descriptor's command asks for.
pub(super) async fn schema(sql: &Arc<Sql>, descriptor: &FlightDescriptor) -> Result<SchemaResult> {
    let (schema, _) = plan(sql, &descriptor.cmd).await?;
    Ok(SchemaResult { schema: encapsulated(&ipc_schema(&schema)?) })
}

/// The schema of a command's answer, and the ticket for it.
async fn plan(sql: &Arc<Sql>, bytes: &Bytes) -> Result<(Arc<Schema>, Bytes)> {
    let command = command(bytes)?;
    if let Some(schema) = metadata::schema(&command) {
        return Ok((schema, bytes.clone()));
    }
    let handle = match &command {
        Command::CommandStatementQuery(statement) => Handle::of(&statement.query),
        Command::CommandPreparedStatementQuery(prepared) => Handle::parse(&prepared.prepared_statement_handle)?,
        other => return Err(unsupported(other)),
    };
    let Prepared { handle, schema, .. } = sql.prepare(handle, true).await?;
    let ticket = TicketStatementQuery { statement_handle: handle.encode_to_vec().into() };
    Ok((schema, ticket.as_any().encode_to_vec().into()))
}

#[cfg(test)]
mod tests {
    use arrow_flight::sql::{CommandGetSqlInfo, CommandPreparedStatementQuery, CommandStatementQuery};
    use flightcache_proto::{ScanRequest, Ticket};

    use super::*;

    #[test]
    fn messages_are_told_apart_by_their_first_bytes() {
        let statement = CommandStatementQuery { query: "select 1".repeat(1_000), transaction_id: None };
        for any in [
            statement.as_any(),
            CommandPreparedStatementQuery { prepared_statement_handle: Bytes::new() }.as_any(),
            CommandGetSqlInfo { info: vec![] }.as_any(),
            TicketStatementQuery { statement_handle: vec![0; 70_000].into() }.as_any(),
        ] {
            assert!(is_flight_sql(&any.encode_to_vec()), "{}", any.type_url);
        }
        let scan = ScanRequest::new("s3://lake/t.parquet");
        let json = serde_json::to_vec(&scan).unwrap();
        for bytes in [&Ticket::Scan(scan.clone()).encode()[..], &scan.to_protobuf(), &json, b"", b"\x0a", b"\x0a\x40type"] {
            assert!(!is_flight_sql(bytes));
        }
    }
}
