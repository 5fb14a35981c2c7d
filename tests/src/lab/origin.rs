//! An origin that serves and takes patterns, and says what it got.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::app::{Pattern, Report, read_pattern, write_pattern};
use super::namespace::Namespace;
use super::stream::{Pace, write_while};
use super::timeline::Timeline;
use super::wait;

/// The port of [`Origin::start`].
pub const ORIGIN_PORT: u16 = 8080;

/// What an application asks of an origin: the first 17 bytes of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Send `length` bytes of the pattern, then FIN.
    Down {
        /// Of the pattern.
        seed: u64,
        /// Of the stream.
        length: u64,
    },
    /// Send back what comes, then FIN.
    Echo,
    /// Send the pattern until the application half-closes, then FIN.
    Stream {
        /// Of the pattern.
        seed: u64,
        /// How fast.
        pace: Pace,
    },
    /// Take the pattern up to FIN, answer with the number of right bytes, then FIN.
    Up {
        /// Of the pattern.
        seed: u64,
    },
}

impl Request {
    /// Writes it at the beginning of a connection.
    ///
    /// # Errors
    /// Those of the write.
    pub fn send(self, stream: &mut impl io::Write) -> io::Result<()> {
        let (verb, seed, length) = match self {
            Self::Down { seed, length } => (b'd', seed, length),
            Self::Echo => (b'e', 0, 0),
            Self::Stream { seed, pace } => (b's', seed, pace.to_micros()),
            Self::Up { seed } => (b'u', seed, 0),
        };
        let mut bytes = vec![verb];
        bytes.extend(seed.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        stream.write_all(&bytes)
    }

    fn receive(stream: &mut TcpStream) -> io::Result<Self> {
        let mut verb = [0; 1];
        let mut seed = [0; 8];
        let mut length = [0; 8];
        stream.read_exact(&mut verb)?;
        stream.read_exact(&mut seed)?;
        stream.read_exact(&mut length)?;
        let (seed, length) = (u64::from_be_bytes(seed), u64::from_be_bytes(length));
        match verb {
            [b'd'] => Ok(Self::Down { seed, length }),
            [b'e'] => Ok(Self::Echo),
            [b's'] => Ok(Self::Stream {
                seed,
                pace: Pace::from_micros(length),
            }),
            [b'u'] => Ok(Self::Up { seed }),
            other => Err(io::Error::other(format!(
                "no request begins with {other:?}"
            ))),
        }
    }
}

/// A server that answers any number of [`Request`]s, until it is dropped.
#[derive(Debug)]
pub struct Origin {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    accepted: AtomicU64,
    uploads: Mutex<BTreeMap<u64, Incoming>>,
    /// How many bytes the streams that are over were long, by seed.
    streamed: Mutex<BTreeMap<u64, u64>>,
}

/// An upload as the origin sees it.
#[derive(Clone, Debug)]
struct Incoming {
    timeline: Timeline,
    report: Option<Report>,
}

impl Origin {
    /// Starts it on [`ORIGIN_PORT`] of every address of `namespace`.
    pub fn start(namespace: &Namespace) -> Self {
        Self::start_on(namespace, ORIGIN_PORT)
    }

    /// Starts it on `port` of every address of `namespace`.
    pub fn start_on(namespace: &Namespace, port: u16) -> Self {
        let listener = namespace.listen(port);
        listener
            .set_nonblocking(true)
            .expect("a listener can be made non-blocking");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        drop(namespace.spawn("origin", move || accept(&listener, &shared)));
        Self { state }
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::Relaxed)
    }

    /// When the bytes of the upload with this seed came; waits at most `limit` for its first.
    #[track_caller]
    pub fn upload_timeline(&self, seed: u64, limit: Duration) -> Timeline {
        wait::until("the upload reaches the origin", limit, || {
            self.state
                .uploads()
                .get(&seed)
                .map(|incoming| incoming.timeline.clone())
        })
    }

    /// What the origin got of the upload with this seed, once that has ended; waits at most
    /// `limit`.
    #[track_caller]
    pub fn upload_report(&self, seed: u64, limit: Duration) -> Report {
        wait::until("the upload ends at the origin", limit, || {
            self.state
                .uploads()
                .get(&seed)
                .and_then(|incoming| incoming.report.clone())
        })
    }

    /// How many bytes of the stream with this seed it sent, once that is over; waits at most
    /// `limit`.
    #[track_caller]
    pub fn streamed(&self, seed: u64, limit: Duration) -> u64 {
        wait::until("the stream ends at the origin", limit, || {
            self.state.streamed().get(&seed).copied()
        })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
    }
}

impl State {
    fn uploads(&self) -> MutexGuard<'_, BTreeMap<u64, Incoming>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streamed(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.streamed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    while !state.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                state.accepted.fetch_add(1, Ordering::Relaxed);
                let state = Arc::clone(state);
                // Its end is seen by the application, or by who asks for the report.
                drop(thread::spawn(move || serve(stream, &state)));
            }
            Err(_) => wait::let_pass(Duration::from_millis(2)),
        }
    }
}

/// An error here is one that the application sees too, and judges.
fn serve(mut stream: TcpStream, state: &State) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    match Request::receive(&mut stream)? {
        Request::Down { seed, length } => {
            write_pattern(&stream, Pattern::new(seed), length, &AtomicU64::new(0))?;
            stream.shutdown(Shutdown::Write)?;
            // Until the peer has closed too, so that no reset overtakes the last bytes.
            stream.read(&mut [0]).map(drop)
        }
        Request::Echo => echo(&mut stream),
        Request::Stream { seed, pace } => {
            let length = stream_until_half_closed(&stream, seed, pace)?;
            state.streamed().insert(seed, length);
            Ok(())
        }
        Request::Up { seed } => take(stream, seed, state),
    }
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buf = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut buf)?;
        if count == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buf[..count])?;
    }
}

/// Sends the pattern until the application has said FIN; how long it became.
fn stream_until_half_closed(stream: &TcpStream, seed: u64, pace: Pace) -> io::Result<u64> {
    let asked = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // An error ends the stream too, as its writer will learn.
            drop((&*stream).read(&mut [0]));
            asked.store(true, Ordering::Relaxed);
        });
        let written = write_while(stream, Pattern::new(seed), pace, || {
            !asked.load(Ordering::Relaxed)
        })?;
        stream.shutdown(Shutdown::Write)?;
        Ok(written)
    })
}

fn take(mut stream: TcpStream, seed: u64, state: &State) -> io::Result<()> {
    let timeline = Timeline::new();
    state.uploads().insert(
        seed,
        Incoming {
            timeline: timeline.clone(),
            report: None,
        },
    );
    let report = read_pattern(&stream, Pattern::new(seed), &timeline);
    let right = report.first_bad.unwrap_or(report.bytes);
    state.uploads().insert(
        seed,
        Incoming {
            timeline,
            report: Some(report),
        },
    );
    stream.write_all(&right.to_be_bytes())?;
    stream.shutdown(Shutdown::Write)
}
