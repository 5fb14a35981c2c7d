//! TLS 1.3 records after the handshake, encrypted and decrypted without a copy more than needed.
//!
//! The TLS library's own connection reads a socket 4 KiB at a time and copies what it decrypts
//! twice: 1.4 CPU seconds per GB for both ends, 0.8 by its unbuffered interface, against 0.38 of
//! plain TCP. Here its ciphers work on our buffers: received bytes are decrypted where `recv` put
//! them, and handed on from there, for 0.46 (`examples/link_speed.rs`).

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, InvalidMessage, PeerMisbehaved,
    ProtocolVersion, Tls13CipherSuite,
};

use super::outbox::Outbox;

/// Plaintext in a full record (RFC 8446 §5.1).
pub(super) const RECORD_PLAIN_BYTES: usize = tund_session::limits::RECORD;
/// A full record on the wire: header, content type and tag added.
pub(super) const RECORD_WIRE_BYTES: usize = HEADER_BYTES + RECORD_PLAIN_BYTES + 1 + 16;
/// Plaintext in each of a link's first records, and in all of these.
pub(super) const FIRST_PLAIN_BYTES: usize = tund_session::limits::FIRST_RECORD;
pub(super) const FIRST_BYTES: usize = tund_session::limits::FIRST_BYTES;
/// Ahead of each record: type, version, length.
const HEADER_BYTES: usize = 5;
/// The longest that may follow a header (RFC 8446 §5.2).
const RECORD_BODY_BYTES_MAX: usize = RECORD_PLAIN_BYTES + 256;
/// Slices that may be gathered into one record; more of them make another record.
const SLICES_PER_RECORD: usize = 64;
/// Records in a row without content, or with what we need not read, before it is an attack.
const IDLE_RECORDS_MAX: u32 = 32;
/// TLS handshake message types that may come after the handshake (RFC 8446 §4).
const NEW_SESSION_TICKET: u8 = 4;

/// Builds the cipher of one direction out of the handshake's secrets.
fn keyed<T>(
    secrets: ConnectionTrafficSecrets,
    make: impl FnOnce(rustls::crypto::cipher::AeadKey, rustls::crypto::cipher::Iv) -> T,
) -> Result<T, Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok(make(key, iv)),
        _ => Err(Error::General("a cipher that was not offered".into())),
    }
}

/// Encrypts what we send.
pub(super) struct Sealer {
    cipher: Box<dyn MessageEncrypter>,
    /// The next record's number; each is used once.
    sequence: u64,
    /// Records that the cipher protects with one key (RFC 8446 §5.5).
    sequence_max: u64,
    /// Plaintext that still goes in small records.
    first: usize,
}

/// One direction's keys have protected as many records as they may.
#[derive(Clone, Copy, Debug)]
pub(super) struct WornOut;

impl Sealer {
    pub(super) fn new(
        suite: &Tls13CipherSuite,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        let cipher = keyed(secrets, |key, iv| suite.aead_alg.encrypter(key, iv))?;
        Ok(Self {
            cipher,
            sequence,
            sequence_max: suite.common.confidentiality_limit,
            first: FIRST_BYTES,
        })
    }

    /// Records made so far.
    pub(super) const fn records(&self) -> u64 {
        self.sequence
    }

