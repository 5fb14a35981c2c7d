//! Where the messages of a stream end: the same verdict at both ends, whatever the pieces.

use crate::id::Offset;
use crate::limits;
use crate::wire::frame::{Framing, HandOff};

/// First bytes of streams that mean nothing without the connection they were said on: TLS, SSH,
/// HTTP/2.
const CONVERSATIONS: [&[u8]; 3] = [&[0x16, 0x03], b"SSH-", b"PRI * HTTP/2.0"];
/// The longest of them.
const HEAD: usize = 14;
/// Digits of the longest octet count.
const DIGITS: u8 = 5;

/// Finds the boundaries between messages (PROTOCOL.md §5.7).
///
/// Fed with the bytes of a stream in order, it knows where the last message ended. What is no run
/// of messages, or has one that is too long, makes it *opaque* for good.
#[derive(Clone, Debug)]
pub struct Framer {
    framing: Framing,
    /// Fed up to here.
    position: Offset,
    /// The last message ended here.
    boundary: Offset,
    state: State,
    /// The first bytes of the stream, as many as are needed; none once they are known.
    head: Option<([u8; HEAD], usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Within a message, or before one; what octet count was read so far.
    Within {
        count: u64,
        digits: u8,
    },
    /// So many bytes of an octet-counted message are to come.
    Counted {
        left: u64,
    },
    Opaque,
}

const START: State = State::Within {
    count: 0,
    digits: 0,
};

/// The longest message of a framing, in bytes; a longer one makes its stream opaque.
pub const fn longest_message(framing: Framing) -> u64 {
    match framing {
        Framing::Line | Framing::OctetCount => limits::MESSAGE,
        Framing::Whole => limits::MESSAGE_WHOLE,
    }
}

impl Framer {
    /// At the beginning of a stream.
    pub const fn new(framing: Framing) -> Self {
        Self::resume(framing, Offset(0))
    }

    /// At a boundary that another one has found.
    pub const fn resume(framing: Framing, boundary: Offset) -> Self {
        let head = if boundary.0 == 0 {
            Some(([0; HEAD], 0))
        } else {
            None
        };
        Self {
            framing,
            position: boundary,
            boundary,
            state: START,
            head,
        }
    }

    /// At a boundary of the server's half of a flow that is handed on. One that asks for what others
    /// have left may begin with a message of theirs, and that is no head.
    pub fn of_hand_off(hand_off: &HandOff, boundary: Offset) -> Self {
        let mut framer = Self::resume(hand_off.framing, boundary);
        if !hand_off.takes.is_empty() {
            framer.head = None;
        }
        framer
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        if self.head.is_some() {
            bytes = self.feed_head(bytes);
        }
        self.scan(bytes);
    }

    /// The stream ends here, and its last message with it, whatever the framing.
    pub fn finish(&mut self) {
        self.boundary = self.position;
    }

    /// Behind the last whole message; behind all that was fed, if the stream is opaque.
    pub const fn boundary(&self) -> Offset {
        if self.is_opaque() {
            self.position
        } else {
            self.boundary
        }
    }

    /// Behind all that was fed.
    pub const fn position(&self) -> Offset {
        self.position
    }

    /// The stream is no run of messages.
    pub const fn is_opaque(&self) -> bool {
        matches!(self.state, State::Opaque)
    }

    /// Takes bytes one by one until it is known what the stream begins with; gives back the rest.
    fn feed_head<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut rest = bytes;
        while let (Some((head, len)), Some((first, behind))) = (&mut self.head, rest.split_first())
        {
            if let Some(place) = head.get_mut(*len) {
                *place = *first;
                *len += 1;
            }
            let known = head.get(..*len).unwrap_or_default();
            let is_conversation = CONVERSATIONS.iter().any(|c| known.starts_with(c));
            let may_become_one = CONVERSATIONS.iter().any(|c| c.starts_with(known));
            if !may_become_one || is_conversation {
                self.head = None;
            }
            if is_conversation {
                self.state = State::Opaque;
                return rest;
            }
            self.scan(std::slice::from_ref(first));
            rest = behind;
        }
        rest
    }

