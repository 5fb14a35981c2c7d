//! Random schedules against a model of two byte strings and an ending each.
//!
//! `TUND_SEED=n` plays one seed again with its story; `TUND_SCHEDULES=n` says how many to play;
//! `TUND_SURVEY=1` names every seed that fails, in one line each.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use tund_tests::harness::chaos::{self, Failure};
use tund_tests::harness::coverage::Coverage;

const SCHEDULES: u64 = 10_000;
const THREADS: usize = 2;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn what_was_written_arrives_and_every_end_is_what_it_was() {
    chaos::keep_panics();
    if let Some(seed) = number("TUND_SEED") {
        if let Err(failure) = chaos::run(seed) {
            eprintln!("{failure}");
            std::process::abort();
        }
        return;
    }
    let schedules = number("TUND_SCHEDULES").unwrap_or(SCHEDULES);
    let first = number("TUND_FIRST_SEED").unwrap_or(1);
    let survey = number("TUND_SURVEY").is_some();
    let next = AtomicU64::new(first);
    let failed: Mutex<Option<Box<Failure>>> = Mutex::new(None);
    let met = Mutex::new(Coverage::default());

    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut mine = Coverage::default();
                while failed.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + schedules {
                        break;
                    }
                    if survey {
                        if let Some(fault) = chaos::fault_of(seed) {
                            eprintln!("seed {seed}: {fault}");
                        }
                        continue;
                    }
                    match chaos::run(seed) {
                        Ok(coverage) => mine.add(&coverage),
                        Err(failure) => *failed.lock().unwrap() = Some(failure),
                    }
                }
                met.lock().unwrap().add(&mine);
            });
        }
    });

    if survey {
        return;
    }
    let met = met.into_inner().unwrap();
    let failed = failed.into_inner().unwrap();
    eprintln!("{met}");
    let played = next.into_inner() - first;
    if let Some(failure) = failed {
        eprintln!("after {played} schedules:\n{failure}");
        std::process::abort();
    }
    let least = schedules / 100;
    assert_eq!(
        met.below(least),
        Vec::<&str>::new(),
        "met less than {least} times"
    );
}