    /// Gathers the slices into as few records as can be; returns how many bytes they held.
    pub(super) fn seal_data<'a>(
        &mut self,
        slices: impl Iterator<Item = &'a [u8]>,
        out: &mut Outbox,
    ) -> Result<usize, WornOut> {
        let mut parts: [&[u8]; SLICES_PER_RECORD] = [&[]; SLICES_PER_RECORD];
        let (mut count, mut length, mut total) = (0, 0, 0);
        let mut most = self.record_bytes();
        for mut slice in slices {
            while !slice.is_empty() {
                if length == most || count == SLICES_PER_RECORD {
                    self.seal_part(parts.get(..count), length, out)?;
                    (count, length, most) = (0, 0, self.record_bytes());
                }
                let (now, later) = slice.split_at(slice.len().min(most - length));
                if let Some(part) = parts.get_mut(count) {
                    *part = now;
                }
                count += 1;
                length += now.len();
                total += now.len();
                slice = later;
            }
        }
        if length > 0 {
            self.seal_part(parts.get(..count), length, out)?;
        }
        Ok(total)
    }

    /// Plaintext of the next record, at most.
    const fn record_bytes(&self) -> usize {
        if self.first > 0 {
            FIRST_PLAIN_BYTES
        } else {
            RECORD_PLAIN_BYTES
        }
    }

    fn seal_part(
        &mut self,
        parts: Option<&[&[u8]]>,
        length: usize,
        out: &mut Outbox,
    ) -> Result<(), WornOut> {
        self.seal(ContentType::ApplicationData, parts, out)?;
        self.first = self.first.saturating_sub(length);
        Ok(())
    }

    /// Says why we end: `level` is 1 for an orderly end, 2 for an error.
    pub(super) fn seal_alert(
        &mut self,
        level: u8,
        alert: AlertDescription,
        out: &mut Outbox,
    ) -> Result<(), WornOut> {
        self.seal(ContentType::Alert, Some(&[&[level, u8::from(alert)]]), out)
    }

    fn seal(
        &mut self,
        typ: ContentType,
        parts: Option<&[&[u8]]>,
        out: &mut Outbox,
    ) -> Result<(), WornOut> {
        // One record is kept back for the alert that ends the link.
        let reserve = u64::from(typ != ContentType::Alert);
        if self.sequence.saturating_add(reserve) >= self.sequence_max {
            return Err(WornOut);
        }
        let payload = OutboundChunks::new(parts.unwrap_or_default());
        let plain = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_2,
            payload,
        };
        let record = self
            .cipher
            .encrypt(plain, self.sequence)
            .map_err(|_| WornOut)?;
        self.sequence += 1;
        out.push(record.encode());
        Ok(())
    }
}

/// Decrypts what we receive.
pub(super) struct Opener {
    cipher: Box<dyn MessageDecrypter>,
    sequence: u64,
    idle: u32,
}

/// What a record held.
#[derive(Debug)]
pub(super) enum Opened {
    /// The peer ends the stream, or gives up; which, stands in the description.
    Alert(AlertDescription),
    /// Bytes for the session; never empty.
    Data(Bytes),
    /// Nothing that matters here.
    Nothing,
}

impl Opener {
    pub(super) fn new(
        suite: &Tls13CipherSuite,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        let cipher = keyed(secrets, |key, iv| suite.aead_alg.decrypter(key, iv))?;
        Ok(Self {
            cipher,
            sequence,
            idle: 0,
        })
    }

    /// Records read so far.
    pub(super) const fn records(&self) -> u64 {
        self.sequence
    }

