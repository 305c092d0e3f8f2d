//! How many requests may be under way, and how fast they may follow each other.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::waits::Waits;
use crate::{ClientConfig, LlmError};

/// Locks; what a panicking thread left behind is still whole, since nothing here is changed in two steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds' worth of a rate that may be used at once.
const BURST_S: f64 = 1.0;

/// A token bucket in which everyone draws at once and waits until the draw is covered: first come, first served.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    most: f64,
    /// Below 0: promised to those who wait.
    level: Mutex<(f64, Instant)>,
}

impl Bucket {
    fn new(per_minute: u32, least: f64) -> Self {
        let per_second = f64::from(per_minute) / 60.0;
        let most = (per_second * BURST_S).max(least);
        Self { per_second, most, level: Mutex::new((most, Instant::now())) }
    }

    /// Draws, and says until when to wait.
    fn draw(&self, amount: f64, now: Instant) -> Instant {
        let mut level = lock(&self.level);
        let passed = now.saturating_duration_since(level.1).as_secs_f64();
        level.0 = (level.0 + passed * self.per_second).min(self.most) - amount;
        level.1 = now;
        now + Duration::from_secs_f64((-level.0 / self.per_second).max(0.0))
    }

    /// Puts back what was drawn too much; a negative amount draws more, for which those who come next wait.
    fn put_back(&self, amount: f64) {
        let mut level = lock(&self.level);
        level.0 = (level.0 + amount).min(self.most);
    }
}

/// The limits of one client.
#[derive(Debug)]
pub(crate) struct Limits {
    free: Mutex<usize>,
    freed: Condvar,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    /// Until when the server asked to be left alone.
    quiet_until: Mutex<Option<Instant>>,
}

/// Leave to have one request under way; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot<'a>(&'a Limits);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.freed.notify_one();
    }
}

impl Limits {
    pub(crate) fn new(config: &ClientConfig) -> Self {
        Self {
            free: Mutex::new(config.concurrency),
            freed: Condvar::new(),
            requests: config.requests_per_minute.map(|rate| Bucket::new(rate, 1.0)),
            tokens: config.tokens_per_minute.map(|rate| Bucket::new(rate, 0.0)),
            quiet_until: Mutex::new(None),
        }
    }

    /// Waits for the rates, then until the server may be spoken to, then for a slot. Also says how long the rates and the server's wish took.
    pub(crate) fn pass(&self, tokens: u64, waits: &Waits) -> Result<(Slot<'_>, Duration), LlmError> {
        let start = Instant::now();
        let mut end = start;
        if let Some(bucket) = &self.requests {
            end = end.max(bucket.draw(1.0, start));
        }
        if let Some(bucket) = &self.tokens {
            end = end.max(bucket.draw(tokens as f64, start));
        }
        if let Err(stopped) = waits.until(end) {
            if let Some(bucket) = &self.requests {
                bucket.put_back(1.0);
            }
            self.settle_tokens(tokens, 0);
            return Err(stopped);
        }
        let mut waited = end.saturating_duration_since(start);
        loop {
            let quiet = *lock(&self.quiet_until);
            if let Some(end) = quiet.filter(|end| *end > Instant::now()) {
                waited += end.saturating_duration_since(Instant::now());
                waits.until(end)?;
                continue;
            }
            let slot = self.slot(waits)?;
            // Another request may have been told to wait while this one waited for its slot.
            if lock(&self.quiet_until).is_none_or(|end| end <= Instant::now()) {
                return Ok((slot, waited));
            }
        }
    }

    fn slot(&self, waits: &Waits) -> Result<Slot<'_>, LlmError> {
        let mut free = lock(&self.free);
        while *free == 0 {
            free = waits.on(&self.freed, free)?;
        }
        waits.check()?;
        *free -= 1;
        Ok(Slot(self))
    }

    /// Corrects the rate of tokens once it is known what an answer cost.
    pub(crate) fn settle_tokens(&self, estimated: u64, actual: u64) {
        if let Some(bucket) = &self.tokens {
            bucket.put_back(estimated as f64 - actual as f64);
        }
    }

    /// The server asked for quiet: all requests of the client wait.
    pub(crate) fn hold_back(&self, end: Instant) {
        let mut quiet = lock(&self.quiet_until);
        *quiet = Some(quiet.map_or(end, |other| other.max(end)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_keeps_its_rate_and_its_order() {
        let bucket = Bucket::new(600, 1.0);
        let start = Instant::now();
        let ends: Vec<f64> = (0..40).map(|_| (bucket.draw(1.0, start) - start).as_secs_f64()).collect();
        assert!(ends[..10].iter().all(|end| *end == 0.0), "a second's worth at once");
        assert!(ends.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!((ends[39] - 3.0).abs() < 0.05, "{}", ends[39]);
        // A long silence saves up no more than a second's worth.
        let later = start + Duration::from_secs(3600);
        assert!(bucket.draw(10.0, later) == later && bucket.draw(1.0, later) > later);
    }

    #[test]
    fn one_draw_may_be_more_than_a_bucket_holds() {
        let bucket = Bucket::new(60, 0.0);
        let start = Instant::now();
        let end = bucket.draw(5.0, start);
        assert!((4.0..4.1).contains(&(end - start).as_secs_f64()));
        bucket.put_back(5.0);
        assert_eq!(bucket.draw(1.0, start), start);
    }
}
