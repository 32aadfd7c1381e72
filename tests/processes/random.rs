//! Chance that comes again with its seed.

use std::env;
use std::time::SystemTime;

/// Random numbers, the same in every run with the same seed (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z ^ (z >> 27)
    }

    /// Gives a number below this one.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Gives one of these.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// Gives the seed of this run: that of `INKFAST_SEED`, or a new one. It is shown if the test fails.
pub(crate) fn seed() -> u64 {
    let given = env::var("INKFAST_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    let seed = given.unwrap_or_else(|| {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        now.as_secs() ^ u64::from(now.subsec_nanos()) << 32
    });
    eprintln!("again with INKFAST_SEED={seed}");
    seed
}
