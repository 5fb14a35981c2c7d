//! The bytes in which a tombstone is written down, and how they are read again.

use super::{ClientKey, End, OFFSETS_OF_ONE, Tombstone};
use bytes::{Buf as _, BufMut as _};
use std::time::Duration;
use tund_session::{FlowId, Offset, SessionId};

/// The only layout so far: version, end, session, key, when it ended (seconds since 1970, by the
/// wall's clock), number of offsets, each with its flow. Numbers are little-endian.
const VERSION: u8 = 1;
const FIXED: usize = 2 + 16 + 32 + 8 + 4;
const OFFSET: usize = 16;

impl Tombstone {
    /// The longest that is ever written down.
    pub const MAX_BYTES: usize = FIXED + OFFSETS_OF_ONE * OFFSET;

    /// To be written down; `ended` is the time of day, since 1970, at which the session ended.
    pub fn encode(&self, ended: Duration) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + self.released.len() * OFFSET);
        bytes.put_u8(VERSION);
        bytes.put_u8(match self.end {
            End::Expired => 1,
            End::Superseded => 2,
            End::Ended => 3,
        });
        bytes.put_slice(&self.session.0);
        bytes.put_slice(&self.key.0);
        bytes.put_u64_le(ended.as_secs());
        bytes.put_u32_le(u32::try_from(self.released.len()).unwrap_or(u32::MAX));
        for (flow, offset) in &self.released {
            bytes.put_u64_le(flow.0);
            bytes.put_u64_le(offset.0);
        }
        bytes
    }

    /// The same read again; none where the bytes are of another version, or damaged.
    pub fn decode(mut bytes: &[u8]) -> Option<(Self, Duration)> {
        if bytes.len() < FIXED || bytes.get_u8() != VERSION {
            return None;
        }
        let end = match bytes.get_u8() {
            1 => End::Expired,
            2 => End::Superseded,
            3 => End::Ended,
            _ => return None,
        };
        let (mut session, mut key) = ([0; 16], [0; 32]);
        bytes.copy_to_slice(&mut session);
        bytes.copy_to_slice(&mut key);
        let ended = Duration::from_secs(bytes.get_u64_le());
        let count = usize::try_from(bytes.get_u32_le()).ok()?;
        if bytes.len() != count.checked_mul(OFFSET)? {
            return None;
        }
        let mut released = Vec::with_capacity(count);
        while bytes.has_remaining() {
            released.push((FlowId(bytes.get_u64_le()), Offset(bytes.get_u64_le())));
        }
        let tombstone = Self {
            session: SessionId(session),
            key: ClientKey(key),
            end,
            released,
        };
        Some((tombstone, ended))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tombstone() -> Tombstone {
        Tombstone {
            session: SessionId([7; 16]),
            key: ClientKey([9; 32]),
            end: End::Expired,
            released: vec![(FlowId(1), Offset(1 << 40)), (FlowId(3), Offset(0))],
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let ended = Duration::from_secs(1_764_000_000);
        for end in [End::Expired, End::Superseded, End::Ended] {
            let tombstone = Tombstone { end, ..tombstone() };
            let bytes = tombstone.encode(ended);

            assert_eq!(Tombstone::decode(&bytes), Some((tombstone, ended)));
        }
    }

    #[test]
    fn the_layout_is_what_older_files_have() {
        let bytes = tombstone().encode(Duration::from_secs(0x0102));

        let mut expected = vec![1, 1];
        expected.extend([7; 16]);
        expected.extend([9; 32]);
        expected.extend([2, 1, 0, 0, 0, 0, 0, 0]);
        expected.extend([2, 0, 0, 0]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        expected.extend([3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn bytes_that_are_no_tombstone_are_none() {
        let bytes = tombstone().encode(Duration::ZERO);
        for len in 0..bytes.len() {
            assert_eq!(Tombstone::decode(&bytes[..len]), None, "{len} bytes");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Tombstone::decode(&longer), None);
        for (place, value) in [(0, 2), (1, 0), (1, 4), (FIXED - 1, 0xff)] {
            let mut other = bytes.clone();
            other[place] = value;
            assert_eq!(Tombstone::decode(&other), None, "{value} at {place}");
        }
    }
}
