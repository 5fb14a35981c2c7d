//! Who a daemon is: Ed25519 keys as short base64 strings, and the file that holds the private one.

use std::fmt;
use std::fs::{File, OpenOptions, remove_file, rename};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use base64::{DecodeSliceError, Engine};
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use rustls::crypto::aws_lc_rs::sign::any_eddsa_type;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::SigningKey;
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes of a key, private or public.
pub const KEY_BYTES: usize = 32;

/// Characters of a key's short name in logs: the first of its base64 form, as in the configuration.
const FINGERPRINT_CHARS: usize = 8;

/// More than this is no key file: one line of 44 characters, with room for blanks.
const KEY_FILE_BYTES_MAX: usize = 256;

/// What stands before the seed in PKCS #8 (RFC 8410 §7).
const PKCS8_HEAD: [u8; 16] = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];

/// What stands before the key in a SubjectPublicKeyInfo (RFC 8410 §4).
const SPKI_HEAD: [u8; 12] = [48, 42, 48, 5, 6, 3, 43, 101, 112, 3, 33, 0];

/// The points of small order, without the sign bit: signatures by such a key prove nothing.
///
/// 0 and 1, both points of order 8, and p − 1, p and p + 1 for p = 2²⁵⁵ − 19. A line of `A`s put
/// in as a placeholder is the first of them.
const SMALL_ORDER: [[u8; KEY_BYTES]; 7] = [
    [0; KEY_BYTES],
    edges(1, 0, 0),
    [
        38, 232, 149, 143, 194, 178, 39, 176, 69, 195, 244, 137, 242, 239, 152, 240, 213, 223, 172,
        5, 211, 198, 51, 57, 177, 56, 2, 136, 109, 83, 252, 5,
    ],
    [
        199, 23, 106, 112, 61, 77, 216, 79, 186, 60, 11, 118, 13, 16, 103, 15, 42, 32, 83, 250, 44,
        57, 204, 198, 78, 199, 253, 119, 146, 172, 3, 122,
    ],
    edges(0xec, 0xff, 0x7f),
    edges(0xed, 0xff, 0x7f),
    edges(0xee, 0xff, 0x7f),
];

const fn edges(first: u8, middle: u8, last: u8) -> [u8; KEY_BYTES] {
    let mut bytes = [middle; KEY_BYTES];
    bytes[0] = first;
    bytes[KEY_BYTES - 1] = last;
    bytes
}

/// A key by which others know a daemon.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Takes the bytes of a key.
    ///
    /// # Errors
    ///
    /// When the key is one of the few under which a signature proves nothing.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Result<Self, KeyTextError> {
        let mut unsigned = bytes;
        unsigned[KEY_BYTES - 1] &= 0x7f;
        if SMALL_ORDER.contains(&unsigned) {
            return Err(KeyTextError::Weak);
        }
        Ok(Self(bytes))
    }

    /// The bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The first characters of the key, for logs.
    pub fn fingerprint(&self) -> String {
        self.to_string().chars().take(FINGERPRINT_CHARS).collect()
    }

    /// The key out of the SubjectPublicKeyInfo that TLS carries; `None` if that holds another kind.
    pub(crate) fn from_spki(der: &[u8]) -> Option<Self> {
        let key = der.strip_prefix(&SPKI_HEAD)?;
        Self::from_bytes(key.try_into().ok()?).ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Base64Display::new(&self.0, &STANDARD), f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}…)", self.fingerprint())
    }
}

impl FromStr for PublicKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_bytes(*decode(text)?)
    }
}

/// The key by which a daemon proves who it is; wiped from memory when dropped.
#[expect(
    missing_debug_implementations,
    reason = "a secret must not end in a log by accident"
)]
pub struct PrivateKey {
    seed: Zeroizing<[u8; KEY_BYTES]>,
    signer: Arc<dyn SigningKey>,
    public: PublicKey,
}

