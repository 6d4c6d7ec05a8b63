//! Planning: which row groups of which object versions a scan reads, and the schema it answers with.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use flightcache_proto::{
    Error, ErrorKind, ObjectShare, Part, Result, ScanRequest, Share, Slot, SlotMap, Ticket, Version, aggregation,
};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3Default;

use super::Engine;
use super::aggregate::Aggregate;
use super::predicate::Predicate;
use super::table::TablePart;
use crate::admin::ScanMeter;
use crate::object::{HiveColumns, ObjectRef, Target, hive_value};
use crate::parquet::{Footer, fixed_bytes, nowhere, prune_row_groups};

/// Footers read at a time.
const FOOTERS_AT_A_TIME: usize = 32;
/// Objects one share may name: tickets stay small.
const MAX_SHARE_OBJECTS: usize = 4_096;
/// Bytes of all shares of a scan together, where owners would cut it into many: clients take messages of 4 MiB.
const MAX_SHARES_BYTES: usize = 2 << 20;
/// Bytes of a share, beside what was asked.
const SHARE_BYTES: usize = 400;
/// Bytes a NULL may take that stands for a column an object lacks: it is repeated for each row.
const MAX_CONSTANT_BYTES: u64 = 4 << 10;
/// Times a scan is planned anew because an object turned out overwritten or gone meanwhile.
const MAX_REPLANS: usize = 3;
/// Row numbers one scan may name.
const MAX_ROW_NUMBERS: usize = 1_000_000;

/// Where a table column's values come from in one object.
#[derive(Clone, Debug)]
pub(crate) enum ColumnSource {
    /// A root column of the file.
    File(usize),
    /// The same for all rows: a partition value, or NULL where the file lacks the column.
    Constant(ScalarValue),
}

/// A scan, decided: everything but the data.
pub struct ScanPlan {
    /// What was asked.
    pub request: ScanRequest,
    /// The schema of its rows.
    pub schema: SchemaRef,
    /// All columns of the table.
    pub(crate) table: SchemaRef,
    /// The table columns of the answer, in order.
    pub(crate) output: Vec<usize>,
    pub(crate) predicate: Option<Arc<Predicate>>,
    /// What is answered instead of rows.
    pub(crate) aggregate: Option<Arc<Aggregate>>,
    pub(crate) objects: Vec<ObjectPlan>,
    /// A fingerprint of the objects and their versions; zero where some have none.
    pub(crate) versions: u64,
    /// What `now()` means in its filter, in microseconds since 1970.
    asked_at_us: i64,
    /// The table's schema was given by a ticket or merged from several objects.
    pub(crate) spans_objects: bool,
    /// Room for what answers with it make of its schema.
    opening: OnceLock<Arc<dyn Any + Send + Sync>>,
    /// Room for its objects' statistics, in parts.
    pub(super) statistics: OnceLock<std::result::Result<Arc<[TablePart]>, String>>,
}

/// One object's part of a scan.
#[derive(Clone)]
pub(crate) struct ObjectPlan {
    pub(crate) footer: Arc<Footer>,
    /// By table column.
    pub(crate) columns: Arc<Vec<ColumnSource>>,
    pub(crate) row_groups: Vec<u32>,
    /// Row groups that statistics ruled out.
    pub(crate) pruned: u64,
    /// Whether all of the object is read here, so that an overwrite can be followed.
    pub(crate) whole: bool,
}

/// An object to plan: what a listing or a ticket said of it.
struct Candidate {
    object: ObjectRef,
    listed: Option<(Version, Instant)>,
    share: Option<ObjectShare>,
}