    fn scan(&mut self, bytes: &[u8]) {
        match self.framing {
            Framing::Line => self.scan_lines(bytes),
            Framing::OctetCount => self.scan_counts(bytes),
            Framing::Whole => self.pass(bytes),
        }
    }

    /// How many more bytes the message may have.
    fn room(&self) -> usize {
        let used = self.position.since(self.boundary);
        usize::try_from(longest_message(self.framing).saturating_sub(used)).unwrap_or(usize::MAX)
    }

    /// Bytes without a boundary among them.
    fn pass(&mut self, bytes: &[u8]) {
        if bytes.len() > self.room() {
            self.state = State::Opaque;
        }
        self.position = self.position.plus(wide(bytes));
    }

    fn scan_lines(&mut self, mut bytes: &[u8]) {
        while self.state != State::Opaque {
            let window = bytes.get(..self.room()).unwrap_or(bytes);
            let Some(last) = window.iter().rposition(|byte| *byte == b'\n') else {
                break;
            };
            let (lines, rest) = bytes.split_at(last + 1);
            self.position = self.position.plus(wide(lines));
            self.boundary = self.position;
            bytes = rest;
        }
        self.pass(bytes);
    }

    fn scan_counts(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            match self.state {
                State::Opaque => break,
                State::Within { count, digits } => {
                    self.position = self.position.plus(1);
                    bytes = rest;
                    self.state = next_of_count(count, digits, *first);
                }
                State::Counted { left } => {
                    let some = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let (taken, rest) = bytes.split_at(some);
                    self.position = self.position.plus(wide(taken));
                    bytes = rest;
                    let left = left.saturating_sub(wide(taken));
                    if left == 0 {
                        self.boundary = self.position;
                        self.state = START;
                    } else {
                        self.state = State::Counted { left };
                    }
                }
            }
        }
        self.position = self.position.plus(wide(bytes));
    }
}

/// What comes of one more byte of MSG-LEN SP: at least one digit, the first of them not 0.
fn next_of_count(count: u64, digits: u8, byte: u8) -> State {
    let header = u64::from(digits) + 1;
    match byte {
        b'1'..=b'9' | b'0' if (byte != b'0' || digits > 0) && digits < DIGITS => State::Within {
            count: count * 10 + u64::from(byte - b'0'),
            digits: digits + 1,
        },
        b' ' if digits > 0 && header + count <= limits::MESSAGE => State::Counted { left: count },
        _ => State::Opaque,
    }
}

