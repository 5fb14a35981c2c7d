//! A run of bytes cut into records: whole messages, as many as fit.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use tund_session::wire::frame::Framing;
use tund_session::{Framer, Offset};

/// Bytes of messages in one record, unless a single message is longer (PROTOCOL.md §5.8).
const RECORD_BYTES: usize = 16 * 1024;
/// How much is looked at at once while the end of a longer message is looked for.
const STEP_BYTES: usize = 512;

/// One or more whole consecutive messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The place of the first byte in its flow.
    pub start: Offset,
    /// The place behind the last.
    pub end: Offset,
    /// FIN stands there.
    pub fin: bool,
    /// What lies between.
    pub bytes: Bytes,
}

/// What has been taken from an application and is not in a record yet, from a boundary on.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    framing: Framing,
    start: Offset,
    pieces: VecDeque<Bytes>,
    len: usize,
}

/// The bytes are no run of messages: nothing of them is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opaque;

impl Run {
    pub(crate) fn new(framing: Framing, start: Offset) -> Self {
        Self {
            framing,
            start,
            pieces: VecDeque::new(),
            len: 0,
        }
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if !piece.is_empty() {
            self.pieces.push_back(piece);
        }
    }

    pub(crate) fn len(&self) -> u64 {
        u64::try_from(self.len).unwrap_or(u64::MAX)
    }

    /// Takes all whole messages out; with `fin`, what is left is one too.
    pub(crate) fn cut(&mut self, fin: bool) -> Result<Vec<Record>, Opaque> {
        let mut records = Vec::new();
        while let Some(count) = self.next_record(fin)? {
            let bytes = self.take(count);
            let start = self.start;
            self.start = start.plus(u64::try_from(count).unwrap_or(u64::MAX));
            records.push(Record {
                start,
                end: self.start,
                fin: fin && self.len == 0,
                bytes,
            });
        }
        Ok(records)
    }

    /// How many bytes the next record has; none if no message ends.
    fn next_record(&self, fin: bool) -> Result<Option<usize>, Opaque> {
        let mut framer = Framer::resume(self.framing, self.start);
        let mut fed = 0;
        // What one record may hold, then on to the first boundary, exactly.
        for step in [RECORD_BYTES, STEP_BYTES, 1] {
            loop {
                if fed == self.len {
                    break;
                }
                let before = framer.clone();
                let count = step.min(self.len - fed);
                self.feed(&mut framer, fed, count);
                if framer.is_opaque() {
                    return Err(Opaque);
                }
                let boundary = framer.boundary().since(self.start);
                if boundary > 0 {
                    if step == RECORD_BYTES || step == 1 {
                        return Ok(usize::try_from(boundary).ok());
                    }
                    framer = before;
                    break;
                }
                fed += count;
                if step == RECORD_BYTES {
                    break;
                }
            }
        }
        let is_last = fin && self.len > 0 && fed == self.len;
        Ok(is_last.then_some(self.len))
    }

    fn feed(&self, framer: &mut Framer, mut skip: usize, mut count: usize) {
        for piece in &self.pieces {
            let here = piece.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(piece.len());
            let some = here.get(..count).unwrap_or(here);
            framer.feed(some);
            count -= some.len();
            if count == 0 {
                return;
            }
        }
    }

