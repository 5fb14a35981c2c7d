//! What several stories need: limits of time, and small observations.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;
use tund_tests::lab::{Namespace, narrate, wait};

pub(crate) use tund_tests::lab::{Echo, Scene};

/// For what happens at once unless something is wrong.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// For what may need several attempts on a busy machine.
pub(crate) const LATER: Duration = Duration::from_secs(20);

/// For a transfer that is under way.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Resets a connection as an application does that is killed with `SO_LINGER` 0.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("an open socket takes options");
    drop(stream);
}

/// Writes up to `length` bytes of anything, until all are written or nothing has been taken for a
/// second.
pub(crate) fn write_until_blocked(mut stream: &TcpStream, length: usize) {
    stream
        .set_nonblocking(true)
        .expect("an open socket takes options");
    let piece = [0x77; 65536];
    let (mut written, mut taken_at) = (0, wait::now());
    wait::until_true("the writer stops", LONG, || {
        while written < length {
            match stream.write(&piece[..piece.len().min(length - written)]) {
                Ok(count) => (written, taken_at) = (written + count, wait::now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("after {written} bytes: {error}"),
            }
        }
        written == length || wait::now() - taken_at > Duration::from_secs(1)
    });
}

/// Waits until the kernel of `host` has got everything on its connection at `local` acknowledged.
#[track_caller]
pub(crate) fn wait_until_acknowledged(host: &Namespace, local: SocketAddr) {
    let filter = format!("ss -Htn sport = :{}", local.port());
    wait::until_true("all that was written is acknowledged", LATER, || {
        let listing = host.run(&filter);
        let queued = listing
            .lines()
            .next()
            .and_then(|line| line.split_ascii_whitespace().nth(2));
        queued == Some("0")
    });
}

/// Numbers that look random, from a seed that a failure prints.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// From `TUND_TEST_SEED`, else from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let given = std::env::var("TUND_TEST_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed = given.unwrap_or(seed);
        eprintln!("dice: TUND_TEST_SEED={seed}");
        Self(seed)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// A length between two bounds, in whole milliseconds.
    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

/// Writes down what was measured, to be found by its mark in the output of `--no-capture`.
pub(crate) fn figure(line: &str) {
    narrate("figure", line);
}

/// The middle of some durations.
pub(crate) fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}
