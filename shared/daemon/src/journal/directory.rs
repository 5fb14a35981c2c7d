//! A directory that one daemon at a time keeps its state in.

use super::{Found, Journal};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A directory, mode 0700, locked for this process as long as it lives.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    /// The lock goes with it.
    _lock: File,
}

impl StateDirectory {
    /// Makes it where it is missing, closes it to others, and locks it.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being written to; `ResourceBusy` if another process has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !path.is_dir() {
            // Those above it may be shared with others.
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            DirBuilder::new().mode(0o700).create(path)?;
        }
        if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another daemon uses it",
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Opens the journal `name` in it, made if it is missing, and reads what it holds.
    ///
    /// # Errors
    ///
    /// Those of reading and writing. What a file holds is never an error: see [`Found`].
    pub fn journal(&self, name: &str) -> io::Result<(Journal, Found)> {
        Journal::open(self.path.join(name))
    }
}
