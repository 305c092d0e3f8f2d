//! Waiting that ends when a flag is set.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::LlmError;

/// How often the flag is looked at while waiting.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// The flag that ends all waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits(Option<Arc<AtomicBool>>);

impl Waits {
    pub(crate) fn new(stop: Option<Arc<AtomicBool>>) -> Self {
        Self(stop)
    }

    pub(crate) fn check(&self) -> Result<(), LlmError> {
        match &self.0 {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(LlmError::Stopped),
            _ => Ok(()),
        }
    }

    pub(crate) fn until(&self, end: Instant) -> Result<(), LlmError> {
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(SLICE));
        }
    }

    /// Waits on a condition for a while, or until the flag is set.
    pub(crate) fn on<'a, T>(&self, changed: &Condvar, guard: MutexGuard<'a, T>) -> Result<MutexGuard<'a, T>, LlmError> {
        self.check()?;
        let (guard, _) = changed.wait_timeout(guard, SLICE).unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        Ok(guard)
    }
}
