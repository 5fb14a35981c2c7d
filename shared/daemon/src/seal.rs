//! Stored messages, sealed so that only the server's private key opens them.
//!
//! A record is sealed by HPKE (RFC 9180) in base mode: X25519, HKDF-SHA256, AES-256-GCM, with no
//! `info`. The recipient's key is the server's Ed25519 key in its Montgomery form, as in RFC 7748
//! §4.1, so that a pinned key is all that a client needs. Sealed bytes are the encapsulated key (32
//! bytes) and the ciphertext with its tag (16 bytes).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use curve25519_dalek::edwards::CompressedEdwardsY;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use sha2::{Digest, Sha512};
use thiserror::Error;
use tund_session::{FlowId, SessionId};
use zeroize::Zeroizing;

use crate::identity::{KEY_BYTES, PrivateKey, PublicKey};

/// Stands before what a record is bound to, so that the key's other uses cannot be confused with
/// this one.
const CONTEXT: &[u8] = b"tund store 1";

/// Bytes of the encapsulated key.
const ENCAPSULATED_BYTES: usize = 32;

/// Bytes by which sealed bytes are more than what they hold.
pub const OVERHEAD_BYTES: usize = ENCAPSULATED_BYTES + 16;

/// What a record belongs to: one opens only as what it was sealed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The client's key.
    pub client: PublicKey,
    /// The session in which the bytes were taken.
    pub session: SessionId,
    /// Their flow in it.
    pub flow: FlowId,
    /// The user whose application sent them.
    pub user: u32,
    /// Where they shall go.
    pub destination: SocketAddr,
    /// How they are cut into messages: the code of PROTOCOL.md §10.7.
    pub framing: u8,
    /// The offset of the first byte.
    pub start: u64,
    /// The offset behind the last.
    pub end: u64,
    /// As on the wire; bit 0: FIN stands behind the last byte.
    pub flags: u8,
}

impl Bound {
    /// The additional data, numbers in big-endian.
    fn bytes(&self) -> Vec<u8> {
        let (family, address) = match self.destination.ip() {
            IpAddr::V4(v4) => (4, v4.octets().to_vec()),
            IpAddr::V6(v6) => (6, v6.octets().to_vec()),
        };
        [
            CONTEXT,
            self.client.as_bytes(),
            &self.session.0,
            &self.flow.0.to_be_bytes(),
            &self.user.to_be_bytes(),
            &[family],
            &address,
            &self.destination.port().to_be_bytes(),
            &[self.framing],
            &self.start.to_be_bytes(),
            &self.end.to_be_bytes(),
            &[self.flags],
        ]
        .concat()
    }
}

/// Why bytes could not be sealed.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SealError {
    /// The recipient's key is no point of the curve, so nobody has its private half.
    #[error("the server's public key is none that anybody could have a private key for")]
    Key,
    /// The library or the system's random numbers failed.
    #[error("sealing failed: {0}")]
    Library(rustls::Error),
}

/// The bytes were sealed for another key or as something else, or are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("sealed for another key or as something else, or damaged")]
pub struct Unsealable;

/// Seals for one server.
pub struct Sealer {
    recipient: HpkePublicKey,
}

impl Sealer {
    /// For the server with this key.
    ///
    /// # Errors
    ///
    /// When nobody can have the private half of that key.
    pub fn new(recipient: &PublicKey) -> Result<Self, SealError> {
        let point = CompressedEdwardsY(*recipient.as_bytes()).decompress();
        let point = point.ok_or(SealError::Key)?.to_montgomery();
        Ok(Self {
            recipient: HpkePublicKey(point.to_bytes().to_vec()),
        })
    }

    /// Seals `plain` as what `bound` says it is.
    ///
    /// # Errors
    ///
    /// When the library or the system's random numbers fail.
    pub fn seal(&self, bound: &Bound, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let (EncapsulatedSecret(mut sealed), ciphertext) = DH_KEM_X25519_HKDF_SHA256_AES_256
            .seal(&[], &bound.bytes(), plain, &self.recipient)
            .map_err(SealError::Library)?;
        sealed.extend_from_slice(&ciphertext);
        Ok(sealed)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

/// Opens what was sealed for one server; its key is wiped when dropped.
#[expect(
    missing_debug_implementations,
    reason = "a secret must not end in a log by accident"
)]
pub struct Opener {
    recipient: HpkePrivateKey,
}

impl Opener {
    /// For the server with this key.
    pub fn new(key: &PrivateKey) -> Self {
        // RFC 8032 §5.1.5: the scalar is the first half of the digest; X25519 clamps it by itself.
        let digest = Zeroizing::new(<[u8; 64]>::from(Sha512::digest(key.seed())));
        let scalar = digest.get(..KEY_BYTES).unwrap_or_default().to_vec();
        Self {
            recipient: HpkePrivateKey::from(scalar),
        }
    }

