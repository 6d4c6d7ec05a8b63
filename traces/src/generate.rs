//! Synthetic traces. The same parameters and seed give the same trace, with the same version of `rand`.
//!
//! Each request reads a whole object. Objects have rows like the original traces' files: 20 float64 columns.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rand_distr::{Distribution as _, Exp1, Zipf};

use crate::error::{Error, Result};
use crate::trace::{Access, Trace};

const ROW_BYTES: u64 = 20 * 8;

/// How much is asked, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Makes it repeatable.
    pub seed: u64,
    /// Requests in all.
    pub requests: u64,
    /// Mean requests per second. The gaps between them are exponential: Poisson arrivals.
    pub rate_per_s: f64,
}

/// Objects that are asked for by Zipf's law: the one of rank k with a probability proportional to 1 / k^exponent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hot {
    /// How many, named `1.parquet` (the most popular) and so on.
    pub objects: u64,
    /// How uneven: with 0 all are alike.
    pub exponent: f64,
    /// Decoded bytes of each.
    pub object_bytes: u64,
}

/// A table that is read in sequence: each scan goes on where the last one ended, and starts over at the table's end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scans {
    /// Share of the requests that belong to scans, 0 to 1.
    pub share: f64,
    /// Requests of one scan; they follow each other, one for each object.
    pub length: u64,
    /// Objects of the table, named `scan-1.parquet` and so on.
    pub objects: u64,
    /// Decoded bytes of each.
    pub object_bytes: u64,
}

/// Arrivals that pause, an interrupted Poisson process (Kuczura, Bell System Technical Journal 52, 1973): on and off times
/// are exponential.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OnOff {
    /// Mean seconds of a burst; requests arrive at the load's rate.
    pub mean_on_s: f64,
    /// Mean seconds between bursts; nothing arrives.
    pub mean_off_s: f64,
}

/// Requests for hot objects.
pub fn zipf(load: Load, hot: Hot) -> Result<Trace> {
    let hot = hot.sampler()?;
    Ok(load.trace(load.gaps()?, hot))
}

/// Requests for hot objects, interrupted by scans.
pub fn scan_mix(load: Load, hot: Hot, scans: Scans) -> Result<Trace> {
    let Scans { share, length, objects, object_bytes } = scans;
    if !(0.0..=1.0).contains(&share) || length == 0 || objects == 0 {
        return Err(Error::parameter("scans: the share must be 0 to 1, length and objects at least 1"));
    }
    let mut hot = hot.sampler()?;
    // With this chance that a scan starts where none runs, `share` of the requests belong to scans in the mean.
    let start = share / (length as f64 * (1.0 - share) + share);
    let (mut left, mut next) = (0, 0);
    Ok(load.trace(load.gaps()?, move |random: &mut StdRng| {
        if left == 0 && random.random_bool(start) {
            left = length;
        }
        if left == 0 {
            return hot(random);
        }
        left -= 1;
        let object = next + 1;
        next = object % objects;
        (format!("scan-{object}.parquet"), object_bytes)
    }))
}

/// Requests for hot objects, in bursts.
pub fn bursts(load: Load, hot: Hot, on_off: OnOff) -> Result<Trace> {
    let hot = hot.sampler()?;
    let OnOff { mean_on_s, mean_off_s } = on_off;
    let (mean_on_s, mean_off_s) = (positive("mean_on_s", mean_on_s)?, positive("mean_off_s", mean_off_s)?);
    let mut gaps = load.gaps()?;
    // The first burst lasts its mean time.
    let mut on_s = mean_on_s;
    let with_pauses = move |random: &mut StdRng| {
        let on_until_next_s = gaps(random);
        let mut paused_s = 0.0;
        while on_s < on_until_next_s {
            on_s += exponential(mean_on_s, random);
            paused_s += exponential(mean_off_s, random);
        }
        on_s -= on_until_next_s;
        on_until_next_s + paused_s
    };
    Ok(load.trace(with_pauses, hot))
}

impl Load {
    /// Seconds between arrivals.
    fn gaps(self) -> Result<impl FnMut(&mut StdRng) -> f64> {
        let mean_s = 1.0 / positive("rate_per_s", self.rate_per_s)?;
        Ok(move |random: &mut StdRng| exponential(mean_s, random))
    }

    /// Alternates between `gap_s` and `object`, which gives a name and bytes.
    fn trace(self, mut gap_s: impl FnMut(&mut StdRng) -> f64, mut object: impl FnMut(&mut StdRng) -> (String, u64)) -> Trace {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut at_s = 0.0;
        let accesses = (1..=self.requests).map(|request| {
            at_s += gap_s(&mut random);
            let (url, bytes) = object(&mut random);
            Access::whole_object((at_s * 1e6) as u64, request, url, bytes, bytes / ROW_BYTES)
        });
        Trace { accesses: accesses.collect() }
    }
}

impl Hot {
    fn sampler(self) -> Result<impl FnMut(&mut StdRng) -> (String, u64)> {
        let ranks = Zipf::new(self.objects as f64, self.exponent).map_err(|e| Error::parameter(format!("hot objects: {e}")))?;
        Ok(move |random: &mut StdRng| (format!("{}.parquet", ranks.sample(random) as u64), self.object_bytes))
    }
}

fn exponential(mean: f64, random: &mut StdRng) -> f64 {
    mean * random.sample::<f64, _>(Exp1)
}

fn positive(name: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(Error::parameter(format!("{name} must be positive"))) }
}

#[cfg(test)]
mod tests;
