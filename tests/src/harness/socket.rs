//! An ideal local TCP connection with a small ring each way: an application or an origin at one
//! end, a daemon at the other.

use super::rng::mix;
use bytes::Bytes;
use std::fmt;

/// The byte that the writer `stream` writes at `place`. All that is ever written is known
/// beforehand, so two byte strings are two lengths.
fn byte_at(stream: u64, place: u64) -> u8 {
    mix(stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ place).to_le_bytes()[0]
}

/// The same of a writer of lines, about one in sixteen bytes ends one.
fn spoken(stream: u64, in_lines: bool, place: u64) -> u8 {
    match byte_at(stream, place) {
        0..16 if in_lines => b'\n',
        byte => byte,
    }
}

/// A length as an offset.
pub(super) fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// An offset as a length.
pub(super) fn narrow(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// One local connection and all that either end has done with it.
#[derive(Clone, Debug)]
pub struct Socket {
    /// Names what its application writes.
    writes: u64,
    /// Names what its application has to read.
    reads: u64,
    /// What the application writes is cut into lines.
    writes_lines: bool,
    /// And what it has to read.
    reads_lines: bool,
    /// What the origin's side of the flow begins with, which it has not said itself.
    prologue: Bytes,
    /// The flow has asked for that, whether or not there was any.
    asks: bool,
    ring: u64,
    /// C is connected, or A was accepted.
    pub connected: bool,

    /// Bytes that the application has written, and of these the daemon has taken.
    pub wrote: u64,
    taken: u64,
    /// The application has shut down its side, or reset.
    pub app_fin: bool,
    /// The application has reset.
    pub app_rst: bool,

    /// Bytes that the daemon has written, and of these the application has read.
    pub put: u64,
    /// Bytes that the application has read.
    pub got: u64,
    fin: bool,
    rst: bool,
    /// The application has read the end.
    pub saw_fin: bool,
    /// The application has met the reset.
    pub saw_rst: bool,

    /// The application reads nothing.
    pub stuck: bool,
    /// The application has done something that makes the socket readable for the daemon.
    pub readable_edge: bool,
    /// The application has read, or is gone: the socket is writable, or has drained.
    pub writable_edge: bool,
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marks = [
            (self.app_fin, " fin"),
            (self.app_rst, " rst"),
            (self.saw_fin, " saw-fin"),
            (self.saw_rst, " saw-rst"),
            (self.rst, " reset"),
            (self.stuck, " stuck"),
        ];
        write!(f, "wrote {} taken {}", self.wrote, self.taken)?;
        write!(f, " put {} got {}", self.put, self.got)?;
        let marks = marks.iter().filter(|(on, _)| *on);
        marks
            .into_iter()
            .try_for_each(|(_, mark)| f.write_str(mark))
    }
}

impl Socket {
    /// A connection of flow `unit` on `side`, with rings of `ring` bytes.
    pub fn new(unit: usize, side: usize, ring: u64) -> Self {
        let stream = wide(unit) * 2;
        Self {
            writes: stream + wide(side),
            reads: stream + wide(1 - side),
            writes_lines: false,
            reads_lines: false,
            prologue: Bytes::new(),
            asks: false,
            ring,
            connected: false,
            wrote: 0,
            taken: 0,
            app_fin: false,
            app_rst: false,
            put: 0,
            got: 0,
            fin: false,
            rst: false,
            saw_fin: false,
            saw_rst: false,
            stuck: false,
            readable_edge: false,
            writable_edge: false,
        }
    }

    /// The same, where the application writes lines, or the origin does.
    pub fn in_lines(self, lines: [bool; 2]) -> Self {
        let [mine, theirs] = if self.writes.is_multiple_of(2) {
            lines
        } else {
            [lines[1], lines[0]]
        };
        Self {
            writes_lines: mine,
            reads_lines: theirs,
            ..self
        }
    }

    /// The flow asks for what others have left.
    pub fn asks(self, asks: bool) -> Self {
        Self { asks, ..self }
    }

    /// What the origin's side of the flow begins with.
    pub fn begin_with(&mut self, prologue: Bytes) {
        self.prologue = prologue;
    }

    /// At the origin: its daemon has that already.
    pub fn has_said_prologue(&mut self) {
        self.wrote += self.prologue_len();
        self.taken += self.prologue_len();
    }

    /// How long that is.
    pub fn prologue_len(&self) -> u64 {
        wide(self.prologue.len())
    }

    // The application's or origin's side.

    /// Writes up to `count` bytes; how many were taken.
    pub fn write(&mut self, count: u64) -> u64 {
        if !self.connected || self.app_fin || self.app_rst || self.saw_rst || self.rst {
            return 0;
        }
        let count = count.min(self.ring.saturating_sub(self.inbound()));
        self.wrote += count;
        self.readable_edge |= count > 0;
        count
    }

