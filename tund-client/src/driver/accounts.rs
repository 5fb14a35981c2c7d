//! One log line for each flow that has ended, as long as they are not too many.

use std::time::Duration;
use tund_client_core::{EndedBy, FlowAccount, HowEnded};
use tund_daemon::telemetry::Redacted;
use tund_session::Instant;

/// Flows that are told one by one in a minute; the others are counted. A browser stays below it, a
/// load test must not fill the disk.
const TOLD_MAX: u32 = 600;
/// That minute.
const PERIOD: Duration = Duration::from_secs(60);

/// How many flows were told of late.
#[derive(Debug, Default)]
pub(super) struct AccountLog {
    told: u32,
    counted: u64,
    since: Instant,
}

/// What may be said of one more flow.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Tell it, and first that so many were only counted before.
    Tell { counted_before: u64 },
    /// Count it.
    Count,
}

impl AccountLog {
    fn judge(&mut self, now: Instant) -> Verdict {
        let mut counted_before = 0;
        if self.since + PERIOD <= now {
            (self.told, self.since) = (0, now);
            counted_before = std::mem::take(&mut self.counted);
        }
        if self.told < TOLD_MAX {
            self.told += 1;
            return Verdict::Tell { counted_before };
        }
        self.counted += 1;
        Verdict::Count
    }

    /// Tells of one more.
    pub(super) fn tell(&mut self, account: &FlowAccount, now: Instant) {
        let Verdict::Tell { counted_before } = self.judge(now) else {
            return;
        };
        if counted_before > 0 {
            tracing::info!(
                flows = counted_before,
                "more flows ended, and were not told one by one"
            );
        }
        tracing::info!(
            flow = account.id.0,
            by = by(account.by),
            how = how(account.how),
            age_ms = super::report::millis(account.age),
            outages = account.outages,
            longest_silence_ms = super::report::millis(account.longest_silence),
            up_bytes = account.up_bytes,
            down_bytes = account.down_bytes,
            lost_up_bytes = account.lost.up,
            lost_down_bytes = account.lost.down,
            stored_bytes = account.stored_bytes,
            from = %Redacted(account.source),
            to = %Redacted(account.destination),
            "flow ended"
        );
    }
}

/// Who ended it, in one word.
pub(super) const fn by(by: EndedBy) -> &'static str {
    match by {
        EndedBy::Application => "application",
        EndedBy::Client => "client",
        EndedBy::Origin => "origin",
        EndedBy::Server => "server",
        EndedBy::User => "user",
    }
}

/// How it ended, in one word.
pub(super) const fn how(how: HowEnded) -> &'static str {
    match how {
        HowEnded::Cancelled => "cancelled",
        HowEnded::Closed => "closed",
        HowEnded::Disconnected => "disconnected",
        HowEnded::Expired => "expired",
        HowEnded::Failed => "failed",
        HowEnded::Refused => "refused",
        HowEnded::Reset => "reset",
        HowEnded::Restarted => "restarted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_ends_is_counted_and_summed_up() {
        let start = Instant::default() + PERIOD;
        let mut log = AccountLog::default();

        let told = (0..1000)
            .filter(|_| log.judge(start) != Verdict::Count)
            .count();
        assert_eq!(told, 600);

        let just_before = start + (PERIOD - Duration::from_nanos(1));
        assert_eq!(log.judge(just_before), Verdict::Count);
        assert_eq!(
            log.judge(start + PERIOD),
            Verdict::Tell {
                counted_before: 401
            }
        );
        assert_eq!(
            log.judge(start + PERIOD),
            Verdict::Tell { counted_before: 0 }
        );
    }
}
