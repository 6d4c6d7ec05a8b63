//! A trace against each side in turn, and what does not fit together.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};

use super::error::ReplayError;
use super::open_loop;
use super::plan::Schedule;
use super::side::{Side, StoreCounts};
use super::statistics::{self, Kind, Sample};
use crate::report::Replay;

/// Disagreements that are told.
const MOST_TOLD: usize = 5;

/// What makes a run fail after all of it has been shown.
#[derive(Debug, Default)]
pub struct Problems {
    failed: usize,
    first_failure: Option<String>,
    disagreements: Vec<String>,
}

impl Problems {
    /// The problems as an error, if there are any.
    pub fn into_result(self) -> Result<(), ReplayError> {
        match self.first_failure {
            Some(first) => Err(ReplayError::Failed { count: self.failed, first }),
            None if self.disagreements.is_empty() => Ok(()),
            None => Err(ReplayError::Disagreement(self.disagreements)),
        }
    }

    fn fail(&mut self, failure: String) {
        self.failed += 1;
        self.first_failure.get_or_insert(failure);
    }

    fn disagree(&mut self, disagreement: String) {
        if self.disagreements.len() < MOST_TOLD {
            self.disagreements.push(disagreement);
        }
    }
}

/// The rows that the first side with an answer found, by request.
type Rows = Vec<Option<(&'static str, u64)>>;

/// Plays a trace in so many rounds. Fails if a side cannot be emptied or asked for its counts, or panics.
pub async fn trace(
    schedule: &Schedule,
    sides: &[Arc<dyn Side>],
    objects: &[String],
    rounds: u16,
    problems: &mut Problems,
) -> Result<Replay, Box<dyn std::error::Error>> {
    let mut measured: Vec<(Vec<Sample>, StoreCounts)> = vec![Default::default(); sides.len()];
    for round in 0..usize::from(rounds) {
        let mut rows: Rows = vec![None; schedule.reads.len()];
        let mut of_round: Vec<Vec<Sample>> = vec![Vec::new(); sides.len()];
        for turn in 0..sides.len() {
            let at = (round + turn) % sides.len();
            let (side, (_, counts)) = (&sides[at], &mut measured[at]);
            side.empty(objects).await?;
            // What came before is not the trace's.
            side.take_counts().await?;
            of_round[at] = one_side(schedule, side, &mut rows, problems).await?;
            let now = side.take_counts().await?;
            counts.requests += now.requests;
            counts.bytes += now.bytes;
            // The next side gets the memory.
            side.empty(objects).await?;
        }
        statistics::tell_joined(&schedule.firsts, &mut of_round);
        for ((samples, _), of_side) in measured.iter_mut().zip(of_round) {
            samples.extend(of_side);
        }
    }
    let figures = sides.iter().zip(&measured).map(|(side, (samples, counts))| statistics::side(side.name(), samples, *counts));
    let mut sides: Vec<_> = figures.collect();
    statistics::compare(&mut sides);
    let requests = schedule.reads.len() as u64 * u64::from(rounds);
    Ok(Replay { trace: schedule.trace.clone(), requests, span_s: schedule.span().as_secs_f64(), servers: 1, sides })
}

/// A sample of each request, in order.
async fn one_side(
    schedule: &Schedule,
    side: &Arc<dyn Side>,
    rows: &mut Rows,
    problems: &mut Problems,
) -> Result<Vec<Sample>, Box<dyn std::error::Error>> {
    let style = ProgressStyle::with_template("{prefix}: {msg:16} {bar:40} {pos}/{len} answered")?;
    let progress = ProgressBar::new(schedule.reads.len() as u64).with_style(style);
    progress.set_prefix(schedule.trace.clone());
    progress.set_message(side.name());
    let ask = |index: usize| {
        let (side, read) = (Arc::clone(side), Arc::clone(&schedule.reads[index]));
        async move { side.ask(&read).await }
    };
    let answers = open_loop::play(&schedule.due, ask, || progress.inc(1)).await?;
    progress.finish_and_clear();
    let mut samples = Vec::with_capacity(answers.len());
    for answered in answers {
        let index = answered.index;
        let request = || {
            let names: Vec<&str> = schedule.reads[index].names().collect();
            format!("trace {}, request {} ({}), {}", schedule.trace, index + 1, names.join(", "), side.name())
        };
        let answer = match answered.answer {
            Ok(answer) => {
                let (first, expected) = *rows[index].get_or_insert((side.name(), answer.rows));
                if answer.rows != expected {
                    problems.disagree(format!("{}: {} rows, {expected} with {first}", request(), answer.rows));
                }
                Some(answer)
            }
            Err(error) => {
                problems.fail(format!("{}: {error}", request()));
                None
            }
        };
        let kind = if schedule.is_cold(index) { Kind::Cold } else { Kind::Repeat };
        samples.push(Sample { due: schedule.due[index], response: answered.response, kind, answer });
    }
    Ok(samples)
}