impl ScanPlan {
    /// What `make` makes of the plan's schema, for this answer and all later ones.
    pub fn opening<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        if let Some(Ok(made)) = self.opening.get().map(|made| Arc::clone(made).downcast()) {
            return Ok(made);
        }
        let made = Arc::new(make()?);
        // Another answer may have been first.
        let _ = self.opening.set(Arc::clone(&made) as Arc<dyn Any + Send + Sync>);
        Ok(made)
    }

    /// The schema of the answer.
    pub fn answer_schema(&self) -> &SchemaRef {
        self.aggregate.as_ref().map_or(&self.schema, |aggregate| &aggregate.schema)
    }

    /// Rows the answer has, where neither filter nor aggregate leaves it open.
    pub fn exact_rows(&self) -> Option<u64> {
        if self.aggregate.is_some() {
            return None;
        }
        if let Some(rows) = &self.request.rows {
            return self.predicate.is_none().then(|| (rows.len() as u64).min(self.request.limit.unwrap_or(u64::MAX)));
        }
        let rows: u64 = self.row_groups().map(|(object, group)| object.footer.row_group_rows(group) as u64).sum();
        match (&self.predicate, rows) {
            (None, rows) => Some(rows.min(self.request.limit.unwrap_or(u64::MAX))),
            (Some(_), 0) => Some(0),
            (Some(_), _) => None,
        }
    }

    /// Estimate of the decoded bytes of the columns it returns, all of their rows.
    pub fn estimated_bytes(&self) -> u64 {
        self.row_groups().map(|(object, group)| self.decoded_bytes(object, group)).sum()
    }

    pub(super) fn decoded_bytes(&self, object: &ObjectPlan, group: u32) -> u64 {
        let file_columns = self.output.iter().filter_map(|&column| match object.columns[column] {
            ColumnSource::File(column) => Some(column),
            ColumnSource::Constant(_) => None,
        });
        file_columns.map(|column| object.footer.decoded_bytes_estimate(group, column)).sum()
    }

    fn row_groups(&self) -> impl Iterator<Item = (&ObjectPlan, u32)> {
        self.objects.iter().flat_map(|object| object.row_groups.iter().map(move |&group| (object, group)))
    }

    /// Table columns that have to be read: the filter's and the answer's.
    pub(crate) fn read_columns(&self) -> Vec<usize> {
        let mut columns = self.output.clone();
        columns.extend(self.predicate.iter().flat_map(|predicate| predicate.columns()));
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    /// The same of some table columns only.
    pub(super) fn of_columns(&self, output: Vec<usize>) -> Result<Self> {
        let schema = self.table.project(&output).map_err(|e| Error::internal(e.to_string()))?;
        let names = schema.fields().iter().map(|field| field.name().clone()).collect();
        Ok(Self {
            request: ScanRequest { columns: Some(names), ..self.request.clone() },
            schema: Arc::new(schema),
            table: Arc::clone(&self.table),
            output,
            predicate: self.predicate.clone(),
            aggregate: self.aggregate.clone(),
            objects: self.objects.clone(),
            opening: OnceLock::new(),
            statistics: OnceLock::new(),
            ..*self
        })
    }

    /// Cuts the scan into shares of up to `target_bytes` decoded, at most `max_shares`, in order; and where other owners' row groups
    /// begin, unless that would make very many. Scans with a limit or row numbers stay whole: only one reader can know when to
    /// stop, or keep the order.
    pub fn shares(&self, map: &SlotMap, target_bytes: u64, max_shares: u64) -> Result<Vec<(Ticket, Slot)>> {
        let target = target_bytes.max(self.estimated_bytes() / max_shares.max(1) + 1);
        let is_whole = self.request.limit.is_some() || self.request.rows.is_some();
        let schema = if self.spans_objects { Some(super::ipc_schema(&self.table)?) } else { None };
        // Each repeats what was asked, and names its object and its owners.
        let location_bytes = map.nodes().iter().map(|node| node.uri.as_ref().map_or(0, String::len)).max().unwrap_or(0);
        let owners = map.ranges().iter().map(|range| range.owners.len()).max().unwrap_or(0);
        let asked_bytes = self.request.to_protobuf().len() + schema.as_ref().map_or(0, Vec::len);
        let share_bytes = SHARE_BYTES + asked_bytes + location_bytes * owners;
        let of_object = |object: &ObjectPlan| (share_bytes + object.footer.object.url().len()) * object.row_groups.len();
        let is_cut_by_owner = map.ranges().len() > 1 && self.objects.iter().map(of_object).sum::<usize>() <= MAX_SHARES_BYTES;
        let new_share = |slot: Slot| {
            let share = Share {
                scan: self.request.clone(),
                objects: Vec::new(),
                epoch: map.epoch(),
                schema: schema.clone(),
                schema_hash: answer_hash(&self.request, &self.schema),
                asked_at_us: self.asked_at_us,
            };
            (share, slot)
        };
        let mut shares: Vec<(Share, Slot)> = Vec::new();
        let mut filled = 0;
        for object in &self.objects {
            let url = object.footer.object.url();
            let mut is_new = true;
            for &group in &object.row_groups {
                let slot = Slot::of(url, Part::RowGroup(group));
                let is_full = |(share, of): &(Share, Slot)| {
                    let is_anothers = || is_cut_by_owner && map.owner_indexes(*of) != map.owner_indexes(slot);
                    !is_whole && (filled >= target || share.objects.len() >= MAX_SHARE_OBJECTS || is_anothers())
                };
                if shares.last().is_none_or(is_full) {
                    shares.push(new_share(slot));
                    filled = 0;
                    is_new = true;
                }
                filled += self.decoded_bytes(object, group).max(1);
                let Some((share, _)) = shares.last_mut() else { continue };
                match share.objects.last_mut() {
                    Some(part) if !is_new => part.row_groups.get_or_insert_default().push(group),
                    _ => share.objects.push(object.share(vec![group])),
                }
                is_new = false;
            }
            // What holds all of an object's row groups need not be tied to its version.
            let last = shares.last_mut().and_then(|(share, _)| share.objects.last_mut());
            if let Some(part) = last.filter(|part| part.row_groups.as_ref() == Some(&object.row_groups) && part.url == url)
                && object.whole
            {
                part.row_groups = None;
            }
        }
        if shares.is_empty() {
            // Nothing to read: one share still tells the schema.
            if let Some(object) = self.objects.first() {
                let (mut share, slot) = new_share(Slot::of(object.footer.object.url(), Part::Footer));
                let nothing = ObjectShare {
                    row_groups: (!object.whole || !object.row_groups.is_empty()).then(Vec::new),
                    ..object.share(Vec::new())
                };
                share.objects.push(nothing);
                shares.push((share, slot));
            }
        }
        Ok(shares.into_iter().map(|(share, slot)| (ticket(share), slot)).collect())
    }
}

