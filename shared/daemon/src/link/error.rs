//! Why a link ended, told apart by what its owner does next.

use std::io;

use thiserror::Error;

use crate::identity::PublicKey;

/// Why a link could not be made, or is no more.
///
/// Only [`LinkError::KeyNotListed`] is final for a client: it can only come from the server whose
/// key is pinned. All others may be the doing of something in between, and pass.
#[derive(Debug, Error)]
pub enum LinkError {
    /// Server: a client's key is in no `[[client]]`. Client: the server, its key proved, says so.
    #[error("{}", not_listed(*.0))]
    KeyNotListed(Option<PublicKey>),
    /// More bytes than a handshake takes, or than one link's keys may protect.
    #[error("the link reached a bound: {0}")]
    Limit(&'static str),
    /// Client: whoever answered has not proved the pinned key.
    #[error("{0}")]
    NotOurServer(Impostor),
    /// The connection ended without the end of the TLS stream.
    #[error("the other side closed the connection in the middle of the stream")]
    PeerClosed,
    /// Server: what came is no handshake of a client of ours. Both: a record that cannot be.
    #[error("the other side does not speak our TLS: {0}")]
    Tls(rustls::Error),
    /// The network, or the kernel.
    #[error("the connection failed: {0}")]
    Transport(#[from] io::Error),
}

/// What answered in place of our server.
#[derive(Debug, Error)]
pub enum Impostor {
    /// A server with another key: another machine, a new key, or somebody in between.
    #[error(
        "the server showed the key {0}, which is not the configured one; if the server has a new key, \
         put it into `server.public_key`, else something else answers at this address"
    )]
    AnotherKey(PublicKey),
    /// Something that is not a tund server at all.
    #[error(
        "what answers at this address is no tund server: {0}; a captive portal, or a wrong port?"
    )]
    NotTund(rustls::Error),
}

fn not_listed(key: Option<PublicKey>) -> String {
    match key {
        Some(key) => format!(
            "the client's key {} is not listed; add it as a [[client]] to let it in",
            key.fingerprint()
        ),
        None => {
            "the server does not list our public key; its administrator adds it as a [[client]] \
                 (`tund-client pubkey FILE` prints it)"
                .to_owned()
        }
    }
}