fn wide(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert_eq, prop_oneof, proptest};
    use proptest::sample::select;
    use proptest::strategy::{Just, Strategy};

    fn fed(framing: Framing, bytes: &[u8]) -> Framer {
        let mut framer = Framer::new(framing);
        framer.feed(bytes);
        framer
    }

    #[test]
    fn a_newline_ends_a_line() {
        let framer = fed(Framing::Line, b"one\ntwo\nthr");

        assert_eq!(framer.boundary(), Offset(8));
        assert_eq!(framer.position(), Offset(11));
        assert!(!framer.is_opaque());
    }

    #[test]
    fn an_octet_count_says_where_its_message_ends() {
        let framer = fed(Framing::OctetCount, b"5 a\nb c3 xyz12 short");

        assert_eq!(framer.boundary(), Offset(12));
        assert!(!framer.is_opaque());
    }

    #[test]
    fn what_is_not_octet_counted_is_opaque() {
        for bytes in [
            &b"hello"[..],
            b"05 abcde",
            b" 5",
            b"5x",
            b"5 abcde\n",
            b"123456 ",
        ] {
            assert!(fed(Framing::OctetCount, bytes).is_opaque(), "{bytes:?}");
        }
        assert!(!fed(Framing::OctetCount, b"5 abcde").is_opaque());
    }

    #[test]
    fn only_fin_ends_what_is_taken_whole() {
        let mut framer = fed(Framing::Whole, b"a\nb\n");
        assert_eq!(framer.boundary(), Offset(0));

        framer.finish();

        assert_eq!(framer.boundary(), Offset(4));
    }

    #[test]
    fn fin_ends_the_last_message() {
        for framing in [Framing::Line, Framing::OctetCount, Framing::Whole] {
            let mut framer = fed(framing, b"5 abc");

            framer.finish();

            assert_eq!(framer.boundary(), Offset(5));
            assert!(!framer.is_opaque());
        }
    }

    #[test]
    fn a_conversation_is_opaque_once_its_first_bytes_are_known() {
        let conversations = [
            &b"\x16\x03\x01\x02"[..],
            b"SSH-2.0-x\r\n",
            b"PRI * HTTP/2.0\r\n\r\n",
        ];
        for bytes in conversations {
            for framing in [Framing::Line, Framing::Whole, Framing::OctetCount] {
                assert!(fed(framing, bytes).is_opaque(), "{bytes:?}");
            }
        }
        assert!(!fed(Framing::Line, b"SSH was here\n").is_opaque());
        assert!(!fed(Framing::Line, b"\x16\n").is_opaque());
        let mut later = Framer::resume(Framing::Line, Offset(9));
        later.feed(b"SSH-2.0\n");
        assert!(!later.is_opaque());
        assert_eq!(later.boundary(), Offset(17));
    }

    #[test]
    fn a_message_may_have_its_bound_and_no_byte_more() {
        let most = usize::try_from(limits::MESSAGE).unwrap();
        let mut line = vec![b'x'; most - 1];
        line.push(b'\n');
        assert_eq!(fed(Framing::Line, &line).boundary().0, limits::MESSAGE);
        line.insert(0, b'x');
        assert!(fed(Framing::Line, &line).is_opaque());
        assert!(!fed(Framing::Line, &vec![b'x'; most]).is_opaque());

        assert!(!fed(Framing::OctetCount, format!("{} ", most - 6).as_bytes()).is_opaque());
        assert!(fed(Framing::OctetCount, format!("{} ", most - 5).as_bytes()).is_opaque());

        let whole = usize::try_from(limits::MESSAGE_WHOLE).unwrap();
        assert!(!fed(Framing::Whole, &vec![b'x'; whole]).is_opaque());
        assert!(fed(Framing::Whole, &vec![b'x'; whole + 1]).is_opaque());
    }

    /// Streams that have lines, counts, conversations and messages near their bound.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let counted = (1..40_usize).prop_map(|n| {
            let mut bytes = format!("{n} ").into_bytes();
            bytes.resize(bytes.len() + n, b'y');
            bytes
        });
        let piece = prop_oneof![
            4 => vec(select(&b"ab\n1 "[..]), 0..40),
            4 => counted,
            1 => Just(b"SSH-".to_vec()),
            1 => Just(b"PRI * HTTP/2.".to_vec()),
            1 => Just(vec![0x16, 0x03]),
            1 => (65_530..65_540_usize).prop_map(|n| vec![b'z'; n]),
        ];
        vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn the_pieces_make_no_difference(
            bytes in stream(),
            framing in select(vec![Framing::Line, Framing::OctetCount, Framing::Whole]),
            sizes in vec(prop_oneof![1..4_usize, 1..70_000_usize], 1..20),
            is_ended in any::<bool>(),
        ) {
            let mut whole = fed(framing, &bytes);

            let mut pieces = Framer::new(framing);
            let mut rest = &bytes[..];
            for size in sizes.iter().cycle() {
                let (piece, behind) = rest.split_at((*size).min(rest.len()));
                pieces.feed(piece);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            if is_ended {
                whole.finish();
                pieces.finish();
            }

            prop_assert_eq!(pieces.position(), whole.position());
            prop_assert_eq!(pieces.boundary(), whole.boundary());
            prop_assert_eq!(pieces.is_opaque(), whole.is_opaque());
        }

        #[test]
        fn a_framer_taken_up_at_a_boundary_finds_the_same(
            bytes in stream(),
            framing in select(vec![Framing::Line, Framing::OctetCount]),
        ) {
            let mut whole = Framer::new(framing);
            let mut taken_up: Option<Framer> = None;
            for byte in &bytes {
                whole.feed(std::slice::from_ref(byte));
                if let Some(framer) = &mut taken_up {
                    framer.feed(std::slice::from_ref(byte));
                    prop_assert_eq!(framer.boundary(), whole.boundary());
                } else if !whole.is_opaque()
                    && whole.boundary() == whole.position()
                    && whole.position().0 > 14
                {
                    taken_up = Some(Framer::resume(framing, whole.boundary()));
                }
            }
        }
    }
}
