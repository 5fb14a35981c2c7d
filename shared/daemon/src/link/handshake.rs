//! A TLS handshake on buffers of ours, up to the moment when both directions have their keys.

use std::fmt;
use std::io;

use bytes::BytesMut;
use rustls::{Connection, Error};
use tund_session::Secret;
use zeroize::Zeroizing;

use super::outbox::Outbox;
use super::record::{Opener, Sealer, take_record};
use super::tls::{ALPN, ClientKeys, ClientTls, ServerTls, raw_key};
use crate::identity::PublicKey;

/// The exporter's label (RFC 8446 §7.5) of the secret that a later link proves (PROTOCOL.md).
const RESUME_SECRET_LABEL: &[u8] = b"EXPORTER-tund-resume";

/// A handshake in progress.
pub(super) struct Handshake {
    tls: Connection,
    /// Server: who may come in.
    listed: Option<ClientKeys>,
}

/// What a finished handshake leaves.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) peer: PublicKey,
    /// Server: the peer's key is still on the list. It was when the peer showed it, which may be
    /// long before it proved it.
    pub(super) is_listed: bool,
    pub(super) secret: Secret,
}

impl Handshake {
    pub(super) fn client(tls: &ClientTls) -> Result<Self, Error> {
        Ok(Self {
            tls: Connection::Client(tls.connection()?),
            listed: None,
        })
    }

    pub(super) fn server(tls: &ServerTls) -> Result<Self, Error> {
        Ok(Self {
            tls: Connection::Server(tls.connection()?),
            listed: Some(tls.clients.clone()),
        })
    }

    /// Works off what was received; true once the handshake is complete at this end.
    ///
    /// Records behind the last of the handshake stay in `received`: they are for [`Keys`]. After
    /// an error the alert that tells the other side is in `out`.
    pub(super) fn advance(
        &mut self,
        received: &mut BytesMut,
        out: &mut Outbox,
    ) -> Result<bool, Error> {
        let result = self.read_records(received);
        let told = self.write(out);
        result?;
        told?;
        Ok(!self.tls.is_handshaking())
    }

    fn read_records(&mut self, received: &mut BytesMut) -> Result<(), Error> {
        while self.tls.is_handshaking() {
            let Some(record) = take_record(received)? else {
                return Ok(());
            };
            // One record at a time: the library must not swallow those that come after.
            let mut rest = record.as_ref();
            while !rest.is_empty() {
                self.tls.read_tls(&mut rest).map_err(general)?;
            }
            self.tls.process_new_packets()?;
        }
        Ok(())
    }

    fn write(&mut self, out: &mut Outbox) -> Result<(), Error> {
        let mut flight = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut flight).map_err(general)?;
        }
        out.push(flight);
        Ok(())
    }

    /// Takes the keys of a complete handshake.
    pub(super) fn finish(self) -> Result<Keys, Error> {
        if self.tls.alpn_protocol() != Some(ALPN) {
            return Err(Error::NoApplicationProtocol);
        }
        let peer = match self.tls.peer_certificates() {
            Some([shown]) => raw_key(shown)?,
            Some(_) | None => return Err(Error::NoCertificatesPresented),
        };
        let mut secret = Zeroizing::new([0; 32]);
        self.tls
            .export_keying_material(&mut *secret, RESUME_SECRET_LABEL, None)?;
        let suite = self
            .tls
            .negotiated_cipher_suite()
            .and_then(|suite| suite.tls13())
            .ok_or(Error::HandshakeNotComplete)?;
        let secrets = self.tls.dangerous_extract_secrets()?;
        Ok(Keys {
            sealer: Sealer::new(suite, secrets.tx)?,
            opener: Opener::new(suite, secrets.rx)?,
            peer,
            is_listed: self.listed.is_none_or(|keys| keys.contains(&peer)),
            secret: Secret::new(*secret),
        })
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").finish_non_exhaustive()
    }
}

fn general(error: io::Error) -> Error {
    Error::General(error.to_string())
}
