//! Refusals, counted by reason and told at most once a minute: a flood must not fill the log.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tund_session::Instant;

/// The time between two lines.
const PERIOD: Duration = Duration::from_secs(60);

/// Counts what happens often, by reason. Reasons are constants, so the table is bounded.
///
/// The first one is told at once, the following ones are summed up. After [`Tally::add`] and at
/// the time of [`Tally::poll_timeout`], log what [`Tally::poll_summary`] returns.
#[derive(Debug, Default)]
pub struct Tally {
    counts: BTreeMap<&'static str, u64>,
    /// No line before this; none until the first one.
    quiet_until: Option<Instant>,
}

impl Tally {
    /// Counts nothing yet.
    pub const fn new() -> Self {
        Self {
            counts: BTreeMap::new(),
            quiet_until: None,
        }
    }

    /// Counts one.
    pub fn add(&mut self, reason: &'static str) {
        self.add_many(reason, 1);
    }

    /// Counts several.
    pub fn add_many(&mut self, reason: &'static str, more: u64) {
        let count = self.counts.entry(reason).or_default();
        *count = count.saturating_add(more);
    }

    /// What to log now, if something is due.
    pub fn poll_summary(&mut self, now: Instant) -> Option<Summary> {
        if self.counts.is_empty() || self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        self.quiet_until = Some(now + PERIOD);
        Some(Summary {
            counts: std::mem::take(&mut self.counts),
        })
    }

    /// When the next line is due; none while there is nothing to tell.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.counts.is_empty() {
            return None;
        }
        Some(self.quiet_until.unwrap_or_default())
    }
}

/// What was counted, for one log line: `unlisted key: 12, too many pending: 3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    counts: BTreeMap<&'static str, u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (reason, count)) in self.counts.iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            write!(f, "{separator}{reason}: {count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_after_a_minute() {
        let mut tally = Tally::new();
        assert_eq!(tally.poll_timeout(), None);

        tally.add("unlisted key");
        let first = tally.poll_summary(at(10)).expect("the first is due");
        assert_eq!(first.to_string(), "unlisted key: 1");
        assert_eq!(tally.poll_timeout(), None);

        tally.add("unlisted key");
        tally.add("silent for 10 s");
        tally.add("unlisted key");
        assert_eq!(tally.poll_timeout(), Some(at(70)));
        assert_eq!(
            tally.poll_summary(Instant::from_nanos(at(70).as_nanos() - 1)),
            None
        );
        let second = tally.poll_summary(at(70)).expect("the rest is due");
        assert_eq!(second.to_string(), "silent for 10 s: 1, unlisted key: 2");
    }

    #[test]
    fn silence_gives_no_line() {
        let mut tally = Tally::new();
        tally.add("unlisted key");
        assert!(tally.poll_summary(at(0)).is_some());

        assert_eq!(tally.poll_summary(at(600)), None);
        assert_eq!(tally.poll_timeout(), None);
    }

    #[test]
    fn a_flood_gives_one_line_a_minute() {
        let mut tally = Tally::new();
        let mut lines = 0;
        for millisecond in 0..600_000_u64 {
            tally.add("unlisted key");
            lines += u32::from(
                tally
                    .poll_summary(Instant::from_nanos(millisecond * 1_000_000))
                    .is_some(),
            );
        }
        assert_eq!(lines, 10);
    }
}
