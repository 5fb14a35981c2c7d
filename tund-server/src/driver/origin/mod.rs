//! Connections C: the server's sockets towards origins, polled by the one loop that owns them.

mod datagram;
mod echo;
mod failures;
mod read_buffer;
mod tcp;

pub(crate) use datagram::DatagramOrigin;
pub(crate) use echo::EchoSockets;
pub(crate) use failures::Failures;
pub(crate) use read_buffer::ReadBuffer;
pub(crate) use tcp::Origin;

use nix::errno::Errno;
use std::io;
use tund_session::wire::frame::OpenError;

/// What the client is told of a connect that failed, so that it can tell the application.
pub(crate) fn open_error(error: &io::Error) -> OpenError {
    let Some(errno) = error.raw_os_error() else {
        return OpenError::Exhausted;
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "every other errno goes by its number"
    )]
    match Errno::from_raw(errno) {
        // An RST just after the handshake is as good as one instead of it.
        Errno::ECONNREFUSED | Errno::ECONNRESET => OpenError::Refused,
        Errno::ENETUNREACH | Errno::ENETDOWN | Errno::ENONET => OpenError::NetworkUnreachable,
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => OpenError::HostUnreachable,
        Errno::ETIMEDOUT => OpenError::TimedOut,
        // EAGAIN: no local port is left (connect(2)).
        Errno::EADDRNOTAVAIL
        | Errno::EADDRINUSE
        | Errno::EAGAIN
        | Errno::EMFILE
        | Errno::ENFILE
        | Errno::ENOBUFS
        | Errno::ENOMEM
        | Errno::ENOSPC => OpenError::Exhausted,
        _ => OpenError::Other(errno.unsigned_abs()),
    }
}

#[cfg(test)]
mod tests;
