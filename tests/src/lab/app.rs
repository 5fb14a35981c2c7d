//! Applications whose every byte is known beforehand: what arrives is checked place by place.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::namespace::Namespace;
use super::origin::Request;
use super::timeline::Timeline;
use super::wait;

/// Bytes read or written at once.
const PIECE: usize = 256 << 10;

/// How long an application tries to connect; longer than any outage of a test.
const CONNECT_LIMIT: Duration = Duration::from_secs(90);

/// An endless string of bytes made from a seed; a byte lost, doubled, moved or changed shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// The pattern of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Writes what stands at `offset` and behind it into `buf`.
    pub fn fill(self, offset: u64, buf: &mut [u8]) {
        let mut at = 0;
        while at < buf.len() {
            let place = offset + at as u64;
            let word = self.word(place / 8).to_le_bytes();
            let within = usize::try_from(place % 8).expect("below 8");
            let count = (8 - within).min(buf.len() - at);
            buf[at..at + count].copy_from_slice(&word[within..within + count]);
            at += count;
        }
    }

    /// The offset of the first byte of `buf`, which stands at `offset`, that is not as it should
    /// be.
    pub fn first_difference(self, offset: u64, buf: &[u8]) -> Option<u64> {
        let mut expected = [0; 4096];
        let mut place = offset;
        for piece in buf.chunks(expected.len()) {
            let expected = &mut expected[..piece.len()];
            self.fill(place, expected);
            if piece != expected {
                let within = piece
                    .iter()
                    .zip(expected.iter())
                    .position(|(is, be)| is != be);
                return within.map(|within| place + within as u64);
            }
            place += piece.len() as u64;
        }
        None
    }

    /// The words are as if drawn at random (the finaliser of splitmix64), so that no two places
    /// look alike.
    fn word(self, index: u64) -> u64 {
        let mut z = self
            .seed
            .wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// How a stream ended for the one who read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With an error that is no reset.
    Failed(io::ErrorKind),
    /// With FIN.
    Finished,
    /// With RST.
    Reset,
}

/// What a reader saw.
#[derive(Clone, Debug)]
pub struct Report {
    /// Bytes read.
    pub bytes: u64,
    /// The offset of the first wrong byte.
    pub first_bad: Option<u64>,
    /// How it ended.
    pub ending: Ending,
    /// When the bytes came.
    pub timeline: Timeline,
}

impl Report {
    /// Panics unless exactly `length` right bytes came, and then FIN.
    #[track_caller]
    pub fn assert_intact(&self, length: u64) {
        assert_eq!(self.first_bad, None, "the first wrong byte's offset");
        assert_eq!(
            (self.bytes, self.ending),
            (length, Ending::Finished),
            "bytes and ending"
        );
    }

    /// Panics unless exactly `length` right bytes came, and then RST.
    #[track_caller]
    pub fn assert_reset_after(&self, length: u64) {
        assert_eq!(self.first_bad, None, "the first wrong byte's offset");
        assert_eq!(
            (self.bytes, self.ending),
            (length, Ending::Reset),
            "bytes and ending"
        );
    }

    /// The report of a stream that did not come about.
    fn of_failure(error: &io::Error, timeline: Timeline) -> Self {
        Self {
            bytes: 0,
            first_bad: None,
            ending: ending_of(error),
            timeline,
        }
    }
}