    /// Decrypts a whole record in place.
    pub(super) fn open(&mut self, mut record: BytesMut) -> Result<Opened, Error> {
        let outer = record.first().copied().map(ContentType::from);
        if outer != Some(ContentType::ApplicationData) {
            return Err(Error::InappropriateMessage {
                expect_types: vec![ContentType::ApplicationData],
                got_type: outer.unwrap_or(ContentType::Unknown(0)),
            });
        }
        let body = record.get_mut(HEADER_BYTES..).unwrap_or_default();
        let start = body.as_ptr().addr();
        let sealed =
            InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, body);
        let plain = self.cipher.decrypt(sealed, self.sequence)?;
        self.sequence += 1;
        let (typ, length) = (plain.typ, plain.payload.len());
        let skipped = plain.payload.as_ptr().addr().wrapping_sub(start);
        let ticket = plain.payload.first() == Some(&NEW_SESSION_TICKET);
        if typ == ContentType::ApplicationData && length > 0 {
            self.idle = 0;
            record.advance(HEADER_BYTES.saturating_add(skipped));
            record.truncate(length);
            return Ok(Opened::Data(record.freeze()));
        }
        if let (ContentType::Alert, &[_level, alert]) = (typ, plain.payload) {
            return Ok(Opened::Alert(AlertDescription::from(alert)));
        }
        // A later server may offer tickets; this client takes none. Keys are never renewed within
        // a link: the session makes another link.
        if typ == ContentType::ApplicationData || typ == ContentType::Handshake && ticket {
            return self.idle_record();
        }
        Err(Error::InappropriateMessage {
            expect_types: vec![ContentType::ApplicationData, ContentType::Alert],
            got_type: typ,
        })
    }

    fn idle_record(&mut self) -> Result<Opened, Error> {
        self.idle += 1;
        if self.idle > IDLE_RECORDS_MAX {
            return Err(PeerMisbehaved::TooManyEmptyFragments.into());
        }
        Ok(Opened::Nothing)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

/// Takes the first record off the front, header included; `None` until all of it is there.
pub(super) fn take_record(received: &mut BytesMut) -> Result<Option<BytesMut>, Error> {
    let Some(&[typ, major, _minor, high, low]) = received.first_chunk() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    // What is no TLS is told apart at its first bytes, before a length in it is believed.
    if !(20..=23).contains(&typ) {
        return Err(InvalidMessage::InvalidContentType.into());
    }
    if major != 3 {
        return Err(InvalidMessage::UnknownProtocolVersion.into());
    }
    if length > RECORD_BODY_BYTES_MAX {
        return Err(InvalidMessage::MessageTooLarge.into());
    }
    let whole = HEADER_BYTES + length;
    Ok((received.len() >= whole).then(|| received.split_to(whole)))
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    #[test]
    fn records_are_found_however_the_bytes_come_in() {
        let (mut sealer, out) = (sealer_from(0), &mut Outbox::default());
        let data: Vec<u8> = (0..40_000_u32)
            .map(|place| place.to_le_bytes()[0])
            .collect();
        sealer.seal_data(data.chunks(333), out).unwrap();
        let wire = bytes_of(out);

        for piece in [1, 2, 5, 21, 1000, 16_405, 16_406, 40_000] {
            let (mut opener, mut received, mut got) = (opener_from(0), BytesMut::new(), Vec::new());
            for part in wire.chunks(piece) {
                received.extend_from_slice(part);
                while let Some(record) = take_record(&mut received).unwrap() {
                    let Opened::Data(data) = opener.open(record).unwrap() else {
                        panic!()
                    };
                    got.extend_from_slice(&data);
                }
            }
            assert!(got == data, "in pieces of {piece}");
            assert_eq!(opener.records(), sealer.records());
        }
    }

    #[test]
    fn either_library_opens_what_the_other_sealed() {
        use rustls::crypto::{aws_lc_rs, ring};

        let suites = [
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ];
        let suites = suites.map(|suite| suite.tls13().unwrap());
        let secrets = || ConnectionTrafficSecrets::Aes256Gcm {
            key: AeadKey::from([3; 32]),
            iv: Iv::from([4; 12]),
        };
        let data: Vec<u8> = (0..20_000_u32)
            .map(|place| place.to_le_bytes()[0])
            .collect();
        for (one, other) in [(suites[0], suites[1]), (suites[1], suites[0])] {
            // As on every link: no record precedes ours under these keys, and aws-lc counts on it.
            let mut sealer = Sealer::new(one, (0, secrets())).unwrap();
            let mut opener = Opener::new(other, (0, secrets())).unwrap();
            let (out, mut got) = (&mut Outbox::default(), Vec::new());
            sealer
                .seal_data([data.as_slice()].into_iter(), out)
                .unwrap();
            let mut wire = bytes_of(out);
            while let Some(record) = take_record(&mut wire).unwrap() {
                let Opened::Data(part) = opener.open(record).unwrap() else {
                    panic!()
                };
                got.extend_from_slice(&part);
            }
            assert!(got == data);
        }
    }

    #[test]
    fn more_slices_than_fit_one_record_make_another() {
        let (mut sealer, out) = (sealer_from(0), &mut Outbox::default());
        let slices = [[9_u8].as_slice(); SLICES_PER_RECORD + 1];

        assert_eq!(
            sealer.seal_data(slices.into_iter(), out).unwrap(),
            SLICES_PER_RECORD + 1
        );

        assert_eq!(sealer.records(), 2);
        assert_eq!(
            sealer.seal_data([[].as_slice()].into_iter(), out).unwrap(),
            0
        );
        assert_eq!(sealer.records(), 2);
    }

    #[test]
    fn a_record_out_of_turn_or_doubled_is_refused() {
        let (mut sealer, out) = (sealer_from(0), &mut Outbox::default());
        sealer.seal_data([[1].as_slice()].into_iter(), out).unwrap();
        let wire = bytes_of(out);
        let mut opener = opener_from(0);

        assert!(opener_from(1).open(wire.clone()).is_err());
        assert!(opener.open(wire.clone()).is_ok());
        assert!(opener.open(wire).is_err());
    }

    #[test]
    fn the_last_record_of_a_key_is_kept_for_the_end() {
        let (mut sealer, out) = (sealer_from(u64::MAX - 2), &mut Outbox::default());
        let data = || [[1].as_slice()].into_iter();

        assert!(sealer.seal_data(data(), out).is_ok());
        assert!(sealer.seal_data(data(), out).is_err());
        assert!(
            sealer
                .seal_alert(1, AlertDescription::CloseNotify, out)
                .is_ok()
        );
        assert!(
            sealer
                .seal_alert(1, AlertDescription::CloseNotify, out)
                .is_err()
        );
    }

    #[test]
    fn records_without_use_are_borne_for_a_while_only() {
        for (typ, content) in [
            (ContentType::ApplicationData, vec![]),
            (ContentType::Handshake, vec![4, 0, 0, 0]),
        ] {
            let (mut sealer, mut opener) = (sealer_from(0), opener_from(0));
            let mut borne = 0;
            while let Ok(opened) = open_one(&mut sealer, &mut opener, typ, &content) {
                assert!(matches!(opened, Opened::Nothing));
                borne += 1;
                assert!(borne < 1000);
            }
            assert_eq!(borne, IDLE_RECORDS_MAX);
        }
    }

    #[test]
    fn what_does_not_belong_after_a_handshake_is_refused() {
        let key_update = [24, 0, 0, 1, 0].as_slice();
        let half_alert = [2].as_slice();
        for (typ, content) in [
            (ContentType::Handshake, key_update),
            (ContentType::Handshake, &[]),
            (ContentType::Alert, half_alert),
            (ContentType::ChangeCipherSpec, &[1]),
            (ContentType::Unknown(99), &[1]),
        ] {
            let opened = open_one(&mut sealer_from(0), &mut opener_from(0), typ, content);
            assert!(opened.is_err(), "{typ:?}: {opened:?}");
        }
    }

    #[test]
    fn damaged_and_arbitrary_bytes_are_refused_without_a_panic() {
        let (mut sealer, out) = (sealer_from(0), &mut Outbox::default());
        sealer
            .seal_data([[7; 50].as_slice()].into_iter(), out)
            .unwrap();
        let wire = bytes_of(out);

        for place in 0..wire.len() {
            for bit in 0..8 {
                let mut damaged = wire.clone();
                damaged[place] ^= 1 << bit;
                // The minor version means nothing in TLS 1.3, and the cipher does not see it.
                let ignored = place == 2;
                let accepted = matches!(
                    take_record(&mut damaged).map(|record| record.map(|r| opener_from(0).open(r))),
                    Ok(Some(Ok(_)))
                );
                assert_eq!(accepted, ignored, "bit {bit} of byte {place}");
            }
        }
        for length in 0..wire.len() {
            assert!(matches!(
                take_record(&mut wire.clone().split_to(length)),
                Ok(None)
            ));
            let mut short = wire.clone().split_to(length);
            assert!(opener_from(0).open(short.split()).is_err());
        }
    }

    fn sealer_from(sequence: u64) -> Sealer {
        Sealer::new(suite(), (sequence, secrets())).unwrap()
    }

    fn opener_from(sequence: u64) -> Opener {
        Opener::new(suite(), (sequence, secrets())).unwrap()
    }

    fn suite() -> &'static Tls13CipherSuite {
        TLS13_CHACHA20_POLY1305_SHA256.tls13().unwrap()
    }

    fn secrets() -> ConnectionTrafficSecrets {
        let (key, iv) = (AeadKey::from([3; 32]), Iv::from([4; 12]));
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }
    }

    fn open_one(
        sealer: &mut Sealer,
        opener: &mut Opener,
        typ: ContentType,
        content: &[u8],
    ) -> Result<Opened, Error> {
        let mut out = Outbox::default();
        let sealed = sealer.seal(typ, Some(&[content]), &mut out);
        assert!(sealed.is_ok());
        let record = take_record(&mut bytes_of(&out))?;
        opener.open(record.unwrap_or_default())
    }

    fn bytes_of(out: &Outbox) -> BytesMut {
        out.with_slices(|slices| {
            slices
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .collect()
        })
    }
}
