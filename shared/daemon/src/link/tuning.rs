//! What a link's socket is told as its path shows what it is like: how to control congestion, and how
//! much to take beyond what it has sent.

use std::time::Duration;

use super::socket::TcpInfo;

/// Sent bytes between two looks at the path. Chosen: a look costs a microsecond.
const LOOK_BYTES: usize = 256 << 10;
/// A path that has answered sooner is near: the same host, rack or house.
const NEAR: Duration = Duration::from_millis(1);
/// And is so no longer when answers take as long as this.
const FAR: Duration = Duration::from_millis(10);
/// The kernel takes this much of time ahead, in bytes at the rate of the path. Chosen: longer than
/// the daemon takes to come back to the socket, shorter than what a person or a protocol notices.
const AHEAD: Duration = Duration::from_millis(5);
/// A record, at least.
const AHEAD_BYTES_MIN: u32 = 16 << 10;
/// More gains nothing on a near path.
const AHEAD_BYTES_NEAR: u32 = 1 << 20;
/// On a far one, and while nothing is known. Chosen: a mobile network may become a thousand times
/// slower from one second to the next, and then all that was taken ahead is in the way.
const AHEAD_BYTES_FAR: u32 = 128 << 10;

/// How the kernel finds out how fast it may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Congestion {
    /// By loss. On a near path lost segments are back within a millisecond, so nothing is lost by it
    /// but the cost of BBR, whose timer for every segment is a fifth of what such a link costs.
    Reno,
    /// By what is delivered: at 1 % loss on a far path ten times as fast.
    Bbr,
}

/// What the socket shall be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) congestion: Congestion,
    /// `TCP_NOTSENT_LOWAT`.
    pub(super) ahead_bytes: u32,
}

/// Decides when to look, and what follows from what was seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    advice: Advice,
    /// Nobody has looked yet.
    is_new: bool,
    /// Sent since the last look.
    sent_bytes: usize,
}

impl Tuning {
    /// What a socket is set to before anything is known of its path. BBR comes later if at all: once
    /// it was on, its timers stay.
    pub(super) const FIRST: Advice = Advice {
        congestion: Congestion::Reno,
        ahead_bytes: AHEAD_BYTES_FAR,
    };

    pub(super) const fn new() -> Self {
        Self {
            advice: Self::FIRST,
            is_new: true,
            sent_bytes: 0,
        }
    }

    /// Bytes went out; true if it is time to look at the path: at the first, and then now and then.
    pub(super) const fn sent(&mut self, bytes: usize) -> bool {
        self.sent_bytes = self.sent_bytes.saturating_add(bytes);
        self.is_new || self.sent_bytes >= LOOK_BYTES
    }

    /// What to change, if anything, now that the path looks like this.
    pub(super) fn look(&mut self, info: &TcpInfo) -> Option<Advice> {
        self.sent_bytes = 0;
        // The answers of the handshake are few, but a far path shows in them already. With BBR from
        // there on the window grows with the first ten segments, though nothing fills it.
        let is_first = std::mem::replace(&mut self.is_new, false);
        let near = if is_first { FAR } else { NEAR };
        let is_near = info.rtt_min < near && info.rtt < FAR;
        let congestion = match self.advice.congestion {
            Congestion::Reno if is_near => Congestion::Reno,
            Congestion::Reno | Congestion::Bbr => Congestion::Bbr,
        };
        let most = match congestion {
            Congestion::Reno => AHEAD_BYTES_NEAR,
            Congestion::Bbr => AHEAD_BYTES_FAR,
        };
        let known = self.advice.ahead_bytes;
        let wanted = match ahead(info.delivery_rate) {
            // So much the path can do; nothing says that it can do no more.
            Some(bytes) if info.is_app_limited => bytes.max(known),
            Some(bytes) => bytes,
            None => known,
        };
        let advice = Advice {
            congestion,
            ahead_bytes: wanted.min(most),
        };
        (std::mem::replace(&mut self.advice, advice) != advice).then_some(advice)
    }
}

