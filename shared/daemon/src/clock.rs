//! The one place that reads clocks, the one timer that both daemons sleep on, and what tells that
//! the machine itself has slept.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId as Clock, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tund_session::Instant;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// A deadline that moves by so much has the kernel's timer moved too: who sleeps for long shall not
/// be woken before. Under load deadlines move by less, and cost no system call.
const MOVE_BY: Duration = Duration::from_secs(1);
/// A sleep that links could notice; what is less may be the two readings' distance.
const SLEEP_MIN: Duration = Duration::from_millis(500);
/// Beyond any sleep, and within what the kernel's timers take (the year 2100).
const FAR: i64 = 4_102_444_800;

/// Reads `CLOCK_BOOTTIME`, which goes on while the machine sleeps.
///
/// # Panics
///
/// On a kernel without that clock; Linux has it since 2.6.39.
#[expect(
    clippy::expect_used,
    reason = "a daemon without a clock cannot run, and says so at start"
)]
pub fn now() -> Instant {
    let reading =
        clock_gettime(Clock::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    instant(reading)
}

fn instant(reading: TimeSpec) -> Instant {
    let seconds = u64::try_from(reading.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(reading.tv_nsec()).unwrap_or(0);
    Instant::from_nanos(
        seconds
            .saturating_mul(NANOS_PER_SECOND)
            .saturating_add(nanos),
    )
}

/// The time of day since 1970, for what outlives the machine's next start. It may jump.
pub fn time_of_day() -> Duration {
    let reading = clock_gettime(Clock::CLOCK_REALTIME);
    let seconds = reading.map_or(0, |reading| reading.tv_sec());
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Wakes one task at one moment of [`now`]'s clock, also when the machine slept meanwhile.
///
/// Moving the deadline a little later costs no system call: the kernel's timer then fires too early
/// once, which [`Alarm::poll_expired`] notices and mends.
#[derive(Debug)]
pub struct Alarm {
    timer: AsyncFd<Timer>,
    /// What the owner asked for.
    deadline: Option<Instant>,
    /// When the kernel's timer fires; never later than `deadline` while both are set, and never
    /// earlier by `MOVE_BY` or more.
    armed: Option<Instant>,
}

/// nix's timer names its descriptor the modern way, tokio wants the old one.
#[derive(Debug)]
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[expect(
    unsafe_code,
    reason = "the safe constructor is deprecated; the other asks for a promise"
)]
fn watch(timer: Timer) -> io::Result<AsyncFd<Timer>> {
    // SAFETY: `Timer` owns its descriptor and names no other, and nothing here takes it out.
    Ok(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?)
}

impl Alarm {
    /// Makes an alarm that is not set.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors, or outside a tokio runtime with I/O.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = watch(Timer(TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?))?;
        Ok(Self {
            timer,
            deadline: None,
            armed: None,
        })
    }

    /// Sets, moves or (`None`) clears the deadline.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the time; the deadline is then not armed.
    pub fn set(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.deadline = deadline;
        match (deadline, self.armed) {
            (Some(wanted), None) => self.arm(wanted),
            (Some(wanted), Some(armed)) if wanted < armed || wanted >= armed + MOVE_BY => {
                self.arm(wanted)
            }
            (None, Some(_)) => self.disarm(),
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// Ready once, when the deadline has passed; the alarm is then not set.
    ///
    /// Should the timer itself fail, this is ready too: an early timeout is harmless.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Ok(mut guard) = ready!(self.timer.poll_read_ready(cx)) else {
                return self.expire();
            };
            match guard.try_io(|timer| timer.get_ref().0.wait().map_err(io::Error::from)) {
                Ok(Ok(())) => self.armed = None,
                Ok(Err(_)) => return self.expire(),
                Err(_would_block) => continue,
            }
            let Some(deadline) = self.deadline else {
                continue;
            };
            if deadline <= now() || self.arm(deadline).is_err() {
                return self.expire();
            }
        }
    }

    fn expire(&mut self) -> Poll<()> {
        self.deadline = None;
        Poll::Ready(())
    }

    fn disarm(&mut self) -> io::Result<()> {
        self.timer.get_ref().0.unset()?;
        self.armed = None;
        Ok(())
    }

    fn arm(&mut self, at: Instant) -> io::Result<()> {
        // A time of zero would disarm the timer.
        let nanos = at.as_nanos().max(1);
        let seconds = i64::try_from(nanos / NANOS_PER_SECOND).unwrap_or(i64::MAX);
        let rest = i64::try_from(nanos % NANOS_PER_SECOND).unwrap_or(0);
        let expiration = Expiration::OneShot(TimeSpec::new(seconds, rest));
        self.timer
            .get_ref()
            .0
            .set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        self.armed = Some(at);
        Ok(())
    }
}

/// Tells that the machine has slept: one clock counts sleep, the other does not.
#[derive(Debug)]
pub struct SleepWatch {
    /// The kernel cancels it at the end of a sleep (and when somebody sets the clock), which wakes
    /// who waits for it though nothing else is due.
    timer: AsyncFd<Timer>,
    slept: Duration,
}

impl SleepWatch {
    /// Sleeps from now on count.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors, or outside a tokio runtime with I/O.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = watch(Timer(TimerFd::new(ClockId::CLOCK_REALTIME, flags)?))?;
        let watch = Self {
            timer,
            slept: slept(),
        };
        watch.arm()?;
        Ok(watch)
    }

    /// Ready with the length of a sleep since the last call.
    pub fn poll_slept(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        while let Poll::Ready(Ok(mut guard)) = self.timer.poll_read_ready(cx) {
            // Cancelled, which is an error; else nothing to read.
            let read = guard.try_io(|timer| timer.get_ref().0.wait().map_err(io::Error::from));
            if read.is_ok() && self.arm().is_err() {
                break;
            }
        }
        match growth(self.slept, slept()) {
            Some((now, length)) => {
                self.slept = now;
                Poll::Ready(length)
            }
            None => Poll::Pending,
        }
    }

    fn arm(&self) -> io::Result<()> {
        let expiration = Expiration::OneShot(TimeSpec::new(FAR, 0));
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        self.timer.get_ref().0.set(expiration, flags)?;
        Ok(())
    }
}

