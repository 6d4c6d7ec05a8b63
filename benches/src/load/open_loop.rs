//! Requests that are sent when they are due, whatever became of the ones before.

use std::fmt::Display;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::tally::{Answer, Tally};
use crate::paced::{Stopped, paced};

/// Bounds on what is outstanding.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests without an answer yet; what is due beyond them is not sent and counts as refused.
    pub max_outstanding: usize,
    /// How long answers are waited for after the last request.
    pub drain: Duration,
}

/// One request that ended: how long after it was due, and how.
type Ended<E> = (Duration, Result<Answer, E>);

/// Asks at each of the times `due`, which count from now on and end before `duration`, and waits for the answers.
///
/// `ask` is called with the number of the request, from 0, and must return at once; its future runs in a task of its own.
/// Latency counts from when the request was due, so that neither a server that stalls nor a late call of `ask` hides a wait.
/// `watch` is told how things are, with the number of outstanding requests, each time one is due. Fails if the clock stopped
/// before all were due.
pub async fn open_loop<A, E>(
    rate_per_s: f64,
    duration: Duration,
    due: impl Iterator<Item = Duration> + Send + 'static,
    limits: Limits,
    ask: impl Fn(u64) -> A,
    mut watch: impl FnMut(&Tally, usize),
) -> Result<Tally, Stopped>
where
    A: Future<Output = Result<Answer, E>> + Send + 'static,
    E: Display + Send + 'static,
{
    let started = Instant::now();
    let mut tally = Tally::new(rate_per_s);
    let mut outstanding: JoinSet<Ended<E>> = JoinSet::new();
    let mut due = paced(started, due);
    while let Some(due) = due.next().await? {
        while let Some(ended) = outstanding.try_join_next() {
            count(&mut tally, ended);
        }
        let request = tally.requests;
        tally.due(Instant::now() - due);
        if outstanding.len() < limits.max_outstanding {
            let answer = ask(request);
            outstanding.spawn(async move {
                let answer = answer.await;
                (Instant::now() - due, answer)
            });
        } else {
            tally.refuse();
        }
        watch(&tally, outstanding.len());
    }
    let last_answer = tokio::time::timeout(limits.drain, async {
        while let Some(ended) = outstanding.join_next().await {
            count(&mut tally, ended);
        }
    });
    if last_answer.await.is_err() {
        tally.give_up(outstanding.len() as u64, limits.drain);
    }
    tally.end(started.elapsed().max(duration));
    Ok(tally)
}

fn count<E: Display>(tally: &mut Tally, ended: Result<Ended<E>, JoinError>) {
    match ended {
        Ok((latency, Ok(answer))) => tally.answer(latency, answer),
        Ok((_, Err(error))) => tally.fail(&error),
        Err(panic) => tally.fail(&panic),
    }
}
