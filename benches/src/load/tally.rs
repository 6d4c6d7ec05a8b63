//! What became of the requests of one rate.

use std::fmt::Display;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::report::LoadStep;

/// Latencies are kept to three digits, whatever their size.
const DIGITS: u8 = 3;
/// What takes longer counts as this: a day, in microseconds.
const LONGEST_US: u64 = 24 * 60 * 60 * 1_000_000;

/// What an answer brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Rows.
    pub rows: u64,
    /// Bytes on the wire.
    pub bytes: u64,
}

/// Counts of one rate.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Requests a second that were meant to be due.
    pub rate_per_s: f64,
    /// Requests that were due.
    pub requests: u64,
    /// Of those, not sent because too many were outstanding.
    pub refused: u64,
    /// Of those, answered with an error or with other rows than the first answer had.
    pub failed: u64,
    /// Of those, not answered in time.
    pub unanswered: u64,
    /// The first error, in words.
    pub first_error: Option<String>,
    bytes: u64,
    elapsed: Duration,
    latency_us: Histogram<u64>,
    late_us: Histogram<u64>,
}

impl Tally {
    pub(super) fn new(rate_per_s: f64) -> Self {
        let histogram = || Histogram::new_with_max(LONGEST_US, DIGITS).expect("the bounds and digits are allowed");
        Self {
            rate_per_s,
            requests: 0,
            refused: 0,
            failed: 0,
            unanswered: 0,
            first_error: None,
            bytes: 0,
            elapsed: Duration::ZERO,
            latency_us: histogram(),
            late_us: histogram(),
        }
    }

    pub(super) fn due(&mut self, late: Duration) {
        self.requests += 1;
        record(&mut self.late_us, late);
    }

    pub(super) fn refuse(&mut self) {
        self.refused += 1;
    }

    pub(super) fn answer(&mut self, latency: Duration, answer: Answer) {
        self.bytes += answer.bytes;
        record(&mut self.latency_us, latency);
    }

    pub(super) fn fail(&mut self, error: &impl Display) {
        self.failed += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }

    pub(super) fn give_up(&mut self, outstanding: u64, waited: Duration) {
        self.unanswered += outstanding;
        let waited = humantime::format_duration(waited);
        self.first_error.get_or_insert_with(|| format!("no answer within {waited} after the last request"));
    }

    pub(super) fn end(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
    }

    /// Requests that were answered as they should be.
    pub fn answered(&self) -> u64 {
        self.latency_us.len()
    }

    /// Requests that were not.
    pub fn errors(&self) -> u64 {
        self.refused + self.failed + self.unanswered
    }

    /// Milliseconds within which this share of the answers came, 0 to 1; not a number without answers.
    pub fn latency_ms(&self, share: f64) -> f64 {
        milliseconds(&self.latency_us, share)
    }

    /// Milliseconds by which this share of the requests was at most late in being sent, 0 to 1.
    pub fn late_ms(&self, share: f64) -> f64 {
        milliseconds(&self.late_us, share)
    }

    /// For the report. Rates are over the time until the last answer.
    pub fn step(&self) -> LoadStep {
        let elapsed_s = self.elapsed.as_secs_f64();
        LoadStep {
            offered_per_s: self.rate_per_s,
            achieved_per_s: self.answered() as f64 / elapsed_s,
            requests: self.requests,
            errors: self.errors(),
            p50_ms: self.latency_ms(0.5),
            p90_ms: self.latency_ms(0.9),
            p99_ms: self.latency_ms(0.99),
            p999_ms: self.latency_ms(0.999),
            max_ms: self.latency_ms(1.0),
            mb_per_s: self.bytes as f64 / 1e6 / elapsed_s,
            late_p99_ms: self.late_ms(0.99),
        }
    }
}

fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(time.as_micros() as u64);
}

fn milliseconds(histogram: &Histogram<u64>, share: f64) -> f64 {
    if histogram.is_empty() { f64::NAN } else { histogram.value_at_quantile(share) as f64 / 1e3 }
}
