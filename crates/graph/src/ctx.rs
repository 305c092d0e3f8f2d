use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{Event, GraphError, Interrupted};

/// What a running node is given. It may be used from several threads.
pub struct Ctx<'r> {
    pub(crate) name: &'r str,
    pub(crate) key: &'r str,
    pub(crate) params: &'r serde_json::Value,
    pub(crate) out: &'r Path,
    pub(crate) partial: &'r Path,
    pub(crate) deps: &'r BTreeMap<String, PathBuf>,
    pub(crate) cancel: &'r AtomicBool,
    pub(crate) stopped: AtomicBool,
    pub(crate) events: &'r (dyn Fn(Event) + Sync),
}

impl Ctx<'_> {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name
    }

    /// The node's key: 64 hexadecimal digits.
    #[must_use]
    pub fn key(&self) -> &str {
        self.key
    }

    /// The node's parameters, with sorted keys.
    #[must_use]
    pub fn params(&self) -> &serde_json::Value {
        self.params
    }

    /// An empty folder for the node's result: plain files and folders, no links, any name but `node.json` at the top.
    ///
    /// It is renamed into the store when the node returns `Ok`, and removed otherwise.
    #[must_use]
    pub fn out(&self) -> &Path {
        self.out
    }

    /// A folder for checkpoints. It survives interruption, failure and kill, and is removed when the node has succeeded.
    ///
    /// It lies on the same file system as [`out`](Ctx::out): a finished file may be hard-linked there. Do not move files
    /// out of it: a kill would lose them. Nothing is synced here; write to another name and rename.
    #[must_use]
    pub fn partial(&self) -> &Path {
        self.partial
    }

    /// The folder of a finished dependency.
    ///
    /// # Errors
    /// [`GraphError::UndeclaredDep`] if `name` is not among the node's `deps`.
    pub fn dep(&self, name: &str) -> Result<&Path, GraphError> {
        self.deps.get(name).map(PathBuf::as_path).ok_or_else(|| GraphError::UndeclaredDep {
            node: self.name.into(),
            dep: name.into(),
            declared: self.deps.keys().cloned().collect(),
        })
    }

    /// Whether the node should save what it has and return [`Interrupted`].
    #[must_use]
    pub fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// The same as a `Result`, for `ctx.check()?` where there is nothing left to save.
    ///
    /// Once this has returned [`Interrupted`], whatever error the node returns counts as the interruption, even through
    /// an error type that hides it.
    ///
    /// # Errors
    /// [`Interrupted`] if the run was cancelled.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.cancelled() {
            self.stopped.store(true, Ordering::Relaxed);
            return Err(Interrupted);
        }
        Ok(())
    }

    /// Tells how far the node is, in units of its whole work; what an earlier, interrupted run did counts as done.
    pub fn progress(&self, done: u64, total: u64, unit: &str) {
        (self.events)(Event::Progress { name: self.name.into(), done, total, unit: unit.into() });
    }

    /// Says something: one line, for a person.
    pub fn message(&self, text: &str) {
        (self.events)(Event::Message { name: self.name.into(), text: text.into() });
    }
}
