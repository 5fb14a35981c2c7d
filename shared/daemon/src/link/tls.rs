//! What both sides demand of a TLS handshake: version 1.3, raw public keys, each side's key known.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, IpAddr, Ipv4Addr, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, ClientConnection, DigitallySignedStruct,
    DistinguishedName, Error, OtherError, ServerConfig, ServerConnection, SignatureScheme,
};
use thiserror::Error as ThisError;

use crate::identity::{PrivateKey, PublicKey};

/// The protocol that both sides must name (ALPN); another number is another wire.
pub const ALPN: &[u8] = b"tund/1";

/// The server's list of clients, shared by all links and replaced while they live.
#[derive(Clone, Debug, Default)]
pub struct ClientKeys {
    keys: Arc<RwLock<BTreeSet<PublicKey>>>,
}

impl ClientKeys {
    /// Makes a list of these keys.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self {
            keys: Arc::new(RwLock::new(keys.into_iter().collect())),
        }
    }

    /// Puts another list in its place; handshakes see it from now on, live links do not notice.
    pub fn replace(&self, keys: impl IntoIterator<Item = PublicKey>) {
        let keys = keys.into_iter().collect();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Whether the key is listed.
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(key)
    }
}

/// The client's side of every handshake.
#[derive(Clone)]
pub struct ClientTls {
    pub(super) config: Arc<ClientConfig>,
}

impl ClientTls {
    /// A client that proves `private` and accepts only a server that proves one of `server_keys`.
    ///
    /// # Errors
    ///
    /// When the TLS library refuses the combination; it does not on a supported machine.
    pub fn new(private: &PrivateKey, server_keys: Vec<PublicKey>) -> Result<Self, Error> {
        Self::showing(certified(private)?, server_keys)
    }

    pub(super) fn showing(
        shown: Arc<CertifiedKey>,
        server_keys: Vec<PublicKey>,
    ) -> Result<Self, Error> {
        let provider = provider();
        let verifier = PinnedServer {
            keys: server_keys,
            proof: Proof::new(&provider),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(shown)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A name would tell the network whom we visit, and raw keys have none to check.
        config.enable_sni = false;
        // A resumed handshake never asks the verifier, so a key taken off the server's list would
        // go on being let in; and each link draws its own secret from a full handshake.
        config.resumption = Resumption::disabled();
        // The link encrypts and decrypts in its own buffers once the handshake is done.
        config.enable_secret_extraction = true;
        Ok(Self {
            config: Arc::new(config),
        })
    }

    pub(super) fn connection(&self) -> Result<ClientConnection, Error> {
        // Never sent and never checked; the type wants one.
        let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])));
        ClientConnection::new(Arc::clone(&self.config), nobody)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

/// The server's side of every handshake.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    pub(super) clients: ClientKeys,
}

impl ServerTls {
    /// A server that proves `private` and lets in whom `clients` lists at that moment.
    ///
    /// # Errors
    ///
    /// When the TLS library refuses the combination; it does not on a supported machine.
    pub fn new(private: &PrivateKey, clients: ClientKeys) -> Result<Self, Error> {
        Self::showing(certified(private)?, clients)
    }

    pub(super) fn showing(shown: Arc<CertifiedKey>, clients: ClientKeys) -> Result<Self, Error> {
        let provider = provider();
        let verifier = ListedClient {
            clients: clients.clone(),
            proof: Proof::new(&provider),
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(shown)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No tickets, for the reasons at the client's side.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.enable_secret_extraction = true;
        Ok(Self {
            config: Arc::new(config),
            clients,
        })
    }

    pub(super) fn connection(&self) -> Result<ServerConnection, Error> {
        ServerConnection::new(Arc::clone(&self.config))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

/// A key that was shown and is not the one, or none of those, that count.
///
/// Travels from a verifier to its link inside the TLS library's error; TLS tells the other side
/// `certificate_unknown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
#[error("the key {0} is not known here")]
pub(super) struct UnknownKey(pub(super) PublicKey);

impl UnknownKey {
    fn into_tls(self) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }

    /// Finds the unknown key in an error of the TLS library.
    pub(super) fn find(error: &Error) -> Option<Self> {
        let Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) = error else {
            return None;
        };
        cause.downcast_ref().copied()
    }
}

#[derive(Debug)]
struct PinnedServer {
    keys: Vec<PublicKey>,
    proof: Proof,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = raw_key(shown)?;
        if self.keys.contains(&key) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(UnknownKey(key).into_tls())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.proof.verify(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct ListedClient {
    clients: ClientKeys,
    proof: Proof,
}

impl ClientCertVerifier for ListedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    /// Refuses before the signature is looked at: strangers cost as little as can be.
    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = raw_key(shown)?;
        if self.clients.contains(&key) {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(UnknownKey(key).into_tls())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.proof.verify(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Checks that the other side holds the private half of the key it showed.
#[derive(Debug)]
struct Proof {
    algorithms: rustls::crypto::WebPkiSupportedAlgorithms,
}

impl Proof {
    fn new(provider: &CryptoProvider) -> Self {
        Self {
            algorithms: provider.signature_verification_algorithms,
        }
    }

    fn verify(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }
}

/// The Ed25519 key in what the other side showed.
pub(super) fn raw_key(shown: &CertificateDer<'_>) -> Result<PublicKey, Error> {
    PublicKey::from_spki(shown).ok_or(Error::InvalidCertificate(
        CertificateError::ApplicationVerificationFailure,
    ))
}

/// A key to show, and the means to prove it.
pub(super) fn certified(private: &PrivateKey) -> Result<Arc<CertifiedKey>, Error> {
    let signer = private.signer();
    let spki = signer
        .public_key()
        .ok_or_else(|| Error::General("a key without public half".into()))?;
    Ok(Arc::new(CertifiedKey::new(
        vec![CertificateDer::from(spki.to_vec())],
        signer,
    )))
}

fn no_tls12() -> Error {
    Error::General("only TLS 1.3 is spoken here".into())
}

/// The provider with what we use of it, best first; the server follows the client's order.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    if has_wide_aes_only() {
        provider.cipher_suites = ring::ALL_CIPHER_SUITES.to_vec();
    }
    let order = if has_aes_instructions() {
        // AES-128 costs a third less than AES-256, and is as safe against what is known.
        [
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
        ]
    } else {
        [
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
        ]
    };
    provider
        .cipher_suites
        .retain(|suite| order.contains(&suite.suite()));
    provider
        .cipher_suites
        .sort_by_key(|suite| order.iter().position(|own| *own == suite.suite()));
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519MLKEM768,
        aws_lc_rs::kx_group::X25519,
    ];
    Arc::new(provider)
}

/// AES on 256 bits at once, without AVX-512: there ring encrypts about twice as fast as aws-lc, which
/// uses 128 bits at once.
#[cfg(target_arch = "x86_64")]
fn has_wide_aes_only() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("vaes") && has!("vpclmulqdq") && has!("avx2") && !has!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_wide_aes_only() -> bool {
    false
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn has_aes_instructions() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes_instructions() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes_instructions() -> bool {
    false
}
