//! The command's end of the control socket: blocking, one question, one answer.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{ANSWER_BYTES_MAX, Command, ErrorReport, STEP_TIMEOUT};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error("is the daemon running? tried {}: {error}; start it, or name its socket with --control",
        path.display())]
    Absent {
        /// The socket that was tried.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The socket is there, and not for this user.
    #[error(
        "{} is closed to this user; run as root (sudo), or join the group tund (totals) or \
         tund and tund-admin (everything)", .0.display()
    )]
    Denied(PathBuf),
    /// The daemon understood and refused.
    #[error("the daemon refused: {} ({})", .0.message, .0.code)]
    Refused(ErrorReport),
    /// What came back is not an answer.
    #[error("the daemon at {} gave no answer that is understood: {reason}; see its log, and \
        whether it has the version of this command", path.display())]
    Garbled {
        /// The socket that was tried.
        path: PathBuf,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl AskError {
    /// Whether a privilege is what is missing.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Denied(_) => true,
            Self::Refused(report) => report.code == "permission_denied",
            Self::Absent { .. } | Self::Garbled { .. } => false,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer<T> {
    Ok(T),
    Error(ErrorReport),
}

/// Asks the daemon at `path`, and waits for its answer a few seconds at most.
///
/// # Errors
///
/// Nobody is there, it is closed to this user, the daemon refuses, or it does not speak this.
pub fn ask<T: DeserializeOwned>(path: &Path, command: &impl Command) -> Result<T, AskError> {
    let stream = connect(path).map_err(|error| unreachable(path, error))?;
    let garbled = |reason: String| AskError::Garbled {
        path: path.to_path_buf(),
        reason,
    };
    let line = exchange(stream, command).map_err(|error| garbled(describe(&error)))?;
    match serde_json::from_slice(&line) {
        Ok(Answer::Ok(value)) => Ok(value),
        Ok(Answer::Error(report)) => Err(AskError::Refused(report)),
        Err(error) => Err(garbled(error.to_string())),
    }
}

fn unreachable(path: &Path, error: io::Error) -> AskError {
    let path = path.to_path_buf();
    if error.kind() == ErrorKind::PermissionDenied {
        AskError::Denied(path)
    } else if error.kind() == ErrorKind::WouldBlock {
        AskError::Garbled {
            path,
            reason: "it took no connection for 5 s".to_owned(),
        }
    } else {
        AskError::Absent { path, error }
    }
}

/// Connects, and waits for a busy daemon only so long: the send timeout holds for this too.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(STEP_TIMEOUT))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

fn exchange(mut stream: UnixStream, command: &impl Command) -> io::Result<Vec<u8>> {
    // Three steps of the daemon may take as long as this each.
    stream.set_read_timeout(Some(STEP_TIMEOUT * 3))?;
    let mut request = serde_json::to_vec(command)?;
    request.push(b'\n');
    match stream.write_all(&request) {
        // Closed before it read: there may be an answer all the same.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        other => other?,
    }
    let limit = u64::try_from(ANSWER_BYTES_MAX).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    match BufReader::new(stream.take(limit)).read_until(b'\n', &mut line) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(line),
        Err(error) => Err(error),
        Ok(_) => Ok(line),
    }
}

fn describe(error: &io::Error) -> String {
    if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) {
        return "nothing came for 15 s".to_owned();
    }
    error.to_string()
}
