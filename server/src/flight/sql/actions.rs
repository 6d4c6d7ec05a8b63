//! The actions of Flight SQL, and those of Flight that its clients send: all answered, nothing kept.

use std::sync::Arc;

use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, Any, Command, ProstMessageExt,
};
use arrow_flight::{CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo, Result as ActionResult};
use bytes::Bytes;
use flightcache_proto::{Error, ErrorKind, Result};
use prost::Message as _;

use super::super::service::encapsulated;
use super::{command, is_flight_sql};
use crate::scan::ipc_schema;
use crate::sql::{Handle, Sql};

/// Every action that is answered, with what it does.
pub(in super::super) const ACTIONS: [(&str, &str); 7] = [
    ("CreatePreparedStatement", "Flight SQL: plans a statement; the handle holds it"),
    ("ClosePreparedStatement", "Flight SQL: nothing to do, for nothing is kept"),
    ("CancelQuery", "Flight SQL: the older name of CancelFlightInfo"),
    ("CancelFlightInfo", "Flight: stops the answers of a SQL statement that are being read of this server"),
    ("SetSessionOptions", "Flight: taken and ignored, for there are no sessions"),
    ("GetSessionOptions", "Flight: none"),
    ("CloseSession", "Flight: nothing to do, for there are no sessions"),
];

/// Those of Flight SQL that are refused.
const REFUSED: [&str; 5] =
    ["CreatePreparedSubstraitPlan", "BeginTransaction", "EndTransaction", "BeginSavepoint", "EndSavepoint"];

/// Answers an action, if it is one of these.
pub(in super::super) async fn run(sql: &Arc<Sql>, name: &str, body: &[u8]) -> Option<Result<Vec<ActionResult>>> {
    let bodies = match name {
        "CreatePreparedStatement" => create(sql, body).await.map(|body| vec![body]),
        "ClosePreparedStatement" => unpack::<ActionClosePreparedStatementRequest>(name, body).map(|_| Vec::new()),
        "CancelQuery" => cancel_query(sql, body).map(|result| vec![result]),
        "CancelFlightInfo" => cancel_flight_info(sql, body).map(|result| vec![result]),
        // Results without errors, and without options.
        "SetSessionOptions" | "GetSessionOptions" => Ok(vec![Vec::new()]),
        // `CloseSessionResult`, status `CLOSED`.
        "CloseSession" => Ok(vec![vec![0x08, 0x01]]),
        refused if REFUSED.contains(&refused) => {
            Err(Error::new(ErrorKind::Unsupported, format!("{refused}: this server is read only and takes SQL text")))
        }
        _ => return None,
    };
    Some(bodies.map(|bodies| bodies.into_iter().map(|body| ActionResult { body: body.into() }).collect()))
}

async fn create(sql: &Arc<Sql>, body: &[u8]) -> Result<Vec<u8>> {
    let request: ActionCreatePreparedStatementRequest = unpack("CreatePreparedStatement", body)?;
    let prepared = sql.prepare(Handle::of(request.query), false).await?;
    // Empty for statements that answer nothing.
    let is_empty = prepared.schema.fields().is_empty();
    let dataset_schema = if is_empty { Bytes::new() } else { encapsulated(&ipc_schema(&prepared.schema)?) };
    let result = ActionCreatePreparedStatementResult {
        prepared_statement_handle: prepared.handle.encode_to_vec().into(),
        dataset_schema,
        parameter_schema: encapsulated(&ipc_schema(&prepared.parameters)?),
    };
    Ok(result.as_any().encode_to_vec())
}

fn cancel_query(sql: &Sql, body: &[u8]) -> Result<Vec<u8>> {
    let request: ActionCancelQueryRequest = unpack("CancelQuery", body)?;
    let info = FlightInfo::decode(request.info).map_err(|e| Error::invalid(format!("CancelQuery: not a flight: {e}")))?;
    cancel(sql, &info)?;
    Ok(ActionCancelQueryResult { result: CancelStatus::Cancelled as i32 }.as_any().encode_to_vec())
}

fn cancel_flight_info(sql: &Sql, body: &[u8]) -> Result<Vec<u8>> {
    let request = CancelFlightInfoRequest::decode(body)
        .map_err(|e| Error::invalid(format!("CancelFlightInfo: its body cannot be read: {e}")))?;
    let info = request.info.ok_or_else(|| Error::invalid("CancelFlightInfo: there is no flight"))?;
    cancel(sql, &info)?;
    Ok(CancelFlightInfoResult { status: CancelStatus::Cancelled as i32 }.encode_to_vec())
}

/// Stops what is being read of a flight. What is not known is *not found*, as `Flight.proto` asks for: it may have ended, may not
/// have begun, or be another server's.
fn cancel(sql: &Sql, info: &FlightInfo) -> Result<()> {
    let tickets = info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref());
    let mut has_stopped = false;
    for ticket in tickets.filter(|ticket| is_flight_sql(&ticket.ticket)) {
        if let Command::TicketStatementQuery(statement) = command(&ticket.ticket)? {
            has_stopped |= sql.cancel(&Handle::parse(&statement.statement_handle)?);
        }
    }
    if has_stopped { Ok(()) } else { Err(Error::new(ErrorKind::NotFound, "no answer of this flight is being read here")) }
}

fn unpack<M: ProstMessageExt>(name: &str, body: &[u8]) -> Result<M> {
    let invalid = |e: String| Error::invalid(format!("{name}: its body cannot be read: {e}"));
    let any = Any::decode(body).map_err(|e| invalid(e.to_string()))?;
    let message = any.unpack().map_err(|e| invalid(e.to_string()))?;
    message.ok_or_else(|| invalid(format!("it is a {}", any.type_url)))
}
