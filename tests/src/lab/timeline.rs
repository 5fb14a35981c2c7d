//! When bytes arrived: the longest silence, and the first byte after a moment.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::wait;

/// Arrivals closer together than this are one mark; a gigabyte must not make a million marks.
const GRAIN: Duration = Duration::from_millis(1);

/// Bytes that were on their way, or that a watcher saw late, may come so long after a link died.
const SETTLING: Duration = Duration::from_millis(500);

/// How many bytes had arrived when; shared between the application that reads and its watchers.
#[derive(Clone, Debug)]
pub struct Timeline {
    start: Instant,
    marks: Arc<Mutex<Vec<Mark>>>,
}

/// Bytes that arrived within a grain of each other.
#[derive(Clone, Copy, Debug)]
struct Mark {
    first: Instant,
    last: Instant,
    /// Of the whole transfer, this mark's included.
    total: u64,
}

impl Timeline {
    /// A timeline that begins now.
    pub fn new() -> Self {
        Self {
            start: wait::now(),
            marks: Arc::default(),
        }
    }

    /// Notes that `bytes` more have arrived.
    pub fn record(&self, bytes: u64) {
        let now = wait::now();
        let mut marks = self.marks();
        let total = marks.last().map_or(0, |mark| mark.total) + bytes;
        match marks.last_mut() {
            Some(mark) if now - mark.first < GRAIN => {
                mark.last = now;
                mark.total = total;
            }
            _ => marks.push(Mark {
                first: now,
                last: now,
                total,
            }),
        }
    }

    /// Bytes so far.
    pub fn total(&self) -> u64 {
        self.marks().last().map_or(0, |mark| mark.total)
    }

    /// When it began.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// The longest time without a byte, from the beginning to the last byte.
    pub fn longest_silence(&self) -> Duration {
        let mut heard = self.start;
        let mut longest = Duration::ZERO;
        for mark in self.marks().iter() {
            longest = longest.max(mark.first.saturating_duration_since(heard));
            heard = mark.last;
        }
        longest
    }

    /// How long after `moment` the next byte came; none if none has come.
    pub fn first_after(&self, moment: Instant) -> Option<Duration> {
        let marks = self.marks();
        let mark = marks.iter().find(|mark| mark.last > moment)?;
        Some(mark.first.saturating_duration_since(moment))
    }

    /// How long after `back` the silence ended that an outage had caused, the network being away
    /// from `away` to `back`: the end of the longest silence that began between `away` and half a
    /// second after `back`; nothing if a longer one had ended before. None if it has not ended.
    pub fn recovery(&self, away: Instant, back: Instant) -> Option<Duration> {
        let marks = self.marks();
        let (mut longest, mut end) = (Duration::ZERO, None);
        let mut ended_before = Duration::ZERO;
        let mut heard = self.start;
        for mark in marks.iter() {
            let silence = mark.first.saturating_duration_since(heard);
            let begun = heard.max(away);
            if mark.first > away && mark.first <= back {
                ended_before = ended_before.max(silence);
            }
            let concerned = mark.first > back && begun < back + SETTLING;
            if concerned && silence > longest {
                (longest, end) = (silence, Some(mark.first));
            }
            heard = mark.last;
        }
        if heard < back {
            return None;
        }
        if ended_before > longest {
            return Some(Duration::ZERO);
        }
        Some(end?.saturating_duration_since(back))
    }

    /// The longest silence from `moment` on that began no later than half a second after it; none if
    /// nothing has come since.
    pub fn interruption(&self, moment: Instant) -> Option<Duration> {
        let marks = self.marks();
        let mut heard = self.start;
        let mut longest = None;
        for mark in marks.iter() {
            let begun = heard.max(moment);
            if mark.first > moment && begun < moment + SETTLING {
                longest = longest.max(Some(mark.first.saturating_duration_since(begun)));
            }
            heard = mark.last;
        }
        longest
    }

