use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::LlmError;

/// Works on many items at once, and gives back what came of each, in the order of the items.
///
/// `workers` threads (at least one) take the items in order. No new item is begun once an item failed with an error that
/// [ends the run](LlmError::ends_the_run), or once `done` breaks; what is under way is waited for, so set the client's stop flag as well to end at once. Items
/// that were never begun are `None`.
///
/// `done` gets the number of finished items, on the calling thread: after each one, and about ten times a second.
///
/// # Panics
/// If `work` does.
pub fn each<T: Sync, R: Send>(
    items: &[T],
    workers: usize,
    work: impl Fn(usize, &T) -> Result<R, LlmError> + Sync,
    done: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Vec<Option<Result<R, LlmError>>> {
    let mut results: Vec<_> = items.iter().map(|_| None).collect();
    let (next, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = channel();
    thread::scope(|scope| {
        for _ in 0..workers.clamp(1, items.len().max(1)) {
            let (sender, next, ended, work) = (sender.clone(), &next, &ended, &work);
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let result = work(index, item);
                    if result.as_ref().is_err_and(LlmError::ends_the_run) {
                        ended.store(true, Ordering::Relaxed);
                    }
                    if sender.send((index, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut finished = 0;
        loop {
            match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok((index, result)) => {
                    results[index] = Some(result);
                    finished += 1;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if done(finished).is_break() {
                ended.store(true, Ordering::Relaxed);
            }
        }
    });
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go_on(_: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<u64> = (0..200).collect();
        let mut last = 0;
        let work = |index: usize, item: &u64| {
            thread::sleep(Duration::from_micros(item % 7 * 100));
            Ok(index as u64 + item)
        };
        let results = each(&items, 8, work, &mut |finished| {
            last = finished;
            ControlFlow::Continue(())
        });
        let doubled: Vec<_> = items.iter().map(|item| Some(Ok(item * 2))).collect();
        assert_eq!((results, last), (doubled, 200));
        assert!(each(&[] as &[u64], 4, |_, _| Ok(()), &mut go_on).is_empty());
    }

    #[test]
    fn an_error_that_concerns_all_ends_it_and_another_does_not() {
        let items: Vec<usize> = (0..100).collect();
        let fail = |index: usize, _: &usize| match index {
            3 => Err(LlmError::Schema { server: "s".into(), why: "w".into() }),
            10 => Err(LlmError::Stopped),
            _ => Ok(()),
        };
        let results = each(&items, 1, fail, &mut go_on);
        assert!(matches!(results[3], Some(Err(LlmError::Schema { .. }))));
        assert_eq!(results[10], Some(Err(LlmError::Stopped)));
        assert!(results[..10].iter().all(Option::is_some) && results[11..].iter().all(Option::is_none));
    }

    #[test]
    fn the_caller_may_end_it() {
        let items: Vec<usize> = (0..1000).collect();
        let work = |_: usize, _: &usize| {
            thread::sleep(Duration::from_millis(1));
            Ok(())
        };
        let results = each(&items, 2, work, &mut |finished| {
            if finished >= 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let begun = results.iter().filter(|result| result.is_some()).count();
        assert!((5..1000).contains(&begun), "{begun}");
    }
}