/// The ticket of a share. One of very many objects, which only a scan that cannot be cut has, is that scan.
fn ticket(share: Share) -> Ticket {
    if share.objects.len() > MAX_SHARE_OBJECTS { Ticket::Scan(share.scan) } else { Ticket::Share(share) }
}

/// A fingerprint of what is answered: of rows by their schema, of states by what they are of.
fn answer_hash(request: &ScanRequest, schema: &Schema) -> u64 {
    request.aggregation.as_deref().map_or_else(|| schema_hash(schema), aggregation::schema_hash)
}

/// A fingerprint of names, types and nullability.
fn schema_hash(schema: &Schema) -> u64 {
    let mut hasher = Xxh3Default::new();
    for field in schema.fields() {
        hasher.update(format!("{:?} {} {};", field.name(), field.data_type(), field.is_nullable()).as_bytes());
    }
    hasher.digest()
}

/// A fingerprint of objects and their versions; zero where some have none.
pub(crate) fn versions(objects: &[ObjectPlan]) -> u64 {
    let mut hasher = Xxh3Default::new();
    for object in objects {
        let Some(version) = object.footer.version() else { return 0 };
        hasher.update(format!("{} {version};", object.footer.object.url()).as_bytes());
    }
    // Zero says something else.
    hasher.digest().max(1)
}

impl ObjectPlan {
    fn share(&self, row_groups: Vec<u32>) -> ObjectShare {
        ObjectShare {
            url: self.footer.object.url().to_owned(),
            version: self.footer.version().map(ToString::to_string),
            row_groups: Some(row_groups),
        }
    }
}

