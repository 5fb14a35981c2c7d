//! Transfers without a length: they go on until they are told to stop, and every byte is checked.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::app::{Ending, Pattern, Report, read_pattern};
use super::events::Direction;
use super::namespace::Namespace;
use super::origin::{Origin, Request};
use super::timeline::Timeline;
use super::wait;

/// Bytes written at once as fast as it goes.
const BULK: usize = 64 << 10;

/// Bytes written at once where there is a pause behind them.
const SIP: usize = 1 << 10;

/// How long a stream may take to begin, on a network that works.
const BEGIN_LIMIT: Duration = Duration::from_secs(30);

/// How fast a stream is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it is taken.
    Bulk,
    /// A KiB, and then a pause.
    Sips(Duration),
}

impl Pace {
    /// For a request; 0 is as fast as it goes.
    pub(super) fn to_micros(self) -> u64 {
        match self {
            Self::Bulk => 0,
            Self::Sips(pause) => u64::try_from(pause.as_micros()).unwrap_or(u64::MAX).max(1),
        }
    }

    /// What [`Self::to_micros`] has said.
    pub(super) fn from_micros(micros: u64) -> Self {
        match micros {
            0 => Self::Bulk,
            pause => Self::Sips(Duration::from_micros(pause)),
        }
    }
}

/// Writes `pattern` as long as `goes_on` is true; how many bytes were taken.
///
/// # Errors
/// The first that a write meets.
pub(super) fn write_while(
    mut stream: &TcpStream,
    pattern: Pattern,
    pace: Pace,
    mut goes_on: impl FnMut() -> bool,
) -> io::Result<u64> {
    let mut buf = vec![0; BULK];
    let mut offset = 0;
    while goes_on() {
        let piece = match pace {
            Pace::Bulk => BULK,
            Pace::Sips(pause) => {
                wait::let_pass(pause);
                SIP
            }
        };
        pattern.fill(offset, &mut buf[..piece]);
        stream.write_all(&buf[..piece])?;
        offset += piece as u64;
    }
    Ok(offset)
}

/// A stream in one direction between an application and an [`Origin`].
#[derive(Debug)]
pub struct Stream {
    direction: Direction,
    seed: u64,
    /// For what is done to it from outside.
    socket: TcpStream,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    timeline: Timeline,
    worker: JoinHandle<io::Result<Report>>,
}

impl Stream {
    /// Starts one from `namespace`; returns when its first bytes have arrived.
    ///
    /// # Errors
    /// Those of connecting and asking.
    #[track_caller]
    pub fn start(
        namespace: &Namespace,
        (origin, to): (&Origin, SocketAddr),
        (direction, seed): (Direction, u64),
        pace: Pace,
    ) -> io::Result<Self> {
        let mut socket = namespace.connect(to, BEGIN_LIMIT)?;
        socket.set_nodelay(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let own = socket.try_clone()?;
        let (worker, timeline) = match direction {
            Direction::Down => {
                Request::Stream { seed, pace }.send(&mut socket)?;
                let timeline = Timeline::new();
                let seen = timeline.clone();
                let worker = namespace.spawn("stream down", move || {
                    Ok(read_pattern(&own, Pattern::new(seed), &seen))
                });
                (worker, timeline)
            }
            Direction::Up => {
                Request::Up { seed }.send(&mut socket)?;
                let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&written));
                let worker = namespace.spawn("stream up", move || {
                    let count = write_while(&own, Pattern::new(seed), pace, || {
                        !stopped.load(Ordering::Relaxed)
                    })?;
                    counted.store(count, Ordering::Relaxed);
                    verdict(&own)
                });
                (worker, origin.upload_timeline(seed, BEGIN_LIMIT))
            }
        };
        wait::until_true("the stream begins", BEGIN_LIMIT, || timeline.total() > 0);
        Ok(Self {
            direction,
            seed,
            socket,
            stop,
            written,
            timeline,
            worker,
        })
    }

    /// When bytes arrived at the application that reads: at the client or at the origin.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Whether it has ended, which nobody has asked it to.
    pub fn has_ended(&self) -> bool {
        self.worker.is_finished()
    }

    /// Ends it in order; how many bytes arrived, if that is all that were written, and right.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn stop(self, origin: &Origin, limit: Duration) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        if self.direction == Direction::Down {
            let asked = self.socket.shutdown(Shutdown::Write);
            asked.map_err(|cause| format!("the application half-closed: {cause}"))?;
        }
        let start = wait::now();
        while !self.worker.is_finished() {
            if wait::now() - start > limit {
                // Lets the worker end, whatever it waits for.
                drop(self.socket.shutdown(Shutdown::Both));
                return Err(format!(
                    "not at its end {limit:?} after it was told to stop"
                ));
            }
            wait::let_pass(Duration::from_millis(5));
        }
        let report = self.worker.join().map_err(|_| "the application panicked")?;
        let report = report.map_err(|cause| format!("the application met: {cause}"))?;
        let expected = match self.direction {
            Direction::Down => origin.streamed(self.seed, limit),
            Direction::Up => self.written.load(Ordering::Relaxed),
        };
        if let Some(place) = report.first_bad {
            return Err(format!("wrong byte at {place}"));
        }
        if (report.bytes, report.ending) != (expected, Ending::Finished) {
            let (bytes, ending) = (report.bytes, report.ending);
            return Err(format!("{bytes} of {expected} bytes, and then {ending:?}"));
        }
        Ok(report.bytes)
    }

    /// Gives it up, however it stands.
    pub fn abandon(self) {
        self.stop.store(true, Ordering::Relaxed);
        // It may be gone already.
        drop(self.socket.shutdown(Shutdown::Both));
    }
}

/// Half-closes, and takes the origin's word on what it got.
fn verdict(mut stream: &TcpStream) -> io::Result<Report> {
    stream.shutdown(Shutdown::Write)?;
    let mut right = [0; 8];
    stream.read_exact(&mut right)?;
    let ending = match stream.read(&mut [0])? {
        0 => Ending::Finished,
        _ => return Err(io::Error::other("the origin sent more than its verdict")),
    };
    Ok(Report {
        bytes: u64::from_be_bytes(right),
        first_bad: None,
        ending,
        timeline: Timeline::new(),
    })
}
