//! What is to be replayed, checked before anything runs.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path as FilePath;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use flightcache_traces::{Request, Trace, WHOLE_OBJECT, original};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::error::ReplayError;
use super::side::Read;

/// Look-ups under way at a time.
const LOOKUPS_AT_A_TIME: usize = 16;

/// A trace as it will be played.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub trace: String,
    /// When each request is due, from the start, at the speed it is played at; ascending.
    pub due: Vec<Duration>,
    pub reads: Vec<Arc<Read>>,
    /// Whether a request is the first for any of its objects.
    pub cold: Vec<bool>,
}

/// Who answers for Flightcache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// So many in this process.
    Own(usize),
    /// Those that run at these locations.
    Running(Vec<String>),
}

impl Servers {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Own(count) => *count,
            Self::Running(locations) => locations.len(),
        }
    }
}

impl FromStr for Servers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(count) = text.parse() {
            return if count > 0 { Ok(Self::Own(count)) } else { Err("at least one server is needed".into()) };
        }
        let locations: Vec<String> = text.split(',').map(ToOwned::to_owned).collect();
        match locations.iter().find(|location| !location.starts_with("grpc://") && !location.starts_with("grpc+tcp://")) {
            Some(wrong) => Err(format!("{wrong:?} is neither a number nor a location such as grpc://127.0.0.1:50051")),
            None => Ok(Self::Running(locations)),
        }
    }
}

/// The traces with these names or in these files; all original ones if none is named.
pub fn traces(names: &[String]) -> Result<Vec<(String, Trace)>, ReplayError> {
    let mut known = original::all().map(|(name, trace)| (name.to_owned(), trace)).to_vec();
    if names.is_empty() {
        return Ok(known);
    }
    let find = |name: &String| match known.iter_mut().find(|(known, _)| known == name) {
        Some(trace) => Ok(trace.clone()),
        None if FilePath::new(name).is_file() => {
            let path = || FilePath::new(name).to_owned();
            let file = File::open(name).map_err(|source| ReplayError::TraceFile { path: path(), source })?;
            let trace = Trace::read(BufReader::new(file)).map_err(|source| ReplayError::Trace { path: path(), source })?;
            Ok((name.clone(), trace))
        }
        None => {
            let known = original::all().map(|(name, _)| name).join(", ");
            Err(ReplayError::UnknownTrace { name: name.clone(), known })
        }
    };
    names.iter().map(find).collect()
}

impl Schedule {
    /// `trace` at `speed` times its speed. Objects are named relative to `prefix`, which their URLs start with if they have any.
    pub fn new(name: &str, trace: &Trace, speed: f64, prefix: Option<&str>) -> Result<Self, ReplayError> {
        let (mut due, mut reads, mut cold) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for request in trace.requests() {
            let read = read(name, request, prefix)?;
            due.push(Duration::from_micros(request.at_us).div_f64(speed));
            // Not `any`: all of them have been seen now.
            cold.push(read.objects.iter().filter(|object| seen.insert((*object).clone())).count() > 0);
            reads.push(Arc::new(read));
        }
        if reads.is_empty() {
            return Err(ReplayError::Empty { trace: name.to_owned() });
        }
        Ok(Self { trace: name.to_owned(), due, reads, cold })
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
    let objects = request.urls().into_iter().map(object).collect::<Result<_, _>>()?;
    let columns = request.columns();
    let columns = (!columns.contains(&WHOLE_OBJECT)).then(|| columns.into_iter().map(ToOwned::to_owned).collect());
    Ok(Read { objects, columns })
}

/// All objects that the schedules read, once each; fails if one is not in the store.
pub async fn objects(schedules: &[Schedule], store: &Arc<dyn ObjectStore>, data: &str) -> Result<Vec<String>, ReplayError> {
    let mut needed = HashMap::new();
    for schedule in schedules {
        for object in schedule.reads.iter().flat_map(|read| &read.objects) {
            needed.entry(object.clone()).or_insert_with(|| schedule.trace.clone());
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
