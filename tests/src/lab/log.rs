//! What a daemon has written, line by line, each with the time that it says itself.

use std::time::Duration;

use super::process::Process;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// One line of a daemon's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The time of the day, in whichever zone.
    at: Duration,
    /// What it says, and by whom.
    pub text: String,
}

impl LogLine {
    /// None for what is no line of a log, as a panic's.
    fn parse(line: &str) -> Option<Self> {
        let (stamp, text) = line.split_once(' ')?;
        let (_, clock) = stamp.trim_end_matches('Z').split_once('T')?;
        let mut parts = clock.splitn(3, ':');
        let (hours, minutes) = (parts.next()?, parts.next()?);
        let whole: u64 = hours.parse::<u64>().ok()? * 3600 + minutes.parse::<u64>().ok()? * 60;
        let seconds: f64 = parts.next()?.parse().ok()?;
        let seconds = Duration::try_from_secs_f64(seconds).ok()?;
        Some(Self {
            at: Duration::from_secs(whole) + seconds,
            text: text.to_owned(),
        })
    }

    /// How long after `earlier` it was written, at most half a day; nothing if it was before.
    pub fn since(&self, earlier: &Self) -> Duration {
        let ahead = (self.at + DAY).saturating_sub(earlier.at);
        let within = if ahead >= DAY { ahead - DAY } else { ahead };
        if within > DAY / 2 {
            Duration::ZERO
        } else {
            within
        }
    }
}

impl Process {
    /// The lines that it has written about one of `whats`, in their order.
    pub fn log_lines(&self, whats: &[&str]) -> Vec<LogLine> {
        let log = self.log();
        let lines = log.lines().filter_map(LogLine::parse);
        lines
            .filter(|line| whats.iter().any(|what| line.text.contains(what)))
            .collect()
    }
}

/// The first of all these lines.
#[track_caller]
pub fn earliest(lines: &[LogLine]) -> &LogLine {
    found(lines.iter().reduce(|first, line| {
        if first.since(line).is_zero() {
            first
        } else {
            line
        }
    }))
}

/// The last of all these lines.
#[track_caller]
pub fn latest(lines: &[LogLine]) -> &LogLine {
    found(lines.iter().reduce(|last, line| {
        if line.since(last).is_zero() {
            last
        } else {
            line
        }
    }))
}

#[track_caller]
fn found(line: Option<&LogLine>) -> &LogLine {
    line.expect("something was written about it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(clock: &str) -> LogLine {
        let line = format!("2026-11-23T{clock}Z  INFO tund: session ended");
        LogLine::parse(&line).expect("a line of a log")
    }

    #[test]
    fn lines_say_their_time_also_around_midnight() {
        let [a, b, c] = ["23:59:59.500000", "00:00:00.250000", "00:00:01.000000"].map(line);

        assert_eq!(b.since(&a), Duration::from_millis(750));
        assert_eq!(a.since(&b), Duration::ZERO);
        assert_eq!(a.text, " INFO tund: session ended");
        let all = [b, c, a];
        assert_eq!((earliest(&all), latest(&all)), (&all[2], &all[1]));
    }

    #[test]
    fn what_is_no_line_of_a_log_is_left_out() {
        for text in [
            "",
            "thread 'main' panicked at T",
            "2026-11-23T12:00Z x",
            "T::: x",
        ] {
            assert_eq!(LogLine::parse(text), None, "{text}");
        }
    }
}