    /// What was sealed as what `bound` says it is.
    ///
    /// # Errors
    ///
    /// When it was not.
    pub fn open(&self, bound: &Bound, sealed: &[u8]) -> Result<Vec<u8>, Unsealable> {
        let (encapsulated, ciphertext) = sealed
            .split_at_checked(ENCAPSULATED_BYTES)
            .ok_or(Unsealable)?;
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        DH_KEM_X25519_HKDF_SHA256_AES_256
            .open(
                &encapsulated,
                &[],
                &bound.bytes(),
                ciphertext,
                &self.recipient,
            )
            .map_err(|_| Unsealable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032 §7.1, test 1.
    const SERVER: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";

    /// Made by another implementation (Python, `cryptography`) with the ephemeral key 00 01 … 1f.
    const GOLDEN: &str = "8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f\
                          db0ea2a5447a4a62020051df019dae4596e6c21a5bbacbdf361ab7ea";

    const PLAIN: &[u8] = b"hello\nworld\n";

    fn server() -> PrivateKey {
        PrivateKey::from_base64(SERVER).unwrap()
    }

    fn bound() -> Bound {
        Bound {
            client: PublicKey::from_bytes([7; KEY_BYTES]).unwrap(),
            session: SessionId(std::array::from_fn(|place| u8::try_from(place).unwrap())),
            flow: FlowId(5),
            user: 1000,
            destination: "10.0.0.9:514".parse().unwrap(),
            framing: 2,
            start: 100,
            end: 112,
            flags: 1,
        }
    }

    fn golden() -> Vec<u8> {
        let digits = GOLDEN.as_bytes().chunks(2);
        digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn what_another_implementation_sealed_opens() {
        let opened = Opener::new(&server()).open(&bound(), &golden()).unwrap();

        assert_eq!(opened, PLAIN);
    }

    #[test]
    fn what_is_sealed_opens_and_is_never_sealed_the_same_twice() {
        let sealer = Sealer::new(&server().public()).unwrap();

        let one = sealer.seal(&bound(), PLAIN).unwrap();
        let two = sealer.seal(&bound(), PLAIN).unwrap();

        assert_ne!(one, two);
        assert_eq!(one.len(), PLAIN.len() + OVERHEAD_BYTES);
        let opener = Opener::new(&server());
        assert_eq!(opener.open(&bound(), &one).unwrap(), PLAIN);
        assert_eq!(opener.open(&bound(), &two).unwrap(), PLAIN);
    }

    #[test]
    fn another_key_opens_nothing() {
        let other = Opener::new(&PrivateKey::generate().unwrap());

        assert_eq!(other.open(&bound(), &golden()), Err(Unsealable));
    }

    #[test]
    fn each_thing_a_record_is_bound_to_counts() {
        let is = bound();
        let address = |text: &str| Bound {
            destination: text.parse().unwrap(),
            ..is
        };
        let others = [
            Bound {
                client: PublicKey::from_bytes([8; KEY_BYTES]).unwrap(),
                ..is
            },
            Bound {
                session: SessionId([0; 16]),
                ..is
            },
            Bound {
                flow: FlowId(6),
                ..is
            },
            Bound { user: 1001, ..is },
            address("10.0.0.8:514"),
            address("10.0.0.9:515"),
            address("[::ffff:10.0.0.9]:514"),
            Bound { framing: 3, ..is },
            Bound { start: 101, ..is },
            Bound { end: 113, ..is },
            Bound { flags: 0, ..is },
        ];

        let opener = Opener::new(&server());
        assert_eq!(opener.open(&is, &golden()).unwrap(), PLAIN);
        for other in others {
            assert_eq!(opener.open(&other, &golden()), Err(Unsealable), "{other:?}");
        }
    }

    #[test]
    fn damaged_and_truncated_bytes_do_not_open() {
        let opener = Opener::new(&server());
        for length in 0..golden().len() {
            let cut = golden().get(..length).unwrap().to_vec();
            assert_eq!(opener.open(&bound(), &cut), Err(Unsealable), "{length}");
        }
        for place in 0..golden().len() {
            let mut bent = golden();
            bent[place] ^= 0x10;
            assert_eq!(opener.open(&bound(), &bent), Err(Unsealable), "{place}");
        }
    }

    #[test]
    fn a_key_that_is_no_point_is_refused() {
        // y = 2 is on no point of the curve.
        let mut bytes = [0; KEY_BYTES];
        bytes[0] = 2;
        let nobody = PublicKey::from_bytes(bytes).unwrap();

        assert_eq!(Sealer::new(&nobody).err(), Some(SealError::Key));
    }
}
