use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::AssetError;

/// How far one asset is. Sent about ten times a second while something moves or is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The asset as the user named it, for example `smollm2-135m` or `hf:EleutherAI/pythia-70m`.
    pub asset: String,
    /// Bytes of the current file (or package) that have arrived.
    pub done_bytes: u64,
    /// Bytes of the current file (or package), if known.
    pub total_bytes: Option<u64>,
    /// What is going on, for a person: the file, a wait, a retry.
    pub note: String,
}

/// The closure that receives [`Progress`]; [`ControlFlow::Break`] stops the work at the next opportunity
/// (within a fraction of a second, even while a connection hangs).
pub type Events<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// An asset's name together with the closure that hears about it.
pub(crate) struct Reporter<'a, 'b> {
    pub(crate) asset: String,
    events: &'a mut Events<'b>,
    last: Option<Instant>,
}

const EVERY: Duration = Duration::from_millis(100);

impl<'a, 'b> Reporter<'a, 'b> {
    pub(crate) fn new(asset: impl Into<String>, events: &'a mut Events<'b>) -> Self {
        Self { asset: asset.into(), events, last: None }
    }

    /// Sends an event now.
    pub(crate) fn say(&mut self, done_bytes: u64, total_bytes: Option<u64>, note: &str) -> Result<(), AssetError> {
        self.last = Some(Instant::now());
        let progress = Progress { asset: self.asset.clone(), done_bytes, total_bytes, note: note.to_owned() };
        match (self.events)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(AssetError::Stopped { asset: self.asset.clone() }),
        }
    }

    /// Sends an event unless one was sent a moment ago.
    pub(crate) fn tick(&mut self, done_bytes: u64, total_bytes: Option<u64>, note: &str) -> Result<(), AssetError> {
        match self.last {
            Some(last) if last.elapsed() < EVERY => Ok(()),
            _ => self.say(done_bytes, total_bytes, note),
        }
    }

    /// Sleeps in slices short enough that a request to stop is heard at once.
    pub(crate) fn pause(&mut self, wait: Duration, note: &str) -> Result<(), AssetError> {
        let end = Instant::now() + wait;
        self.say(0, None, note)?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(EVERY));
            self.say(0, None, note)?;
        }
    }
}
