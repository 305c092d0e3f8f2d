//! Which node runs when, and what becomes of it.

use std::{
    any::Any,
    collections::BTreeMap,
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    Ctx, Event, Graph, Interrupted, NodeError, NodeRecord, RunOptions, Store, Summary,
    error::{chain, chain_text},
    files::seal,
    graph::Entry,
    key::FORMAT_VERSION,
    record::rfc3339,
    store::{Found, TmpFolder},
};

pub(crate) struct Run<'r, 'a> {
    pub(crate) graph: &'r Graph<'a>,
    pub(crate) store: &'r Store,
    pub(crate) options: &'r RunOptions,
    pub(crate) cancel: &'r AtomicBool,
    pub(crate) events: &'r (dyn Fn(Event) + Sync),
}

#[derive(Clone)]
enum Status {
    Waiting,
    Running,
    Hit,
    Finished,
    Failed(String),
    Interrupted,
    Skipped,
}

/// What all workers see.
struct Board {
    status: Mutex<BTreeMap<usize, Status>>,
    changed: Condvar,
    /// A worker has panicked outside of a node: in the caller's `events`.
    broken: AtomicBool,
}

impl Board {
    /// A panic while it was held is told by `broken`; the map itself is never left half changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Status>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the other workers when one dies, so that none waits for a node that will never end.
struct Alarm<'b>(&'b Board);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
            // Taking the lock keeps the news from falling between another worker's look and its wait.
            drop(self.0.lock());
            self.0.changed.notify_all();
        }
    }
}

impl Run<'_, '_> {
    pub(crate) fn run(&self, selected: Vec<usize>) -> Summary {
        let begun = Instant::now();
        let jobs = self.options.jobs.clamp(1, selected.len().max(1));
        let status = Mutex::new(selected.into_iter().map(|i| (i, Status::Waiting)).collect());
        let board = Board { status, changed: Condvar::new(), broken: AtomicBool::new(false) };
        // The calling thread works too, so one job needs no thread.
        thread::scope(|scope| {
            for _ in 1..jobs {
                scope.spawn(|| self.work(&board));
            }
            self.work(&board);
        });
        let mut summary = Summary::default();
        for (&i, status) in &*board.lock() {
            let name = self.graph.entries[i].node.name.clone();
            match status {
                Status::Hit => summary.hits.push(name),
                Status::Finished => summary.finished.push(name),
                Status::Failed(error) => summary.failed.push((name, error.clone())),
                Status::Interrupted => summary.interrupted.push(name),
                // Workers leave only when nothing waits or runs.
                Status::Skipped | Status::Waiting | Status::Running => summary.skipped.push(name),
            }
        }
        summary.seconds = begun.elapsed().as_secs_f64();
        summary
    }

    fn work(&self, board: &Board) {
        let _alarm = Alarm(board);
        while let Some(i) = self.next(board) {
            let status = self.execute(&self.graph.entries[i]);
            board.lock().insert(i, status);
            board.changed.notify_all();
        }
    }

