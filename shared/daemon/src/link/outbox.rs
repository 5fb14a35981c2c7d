//! Encrypted records on their way to the kernel, many in one call.

use std::collections::VecDeque;
use std::io::IoSlice;

/// Records handed to the kernel in one call.
const RECORDS_PER_WRITE: usize = 16;

/// Records on their way to the kernel.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    records: VecDeque<Vec<u8>>,
    /// How much of the first record the kernel has taken.
    taken: usize,
    /// Bytes that the kernel has not taken.
    bytes: usize,
}

impl Outbox {
    pub(super) const fn len(&self) -> usize {
        self.bytes
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(super) fn push(&mut self, record: Vec<u8>) {
        if !record.is_empty() {
            self.bytes += record.len();
            self.records.push_back(record);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Calls `write` with the first records; returns what it made of them.
    pub(super) fn with_slices<T>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        let mut slices = [IoSlice::new(&[]); RECORDS_PER_WRITE];
        let mut count = 0;
        for (slice, record) in slices.iter_mut().zip(&self.records) {
            *slice = IoSlice::new(record);
            count += 1;
        }
        if let Some(first) = slices.first_mut() {
            first.advance(self.taken);
        }
        write(slices.get(..count).unwrap_or_default())
    }

    /// Forgets the first `count` bytes.
    pub(super) fn advance(&mut self, count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        self.taken += count;
        while let Some(first) = self.records.front() {
            if self.taken < first.len() {
                return;
            }
            self.taken -= first.len();
            self.records.pop_front();
        }
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outbox_forgets_what_was_taken_at_any_place() {
        for step in 1..12 {
            let mut out = Outbox::default();
            for record in [b"ab".as_slice(), b"", b"cdefg", b"h"] {
                out.push(record.to_vec());
            }
            let mut written = Vec::new();
            while !out.is_empty() {
                let count = out.with_slices(|slices| {
                    let waiting = slices.iter().flat_map(|slice| slice.iter().copied());
                    let part: Vec<u8> = waiting.take(step).collect();
                    written.extend_from_slice(&part);
                    part.len()
                });
                out.advance(count);
            }
            assert_eq!(written, b"abcdefgh");
        }
    }
}
