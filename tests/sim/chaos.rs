//! Random schedules against a model of two byte strings and an ending each.
//!
//! - `TUND_SCHEDULES=n` says how many to play, `TUND_FIRST_SEED=n` from which seed on;
//! - `TUND_SEED=n` plays one seed, and tells its story if it fails;
//! - `TUND_SURVEY=1` names every seed that fails in one line each, and looks no closer;
//! - `TUND_BRIEF=1` stops at the first failure, of whichever family, and says no more than what was
//!   wrong.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use tund_tests::harness::chaos::{self, Family};
use tund_tests::harness::coverage::{Coverage, Situation};
use tund_tests::harness::schedule::Schedule;

const SCHEDULES: u64 = 10_000;
const THREADS: usize = 2;

/// A family has failed, and that is all that was asked.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays seeds from `first` on, side by side; what was met, how many were played, what failed.
fn play(
    family: Family,
    (first, schedules): (u64, u64),
    (survey, brief): (bool, bool),
) -> (Coverage, u64, Vec<(u64, String)>) {
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let failed = Mutex::new(Vec::new());
    let met = Mutex::new(Coverage::default());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut mine = Coverage::default();
                let is_over = || brief && HAS_FAILED.load(Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) && !is_over() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + schedules {
                        break;
                    }
                    match chaos::outcome(family, seed) {
                        Ok(coverage) => mine.add(&coverage),
                        Err(fault) => {
                            failed.lock().unwrap().push((seed, fault));
                            stop.fetch_or(!survey, Ordering::Relaxed);
                            HAS_FAILED.store(true, Ordering::Relaxed);
                        }
                    }
                }
                met.lock().unwrap().add(&mine);
            });
        }
    });
    let played = next.into_inner().min(first + schedules) - first;
    (
        met.into_inner().unwrap(),
        played,
        failed.into_inner().unwrap(),
    )
}

/// Plays a family of schedules; `wanted` situations are to be met often.
fn test(family: Family, wanted: impl Fn(Situation) -> bool) {
    chaos::keep_panics();
    if let Some(seed) = number("TUND_SEED") {
        if let Some(failure) = chaos::failure(family, seed) {
            panic!("{failure}");
        }
        return;
    }
    let schedules = number("TUND_SCHEDULES").unwrap_or(SCHEDULES);
    let first = number("TUND_FIRST_SEED").unwrap_or(1);
    let (survey, brief) = (
        number("TUND_SURVEY").is_some(),
        number("TUND_BRIEF").is_some(),
    );

    let (met, played, mut failed) = play(family, (first, schedules), (survey, brief));

    failed.sort();
    if let Some((seed, fault)) = failed.first() {
        for (seed, fault) in &failed {
            eprintln!("seed {seed}: {fault}");
        }
        let failure = (!survey && !brief)
            .then(|| chaos::failure(family, *seed))
            .flatten();
        let story = failure.map_or_else(String::new, |failure| failure.to_string());
        panic!("after {played} schedules: seed {seed}: {fault}\n{story}");
    }
    eprintln!("{met}");
    eprintln!("of {played} schedules");
    let least = schedules / 100;
    let seldom = met.below(least, wanted);
    assert!(
        brief || seldom.is_empty(),
        "met less than {least} times: {seldom:#?}"
    );
}

#[test]
fn what_was_written_arrives_and_every_end_is_what_it_was() {
    test(Schedule::of, |situation| {
        let others = [Situation::STORING, Situation::DATAGRAMS, Situation::HANDING];
        !others.iter().any(|family| family.contains(&situation))
    });
}

#[test]
fn what_outlasts_grace_is_stored_and_delivered_whatever_befalls_either_daemon() {
    test(Schedule::storing, |situation| {
        Situation::STORING.contains(&situation)
    });
}

#[test]
fn datagrams_are_caught_once_at_most_and_whole_and_mappings_outlive_outages() {
    test(Schedule::throwing, |situation| {
        Situation::DATAGRAMS.contains(&situation)
    });
}

#[test]
fn what_an_application_does_not_get_reaches_its_users_next_connection_once() {
    test(Schedule::handing, |situation| {
        Situation::HANDING.contains(&situation)
    });
}
