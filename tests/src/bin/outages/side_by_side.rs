//! Runs jobs side by side, the longest first; those that keep the machine busy at the end, alone.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tund_tests::lab::{narrate, wait};
use tund_tests::outages::{Job, Row, Sample};

use crate::report::say;

/// Between two starts: building a lab and its daemons keeps the machine busy.
const BETWEEN_STARTS: Duration = Duration::from_secs(2);

/// What one job gives.
type Found = Vec<(Row, Sample)>;

/// Runs them all; what they give, and which failed, with what they said.
pub(crate) fn run(jobs: Vec<Job>, at_once: usize) -> (Vec<Found>, Vec<String>) {
    let (alone, mut beside): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.alone);
    beside.sort_by_key(|job| job.lasts);
    let done = Mutex::new((Vec::new(), Vec::new()));
    let total = alone.len() + beside.len();
    let perform = |job: Job| {
        let begun = wait::now();
        let title = job.title;
        narrate("job", &format!("begins: {title}"));
        let outcome = catch_unwind(AssertUnwindSafe(job.work));
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        let said = match outcome {
            Ok(found) => {
                done.0.push(found);
                "done".to_owned()
            }
            Err(panic) => {
                let what = text_of(panic.as_ref());
                done.1.push(format!("{title}: {what}"));
                format!("FAILED: {what}")
            }
        };
        let number = done.0.len() + done.1.len();
        let took = wait::now() - begun;
        say(&format!("{number} of {total}, {took:.0?}: {title}: {said}"));
    };
    let queue = Mutex::new(beside);
    thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            scope.spawn(|| {
                loop {
                    let job = {
                        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                        let job = queue.pop();
                        if job.is_some() {
                            wait::let_pass(BETWEEN_STARTS);
                        }
                        job
                    };
                    let Some(job) = job else { break };
                    perform(job);
                }
            });
        }
    });
    alone.into_iter().for_each(perform);
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}