/// How much to take ahead at so many bytes per second; in powers of two, so that it changes seldom.
fn ahead(bytes_per_second: u64) -> Option<u32> {
    if bytes_per_second == 0 {
        return None;
    }
    let per_second = u64::try_from(1000 / AHEAD.as_millis()).unwrap_or(1);
    let bytes = u32::try_from(bytes_per_second / per_second).unwrap_or(u32::MAX);
    let bytes = bytes.clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_NEAR);
    Some(bytes.next_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tund_session::Progress;

    fn path(rtt_min_us: u64, rtt_us: u64, delivery_rate: u64) -> TcpInfo {
        TcpInfo {
            progress: Progress::default(),
            rtt: Duration::from_micros(rtt_us),
            rtt_var: Duration::ZERO,
            rtt_min: Duration::from_micros(rtt_min_us),
            delivery_rate,
            is_app_limited: false,
        }
    }

    #[test]
    fn a_far_path_gets_bbr_at_the_first_look_and_a_near_one_keeps_reno() {
        let far = Tuning::new().look(&path(40_000, 41_000, 0));
        assert_eq!(far.map(|advice| advice.congestion), Some(Congestion::Bbr));

        assert_eq!(Tuning::new().look(&path(120, 300, 0)), None);
        // A busy neighbour makes a near path no far one.
        assert_eq!(Tuning::new().look(&path(120, 9_000, 0)), None);
    }

    #[test]
    fn a_path_between_near_and_far_is_looked_at_twice() {
        let mut tuning = Tuning::new();
        assert_eq!(tuning.look(&path(2_000, 9_000, 0)), None);

        let known = tuning.look(&path(2_000, 9_000, 0));
        assert_eq!(known.map(|advice| advice.congestion), Some(Congestion::Bbr));
    }

    #[test]
    fn a_path_that_has_become_far_gets_bbr_and_keeps_it() {
        let mut tuning = Tuning::new();
        assert_eq!(tuning.look(&path(120, 300, 0)), None);

        let moved = tuning.look(&path(120, 40_000, 0));
        assert_eq!(moved.map(|advice| advice.congestion), Some(Congestion::Bbr));
        assert_eq!(
            tuning.look(&path(120, 300, 0)),
            None,
            "its timers would stay"
        );
    }

    #[test]
    fn what_is_taken_ahead_is_five_milliseconds_within_bounds() {
        let megabit = 1_000_000 / 8;
        let far = (50_000, 50_000);
        let near = (100, 200);
        for (path_is, rate, bytes) in [
            (far, 1, 16 << 10),
            (far, megabit, 16 << 10),
            (far, 50 * megabit, 32 << 10),
            (far, 1_000 * megabit, 128 << 10),
            (near, megabit, 16 << 10),
            (near, 1_000 * megabit, 1 << 20),
            (near, 100_000 * megabit, 1 << 20),
        ] {
            let advice = Tuning::new().look(&path(path_is.0, path_is.1, rate));
            let bytes_ahead = advice.unwrap().ahead_bytes;
            assert_eq!(bytes_ahead, bytes, "{rate} bytes per second");
        }
    }

    #[test]
    fn a_rate_with_nothing_more_to_send_makes_no_less_be_taken_ahead() {
        let idle = TcpInfo {
            is_app_limited: true,
            ..path(100, 200, 10_000)
        };
        let mut tuning = Tuning::new();
        assert_eq!(tuning.look(&idle), None, "as after the handshake");

        let fast = TcpInfo {
            delivery_rate: 1_000_000_000,
            ..idle
        };
        let bytes = |advice: Option<Advice>| advice.map(|advice| advice.ahead_bytes);
        assert_eq!(bytes(tuning.look(&fast)), Some(AHEAD_BYTES_NEAR));
        assert_eq!(tuning.look(&idle), None);
        let slow = path(100, 200, 10_000);
        assert_eq!(bytes(tuning.look(&slow)), Some(AHEAD_BYTES_MIN));
    }

    #[test]
    fn the_path_is_looked_at_first_and_then_once_in_a_quarter_of_a_megabyte() {
        let mut tuning = Tuning::new();
        assert!(tuning.sent(1));
        tuning.look(&path(100, 100, 0));
        assert!(!tuning.sent(LOOK_BYTES - 1));
        assert!(tuning.sent(1));

        tuning.look(&path(100, 100, 1 << 20));
        assert!(!tuning.sent(1));
        assert_eq!(tuning.look(&path(100, 100, 1 << 20)), None, "nothing new");
    }
}
