//! When requests are due.

use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// How requests are spread over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Arrivals {
    /// At equal intervals.
    #[default]
    Constant,
    /// At random, independent of each other: intervals are exponential.
    Poisson,
}

impl Arrivals {
    /// When each request is due, counted from the start, for as long as `duration`. The first one is due at once.
    pub fn due(self, rate_per_s: f64, duration: Duration, seed: u64) -> impl Iterator<Item = Duration> + Send + 'static {
        let mut random = StdRng::seed_from_u64(seed);
        let mut at_s = 0.0;
        let all = (0_u64..).map(move |request| {
            match self {
                // Not a sum of intervals: errors would add up.
                Self::Constant => at_s = request as f64 / rate_per_s,
                Self::Poisson if request == 0 => {}
                Self::Poisson => at_s -= (1.0 - random.random::<f64>()).ln() / rate_per_s,
            }
            Duration::from_secs_f64(at_s)
        });
        all.take_while(move |due| *due < duration)
    }
}