    /// The longest time without a byte between two moments, what begins or ends outside cut off.
    pub fn longest_silence_between(&self, from: Instant, to: Instant) -> Duration {
        let (mut heard, mut longest) = (from, Duration::ZERO);
        for mark in self.marks().iter().filter(|mark| mark.last > from) {
            if mark.first >= to {
                break;
            }
            longest = longest.max(mark.first.saturating_duration_since(heard));
            heard = mark.last;
        }
        longest.max(to.saturating_duration_since(heard))
    }

    /// Whether a byte has come within the last `span`.
    pub fn is_flowing(&self, span: Duration) -> bool {
        let last = self.marks().last().map(|mark| mark.last);
        last.is_some_and(|last| wait::now().saturating_duration_since(last) < span)
    }

    /// Time since the beginning and bytes so far, for a plot.
    pub fn points(&self) -> Vec<(Duration, u64)> {
        let marks = self.marks();
        marks
            .iter()
            .map(|mark| (mark.last - self.start, mark.total))
            .collect()
    }

    fn marks(&self) -> MutexGuard<'_, Vec<Mark>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_silence_is_seen_and_the_first_byte_after_it() {
        let timeline = Timeline::new();
        timeline.record(10);
        let moment = wait::now();
        wait::let_pass(Duration::from_millis(30));

        timeline.record(5);

        assert_eq!(timeline.total(), 15);
        assert!(timeline.longest_silence() >= Duration::from_millis(30));
        assert!(timeline.first_after(moment).unwrap() >= Duration::from_millis(30));
        assert_eq!(timeline.first_after(wait::now()), None);
    }

    #[test]
    fn a_silence_is_cut_off_at_the_moments_asked_for() {
        let ms = Duration::from_millis;
        let timeline = Timeline::new();
        let start = wait::now();
        timeline.record(1);
        wait::let_pass(ms(40));
        timeline.record(1);
        let end = timeline.marks()[1].last;

        assert!(timeline.longest_silence_between(start, end) >= ms(40));
        let within = timeline.longest_silence_between(end - ms(10), end);
        assert_eq!(within, ms(10));
        let beyond = timeline.longest_silence_between(end, end + ms(70));
        assert_eq!(beyond, ms(70));
        assert!(timeline.is_flowing(ms(60_000)));
        assert!(!timeline.is_flowing(Duration::ZERO));
    }

    #[test]
    fn an_interruption_is_counted_from_its_own_beginning() {
        let ms = Duration::from_millis;
        let timeline = Timeline::new();
        timeline.record(1);
        wait::let_pass(ms(30));
        let moment = wait::now();
        assert_eq!(timeline.interruption(moment), None);
        wait::let_pass(ms(10));
        timeline.record(1);
        let first = timeline.interruption(moment).unwrap();
        assert!(first >= ms(10), "{first:?}");
        wait::let_pass(ms(60));
        timeline.record(1);

        let longest = timeline.interruption(moment).unwrap();

        let marks = timeline.marks().clone();
        let gaps = [marks[1].first - moment, marks[2].first - marks[1].last];
        assert_eq!(Some(&longest), gaps.iter().max());
    }

    #[test]
    fn what_recovers_before_its_network_is_said_to_be_back_took_no_time() {
        let ms = Duration::from_millis;
        let timeline = Timeline::new();
        timeline.record(1);
        let away = wait::now();
        wait::let_pass(ms(60));
        timeline.record(1);
        wait::let_pass(ms(5));
        let back = wait::now();
        wait::let_pass(ms(20));
        timeline.record(1);

        assert_eq!(timeline.recovery(away, back), Some(Duration::ZERO));
        assert!(timeline.recovery(away, away).unwrap() >= ms(60));
    }

    #[test]
    fn a_late_byte_of_the_lost_link_is_no_recovery() {
        let timeline = Timeline::new();
        timeline.record(10);
        let away = wait::now();
        wait::let_pass(Duration::from_millis(2));
        let back = wait::now();
        timeline.record(1);
        assert!(
            timeline
                .recovery(away, back)
                .is_some_and(|took| took < Duration::from_millis(20))
        );
        wait::let_pass(Duration::from_millis(40));

        timeline.record(10);

        let took = timeline.recovery(away, back).unwrap();
        assert!(took >= Duration::from_millis(40), "{took:?}");
        assert_eq!(timeline.recovery(away, wait::now()), None);
    }
}
