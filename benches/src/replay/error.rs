//! Why a replay could not be run, or cannot be trusted.

/// An error of `replay`.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("trace {trace}: it has no requests")]
    Empty { trace: String },
    #[error("trace {trace} reads {url}, which does not lie under {prefix}: say with --url-prefix what stands for --data in it")]
    Outside { trace: String, url: String, prefix: String },
    #[error("trace {trace} reads {url}: say with --url-prefix what stands for --data in it")]
    Absolute { trace: String, url: String },
    #[error(
        "trace {trace} reads {object}, which is not in {data}: {source} (`flightcache-bench generate {data}` makes the files \
         of the original traces and of the generated ones)"
    )]
    Missing { trace: String, object: String, data: String, source: Box<object_store::Error> },
    #[error("running servers have their own way to the store, so no distance can be put in front of it: pass --latency 0s{and}")]
    Distance { and: &'static str },
    #[error(
        "running servers need to be told where the data is: give --data as a URL that they know, or --url-prefix (it must end in /)"
    )]
    NoPrefix,
    #[error("the sides do not agree: {}", .0.join("; "))]
    Disagreement(Vec<String>),
    #[error("{count} requests failed, such as {first}")]
    Failed { count: usize, first: String },
}