    /// Waits for a node that can run and takes it; `None` once there will be none.
    fn next(&self, board: &Board) -> Option<usize> {
        let mut status = board.lock();
        loop {
            if board.broken.load(Ordering::Relaxed) {
                return None;
            }
            self.skip(&mut status);
            let is_done = |dep: &usize| matches!(status[dep], Status::Hit | Status::Finished);
            let is_ready = |i: usize| self.graph.entries[i].deps.iter().all(is_done);
            let mut waiting = status.iter().filter(|(_, s)| matches!(s, Status::Waiting)).map(|(&i, _)| i).peekable();
            waiting.peek()?;
            if let Some(i) = waiting.find(|&i| is_ready(i)) {
                status.insert(i, Status::Running);
                return Some(i);
            }
            status = board.changed.wait(status).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives up the nodes that will not run. They come in order, so one pass reaches all descendants.
    fn skip(&self, status: &mut BTreeMap<usize, Status>) {
        let waiting: Vec<usize> =
            status.iter().filter(|(_, s)| matches!(s, Status::Waiting)).map(|(&i, _)| i).collect();
        for i in waiting {
            let because = self.graph.entries[i].deps.iter().find_map(|dep| {
                let name = &self.graph.entries[*dep].node.name;
                match status[dep] {
                    Status::Failed(_) => Some(format!("`{name}` failed")),
                    Status::Interrupted => Some(format!("`{name}` was interrupted")),
                    Status::Skipped => Some(format!("`{name}` was skipped")),
                    _ => None,
                }
            });
            let cancelled = || self.cancel.load(Ordering::Relaxed).then(|| "the run was interrupted".to_owned());
            if let Some(because) = because.or_else(cancelled) {
                status.insert(i, Status::Skipped);
                (self.events)(Event::Skipped { name: self.graph.entries[i].node.name.clone(), because });
            }
        }
    }

    /// Finds or makes a node, and tells how it went.
    fn execute(&self, entry: &Entry<'_>) -> Status {
        let name = entry.node.name.clone();
        let began = Instant::now();
        let (status, event) = match self.find_or_make(entry) {
            Ok(true) => (Status::Hit, Event::Hit { name }),
            Ok(false) => (Status::Finished, Event::Finished { name, seconds: began.elapsed().as_secs_f64() }),
            Err(Stop::Interrupted) => (Status::Interrupted, Event::Interrupted { name }),
            Err(Stop::Failed(error)) => (Status::Failed(error.clone()), Event::Failed { name, error }),
        };
        (self.events)(event);
        status
    }

    /// Whether it was there already.
    fn find_or_make(&self, entry: &Entry<'_>) -> Result<bool, Stop> {
        let partial = self.store.partial(&entry.key);
        let is_hit = self.is_hit(entry, true) || {
            let _lock = self.lock_node(entry)?;
            // Another process may have made it while this one waited for the lock.
            (self.store.is_shared() && self.is_hit(entry, false)) || self.make(entry).map(|()| false)?
        };
        // Also after a hit: a kill may have come between the rename and this. What stays is in nobody's way.
        let _ = fs::remove_dir_all(&partial);
        Ok(is_hit)
    }

    fn is_hit(&self, entry: &Entry<'_>, tell: bool) -> bool {
        let name = &entry.node.name;
        match self.store.find(&entry.folder_name, name, &entry.key, self.options.verify) {
            Found::Hit => true,
            Found::Absent => false,
            Found::Damaged(reason) => {
                if tell {
                    (self.events)(Event::Invalid { name: name.clone(), reason });
                }
                false
            }
        }
    }

    fn lock_node(&self, entry: &Entry<'_>) -> Result<Option<File>, Stop> {
        if !self.store.is_shared() {
            return Ok(None);
        }
        let mut told = false;
        loop {
            if let Some(lock) = self.store.lock_node(&entry.folder_name).map_err(Stop::failed)? {
                return Ok(Some(lock));
            }
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Stop::Interrupted);
            }
            if !told {
                let text = "waiting for another process, which is running this node".into();
                (self.events)(Event::Message { name: entry.node.name.clone(), text });
                told = true;
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn make(&self, entry: &Entry<'_>) -> Result<(), Stop> {
        let tmp = self.store.make_tmp(&entry.folder_name).map_err(Stop::failed)?;
        let partial = self.store.make_partial(&entry.key).map_err(Stop::failed)?;
        (self.events)(Event::Started { name: entry.node.name.clone() });
        let made = self.call(entry, &tmp, &partial);
        if made.is_err() {
            // Succeeds only if it is empty.
            let _ = fs::remove_dir(&partial);
        }
        made
    }

    /// Runs the node's own work, then seals and commits what it wrote.
    fn call(&self, entry: &Entry<'_>, tmp: &TmpFolder, partial: &Path) -> Result<(), Stop> {
        let (started, begun) = (SystemTime::now(), Instant::now());
        let dep_folder = |&dep: &usize| {
            let dep = &self.graph.entries[dep];
            (dep.node.name.clone(), self.store.node(&dep.folder_name))
        };
        let deps: BTreeMap<String, PathBuf> = entry.deps.iter().map(dep_folder).collect();
        let ctx = Ctx {
            name: &entry.node.name,
            key: &entry.key,
            params: &entry.node.params,
            out: &tmp.0,
            partial,
            deps: &deps,
            cancel: self.cancel,
            stopped: AtomicBool::new(false),
            events: self.events,
        };
        // Sound to look at afterwards: what a panic leaves half done is in `tmp`, which is thrown away.
        match catch_unwind(AssertUnwindSafe(|| (entry.node.run)(&ctx))) {
            Err(panic) => return Err(Stop::Failed(panic_text(panic.as_ref()))),
            Ok(Err(error)) => return Err(stop_of(&error, &ctx)),
            Ok(Ok(())) => {}
        }
        let outputs = seal(&tmp.0).map_err(Stop::failed)?;
        let record = NodeRecord {
            version: FORMAT_VERSION,
            name: entry.node.name.clone(),
            key: entry.key.clone(),
            params: entry.node.params.clone(),
            deps: entry.dep_keys.clone(),
            inputs: entry.inputs.clone(),
            sources: entry.node.sources.clone(),
            lock_hash: self.graph.lock_hash.clone(),
            started: rfc3339(started),
            finished: rfc3339(SystemTime::now()),
            seconds: begun.elapsed().as_secs_f64(),
            outputs,
        };
        self.store.commit(tmp, &entry.folder_name, &record).map_err(Stop::failed)
    }
}

/// Why a node did not end well.
enum Stop {
    Interrupted,
    Failed(String),
}

impl Stop {
    #[allow(clippy::needless_pass_by_value, reason = "for map_err")]
    fn failed(error: crate::GraphError) -> Self {
        Self::Failed(chain_text(&error))
    }
}

fn stop_of(error: &NodeError, ctx: &Ctx<'_>) -> Stop {
    let error: &(dyn std::error::Error + 'static) = error.as_ref();
    // A boxed `anyhow::Error` no longer tells the type of the error in it, only its words.
    let says_so = || ctx.cancelled() && chain(error).any(|e| e.to_string() == Interrupted.to_string());
    if ctx.stopped.load(Ordering::Relaxed) || chain(error).any(is_interruption) || says_so() {
        return Stop::Interrupted;
    }
    let mut text = chain_text(error);
    let is_full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    // The operating system's own words do not say which disk.
    if chain(error).filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| is_full(e.kind())) {
        text = format!("{text} (while writing below {} or {})", ctx.out.display(), ctx.partial.display());
    }
    Stop::Failed(text)
}

fn is_interruption(error: &(dyn std::error::Error + 'static)) -> bool {
    // An `io::Error` gives the sources of the error in it, and not that error itself.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<Interrupted>() || wrapped.is_some_and(|wrapped| chain(wrapped).any(is_interruption))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a message"))
}
