//! Sockets for links: bound to a device and marked, so that what they send never enters our TUN.

use std::io;
use std::net::SocketAddr;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::error::{ErrorKind, SystemError, is_errno};
use super::route::Path;

/// A TCP socket that leaves by `path` alone, for the caller to connect to `server`.
///
/// It is non-blocking, bound to the device of `path` unless that is local to this host, and carries
/// `fwmark` for rules of the firewall and of policy routing.
///
/// # Errors
///
/// [`ErrorKind::Privilege`] without CAP_NET_ADMIN; [`ErrorKind::Failed`] when the device has gone
/// meanwhile or the process has too many files open.
pub(crate) fn link_socket(
    path: &Path,
    server: SocketAddr,
    fwmark: u32,
) -> Result<Socket, SystemError> {
    let tried = format!("make a socket for a link by {}", path.interface);
    let make = || -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(server), kind, Some(Protocol::TCP))?;
        socket.set_mark(fwmark)?;
        if !path.local {
            socket.bind_device(Some(path.interface.as_bytes()))?;
        }
        Ok(socket)
    };
    make().map_err(|error| {
        if is_errno(&error, &[Errno::ENODEV]) {
            let remedy = "look for a route again";
            return SystemError::new(ErrorKind::Failed, &tried, "the device has gone", remedy);
        }
        SystemError::from_io(&tried, error, "raise the limit of open files")
    })
}