impl Engine {
    /// Plans a scan, or one share of it. A plan that was made for the same ticket holds while the footers are the same.
    pub async fn plan(self: &Arc<Self>, ticket: &Ticket, meter: &Arc<ScanMeter>) -> Result<Arc<ScanPlan>> {
        let started = std::time::Instant::now();
        let mut replans = 0;
        let plan = loop {
            let error = match self.plan_once(ticket, meter).await {
                Ok(plan) => break plan,
                Err(error) => error,
            };
            // A listing may tell of objects that are gone, and a footer of a version that is: both are forgotten by now.
            let may_pass = match (error.kind, ticket) {
                (ErrorKind::Changed, _) => true,
                (ErrorKind::NotFound, Ticket::Scan(request)) => self.listings.forget(&request.url),
                _ => false,
            };
            if !may_pass || replans == MAX_REPLANS {
                return Err(error);
            }
            replans += 1;
        };
        self.count_pruned(plan.objects.iter().map(|object| object.pruned).sum(), meter);
        meter.versions.store(plan.versions, Ordering::Relaxed);
        self.metrics.plan_seconds.observe(started.elapsed().as_secs_f64());
        Ok(plan)
    }

    async fn plan_once(self: &Arc<Self>, ticket: &Ticket, meter: &Arc<ScanMeter>) -> Result<Arc<ScanPlan>> {
        let candidates = match ticket {
            Ticket::Share(share) => self.candidates_of(share)?,
            Ticket::Scan(request) => self.candidates(&request.url).await?,
        };
        let footers: Vec<(Arc<Footer>, Candidate)> = futures::stream::iter(candidates)
            .map(|candidate| async move {
                let listed = candidate.listed.as_ref().map(|(version, at)| (version, *at));
                let elsewhere = self.footer_elsewhere(&candidate.object, candidate.share.as_ref());
                let footer = self.footers.get(&candidate.object, listed, elsewhere, meter).await?;
                Ok::<_, Error>((footer, candidate))
            })
            .buffered(FOOTERS_AT_A_TIME)
            .try_collect()
            .await?;
        if let Some(plan) = self.plans.get(ticket, footers.iter().map(|(footer, _)| footer)) {
            return Ok(plan);
        }
        // With many footers that are there, nothing below would wait, and requests begin in their connection's task
        // (`flight/port.rs`): what takes so long must not keep the others of that connection. Here this one goes to a task of its
        // own.
        tokio::task::yield_now().await;
        let plan = Arc::new(self.plan_on(ticket, footers, meter).await?);
        self.plans.keep(ticket, &plan);
        Ok(plan)
    }

    /// Plans what another server asks for, which is of one version, validated there. It is another thing for each row group, so the plan is
    /// not kept.
    pub(super) async fn plan_for_peer(
        self: &Arc<Self>,
        ticket: &Ticket,
        share: &Share,
        meter: &Arc<ScanMeter>,
    ) -> Result<ScanPlan> {
        let mut footers = Vec::new();
        for candidate in self.candidates_of(share)? {
            let version = candidate.share.as_ref().and_then(|share| share.version.clone());
            let version = version.ok_or_else(|| Error::invalid("servers ask each other for versions, which they name"))?;
            let elsewhere = self.footer_elsewhere(&candidate.object, candidate.share.as_ref());
            let footer = self.footers.of_version(&candidate.object, &version, elsewhere, meter).await?;
            footers.push((footer, candidate));
        }
        let plan = self.plan_on(ticket, footers, meter).await?;
        meter.versions.store(plan.versions, Ordering::Relaxed);
        Ok(plan)
    }

