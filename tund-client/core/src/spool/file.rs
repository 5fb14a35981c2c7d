//! The bytes of a stored file: a head that says what it is, then sealed records.
//!
//! All numbers are big-endian. A file is written whole before it gets its name; what is damaged
//! after that shows by the checksums.

use super::cut::Record;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tund_session::wire::frame::Framing;
use tund_session::{FlowId, Offset, SessionId};

/// What every such file begins with; another layout is another number.
const MAGIC: &[u8; 12] = b"tund spool 1";
/// Bytes of the head, its checksum included.
pub const HEAD_BYTES: usize = 108;
/// The first second of 2020: no file is older, a machine without a clock begins in 1970.
const CALENDAR_FROM: u64 = 1_577_836_800;
/// Bytes before the sealed ones of a record, the same as on the wire (PROTOCOL.md §5.8).
pub const RECORD_HEAD_BYTES: usize = 21;
/// Bytes of a checksum: CRC-32 of all before it.
pub const CHECKSUM_BYTES: usize = 4;
/// By how many bytes sealing makes a record longer.
pub const SEAL_BYTES: usize = 48;
/// More sealed bytes have no record: the longest message (PROTOCOL.md §9).
const SEALED_BYTES_MAX: usize = (1 << 20) + SEAL_BYTES;
/// The flag of a record with FIN behind it.
const FIN: u8 = 1;

/// What a stored file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The session in which the bytes were taken.
    pub session: SessionId,
    /// Their flow in it.
    pub flow: FlowId,
    /// Whose application sent them.
    pub user: u32,
    /// Where messages end.
    pub framing: Framing,
    /// The origin.
    pub destination: SocketAddr,
    /// When it was written, in seconds since 1970.
    pub stored_at: u64,
    /// Until when it is worth delivering, in the same.
    pub keep_until: u64,
    /// The place of the first byte.
    pub start: Offset,
    /// The place behind the last.
    pub end: Offset,
    /// How many records there are.
    pub records: u32,
    /// How long the file is.
    pub file_bytes: u64,
}

/// How long the file of these records is.
pub fn file_bytes(records: &[Record]) -> u64 {
    let extra = RECORD_HEAD_BYTES + SEAL_BYTES + CHECKSUM_BYTES;
    let records = records.iter().map(|record| record.bytes.len() + extra);
    u64::try_from(HEAD_BYTES + records.sum::<usize>()).unwrap_or(u64::MAX)
}

impl Head {
    /// How long ago the file was written, `now` being seconds since 1970. A calendar that was wrong
    /// then, or is now, says nothing: its time begins anew.
    pub fn age(&self, now: u64) -> Duration {
        let is_known = (CALENDAR_FROM..=now).contains(&self.stored_at);
        Duration::from_secs(if is_known { now - self.stored_at } else { 0 })
    }

    /// How long the file is still worth delivering, likewise.
    pub fn keep_for(&self, now: u64) -> Duration {
        let retain = Duration::from_secs(self.keep_until.saturating_sub(self.stored_at));
        retain.saturating_sub(self.age(now))
    }

    /// As it stands at the beginning of the file.
    pub fn encode(&self) -> Vec<u8> {
        let (family, address) = match self.destination.ip() {
            IpAddr::V4(v4) => (4, v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => (6, v6.octets()),
        };
        let mut out = [
            MAGIC.as_slice(),
            &self.session.0,
            &self.flow.0.to_be_bytes(),
            &self.user.to_be_bytes(),
            &[self.framing.number(), family],
            &address,
            &self.destination.port().to_be_bytes(),
            &self.stored_at.to_be_bytes(),
            &self.keep_until.to_be_bytes(),
            &self.start.0.to_be_bytes(),
            &self.end.0.to_be_bytes(),
            &self.records.to_be_bytes(),
            &self.file_bytes.to_be_bytes(),
        ]
        .concat();
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        out
    }

    /// Reads the beginning of a file; none if it is damaged, or no such file.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.get(..HEAD_BYTES)?;
        let (body, checksum) = rest.split_last_chunk::<CHECKSUM_BYTES>()?;
        let body_is_whole = crc32fast::hash(body) == u32::from_be_bytes(*checksum);
        if !body_is_whole || take(&mut rest)? != *MAGIC {
            return None;
        }
        let session = SessionId(take(&mut rest)?);
        let flow = FlowId(u64::from_be_bytes(take(&mut rest)?));
        let user = u32::from_be_bytes(take(&mut rest)?);
        let [framing, family] = take(&mut rest)?;
        let address = Ipv6Addr::from(take::<16>(&mut rest)?);
        let ip = match family {
            4 => IpAddr::V4(address.to_ipv4_mapped()?),
            6 => IpAddr::V6(address),
            _ => return None,
        };
        let port = u16::from_be_bytes(take(&mut rest)?);
        Some(Self {
            session,
            flow,
            user,
            framing: Framing::from_number(framing)?,
            destination: SocketAddr::new(ip, port),
            stored_at: u64::from_be_bytes(take(&mut rest)?),
            keep_until: u64::from_be_bytes(take(&mut rest)?),
            start: Offset(u64::from_be_bytes(take(&mut rest)?)),
            end: Offset(u64::from_be_bytes(take(&mut rest)?)),
            records: u32::from_be_bytes(take(&mut rest)?),
            file_bytes: u64::from_be_bytes(take(&mut rest)?),
        })
    }
}

/// The next bytes, out of `rest`.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*first)
}

/// The flags of a record, on the wire and in what it is bound to.
pub const fn flags(fin: bool) -> u8 {
    if fin { FIN } else { 0 }
}