/// All sleep since the machine was started. Readings that are apart look like more, so the least
/// of two counts.
fn slept() -> Duration {
    let once = || {
        let awake =
            clock_gettime(Clock::CLOCK_MONOTONIC).map_or_else(|_| Instant::default(), instant);
        now().saturating_duration_since(awake)
    };
    once().min(once())
}

/// The new sum of sleep and the length of the latest one, if there was one.
fn growth(before: Duration, after: Duration) -> Option<(Duration, Duration)> {
    let length = after.saturating_sub(before);
    (length >= SLEEP_MIN).then_some((after, length))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn the_clock_moves_forward_and_an_alarm_never_fires_early() {
        let deadline = now() + Duration::from_millis(20);
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Some(deadline)).unwrap();

        poll_fn(|cx| alarm.poll_expired(cx)).await;

        assert!(now() >= deadline);
    }

    #[tokio::test]
    async fn a_deadline_moved_to_later_fires_only_then() {
        let early = now() + Duration::from_millis(5);
        let late = now() + Duration::from_millis(40);
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Some(early)).unwrap();
        alarm.set(Some(late)).unwrap();

        poll_fn(|cx| alarm.poll_expired(cx)).await;

        assert!(now() >= late);
    }

    #[tokio::test]
    async fn a_deadline_moved_to_earlier_and_one_in_the_past_fire_at_once() {
        let far = now() + Duration::from_secs(3600);
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Some(far)).unwrap();

        for deadline in [now() + Duration::from_millis(5), Instant::default()] {
            alarm.set(Some(deadline)).unwrap();
            poll_fn(|cx| alarm.poll_expired(cx)).await;
        }

        assert!(now() < far);
    }

    #[tokio::test]
    async fn a_deadline_moved_far_wakes_nobody_before() {
        let mut alarm = Alarm::new().unwrap();
        let soon = now() + Duration::from_millis(20);
        alarm.set(Some(soon)).unwrap();
        alarm.set(Some(soon + MOVE_BY)).unwrap();
        assert_eq!(alarm.armed, Some(soon + MOVE_BY));
        alarm
            .set(Some(soon + (MOVE_BY * 2 - Duration::from_nanos(1))))
            .unwrap();
        assert_eq!(alarm.armed, Some(soon + MOVE_BY));

        alarm.set(None).unwrap();

        assert_eq!(alarm.armed, None);
    }

    #[test]
    fn a_sleep_is_what_only_one_clock_counts() {
        let before = Duration::from_secs(100);
        let (little, nanosecond) = (before + SLEEP_MIN, Duration::from_nanos(1));

        assert_eq!(growth(before, little - nanosecond), None);
        assert_eq!(growth(before, little), Some((little, SLEEP_MIN)));
        assert_eq!(growth(before, before - SLEEP_MIN), None);
    }

    #[tokio::test]
    async fn who_has_not_slept_is_told_nothing_and_who_has_is_told_once() {
        let mut watch = SleepWatch::new().unwrap();
        let mut poll = async || poll_fn(|cx| Poll::Ready(watch.poll_slept(cx))).await;
        assert_eq!(poll().await, Poll::Pending);

        // As if the machine had slept since then.
        let mut watch = SleepWatch::new().unwrap();
        watch.slept = watch.slept.saturating_sub(SLEEP_MIN);
        let is_asleep = watch.slept + SLEEP_MIN <= slept();
        let mut poll = async || poll_fn(|cx| Poll::Ready(watch.poll_slept(cx))).await;

        assert_eq!(poll().await.is_ready(), is_asleep);
        assert_eq!(poll().await, Poll::Pending);
    }

    #[tokio::test]
    async fn a_cleared_alarm_stays_silent_and_can_be_set_again() {
        let mut alarm = Alarm::new().unwrap();
        let mut other = Alarm::new().unwrap();
        alarm.set(Some(now() + Duration::from_millis(2))).unwrap();
        alarm.set(None).unwrap();
        other.set(Some(now() + Duration::from_millis(30))).unwrap();

        let first = poll_fn(|cx| {
            if alarm.poll_expired(cx).is_ready() {
                return Poll::Ready("cleared");
            }
            other.poll_expired(cx).map(|()| "other")
        });
        assert_eq!(first.await, "other");

        alarm.set(Some(now())).unwrap();
        poll_fn(|cx| alarm.poll_expired(cx)).await;
    }
}
