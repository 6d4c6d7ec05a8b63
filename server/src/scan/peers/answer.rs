//! Answering another server that asks for column chunks.

use std::collections::BTreeMap;
use std::sync::Arc;

use flightcache_proto::{Error, ErrorKind, PeerAsk, Result, ScanRequest, Share, Slot, Ticket};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::oneshot;

use super::{moved, slot_of};
use crate::admin::ScanMeter;
use crate::cache::Pinned;
use crate::object::Segments;
use crate::parquet::RowGroupFile;
use crate::scan::load::{Held, RowGroupRef};
use crate::scan::parquet_rows::ParquetRows;
use crate::scan::resident::{ChunkKey, Form, PinnedChunk, Resident};
use crate::scan::row_group::{Column, ResidentRows};
use crate::scan::{Batch, Engine, Part, ScanPlan, Takes, file_column};
use crate::settings::Residency;

/// What another server is sent of a row group.
pub(crate) struct ForPeer {
    /// Of the columns that are sent.
    pub(crate) plan: Arc<ScanPlan>,
    group: RowGroupRef,
    /// Of the file, in the same order.
    columns: Vec<usize>,
    sends: Sends,
}

enum Sends {
    /// It was asked to have them, not to send them.
    Nothing,
    /// What is resident.
    Resident(Vec<Pinned<Resident>>),
    /// All, once they are loaded.
    Loaded(Form),
}

impl Engine {
    /// Refuses to load for another server what by the map here is not this one's to load.
    fn check_ask(&self, share: &Share, ask: PeerAsk) -> Result<()> {
        let [object] = &share.objects[..] else {
            return Err(Error::invalid("servers ask each other for one object's row groups"));
        };
        let slot: Option<Slot> = slot_of(object).filter(|_| object.row_groups.as_ref().is_some_and(|groups| groups.len() == 1));
        let slot = slot.ok_or_else(|| Error::invalid("servers ask each other for one row group, which they name"))?;
        let ScanRequest { url, columns, populate, .. } = share.scan.clone();
        if columns.is_none() || share.scan != (ScanRequest { columns, populate, ..ScanRequest::new(url) }) {
            return Err(Error::invalid("servers ask each other for whole columns, which they name"));
        }
        let map = self.slot_map();
        if ask != PeerAsk::Resident && map.owner(slot).id != self.cluster.node_id() {
            return Err(moved(slot, &map));
        }
        Ok(())
    }

    /// What another server asks for: column chunks as they rest, as Parquet bytes if that is how they do.
    ///
    /// The version in the ticket is one that the asking server has validated: here it is not validated again.
    pub(crate) async fn for_peer(
        self: &Arc<Self>,
        ticket: &Ticket,
        ask: PeerAsk,
        takes: Takes,
        meter: &Arc<ScanMeter>,
    ) -> Result<ForPeer> {
        let Ticket::Share(share) = ticket else {
            return Err(Error::invalid("servers ask each other for shares of one row group"));
        };
        self.check_ask(share, ask)?;
        let plan = Arc::new(self.plan_for_peer(ticket, share, meter).await?);
        let nothing = || Error::new(ErrorKind::NotFound, format!("{}: nothing of it is resident", share.scan.url));
        let object = plan.objects.first().ok_or_else(nothing)?;
        let &row_group = object.row_groups.first().ok_or_else(nothing)?;
        let columns: Option<Vec<usize>> = plan.output.iter().map(|&column| file_column(&object.columns[column])).collect();
        let columns = columns.ok_or_else(|| Error::invalid("servers ask each other for columns of the file"))?;
        let group = RowGroupRef {
            footer: Arc::clone(&object.footer),
            row_group,
            request: self.next_request().0,
            populate: plan.request.populate,
            meter: Arc::clone(meter),
            record: None,
            is_for_peer: true,
        };
        if ask == PeerAsk::Warm {
            self.load_to_rest(&group, &columns).await?;
            return Ok(ForPeer { plan, group, columns, sends: Sends::Nothing });
        }
        let form = match self.residency {
            Residency::Parquet | Residency::Auto if takes.parquet => Form::Encoded,
            Residency::Arrow if takes.dictionaries => Form::Decoded,
            _ => return Err(Error::new(ErrorKind::Unsupported, "chunks rest in another form here than was asked for")),
        };
        if ask == PeerAsk::Load {
            return Ok(ForPeer { plan, group, columns, sends: Sends::Loaded(form) });
        }
        let id = group.footer.id.as_ref().ok_or_else(nothing)?;
        let entry =
            |column: usize| self.chunks.peek(&ChunkKey { object: Arc::clone(id), row_group, column: column as u32, form });
        let found: Vec<(usize, usize, Pinned<Resident>)> =
            plan.output.iter().zip(columns).filter_map(|(&at, column)| Some((at, column, entry(column)?))).collect();
        if found.is_empty() {
            return Err(nothing());
        }
        let plan = Arc::new(plan.of_columns(found.iter().map(|(at, ..)| *at).collect())?);
        let columns = found.iter().map(|(_, column, _)| *column).collect();
        Ok(ForPeer { plan, group, columns, sends: Sends::Resident(found.into_iter().map(|(.., entry)| entry).collect()) })
    }
}