impl PrivateKey {
    /// Makes a key from the system's random numbers.
    ///
    /// # Errors
    ///
    /// When the system has none to give.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *seed).map_err(KeyError::Random)?;
        Self::from_seed(seed).map_err(KeyError::Text)
    }

    /// Reads a key from one line of base64.
    ///
    /// # Errors
    ///
    /// When that is not 32 bytes in base64.
    pub fn from_base64(text: &str) -> Result<Self, KeyTextError> {
        Self::from_seed(decode(text)?)
    }

    /// The key as one line of base64, without its end of line.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.seed))
    }

    /// The key that others may see.
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// Reads a key file, once it has proved to be nobody else's business.
    ///
    /// # Errors
    ///
    /// When the file is missing, not a regular file, owned by a stranger, readable by others, or
    /// does not hold a key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |problem| KeyError::File {
            path: path.to_owned(),
            problem,
        };
        // Not blocking, or a pipe of that name would hang the daemon.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(|error| failed(unreadable(error)))?;
        let found = file.metadata().map_err(|error| failed(unreadable(error)))?;
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
        let place = match credentials {
            Some(directory) if path.starts_with(&directory) => Place::Credentials,
            Some(_) | None => Place::Anywhere,
        };
        check(&found, place).map_err(failed)?;
        let text = read_short(&mut file).map_err(failed)?;
        let text = std::str::from_utf8(&text).map_err(|_| failed(FileProblem::NotText))?;
        Self::from_base64(text).map_err(|error| failed(FileProblem::Key(error)))
    }

    /// Writes the key to a file that nobody else could read at any moment.
    ///
    /// # Errors
    ///
    /// When the file exists and `force` is not set, or cannot be written.
    pub fn save(&self, path: &Path, force: bool) -> Result<(), KeyError> {
        let failed = |error: io::Error| KeyError::File {
            path: path.to_owned(),
            problem: if error.kind() == io::ErrorKind::AlreadyExists {
                FileProblem::Exists
            } else {
                FileProblem::Write(error)
            },
        };
        if force {
            self.replace(path)
        } else {
            self.write_new(path)
        }
        .map_err(failed)
    }

    /// What everything else of the key is made from.
    pub(crate) fn seed(&self) -> &[u8; KEY_BYTES] {
        &self.seed
    }

    /// The object that signs handshakes.
    pub(crate) fn signer(&self) -> Arc<dyn SigningKey> {
        Arc::clone(&self.signer)
    }

    fn from_seed(seed: Zeroizing<[u8; KEY_BYTES]>) -> Result<Self, KeyTextError> {
        let mut der = Zeroizing::new([0; PKCS8_HEAD.len() + KEY_BYTES]);
        let (head, tail) = der.split_at_mut(PKCS8_HEAD.len());
        head.copy_from_slice(&PKCS8_HEAD);
        tail.copy_from_slice(&*seed);
        let signer = any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()))
            .map_err(|_| KeyTextError::Weak)?;
        let public = signer
            .public_key()
            .and_then(|spki| PublicKey::from_spki(&spki))
            .ok_or(KeyTextError::Weak)?;
        Ok(Self {
            seed,
            signer,
            public,
        })
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let mut name = path
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let beside = path.with_file_name(name);
        self.write_new(&beside)?;
        rename(&beside, path).inspect_err(|_| discard(&beside))
    }

    fn write_new(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut line = self.to_base64();
        line.push('\n');
        file.write_all(line.as_bytes())
            .and_then(|()| file.sync_all())
            .inspect_err(|_| discard(path))
    }
}

/// Removes a file half made by us; if that fails too, the first error tells more.
fn discard(path: &Path) {
    drop(remove_file(path));
}

/// Who may not read a key needs other rights, not another key.
fn unreadable(error: io::Error) -> FileProblem {
    if error.kind() == io::ErrorKind::PermissionDenied {
        FileProblem::Denied(error)
    } else {
        FileProblem::Open(error)
    }
}

/// Where a key file stands decides what its mode may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Anywhere,
    /// systemd grants the service's user access by an ACL, which shows as a readable group.
    Credentials,
}

fn check(found: &std::fs::Metadata, place: Place) -> Result<(), FileProblem> {
    if !found.is_file() {
        return Err(FileProblem::NotAFile);
    }
    let us = geteuid().as_raw();
    if found.uid() != us && found.uid() != 0 {
        return Err(FileProblem::Owner {
            found: found.uid(),
            us,
        });
    }
    let forbidden = match place {
        Place::Anywhere => 0o077,
        Place::Credentials => 0o037,
    };
    let mode = found.mode() & 0o7777;
    if mode & forbidden != 0 {
        Err(FileProblem::Mode(mode))
    } else {
        Ok(())
    }
}