    async fn plan_on(
        self: &Arc<Self>,
        ticket: &Ticket,
        footers: Vec<(Arc<Footer>, Candidate)>,
        meter: &Arc<ScanMeter>,
    ) -> Result<ScanPlan> {
        let (request, share) = match ticket {
            Ticket::Scan(request) => (request.clone(), None),
            Ticket::Share(share) => (share.scan.clone(), Some(share)),
        };
        let given_schema = share.and_then(|share| share.schema.as_deref()).map(super::parse_ipc_schema).transpose()?;
        let asked_at_us =
            share.map(|share| share.asked_at_us).filter(|at| *at != 0).unwrap_or_else(|| chrono::Utc::now().timestamp_micros());
        let spans_objects = given_schema.is_some() || footers.len() > 1;
        let table = match given_schema {
            Some(schema) => Arc::new(schema),
            None => Arc::new(table_schema(&footers)?),
        };
        let output = output_columns(&request, &table)?;
        let schema = Arc::new(table.project(&output).map_err(|e| Error::internal(e.to_string()))?);
        if share.is_some_and(|share| share.schema_hash != 0 && share.schema_hash != answer_hash(&request, &schema)) {
            let message =
                format!("{}: the answer's schema changed since the ticket was made; ask for the flight again", request.url);
            return Err(Error::new(ErrorKind::Changed, message));
        }
        let filter = request.filter.as_ref().map(|sql| Predicate::parse(&self.planner, sql, &table, asked_at_us)).transpose()?;
        let sent =
            request.predicate.as_ref().map(|bytes| Predicate::read(&self.planner, bytes, &table, asked_at_us)).transpose()?;
        let predicate = match (filter, sent) {
            (Some(filter), Some(sent)) => Some(filter.and(sent)?),
            (filter, sent) => filter.or(sent),
        };
        let predicate = predicate.map(Arc::new);
        let aggregate = request.aggregation.as_ref().map(|bytes| Aggregate::read(bytes, &schema)).transpose()?.map(Arc::new);
        if aggregate.is_some() && (request.limit.is_some() || request.rows.is_some()) {
            return Err(Error::invalid(format!("{}: neither limits nor row numbers go with aggregates", request.url)));
        }
        check_rows(&request, &footers)?;
        let mut plan = ScanPlan {
            request,
            schema,
            table,
            output,
            predicate,
            aggregate,
            objects: Vec::new(),
            versions: 0,
            asked_at_us,
            spans_objects,
            opening: OnceLock::new(),
            statistics: OnceLock::new(),
        };
        let planned = futures::stream::iter(footers).map(|(footer, candidate)| {
            let plan = &plan;
            async move { self.plan_object(plan, footer, candidate.share.as_ref(), meter).await }
        });
        plan.objects = planned.buffered(FOOTERS_AT_A_TIME).try_collect().await?;
        plan.versions = versions(&plan.objects);
        plan.stop_at_limit();
        Ok(plan)
    }

    /// Plans one object of a scan on a given footer.
    pub(crate) async fn plan_object(
        &self,
        plan: &ScanPlan,
        footer: Arc<Footer>,
        share: Option<&ObjectShare>,
        meter: &Arc<ScanMeter>,
    ) -> Result<ObjectPlan> {
        let groups = footer.metadata.num_row_groups() as u32;
        let asked = share.and_then(|share| share.row_groups.clone());
        if let Some(share) = share.filter(|share| share.row_groups.is_some())
            && share.version != footer.version().map(ToString::to_string)
        {
            let message = format!("{}: overwritten since the ticket was made; ask for the flight again", share.url);
            return Err(Error::new(ErrorKind::Changed, message));
        }
        let whole = asked.is_none();
        let row_groups = asked.unwrap_or_else(|| (0..groups).collect());
        if let Some(bad) = row_groups.iter().find(|&&group| group >= groups) {
            return Err(Error::invalid(format!("{}: no row group {bad}, there are {groups}", footer.object.url())));
        }
        let columns = sources(&plan.table, &footer, plan.spans_objects)?;
        let mut pruned = 0;
        let mut row_groups: Vec<u32> = row_groups.into_iter().filter(|&group| footer.row_group_rows(group) > 0).collect();
        if let (Some(predicate), None) = (&plan.predicate, &plan.request.rows) {
            let constants: Vec<_> = columns
                .iter()
                .enumerate()
                .filter_map(|(column, source)| match source {
                    ColumnSource::Constant(value) => Some((plan.table.field(column).name().clone(), value.clone())),
                    ColumnSource::File(_) => None,
                })
                .collect();
            let before = row_groups.len();
            let left =
                prune_row_groups(&footer, row_groups, predicate.announced(), &plan.table, &constants, &self.blooms, meter).await;
            row_groups = left.map_err(|error| self.of_footer(&footer, error))?;
            pruned = (before - row_groups.len()) as u64;
        }
        Ok(ObjectPlan { footer, columns: Arc::new(columns), row_groups, pruned, whole })
    }

