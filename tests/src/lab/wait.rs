//! The lab's clock: waiting for a condition with a deadline, and the lengths of outages.

use std::time::{Duration, Instant};

/// How often a condition is looked at while waiting for it.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The time now; the only place in the lab where the clock is read.
pub fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "real processes run on the real clock"
    )]
    Instant::now()
}

/// Lets `length` pass: the length of an outage, which is what a test is about, never a wait for
/// something that can be looked at (see [`until`]).
pub fn let_pass(length: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "real processes run on the real clock"
    )]
    std::thread::sleep(length);
}

/// Waits until `probe` gives something, and panics with `what` when `limit` has passed.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(now() - start < limit, "waited {limit:?} in vain: {what}");
        let_pass(LOOK_EVERY);
    }
}

/// Waits until `probe` is true, and panics with `what` when `limit` has passed.
#[track_caller]
pub fn until_true(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) {
    until(what, limit, || probe().then_some(()));
}

/// Asserts that `probe` stays true for `length`; panics with `what` as soon as it is not.
#[track_caller]
pub fn throughout(what: &str, length: Duration, mut probe: impl FnMut() -> bool) {
    let start = now();
    while now() - start < length {
        assert!(probe(), "after {:?} no longer true: {what}", now() - start);
        let_pass(LOOK_EVERY);
    }
}
