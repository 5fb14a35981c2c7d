//! Where whole records lie in the bytes of a journal.

use super::RECORD_MAX;
use std::ops::Range;

/// What a journal begins with; the last byte is the version of the layout.
pub(super) const MAGIC: [u8; 8] = *b"tundlog\x01";
/// Bytes of it.
pub(super) const HEADER: u64 = 8;
/// Length and checksum before each record, little-endian.
const PREFIX: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) records: Vec<Range<usize>>,
    pub(super) damaged: usize,
    /// Behind the last whole record.
    pub(super) end: usize,
}

/// Appends a record with its length and checksum.
pub(super) fn frame(record: &[u8], bytes: &mut Vec<u8>) {
    let len = u32::try_from(record.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    bytes.extend_from_slice(&len);
    bytes.extend_from_slice(&checksum(&len, record).to_le_bytes());
    bytes.extend_from_slice(record);
}

/// Of the length too, so that a run of zeros is no record.
fn checksum(len: &[u8; 4], record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(len);
    hasher.update(record);
    hasher.finalize()
}

/// Finds all records. A damaged one is stepped over where a whole one follows it; else all from
/// there on is what a crash has left of the last write.
pub(super) fn scan(bytes: &[u8]) -> Scanned {
    let mut scanned = Scanned {
        end: MAGIC.len(),
        ..Scanned::default()
    };
    let mut at = MAGIC.len();
    let mut skipped = 0;
    while let Some((range, is_whole)) = record_at(bytes, at) {
        at = range.end;
        if is_whole {
            scanned.damaged += skipped;
            skipped = 0;
            scanned.end = at;
            scanned.records.push(range);
        } else {
            skipped += 1;
        }
    }
    scanned
}

/// Where the record whose prefix is at `at` lies, and whether its checksum is right.
fn record_at(bytes: &[u8], at: usize) -> Option<(Range<usize>, bool)> {
    let len = *bytes.get(at..)?.first_chunk::<4>()?;
    let sum = *bytes.get(at + 4..)?.first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(len)).ok()?;
    if count == 0 || count > RECORD_MAX {
        return None;
    }
    let range = at + PREFIX..at + PREFIX + count;
    let record = bytes.get(range.clone())?;
    Some((range, checksum(&len, record) == u32::from_le_bytes(sum)))
}