/// Reads `stream` to its end and compares it with `pattern`.
pub fn read_pattern(mut stream: impl Read, pattern: Pattern, timeline: &Timeline) -> Report {
    let mut buf = vec![0; PIECE];
    let mut bytes = 0;
    let mut first_bad = None;
    let ending = loop {
        match stream.read(&mut buf) {
            Ok(0) => break Ending::Finished,
            Ok(count) => {
                first_bad = first_bad.or_else(|| pattern.first_difference(bytes, &buf[..count]));
                bytes += count as u64;
                timeline.record(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break ending_of(&error),
        }
    };
    Report {
        bytes,
        first_bad,
        ending,
        timeline: timeline.clone(),
    }
}

/// Writes `length` bytes of `pattern`, counting them in `written`.
///
/// # Errors
/// The first that a write meets.
pub fn write_pattern(
    mut stream: impl Write,
    pattern: Pattern,
    length: u64,
    written: &AtomicU64,
) -> io::Result<()> {
    let mut buf = vec![0; PIECE];
    let mut offset = 0;
    while offset < length {
        let count = usize::try_from((length - offset).min(PIECE as u64)).expect("at most PIECE");
        pattern.fill(offset, &mut buf[..count]);
        let mut rest = &buf[..count];
        while !rest.is_empty() {
            let taken = stream.write(rest)?;
            written.fetch_add(taken as u64, Ordering::Relaxed);
            rest = &rest[taken..];
        }
        offset += count as u64;
    }
    Ok(())
}

/// The ending that an error stands for.
pub fn ending_of(error: &io::Error) -> Ending {
    if error.kind() == io::ErrorKind::ConnectionReset {
        Ending::Reset
    } else {
        Ending::Failed(error.kind())
    }
}

/// An application that downloads a pattern from an [`super::Origin`].
#[derive(Debug)]
pub struct Download {
    worker: JoinHandle<Report>,
    timeline: Timeline,
}

impl Download {
    /// Starts it in `namespace`.
    pub fn start(namespace: &Namespace, from: SocketAddr, seed: u64, length: u64) -> Self {
        let timeline = Timeline::new();
        let seen = timeline.clone();
        let worker = namespace.spawn("download", move || {
            let stream = TcpStream::connect_timeout(&from, CONNECT_LIMIT).and_then(|mut stream| {
                Request::Down { seed, length }
                    .send(&mut stream)
                    .map(|()| stream)
            });
            match stream {
                Ok(stream) => read_pattern(stream, Pattern::new(seed), &seen),
                Err(error) => Report::of_failure(&error, seen),
            }
        });
        Self { worker, timeline }
    }

    /// What has arrived so far.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Whether it has ended, well or not.
    pub fn has_ended(&self) -> bool {
        self.worker.is_finished()
    }

    /// Waits for its end, at most `limit`.
    #[track_caller]
    pub fn finish(self, limit: Duration) -> Report {
        wait::until_true("the download ends", limit, || self.worker.is_finished());
        self.worker.join().expect("its panic has been printed")
    }
}

/// An application that uploads a pattern to an [`super::Origin`] and waits for the verdict.
#[derive(Debug)]
pub struct Upload {
    worker: JoinHandle<io::Result<u64>>,
    written: Arc<AtomicU64>,
}

impl Upload {
    /// Starts it in `namespace`.
    pub fn start(namespace: &Namespace, to: SocketAddr, seed: u64, length: u64) -> Self {
        let written = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&written);
        let worker = namespace.spawn("upload", move || upload(to, seed, length, &counted));
        Self { worker, written }
    }

    /// Bytes that the kernel has taken from it.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Whether it has ended, well or not.
    pub fn has_ended(&self) -> bool {
        self.worker.is_finished()
    }

    /// Waits for the origin's verdict, at most `limit`: the number of right bytes it got.
    ///
    /// # Errors
    /// What the application met.
    #[track_caller]
    pub fn finish(self, limit: Duration) -> io::Result<u64> {
        wait::until_true("the upload ends", limit, || self.worker.is_finished());
        self.worker.join().expect("its panic has been printed")
    }
}

fn upload(to: SocketAddr, seed: u64, length: u64, written: &AtomicU64) -> io::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&to, CONNECT_LIMIT)?;
    Request::Up { seed }.send(&mut stream)?;
    write_pattern(&stream, Pattern::new(seed), length, written)?;
    stream.shutdown(Shutdown::Write)?;
    let mut verdict = [0; 8];
    stream.read_exact(&mut verdict)?;
    if stream.read(&mut [0])? != 0 {
        return Err(io::Error::other("the origin sent more than its verdict"));
    }
    Ok(u64::from_be_bytes(verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_same_in_any_pieces() {
        let pattern = Pattern::new(7);
        let mut whole = [0; 100];
        pattern.fill(3, &mut whole);
        let mut pieces = [0; 100];
        let (left, right) = pieces.split_at_mut(41);
        pattern.fill(3, left);
        pattern.fill(44, right);

        assert_eq!(whole, pieces);
        assert_eq!(pattern.first_difference(3, &whole), None);
    }

    #[test]
    fn a_changed_a_missing_and_a_doubled_byte_are_found_where_they_are() {
        let pattern = Pattern::new(7);
        let mut whole = vec![0; 10_000];
        pattern.fill(0, &mut whole);

        let mut changed = whole.clone();
        changed[5_000] ^= 1;
        assert_eq!(pattern.first_difference(0, &changed), Some(5_000));

        let mut missing = whole.clone();
        missing.remove(5_000);
        let found = pattern.first_difference(0, &missing).unwrap();
        assert!((5_000..5_004).contains(&found), "{found}");

        let mut doubled = whole;
        doubled.insert(5_000, doubled[5_000]);
        let found = pattern.first_difference(0, &doubled).unwrap();
        assert!((5_000..5_005).contains(&found), "{found}");
    }
}