/// A record as it stands in the file: as on the wire, and a checksum.
pub fn encode_record(record: &Record, sealed: &[u8]) -> Vec<u8> {
    let length = u32::try_from(sealed.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(RECORD_HEAD_BYTES + sealed.len() + CHECKSUM_BYTES);
    out.extend_from_slice(&record.start.0.to_be_bytes());
    out.extend_from_slice(&record.end.0.to_be_bytes());
    out.push(flags(record.fin));
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(sealed);
    out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
    out
}

/// How many bytes follow the head of a record, its checksum included; none if that is damaged.
pub fn behind_record_head(head: &[u8; RECORD_HEAD_BYTES]) -> Option<usize> {
    let length = head.last_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    (length <= SEALED_BYTES_MAX).then_some(length + CHECKSUM_BYTES)
}

/// The part of a record that goes out on the wire; none if it is damaged.
pub fn wire_record(whole: &[u8]) -> Option<&[u8]> {
    let (wire, checksum) = whole.split_last_chunk::<CHECKSUM_BYTES>()?;
    let is_whole = crc32fast::hash(wire) == u32::from_be_bytes(*checksum);
    (is_whole && wire.len() >= RECORD_HEAD_BYTES).then_some(wire)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn head() -> Head {
        Head {
            session: SessionId([5; 16]),
            flow: FlowId(6),
            user: 1000,
            framing: Framing::Line,
            destination: "10.0.0.9:514".parse().unwrap(),
            stored_at: 1_700_000_000,
            keep_until: 1_700_259_200,
            start: Offset(100),
            end: Offset(112),
            records: 1,
            file_bytes: 193,
        }
    }

    fn record() -> Record {
        Record {
            start: Offset(100),
            end: Offset(112),
            fin: true,
            bytes: Bytes::from_static(b"hello\nworld\n"),
        }
    }

    #[test]
    fn a_calendar_that_was_wrong_begins_the_time_anew() {
        const TODAY: u64 = 1_795_000_000;
        let kept = |stored_at: u64, now: u64| {
            let keep_until = stored_at + 3600;
            Head {
                stored_at,
                keep_until,
                ..head()
            }
            .keep_for(now)
            .as_secs()
        };

        assert_eq!(kept(TODAY - 600, TODAY), 3000);
        assert_eq!(kept(TODAY - 7200, TODAY), 0);
        assert_eq!(kept(70, TODAY), 3600, "stored in 1970");
        assert_eq!(kept(TODAY, 70), 3600, "looked at in 1970");
    }

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let six = Head {
            destination: "[2001:db8::9]:514".parse().unwrap(),
            framing: Framing::OctetCount,
            ..head()
        };
        for head in [head(), six] {
            let bytes = head.encode();

            assert_eq!(bytes.len(), HEAD_BYTES);
            assert_eq!(Head::decode(&bytes), Some(head));
        }
    }

    #[test]
    fn the_bytes_of_a_head_are_these() {
        let mut expected = b"tund spool 1".to_vec();
        expected.extend_from_slice(&[5; 16]);
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 3, 0xe8, 2, 4]);
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 9]);
        expected.extend_from_slice(&[2, 2]);
        expected.extend_from_slice(&[0, 0, 0, 0, 0x65, 0x53, 0xf1, 0]);
        expected.extend_from_slice(&[0, 0, 0, 0, 0x65, 0x57, 0xe5, 0x80]);
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 112]);
        expected.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 193]);

        assert_eq!(head().encode()[..HEAD_BYTES - CHECKSUM_BYTES], expected);
    }

    #[test]
    fn a_damaged_or_shorter_head_is_none() {
        let bytes = head().encode();
        for length in 0..HEAD_BYTES {
            assert_eq!(Head::decode(&bytes[..length]), None, "{length}");
        }
        for place in 0..HEAD_BYTES {
            let mut bent = bytes.clone();
            bent[place] ^= 0x40;
            assert_eq!(Head::decode(&bent), None, "{place}");
        }
    }

    #[test]
    fn a_record_goes_out_as_it_was_written_and_only_then() {
        let sealed = [9; 60];
        let whole = encode_record(&record(), &sealed);

        let mut wire = vec![
            0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 112, 1, 0, 0, 0, 60,
        ];
        wire.extend_from_slice(&sealed);
        assert_eq!(wire_record(&whole), Some(&wire[..]));
        let head = whole.first_chunk().unwrap();
        assert_eq!(behind_record_head(head), Some(64));
        for length in 0..whole.len() {
            assert_eq!(wire_record(&whole[..length]), None, "{length}");
        }
        for place in 0..whole.len() {
            let mut bent = whole.clone();
            bent[place] ^= 1;
            assert_eq!(wire_record(&bent), None, "{place}");
        }
    }

    #[test]
    fn a_record_has_a_bound() {
        let head = |length: u32| {
            let mut head = [0; RECORD_HEAD_BYTES];
            head[17..].copy_from_slice(&length.to_be_bytes());
            behind_record_head(&head)
        };
        let most = (1 << 20) + 48;

        assert_eq!(head(most), Some((1 << 20) + 52));
        assert_eq!(head(most + 1), None);
    }

    #[test]
    fn the_length_of_a_file_is_known_before_it_is_written() {
        let sealed = vec![0; record().bytes.len() + SEAL_BYTES];
        let written = HEAD_BYTES + encode_record(&record(), &sealed).len();

        assert_eq!(file_bytes(&[record()]), u64::try_from(written).unwrap());
    }
}