    /// Plans an object anew, on its current version, that was found overwritten.
    pub(crate) async fn replan_object(&self, plan: &ScanPlan, old: &ObjectPlan, meter: &Arc<ScanMeter>) -> Result<ObjectPlan> {
        let object = old.footer.object.clone();
        self.footers.forget(object.url());
        let footer = self.footers.get(&object, None, nowhere, meter).await?;
        // The answer's schema, and the places of its columns, are those of the version first seen.
        if !plan.spans_objects && footer.schema.fields() != old.footer.schema.fields() {
            let message = format!("{}: overwritten while it was read, by one of another schema", object.url());
            return Err(Error::new(ErrorKind::Changed, message));
        }
        let renewed = self.plan_object(plan, footer, None, meter).await?;
        self.count_pruned(renewed.pruned, meter);
        Ok(renewed)
    }

    async fn candidates(&self, url: &str) -> Result<Vec<Candidate>> {
        Ok(match self.sources.resolve(url)? {
            Target::Object(object) => vec![Candidate { object, listed: None, share: None }],
            Target::Many(pattern) => {
                let listing = self.listings.list(&pattern).await?;
                let listed = |version: &Option<Version>| version.clone().map(|version| (version, listing.asked_at));
                listing
                    .objects
                    .iter()
                    .map(|o| Candidate { object: o.object.clone(), listed: listed(&o.version), share: None })
                    .collect()
            }
        })
    }

    fn candidates_of(&self, share: &Share) -> Result<Vec<Candidate>> {
        if share.objects.is_empty() {
            return Err(Error::invalid("ticket: a share of no objects"));
        }
        let candidate = |share: &ObjectShare| {
            Ok(Candidate { object: self.sources.object(&share.url)?, listed: None, share: Some(share.clone()) })
        };
        share.objects.iter().map(candidate).collect()
    }
}

impl ScanPlan {
    /// Without a filter, row groups beyond the limit need not be opened.
    fn stop_at_limit(&mut self) {
        let (Some(mut left), None, None) = (self.request.limit, &self.predicate, &self.request.rows) else { return };
        for object in &mut self.objects {
            let footer = Arc::clone(&object.footer);
            object.row_groups.retain(|&group| {
                let wanted = left > 0;
                left = left.saturating_sub(footer.row_group_rows(group) as u64);
                wanted
            });
        }
    }
}

/// The columns of all objects: the files' in order of first appearance, then the partition columns they do not hold.
fn table_schema(footers: &[(Arc<Footer>, Candidate)]) -> Result<Schema> {
    let mut metadata = std::collections::HashMap::new();
    let mut fields: Vec<Field> = Vec::new();
    let mut at: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for (index, (footer, _)) in footers.iter().enumerate() {
        if index == 0 {
            metadata.clone_from(footer.schema.metadata());
        }
        let mut missing = fields.len();
        for field in footer.schema.fields() {
            match at.get(field.name()).filter(|_| footers.len() > 1) {
                Some(&known) if fields[known].data_type() == field.data_type() || field.data_type().is_null() => {
                    missing -= 1;
                    if field.is_nullable() {
                        fields[known] = fields[known].clone().with_nullable(true);
                    }
                }
                // Writers that saw no value of a column do not know its type.
                Some(&known) if fields[known].data_type().is_null() => {
                    missing -= 1;
                    fields[known] = field.as_ref().clone().with_nullable(true);
                }
                Some(&known) => {
                    let message = format!(
                        "column {:?} is {} in {} and {} in an earlier object: read them apart",
                        field.name(),
                        field.data_type(),
                        footer.object.url(),
                        fields[known].data_type()
                    );
                    return Err(Error::invalid(message));
                }
                None => {
                    at.insert(field.name().clone(), fields.len());
                    let field = field.as_ref().clone();
                    fields.push(if index > 0 { field.with_nullable(true) } else { field });
                }
            }
        }
        if missing > 0 && index > 0 {
            // Some earlier column is not in this file: NULL there.
            for field in &mut fields {
                if footer.schema.index_of(field.name()).is_err() {
                    *field = field.clone().with_nullable(true);
                }
            }
        }
    }
    let hive = HiveColumns::infer(footers.iter().map(|(footer, _)| within_source(&footer.object)));
    fields.extend(hive.fields().iter().filter(|field| !at.contains_key(field.name())).cloned());
    Ok(Schema::new_with_metadata(fields, metadata))
}

