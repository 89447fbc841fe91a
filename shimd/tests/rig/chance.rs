//! Numbers by chance, told so that they can be had again.

use super::registry::noise;

pub(crate) struct Chance(u64);

impl Chance {
    /// From the time, or as `SEED` says.
    pub(crate) fn new() -> Chance {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now.as_nanos() as u64);
        eprintln!("SEED={seed}");
        Chance(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        u64::from_le_bytes(noise(self.0, 64)[56..].try_into().unwrap()) % bound
    }
}
