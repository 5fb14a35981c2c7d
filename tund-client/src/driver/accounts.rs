//! One log line for each flow that has ended, as long as they are not too many.

use std::time::Duration;
use tund_client_core::{EndedBy, FlowAccount, HowEnded};
use tund_daemon::telemetry::Redacted;
use tund_session::Instant;
use tund_session::wire::frame::Protocol;

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

impl AccountLog {
    /// Begins the next minute if it is time; returns how many were only counted in the last one.
    fn begin_minute(&mut self, now: Instant) -> u64 {
        if self.since + PERIOD > now {
            return 0;
        }
        (self.told, self.since) = (0, now);
        std::mem::take(&mut self.counted)
    }

    /// Whether one more may be told; if not, it is counted.
    fn may_tell(&mut self) -> bool {
        let may = self.told < TOLD_MAX;
        if may {
            self.told += 1;
        } else {
            self.counted += 1;
        }
        may
    }

    /// Says how many were only counted, when their minute is over.
    pub(super) fn tell_counted(&mut self, now: Instant) {
        let flows = self.begin_minute(now);
        if flows > 0 {
            tracing::info!(flows, "more flows ended, and were not told one by one");
        }
    }

    /// When that is due; none while there is nothing to tell.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (self.counted > 0).then(|| self.since + PERIOD)
    }

    /// Tells of one more.
    pub(super) fn tell(&mut self, account: &FlowAccount, now: Instant) {
        self.tell_counted(now);
        if !self.may_tell() {
            return;
        }
        tracing::info!(
            flow = account.id.0,
            protocol = protocol(account.protocol),
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
            held_bytes = account.held_bytes,
            from = %Redacted(account.source),
            to = %Redacted(account.destination),
            "flow ended"
        );
    }
}

/// What it carried, in one word.
pub(super) const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp | Protocol::UdpAny => "udp",
        Protocol::Icmp => "icmp",
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
        HowEnded::Idle => "idle",
        HowEnded::Refused => "refused",
        HowEnded::Reset => "reset",
        HowEnded::Restarted => "restarted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_ends_is_counted_and_summed_up_though_none_follows() {
        let start = Instant::default() + PERIOD;
        let mut log = AccountLog::default();
        assert_eq!(log.begin_minute(start), 0);

        let told = (0..1000).filter(|_| log.may_tell()).count();
        assert_eq!(told, 600);
        assert_eq!(log.poll_timeout(), Some(start + PERIOD));

        let just_before = start + (PERIOD - Duration::from_nanos(1));
        assert_eq!(log.begin_minute(just_before), 0);
        assert!(!log.may_tell());
        assert_eq!(log.begin_minute(start + PERIOD), 401);
        assert_eq!(log.poll_timeout(), None);
        assert!(log.may_tell());
        assert_eq!(log.begin_minute(start + PERIOD * 3), 0);
    }
}
