//! How much of what was written to a socket its peer has not acknowledged, and how much is unread.

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

mod ioctl {
    //! The raw system calls, as nix's macro makes them.
    nix::ioctl_read_bad!(siocoutq, nix::libc::TIOCOUTQ, nix::libc::c_int);
    nix::ioctl_read_bad!(fionread, nix::libc::FIONREAD, nix::libc::c_int);
}

/// Bytes in the socket's send queue (`SIOCOUTQ`): sent and not acknowledged, and not yet sent.
///
/// A FIN that is not acknowledged counts as one.
///
/// # Errors
///
/// Whatever the system call fails with; it cannot on a TCP socket.
pub(crate) fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    let mut queued: libc::c_int = 0;
    #[expect(unsafe_code, reason = "nix offers the call as an unsafe function only")]
    // SAFETY: the descriptor is borrowed, hence open, and `queued` is a c_int to write to.
    unsafe { ioctl::siocoutq(socket.as_fd().as_raw_fd(), &raw mut queued) }?;
    Ok(usize::try_from(queued).unwrap_or(0))
}

/// Bytes in the socket's receive queue (`FIONREAD`).
///
/// # Errors
///
/// Whatever the system call fails with; it cannot on a TCP socket.
pub(crate) fn unread(socket: &impl AsFd) -> io::Result<usize> {
    let mut queued: libc::c_int = 0;
    #[expect(unsafe_code, reason = "nix offers the call as an unsafe function only")]
    // SAFETY: the descriptor is borrowed, hence open, and `queued` is a c_int to write to.
    unsafe { ioctl::fionread(socket.as_fd().as_raw_fd(), &raw mut queued) }?;
    Ok(usize::try_from(queued).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_has_come_and_was_not_read_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        assert_eq!(unread(&socket).unwrap(), 0);

        peer.write_all(b"seven b").unwrap();
        socket.peek(&mut [0]).unwrap();

        assert_eq!(unread(&socket).unwrap(), 7);
        socket.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(unread(&socket).unwrap(), 2);
    }
}