fn read_short(file: &mut File) -> Result<Zeroizing<Vec<u8>>, FileProblem> {
    // Room for all of it from the start: growing would leave copies behind.
    let mut bytes = Zeroizing::new(vec![0; KEY_FILE_BYTES_MAX + 1]);
    let mut filled = 0;
    while let Some(space) = bytes.get_mut(filled..).filter(|space| !space.is_empty()) {
        match file.read(space) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    if filled > KEY_FILE_BYTES_MAX {
        return Err(FileProblem::NotText);
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyTextError> {
    let text = text.trim();
    // One byte more than a key, so that one too long shows as such.
    let mut bytes = Zeroizing::new([0; KEY_BYTES + 1]);
    let length = match STANDARD.decode_slice(text, &mut *bytes) {
        Ok(length) => length,
        Err(DecodeSliceError::DecodeError(error)) => return Err(KeyTextError::Base64(error)),
        Err(DecodeSliceError::OutputSliceTooSmall) => {
            return Err(KeyTextError::Length(text.len() / 4 * 3));
        }
    };
    let key = bytes.get(..length).and_then(|key| key.try_into().ok());
    key.map(Zeroizing::new).ok_or(KeyTextError::Length(length))
}

/// Why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyTextError {
    /// Not base64 at all.
    #[error("a key is 44 characters of base64, but this is not base64: {0}; copy the whole line")]
    Base64(base64::DecodeError),
    /// Base64 of something else.
    #[error("a key is 32 bytes in base64 (44 characters), but this holds {0} bytes")]
    Length(usize),
    /// A key that proves nothing, such as a line of `A`s.
    #[error("this key proves nothing (a placeholder?); make one with `keygen`")]
    Weak,
}

/// Why a private key could not be had or kept.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The key file.
    #[error("private key file {}: {problem}", path.display())]
    File {
        /// The file in question.
        path: PathBuf,
        /// What is wrong with it.
        problem: FileProblem,
    },
    /// The system's random numbers.
    #[error("making a key: the system gave no random numbers: {0}")]
    Random(getrandom::Error),
    /// The key itself.
    #[error(transparent)]
    Text(KeyTextError),
}

/// What is wrong with a key file, and what to do.
#[derive(Debug, Error)]
pub enum FileProblem {
    /// There, perhaps, but not for us to read.
    #[error("cannot be read: {0}; run as root (sudo), or as the user whose key it is")]
    Denied(io::Error),
    /// There is one already.
    #[error(
        "exists; choose another name, or overwrite it with --force (others then need the new public key)"
    )]
    Exists,
    /// What it holds is no key.
    #[error("{0}")]
    Key(KeyTextError),
    /// Others can read it.
    #[error("has mode {0:04o}, so that others can read it; run `chmod 600` on it")]
    Mode(u32),
    /// A folder, a device or a pipe.
    #[error("is not a regular file; name the file that `keygen --out` wrote")]
    NotAFile,
    /// Binary, or far too long.
    #[error("holds no key; a key file is one line of 44 characters, as `keygen --out` writes it")]
    NotText,
    /// Missing, most likely.
    #[error("cannot be read: {0}; `keygen --out` makes one")]
    Open(io::Error),
    /// A stranger could change it.
    #[error(
        "belongs to user {found}, not to user {us} who runs this, nor to root; run `chown` on it"
    )]
    Owner {
        /// Whose file it is.
        found: u32,
        /// Who we are.
        us: u32,
    },
    /// No room, no permission, no folder.
    #[error("cannot be written: {0}; the folder must exist and be ours to write")]
    Write(io::Error),
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, metadata, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// RFC 8032 §7.1, test 1.
    const SEED: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
    const PUBLIC: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    #[test]
    fn the_public_key_is_the_one_of_rfc_8032() {
        let key = PrivateKey::from_base64(&format!("{SEED}\n")).unwrap();

        assert_eq!(key.public().to_string(), PUBLIC);
        assert_eq!(key.to_base64().as_str(), SEED);
        assert_eq!(PUBLIC.parse::<PublicKey>().unwrap(), key.public());
        assert_eq!(key.public().fingerprint(), "11qYAYKx");
        assert_eq!(format!("{:?}", key.public()), "PublicKey(11qYAYKx…)");
    }

    #[test]
    fn two_keys_made_differ() {
        let (one, two) = (
            PrivateKey::generate().unwrap(),
            PrivateKey::generate().unwrap(),
        );

        assert_ne!(one.public(), two.public());
    }

    #[test]
    fn texts_that_are_no_keys_are_refused_with_their_reason() {
        let parse = |text: &str| text.parse::<PublicKey>().unwrap_err();

        assert!(matches!(parse("not base64!"), KeyTextError::Base64(_)));
        assert!(matches!(
            parse(PUBLIC.trim_end_matches('=')),
            KeyTextError::Base64(_)
        ));
        assert_eq!(parse(""), KeyTextError::Length(0));
        assert_eq!(parse("AAEC"), KeyTextError::Length(3));
        assert_eq!(parse(&STANDARD.encode([1; 33])), KeyTextError::Length(33));
        assert!(matches!(
            parse(&STANDARD.encode([1; 64])),
            KeyTextError::Length(_)
        ));
    }

    #[test]
    fn keys_of_small_order_are_refused_with_either_sign() {
        for point in SMALL_ORDER {
            let mut negative = point;
            negative[31] |= 0x80;
            for bytes in [point, negative] {
                assert_eq!(PublicKey::from_bytes(bytes), Err(KeyTextError::Weak));
            }
        }
        assert_eq!("A".repeat(43) + "=", STANDARD.encode([0; 32]));
    }

    #[test]
    fn a_saved_key_is_private_loads_again_and_is_not_overwritten_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.key");
        let (first, second) = (
            PrivateKey::generate().unwrap(),
            PrivateKey::generate().unwrap(),
        );

        first.save(&path, false).unwrap();
        assert_eq!(metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            PrivateKey::load(&path).map(|key| key.public()).unwrap(),
            first.public()
        );

        let refused = second.save(&path, false).unwrap_err().to_string();
        assert!(
            refused.contains("client.key") && refused.contains("--force"),
            "{refused}"
        );
        assert_eq!(
            PrivateKey::load(&path).map(|key| key.public()).unwrap(),
            first.public()
        );

        set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        second.save(&path, true).unwrap();
        assert_eq!(metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            PrivateKey::load(&path).map(|key| key.public()).unwrap(),
            second.public()
        );
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_key_file_that_others_may_read_is_refused_with_mode_and_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.key");
        write(&path, SEED).unwrap();

        for mode in [0o640, 0o604, 0o660, 0o620] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let refused = load_error(&path);
            assert!(refused.contains("client.key"), "{refused}");
            assert!(refused.contains(&format!("{mode:04o}")), "{refused}");
            assert!(refused.contains("chmod 600"), "{refused}");
        }
        for mode in [0o600, 0o400] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(PrivateKey::load(&path).is_ok());
        }
    }

    #[test]
    fn a_credential_may_show_a_readable_group_and_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let at_mode = |mode| {
            set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
            metadata(file.path()).unwrap()
        };

        assert!(check(&at_mode(0o440), Place::Credentials).is_ok());
        assert!(check(&at_mode(0o440), Place::Anywhere).is_err());
        assert!(check(&at_mode(0o444), Place::Credentials).is_err());
        assert!(check(&at_mode(0o460), Place::Credentials).is_err());
    }

    #[test]
    fn what_is_no_key_file_is_named_for_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let with = |content: &[u8]| {
            let path = folder.path().join("key");
            write(&path, content).unwrap();
            set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            load_error(&path)
        };

        assert!(with(b"").contains("holds 0 bytes"));
        assert!(with(b"hello world").contains("not base64"));
        assert!(with(&[0xff; 44]).contains("one line of 44 characters"));
        assert!(with(&[b'A'; 300]).contains("one line of 44 characters"));
        assert!(load_error(folder.path()).contains("not a regular file"));
        assert!(load_error(&folder.path().join("none")).contains("keygen --out"));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(load_error(&pipe).contains("not a regular file"));
    }

    fn load_error(path: &Path) -> String {
        match PrivateKey::load(path) {
            Ok(_) => panic!("{} was taken for a key", path.display()),
            Err(error) => error.to_string(),
        }
    }
}
