//! What is to be replayed, checked before anything runs.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use flightcache_traces::{Access, Request, Trace, WHOLE_OBJECT};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::error::ReplayError;
use super::side::{ObjectRead, Read};
use crate::workloads::{self, Scale, Workload, WorkloadError, workload};

/// Look-ups under way at a time.
const LOOKUPS_AT_A_TIME: usize = 16;

/// A trace as it will be played.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub trace: String,
    /// When each request is due, from the start, at the speed it is played at; ascending.
    pub due: Vec<Duration>,
    pub reads: Vec<Arc<Read>>,
    /// For each request, those that were the first to read its objects; itself among them if it is.
    pub firsts: Vec<Vec<usize>>,
    /// Requests that read some row groups of an object and not others, as far as the trace tells. They are played as reading all.
    pub partial: usize,
}

/// Who answers for Flightcache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// So many in this process; each of the numbers in turn.
    Own(Vec<usize>),
    /// Those that run at these locations.
    Running(Vec<String>),
}

impl Servers {
    /// How many there are, in turn.
    pub fn counts(&self) -> Vec<usize> {
        match self {
            Self::Own(counts) => counts.clone(),
            Self::Running(locations) => vec![locations.len()],
        }
    }
}

impl FromStr for Servers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(counts) = text.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>() {
            return if counts.contains(&0) { Err("at least one server is needed".into()) } else { Ok(Self::Own(counts)) };
        }
        let locations: Vec<String> = text.split(',').map(ToOwned::to_owned).collect();
        match locations.iter().find(|location| !location.starts_with("grpc://") && !location.starts_with("grpc+tcp://")) {
            Some(wrong) => Err(format!("{wrong:?} is neither a number nor a location such as grpc://127.0.0.1:50051")),
            None => Ok(Self::Running(locations)),
        }
    }
}

/// The traces with these names or in these files; all original ones if none is named.
pub fn traces(names: &[String]) -> Result<Vec<Workload>, WorkloadError> {
    if names.is_empty() {
        return Ok(workloads::originals());
    }
    names.iter().map(|name| workload(name, Scale::Files)).collect()
}

impl Schedule {
    /// `trace` at `speed` times its speed. Objects are named relative to `prefix`, which their URLs start with if they have any.
    pub fn new(name: &str, trace: &Trace, speed: f64, prefix: Option<&str>) -> Result<Self, ReplayError> {
        let (mut due, mut reads, mut firsts) = (Vec::new(), Vec::new(), Vec::new());
        let mut first_of = HashMap::new();
        // A recorded trace counts from its server's start.
        let start_us = trace.requests().next().map_or(0, |request| request.at_us);
        for (index, request) in trace.requests().enumerate() {
            let read = read(name, request, prefix)?;
            due.push(Duration::from_micros(request.at_us - start_us).div_f64(speed));
            firsts.push(read.names().map(|object| *first_of.entry(object.to_owned()).or_insert(index)).collect());
            reads.push(Arc::new(read));
        }
        if reads.is_empty() {
            return Err(ReplayError::Empty { trace: name.to_owned() });
        }
        Ok(Self { trace: name.to_owned(), due, reads, firsts, partial: partial(trace) })
    }

    /// Whether a request is the first for any of its objects.
    pub fn is_cold(&self, request: usize) -> bool {
        self.firsts[request].contains(&request)
    }

    /// From the first request to the last.
    pub fn span(&self) -> Duration {
        self.due.last().copied().unwrap_or_default().saturating_sub(self.due.first().copied().unwrap_or_default())
    }
}

fn read(trace: &str, request: Request<'_>, prefix: Option<&str>) -> Result<Read, ReplayError> {
    let object = |url: &str| match prefix {
        _ if !url.contains("://") => Ok(url.to_owned()),
        None => Err(ReplayError::Absolute { trace: trace.to_owned(), url: url.to_owned() }),
        Some(prefix) => url.strip_prefix(prefix).map(ToOwned::to_owned).ok_or_else(|| ReplayError::Outside {
            trace: trace.to_owned(),
            url: url.to_owned(),
            prefix: prefix.to_owned(),
        }),
    };
    let read = |(url, columns): (&str, Vec<&str>)| {
        let columns = (!columns.contains(&WHOLE_OBJECT)).then(|| columns.into_iter().map(ToOwned::to_owned).collect());
        Ok(ObjectRead { name: object(url)?, columns })
    };
    Ok(Read { objects: request.objects().into_iter().map(read).collect::<Result<_, _>>()? })
}

/// Requests that read fewer row groups of an object than it must have, by the last one that any request reads.
fn partial(trace: &Trace) -> usize {
    let mut last_of: HashMap<&str, u32> = HashMap::new();
    for (url, group) in row_groups(&trace.accesses) {
        let last = last_of.entry(url).or_default();
        *last = group.max(*last);
    }
    let is_partial = |request: &Request<'_>| {
        let mut read: HashMap<&str, HashSet<u32>> = HashMap::new();
        for (url, group) in row_groups(request.accesses) {
            read.entry(url).or_default().insert(group);
        }
        read.iter().any(|(url, groups)| groups.len() as u64 <= u64::from(last_of[url]))
    };
    trace.requests().filter(is_partial).count()
}

fn row_groups(accesses: &[Access]) -> impl Iterator<Item = (&str, u32)> {
    accesses.iter().filter_map(|access| Some((&*access.url, access.row_group?)))
}

/// All objects that the schedules read, once each; fails if one is not in the store.
pub async fn objects(schedules: &[Schedule], store: &Arc<dyn ObjectStore>, data: &str) -> Result<Vec<String>, ReplayError> {
    let mut needed = HashMap::new();
    for schedule in schedules {
        for object in schedule.reads.iter().flat_map(|read| read.names()) {
            needed.entry(object.to_owned()).or_insert_with(|| schedule.trace.clone());
        }
    }
    let look_up = |(object, trace): (String, String)| async move {
        let path = Path::parse(&object).map_err(object_store::Error::from);
        let found = match path {
            Ok(path) => store.head(&path).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(_) => Ok(object),
            Err(source) => Err(ReplayError::Missing { trace, object, data: data.to_owned(), source: source.into() }),
        }
    };
    futures::stream::iter(needed).map(look_up).buffer_unordered(LOOKUPS_AT_A_TIME).try_collect().await
}