    /// Shuts the writing side down.
    pub fn finish(&mut self) -> bool {
        let can = self.connected && !self.app_fin && !self.app_rst && !self.rst;
        self.app_fin |= can;
        self.readable_edge |= can;
        can
    }

    /// Resets the connection; before it is connected, gives it up.
    pub fn reset_by_app(&mut self) -> bool {
        let can = !self.is_told();
        self.app_rst |= can;
        self.readable_edge |= can;
        self.writable_edge |= can;
        can
    }

    /// Reads up to `count` bytes, or the end; true if there was something.
    pub fn read(&mut self, count: u64) -> bool {
        if self.stuck || self.app_rst || self.saw_rst {
            return false;
        }
        let taken = count.min(self.unread());
        if taken > 0 {
            self.got += taken;
            self.writable_edge = true;
        } else if self.rst {
            self.saw_rst = true;
        } else if self.fin && !self.saw_fin {
            self.saw_fin = true;
        } else {
            return false;
        }
        true
    }

    // The daemon's side.

    /// Bytes that wait to be taken by the daemon.
    pub fn inbound(&self) -> u64 {
        self.wrote - self.taken
    }

    /// Bytes that the daemon has taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Takes `count` of them.
    pub fn take(&mut self, count: u64) -> Bytes {
        let count = count.min(self.inbound());
        let from = self.taken;
        self.taken += count;
        (from..self.taken)
            .map(|place| self.written_at(place))
            .collect()
    }

    /// The byte that the application writes at `place`.
    pub fn written_at(&self, place: u64) -> u8 {
        self.at((self.writes, self.writes_lines), place)
    }

    /// The byte at `place` of what one of the two says; what the origin's begins with is known.
    fn at(&self, (stream, in_lines): (u64, bool), place: u64) -> u8 {
        if stream.is_multiple_of(2) {
            return spoken(stream, in_lines, place);
        }
        match self.prologue.get(narrow(place)) {
            Some(byte) => *byte,
            None => spoken(stream, in_lines, place - self.prologue_len()),
        }
    }

    /// What the application writes looks like TLS by accident.
    pub fn writes_opaque(&self) -> bool {
        !self.asks && [0, 1].map(|place| self.written_at(place)) == [0x16, 0x03]
    }

    /// What there is to be read looks like TLS by accident, and is not cut into messages.
    pub fn reads_opaque(&self) -> bool {
        let head = [0, 1].map(|place| self.at((self.reads, self.reads_lines), place));
        head == [0x16, 0x03]
    }

    /// What waits has no reader any more.
    pub fn discard_inbound(&mut self) {
        self.taken = self.wrote;
    }

    /// Bytes in the ring towards the application.
    pub fn unread(&self) -> u64 {
        if self.rst || self.app_rst {
            0
        } else {
            self.put - self.got
        }
    }

    /// Bytes that the ring would take; a connection that is over takes everything.
    pub fn room(&self) -> u64 {
        if self.rst || self.app_rst {
            return u64::MAX;
        }
        self.ring.saturating_sub(self.unread())
    }

    /// Takes what fits.
    ///
    /// # Errors
    ///
    /// Bytes that are not those that the other application wrote here.
    pub fn put(&mut self, bytes: &[u8]) -> Result<u64, String> {
        if self.rst || self.app_rst {
            return Ok(wide(bytes.len()));
        }
        if self.fin {
            return Err("bytes behind the FIN".to_owned());
        }
        let count = wide(bytes.len()).min(self.room());
        for byte in &bytes[..narrow(count)] {
            if *byte != self.at((self.reads, self.reads_lines), self.put) {
                return Err(format!("wrong byte at {}", self.put));
            }
            self.put += 1;
        }
        Ok(count)
    }

    /// Sends FIN behind what was put.
    pub fn shut_down(&mut self) {
        self.fin = true;
    }

    /// Resets at once; what the application has not read is lost.
    pub fn reset(&mut self) {
        self.rst |= !self.is_told();
    }

    /// FIN was sent to the application.
    pub fn has_fin(&self) -> bool {
        self.fin
    }

    /// How much of what the daemon has sent is there, a FIN counted: behind a reset, nothing more comes.
    pub fn there(&self) -> u64 {
        self.put + u64::from(self.fin && !self.app_rst)
    }

    /// The daemon has reset it.
    pub fn is_reset(&self) -> bool {
        self.rst
    }

    /// The application knows that nothing comes any more, or is about to.
    pub fn is_told(&self) -> bool {
        self.app_rst || self.rst || (self.app_fin && self.saw_fin)
    }
}