/// The part of a key below its source's root: directories above it are the operator's business.
fn within_source(object: &ObjectRef) -> &str {
    &object.url()[object.source().root().len()..]
}

fn sources(table: &Schema, footer: &Footer, by_name: bool) -> Result<Vec<ColumnSource>> {
    let file_columns = footer.schema.fields().len();
    let source = |(index, field): (usize, &Arc<Field>)| {
        // One object's columns are its table's first ones; names need not be unique then.
        let file_column =
            if by_name { footer.schema.index_of(field.name()).ok() } else { Some(index).filter(|index| *index < file_columns) };
        let is_null = file_column.is_some_and(|column| footer.schema.field(column).data_type().is_null());
        if let Some(column) = file_column.filter(|_| !is_null || field.data_type().is_null()) {
            if footer.schema.field(column).data_type() != field.data_type() {
                let message = format!(
                    "{}: column {:?} is now {}",
                    footer.object.url(),
                    field.name(),
                    footer.schema.field(column).data_type()
                );
                return Err(Error::new(ErrorKind::Changed, message));
            }
            return Ok(ColumnSource::File(column));
        }
        let of_directory = || hive_value(within_source(&footer.object), field.name(), field.data_type());
        let value = if is_null { None } else { of_directory() };
        let null = || {
            if fixed_bytes(field.data_type()) > MAX_CONSTANT_BYTES {
                let message = format!(
                    "{} has no column {:?}; NULLs of type {} in its place would take too much",
                    footer.object.url(),
                    field.name(),
                    field.data_type()
                );
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            ScalarValue::try_from(field.data_type()).map_err(|e| Error::internal(e.to_string()))
        };
        value.map_or_else(null, Ok).map(ColumnSource::Constant)
    };
    table.fields().iter().enumerate().map(source).collect()
}

fn output_columns(request: &ScanRequest, table: &Schema) -> Result<Vec<usize>> {
    let Some(names) = &request.columns else { return Ok((0..table.fields().len()).collect()) };
    let find = |name: &String| {
        table.fields().iter().position(|field| field.name() == name).ok_or_else(|| {
            let known: Vec<_> = table.fields().iter().take(20).map(|field| field.name().as_str()).collect();
            let more = if table.fields().len() > 20 { ", …" } else { "" };
            Error::new(ErrorKind::NotFound, format!("{}: no column {name:?}; there are {}{more}", request.url, known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

fn check_rows(request: &ScanRequest, footers: &[(Arc<Footer>, Candidate)]) -> Result<()> {
    let Some(rows) = &request.rows else { return Ok(()) };
    let [(footer, _)] = footers else {
        return Err(Error::invalid(format!("{}: row numbers need exactly one object, there are {}", request.url, footers.len())));
    };
    if rows.len() > MAX_ROW_NUMBERS {
        return Err(Error::new(
            ErrorKind::ResourceExhausted,
            format!("{} row numbers; at most {MAX_ROW_NUMBERS} a scan", rows.len()),
        ));
    }
    let total: u64 = (0..footer.metadata.num_row_groups() as u32).map(|group| footer.row_group_rows(group) as u64).sum();
    match rows.iter().find(|&&row| row >= total) {
        Some(row) => Err(Error::invalid(format!("{}: no row {row}, there are {total}", request.url))),
        None => Ok(()),
    }
}
