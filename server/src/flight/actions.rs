//! `DoAction`: JSON in, JSON out.

use std::sync::Arc;

use arrow_flight::Result as ActionResult;
use flightcache_proto::action::{self, BoundsRequest, DrainRequest, SetCapacity, UrlRequest};
use flightcache_proto::{Error, Result, ScanRequest};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::scan::FooterAnswer;
use crate::sql::Sql;

/// Answers one action.
pub(super) async fn run(sql: &Sql, name: &str, body: &[u8]) -> Result<BoxStream<'static, Result<ActionResult>>> {
    let engine = sql.engine();
    let results = match name {
        action::STATS => vec![to_result(&engine.stats())],
        action::SLOT_MAP => vec![to_result(&*engine.slot_map())],
        action::INFO => {
            let request: UrlRequest = parse(name, body)?;
            engine.info(&request.url).await?.iter().map(to_result).collect()
        }
        action::TABLE => {
            let request: UrlRequest = parse(name, body)?;
            let (table, more) = engine.table(&request.url, request.now, &Arc::default()).await?;
            let first = to_result(&table);
            return Ok(futures::stream::iter([first].into_iter().chain(more.map(|more| to_result(&more)))).boxed());
        }
        action::BOUNDS => {
            let request: BoundsRequest = parse(name, body)?;
            vec![to_result(&engine.bounds(&request.url, &request.column).await?)]
        }
        action::SOURCES => vec![to_result(&engine.sources())],
        action::EVICT => {
            let request: UrlRequest = parse(name, body)?;
            let evicted = engine.evict_everywhere(&request).await?;
            tracing::info!(url = request.url, chunks = evicted.chunks, bytes = evicted.bytes, footers = evicted.footers, "evict");
            vec![to_result(&evicted)]
        }
        action::SET_CAPACITY => {
            let request: SetCapacity = parse(name, body)?;
            engine.set_capacity(request.capacity_bytes);
            tracing::info!(capacity_bytes = request.capacity_bytes, "set_capacity");
            vec![to_result(&engine.stats())]
        }
        action::DRAIN => {
            let request: DrainRequest = parse(name, body)?;
            vec![to_result(&engine.cluster().drain_node(&request).await?)]
        }
        action::RENEWED => vec![to_result(&engine.forget_renewed(&parse(name, body)?)?)],
        action::TABLES => vec![to_result(&sql.take_tables(&parse(name, body)?)?)],
        action::FOOTER => {
            let FooterAnswer { told, bytes } = engine.tell_footer(&parse(name, body)?)?;
            let bytes = bytes.into_iter().map(|body| Ok(ActionResult { body }));
            [to_result(&told)].into_iter().chain(bytes).collect()
        }
        action::WARM => {
            let request = ScanRequest::parse(body)?;
            return Ok(engine.warm(request).map(|progress| progress.and_then(|progress| to_result(&progress))).boxed());
        }
        _ => {
            return Err(Error::invalid(format!(
                "unknown action {name:?}; there are {}",
                action::ALL.map(|(name, _)| name).join(", ")
            )));
        }
    };
    Ok(futures::stream::iter(results).boxed())
}

fn parse<T: DeserializeOwned>(name: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| Error::invalid(format!("{name}: its body is not the JSON it takes: {e}")))
}

fn to_result(answer: &impl Serialize) -> Result<ActionResult> {
    let body = serde_json::to_vec(answer).map_err(|e| Error::internal(e.to_string()))?;
    Ok(ActionResult { body: body.into() })
}
