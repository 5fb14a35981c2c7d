//! Which ICMP messages a raw socket hears.

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `linux/icmp.h`, `linux/icmpv6.h`.
const ICMP_FILTER: libc::c_int = 1;
const ICMP6_FILTER: libc::c_int = 1;

/// Lets a raw socket for ICMP or ICMPv6 hear messages of one type only. The kernel looks at it before it
/// copies a message for the socket.
///
/// # Errors
///
/// The socket is no such one.
pub(crate) fn hear_only(socket: &impl AsFd, is_v4: bool, kind: u8) -> io::Result<()> {
    // A bit for each type that is not heard; of IPv4 those above 31 are let through whatever it says,
    // and are nobody's replies.
    let mut silent = [u32::MAX; 8];
    if let Some(word) = silent.get_mut(usize::from(kind / 32)) {
        *word &= !(1 << (kind % 32));
    }
    let (level, name, words) = if is_v4 {
        (libc::SOL_RAW, ICMP_FILTER, 1)
    } else {
        (libc::IPPROTO_ICMPV6, ICMP6_FILTER, silent.len())
    };
    let length = libc::socklen_t::try_from(words * size_of::<u32>()).unwrap_or(0);
    #[expect(unsafe_code, reason = "neither nix nor socket2 knows these options")]
    // SAFETY: the descriptor is borrowed, hence open; `silent` is as long as `length`, or longer.
    let code = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::setsockopt(fd, level, name, silent.as_ptr().cast(), length)
    };
    nix::errno::Errno::result(code)?;
    Ok(())
}