    fn take(&mut self, count: usize) -> Bytes {
        self.len -= count;
        let mut out = BytesMut::with_capacity(count);
        while out.len() < count
            && let Some(piece) = self.pieces.front_mut()
        {
            let some = piece.len().min(count - out.len());
            out.extend_from_slice(piece.get(..some).unwrap_or_default());
            piece.advance(some);
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn run(framing: Framing, bytes: &[u8]) -> Run {
        let mut run = Run::new(framing, Offset(100));
        run.push(Bytes::copy_from_slice(bytes));
        run
    }

    fn texts(records: &[Record]) -> Vec<&[u8]> {
        records.iter().map(|record| &record.bytes[..]).collect()
    }

    #[test]
    fn whole_messages_go_and_the_rest_stays() {
        let mut lines = run(Framing::Line, b"one\ntwo\nthr");

        let records = lines.cut(false).unwrap();

        assert_eq!(texts(&records), [b"one\ntwo\n"]);
        assert_eq!(
            (records[0].start, records[0].end),
            (Offset(100), Offset(108))
        );
        assert!(!records[0].fin);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines.cut(false).unwrap(), []);

        lines.push(Bytes::from_static(b"ee\n"));
        let records = lines.cut(false).unwrap();
        assert_eq!(texts(&records), [b"three\n"]);
        assert_eq!(records[0].start, Offset(108));
    }

    #[test]
    fn fin_ends_the_last_message_and_stands_behind_the_last_record_only() {
        let mut all = vec![b'x'; RECORD_BYTES - 1];
        all.extend_from_slice(b"\nlast");

        let records = run(Framing::Line, &all).cut(true).unwrap();

        let lengths: Vec<_> = records.iter().map(|r| (r.bytes.len(), r.fin)).collect();
        assert_eq!(lengths, [(RECORD_BYTES, false), (4, true)]);
        assert_eq!(run(Framing::Line, b"").cut(true).unwrap(), []);
    }

    #[test]
    fn only_fin_makes_a_whole() {
        assert_eq!(run(Framing::Whole, b"a\nb\n").cut(false).unwrap(), []);
        let records = run(Framing::Whole, &[7; 200_000]).cut(true).unwrap();
        assert_eq!(records.len(), 1);
        assert!(records[0].fin);
    }

    #[test]
    fn a_longer_message_is_a_record_of_its_own() {
        let mut all = b"short\n".to_vec();
        all.extend_from_slice(&[b'x'; 20_000]);
        all.extend_from_slice(b"\na\nb\n");

        let records = run(Framing::Line, &all).cut(false).unwrap();

        let lengths: Vec<_> = records.iter().map(|r| r.bytes.len()).collect();
        assert_eq!(lengths, [6, 20_001, 4]);
    }

    #[test]
    fn what_is_no_run_of_messages_is_not_cut() {
        assert_eq!(run(Framing::OctetCount, b"3 abcx").cut(true), Err(Opaque));
        assert_eq!(run(Framing::Line, &[b'x'; 70_000]).cut(true), Err(Opaque));
    }

    proptest! {
        #[test]
        fn records_are_whole_messages_in_order_and_as_large_as_may_be(
            lines in vec(prop_oneof![20 => 0..300_usize, 1 => 16_000..17_000_usize, 1 => 40_000..65_000_usize], 0..150),
            tail in 0..100_usize,
            sizes in vec(1..5_000_usize, 1..50),
            fin in any::<bool>(),
            framing in select(vec![Framing::Line, Framing::OctetCount]),
        ) {
            let mut ends = vec![100];
            let mut all = Vec::new();
            for line in &lines {
                if framing == Framing::OctetCount {
                    all.extend_from_slice(format!("{} ", line + 1).as_bytes());
                }
                all.resize(all.len() + line, b'x');
                all.push(b'\n');
                ends.push(100 + all.len());
            }
            if framing == Framing::Line {
                all.resize(all.len() + tail, b'y');
            }
            let mut run = Run::new(framing, Offset(100));
            let mut rest = Bytes::from(all.clone());
            for size in sizes.iter().cycle() {
                if rest.is_empty() { break; }
                run.push(rest.split_to((*size).min(rest.len())));
            }

            let records = run.cut(fin).unwrap();

            let mut joined = Vec::new();
            for (index, record) in records.iter().enumerate() {
                prop_assert_eq!(record.start.0, 100 + u64::try_from(joined.len()).unwrap());
                joined.extend_from_slice(&record.bytes);
                let end = 100 + joined.len();
                prop_assert_eq!(record.end.0, u64::try_from(end).unwrap());
                let is_last = index + 1 == records.len();
                let at_message = ends.contains(&end);
                prop_assert!(at_message || fin && is_last);
                prop_assert_eq!(record.fin, fin && is_last);
                let start = end - record.bytes.len();
                let messages = ends.iter().filter(|e| **e > start && **e <= end).count();
                prop_assert!(record.bytes.len() <= RECORD_BYTES || messages <= 1);
                // The next message would not have fitted.
                let next = ends.iter().find(|e| **e > end);
                if let Some(next) = next && !is_last {
                    prop_assert!(next - start > RECORD_BYTES);
                }
            }
            let kept = if fin { all.len() } else { ends.last().unwrap() - 100 };
            prop_assert_eq!(&joined[..], &all[..kept]);
            prop_assert_eq!(run.len(), u64::try_from(all.len() - kept).unwrap());
        }
    }
}