impl ForPeer {
    /// The parts of the answer.
    pub(crate) fn parts(self, engine: &Arc<Engine>, meter: &Arc<ScanMeter>, takes: Takes) -> BoxStream<'static, Result<Part>> {
        let Self { plan, group, columns, sends } = self;
        let takes = Takes { parquet: false, is_for_peer: true, ..takes };
        match sends {
            Sends::Nothing => stream::empty().boxed(),
            Sends::Loaded(Form::Decoded) => engine.answer(plan, Arc::clone(meter), takes).boxed(),
            Sends::Loaded(Form::Encoded) => {
                let engine = Arc::clone(engine);
                let load = async move {
                    let loaded = engine.encoded_chunks(&group, &columns, oneshot::channel().0).await;
                    let (segments, held) = loaded.map_err(|error| engine.load_error(&group, &columns, error))?;
                    bytes(&group, &columns, &segments, held)
                };
                stream::once(load).boxed()
            }
            Sends::Resident(entries) => {
                let encoded = entries.iter().map(|entry| match &***entry {
                    Resident::Encoded(segments) => Some(segments.clone()),
                    Resident::Decoded(_) => None,
                });
                if let Some(segments) = encoded.collect::<Option<Vec<_>>>() {
                    return stream::iter([bytes(&group, &columns, &Segments::join(segments), Box::new(entries))]).boxed();
                }
                let chunks = plan.output.iter().copied().zip(entries.into_iter().filter_map(PinnedChunk::new));
                let chunks: BTreeMap<usize, Column> = chunks.map(|(at, chunk)| (at, Column::Chunk(chunk))).collect();
                let rows = ResidentRows::new(chunks, group.footer.row_group_rows(group.row_group), None, &plan);
                resident(plan, rows, takes).boxed()
            }
        }
    }
}

/// Column chunks as Parquet bytes, one after the other. No file: who asked for them has the footer.
fn bytes(group: &RowGroupRef, columns: &[usize], segments: &Segments, held: Held) -> Result<Part> {
    let parts: Option<Vec<_>> = group.ranges(columns).into_iter().map(|range| segments.get(range)).collect();
    let parts =
        parts.ok_or_else(|| Error::internal(format!("{}: bytes are missing of what was read", group.footer.object.url())))?;
    let (url, rows) = (group.footer.object.shared_url(), group.footer.row_group_rows(group.row_group));
    let file = RowGroupFile { url, row_group: group.row_group, rows, parts };
    Ok(Part::Parquet(ParquetRows { file, held: held.into() }))
}

fn resident(plan: Arc<ScanPlan>, rows: ResidentRows, takes: Takes) -> impl futures::Stream<Item = Result<Part>> + Send {
    let mut rows = rows;
    let held = rows.held();
    stream::iter(std::iter::from_fn(move || rows.next_batch(&plan, takes)))
        .map(move |batch| Ok(Part::Batch(Batch { rows: batch?, held: Some(Arc::clone(&held)) })))
}
