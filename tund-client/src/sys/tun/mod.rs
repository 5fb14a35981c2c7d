//! The TUN device: made or found by name, with offloads where the kernel has them, kept when the
//! daemon ends.
//!
//! The device is persistent: a restarted daemon finds it with its addresses, and the user's routes
//! still point at it. `ip link del NAME` removes it. Every read is one packet and every write is
//! one packet, each behind a virtio header of [`VNET_HEADER_BYTES`] if [`TunDevice::vnet`].

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::poll;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::address::{self, InterfaceAddress};
use crate::sys::error::{ErrorKind, SystemError, is_errno};
use crate::sys::guard;
use crate::sys::netlink::Netlink;

/// Length of the virtio header before each packet (`struct virtio_net_hdr`, little-endian).
pub(crate) const VNET_HEADER_BYTES: usize = 10;
/// The longest read: header, IPv6 header and the longest payload that it can announce.
pub(crate) const READ_BYTES: usize = VNET_HEADER_BYTES + 40 + 65_535;
/// With segmentation offload the MTU costs nothing, and 1500 keeps path-MTU behaviour usual.
const MTU_WITH_SEGMENTATION: u16 = 1500;
/// Without it, packets as large as IP has make up for much of the difference (18 / 24 Gbit/s).
const MTU_WITHOUT_SEGMENTATION: u16 = 65_535;
/// Packets that the kernel keeps for us: connection A has a minimum RTO of 1 s, so nothing may be
/// lost on this host. Chosen; memory is bounded by the applications' windows. When it is full, the
/// kernel drops.
const QUEUE_PACKETS: u32 = 10_000;

/// A daemon that was killed has the device until the kernel has torn it down: 50 tries, 10 ms apart.
const BUSY_TRIES: usize = 50;
const BUSY_PAUSE_MS: u8 = 10;

const TUN_F_CSUM: u64 = 0x01;
const TUN_F_TSO4: u64 = 0x02;
const TUN_F_TSO6: u64 = 0x04;

mod ioctl {
    //! The ioctls that the `tun` crate does not have (`linux/if_tun.h`).

    nix::ioctl_write_int!(tun_set_persist, b'T', 203);
    nix::ioctl_write_int!(tun_set_offload, b'T', 208);
    nix::ioctl_write_ptr!(tun_set_vnet_header_size, b'T', 216, nix::libc::c_int);
    nix::ioctl_write_ptr!(tun_set_vnet_little_endian, b'T', 220, nix::libc::c_int);
}

/// A name that a network device can have and that is safe in a rule: letters, digits, `_`, `-`, `.`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct TunName(String);

/// Why a string is no name for a TUN device.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a device name has 1 to 15 letters, digits, `_`, `-` or `.`, and no sign at its start")]
pub(crate) struct InvalidTunName;

impl FromStr for TunName {
    type Err = InvalidTunName;

    fn from_str(name: &str) -> Result<Self, InvalidTunName> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let begins = name
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric());
        if begins && name.len() <= 15 && name.bytes().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidTunName)
        }
    }
}

impl TunName {
    /// The name as the kernel knows it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The device's index, if a device of this name exists.
    pub(super) fn index(&self) -> Option<u32> {
        nix::net::if_::if_nametoindex(self.as_str()).ok()
    }
}

impl fmt::Display for TunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the kernel may leave to us in packets that applications send.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Offload {
    /// Nothing: plain packets without a header.
    None,
    /// Packets come with a header; checksums may be missing.
    Checksum,
    /// As above, and TCP comes unsegmented, up to 64 KiB at once.
    Segmentation,
}

/// What the device shall be like.
#[derive(Clone, Debug)]
pub(crate) struct TunOptions {
    /// Its name.
    pub(crate) name: TunName,
    /// Its MTU in bytes; none: 1500 with segmentation offload, 65535 without.
    pub(crate) mtu: Option<u16>,
    /// Its addresses, of both families.
    pub(crate) addresses: Vec<InterfaceAddress>,
    /// The most to ask the kernel for; [`Offload::Segmentation`] unless something is being tried.
    pub(crate) offload: Offload,
}

/// An open TUN device, up, addressed and guarded.
///
/// Dropping it closes the device; the device, its addresses and the guard stay.
pub(crate) struct TunDevice {
    fd: Arc<AsyncFd<OwnedFd>>,
    /// Waits for the error that the removal of the device is; `None` once it has come. Readiness
    /// to read does not show it.
    removal: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    name: TunName,
    index: u32,
    offload: Offload,
    vnet: bool,
    mtu: u16,
    addresses: Vec<InterfaceAddress>,
}

impl TunDevice {
    /// Makes the device or takes over the one that an earlier run left, sets it up and guards it.
    ///
    /// The guard is in place before the first address is, so that there is no moment in which a
    /// neighbour reaches it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Privilege`] without CAP_NET_ADMIN; [`ErrorKind::Missing`] without
    /// `/dev/net/tun` or `nft`; [`ErrorKind::InUse`] when another process has the device;
    /// [`ErrorKind::Conflict`] when a device of another kind has the name, or another device one of
    /// the addresses.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn open(options: &TunOptions) -> Result<Self, SystemError> {
        let name = &options.name;
        let (fd, vnet) = attach(name, options.offload != Offload::None)?;
        let offload = negotiate(&fd, vnet, options.offload).map_err(|error| {
            SystemError::from_io(format!("set the offloads of {name}"), error, "try again")
        })?;
        let mtu = options.mtu.unwrap_or(match offload {
            Offload::Segmentation => MTU_WITH_SEGMENTATION,
            Offload::Checksum | Offload::None => MTU_WITHOUT_SEGMENTATION,
        });

        let (index, addresses) = configure(options, mtu)?;
        persist(&fd).map_err(|error| {
            SystemError::from_io(format!("keep {name} beyond this run"), error, "try again")
        })?;
        let fd = watch(fd).map_err(|error| {
            SystemError::from_io(
                format!("watch {name}"),
                error,
                "raise the limit of open files",
            )
        })?;
        let fd = Arc::new(fd);
        let removal: Pin<Box<dyn Future<Output = ()> + Send + Sync>> =
            Box::pin(removal(Arc::clone(&fd)));
        Ok(Self {
            fd,
            removal: Some(removal),
            name: name.clone(),
            index,
            offload,
            vnet,
            mtu,
            addresses,
        })
    }

    /// Reads one packet, whole, with its header if [`Self::vnet`].
    ///
    /// `buf` should have [`READ_BYTES`]: what does not fit is lost. One system call per packet, and
    /// one more when there is none.
    ///
    /// # Errors
    ///
    /// What the kernel answered; that the device was removed, for one.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        while let Poll::Ready(ready) = self.fd.poll_read_ready(cx) {
            let attempt = ready?.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut *buf)?));
            if let Ok(result) = attempt {
                return Poll::Ready(result.map_err(|error| self.explain(error)));
            }
        }
        if let Some(removal) = &mut self.removal {
            ready!(removal.as_mut().poll(cx));
            self.removal = None;
        }
        Poll::Ready(Err(self.explain(Errno::EBADFD.into())))
    }

    /// Writes one packet, with its header if [`Self::vnet`]. It is taken whole and at once.
    ///
    /// # Errors
    ///
    /// What the kernel answered: EINVAL for a packet that it cannot read, EIO while the device is
    /// down, that the device was removed.
    pub(crate) fn try_write(&self, packet: &[u8]) -> io::Result<()> {
        match nix::unistd::write(self.fd.get_ref(), packet) {
            Ok(_whole) => Ok(()),
            Err(errno) => Err(self.explain(errno.into())),
        }
    }

    /// The device's name.
    pub(crate) fn name(&self) -> &TunName {
        &self.name
    }

    /// Whether each packet stands behind a header of [`VNET_HEADER_BYTES`], both ways.
    pub(crate) fn vnet(&self) -> bool {
        self.vnet
    }

    /// What the kernel leaves to us.
    pub(crate) fn offload(&self) -> Offload {
        self.offload
    }

    /// The device's MTU in bytes.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    fn explain(&self, error: io::Error) -> io::Error {
        if is_errno(&error, &[Errno::EBADFD, Errno::ENODEV]) {
            let name = &self.name;
            let text = format!("the TUN device {name} was removed; start the daemon again");
            return io::Error::new(io::ErrorKind::NotConnected, text);
        }
        error
    }
}

impl fmt::Debug for TunDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunDevice")
            .field("name", &self.name)
            .field("index", &self.index)
            .field("offload", &self.offload)
            .field("vnet", &self.vnet)
            .field("mtu", &self.mtu)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

#[expect(unsafe_code, reason = "a watched descriptor has to stay what it is")]
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and always the same descriptor, until the `AsyncFd` drops it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

async fn removal(fd: Arc<AsyncFd<OwnedFd>>) {
    if let Err(error) = fd.ready(Interest::ERROR).await {
        tracing::debug!(%error, "the TUN device is no longer watched");
    }
}

/// Opens the device; waits a little for a process that is just going.
fn attach(name: &TunName, header: bool) -> Result<(OwnedFd, bool), SystemError> {
    let mut result = attach_at_once(name, header);
    for _ in 0..BUSY_TRIES {
        if !result
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::InUse)
        {
            break;
        }
        // A wait of its own, not of a runtime: this is before anything runs. Cut short by a signal
        // it is no shorter than needed.
        let _cut_short = poll(&mut [], BUSY_PAUSE_MS);
        result = attach_at_once(name, header);
    }
    result
}

/// Opens the device, with a header before each packet if the kernel can.
fn attach_at_once(name: &TunName, header: bool) -> Result<(OwnedFd, bool), SystemError> {
    let known = name.index().is_some();
    match create(name, header) {
        Ok(fd) => Ok((fd, header)),
        // A kernel that does not know IFF_VNET_HDR; a device of another kind says the same.
        Err(error) if header && !known && is_errno(&error, &[Errno::EINVAL]) => {
            let fd = create(name, false).map_err(|error| refused(name, known, error))?;
            Ok((fd, false))
        }
        Err(error) => Err(refused(name, known, error)),
    }
}

#[expect(
    unsafe_code,
    reason = "the crate gives its descriptor away only as a number"
)]
fn create(name: &TunName, header: bool) -> io::Result<OwnedFd> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name.as_str());
    configuration.platform_config(|platform| {
        platform.vnet_hdr(header);
        platform.ensure_root_privileges(false); // addresses and flags are set by netlink
    });
    let raw = tun::create(&configuration)?.into_raw_fd();
    // SAFETY: `into_raw_fd` gave the open descriptor away, so it has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd)
}

fn refused(name: &TunName, known: bool, error: io::Error) -> SystemError {
    let tried = format!("open the TUN device {name}");
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
    if errno == Errno::EBUSY {
        return SystemError::new(
            ErrorKind::InUse,
            tried,
            "another process has it open",
            "stop that process, a second tund-client perhaps, or choose another [tun] name",
        );
    }
    if errno == Errno::EINVAL && known {
        return SystemError::new(
            ErrorKind::Conflict,
            tried,
            "a network device of another kind has this name",
            format!("choose another [tun] name, or remove it with `ip link del {name}`"),
        );
    }
    if matches!(errno, Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) {
        return SystemError::new(
            ErrorKind::Missing,
            tried,
            format!("/dev/net/tun: {error}"),
            "load the driver with `modprobe tun`; in a container, pass the device /dev/net/tun in",
        );
    }
    SystemError::from_io(
        tried,
        error,
        "see `ip -details link` for what has that name",
    )
}

/// Asks for as much offload as `ceiling` and the kernel allow.
fn negotiate(fd: &OwnedFd, vnet: bool, ceiling: Offload) -> io::Result<Offload> {
    if vnet {
        set_header_layout(fd)?;
        let steps = [
            (Offload::Segmentation, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6),
            (Offload::Checksum, TUN_F_CSUM),
        ];
        for (offload, flags) in steps {
            if offload <= ceiling && set_offload(fd, flags).is_ok() {
                return Ok(offload);
            }
        }
    }
    // A device of an earlier run has the offloads of that run.
    set_offload(fd, 0)?;
    Ok(Offload::None)
}

#[expect(unsafe_code, reason = "the tun crate has no call for it")]
fn set_offload(fd: &OwnedFd, flags: u64) -> io::Result<()> {
    // SAFETY: `fd` is an open TUN descriptor; TUNSETOFFLOAD takes its argument by value.
    unsafe { ioctl::tun_set_offload(fd.as_raw_fd(), flags) }?;
    Ok(())
}

/// The plain header of 10 bytes in little-endian order, whatever an earlier run had set.
#[expect(unsafe_code, reason = "the tun crate has no call for it")]
fn set_header_layout(fd: &OwnedFd) -> io::Result<()> {
    let (size, on) = (10, 1); // VNET_HEADER_BYTES
    // SAFETY: `fd` is an open TUN descriptor and `size` a live `int` that the kernel only reads.
    unsafe { ioctl::tun_set_vnet_header_size(fd.as_raw_fd(), &raw const size) }?;
    // SAFETY: as above, for `on`.
    unsafe { ioctl::tun_set_vnet_little_endian(fd.as_raw_fd(), &raw const on) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "the tun crate's own call needs its device")]
fn persist(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: `fd` is an open TUN descriptor; TUNSETPERSIST takes its argument by value.
    unsafe { ioctl::tun_set_persist(fd.as_raw_fd(), 1) }?;
    Ok(())
}

/// Guards, addresses and raises the device; returns its index and all its addresses.
fn configure(options: &TunOptions, mtu: u16) -> Result<(u32, Vec<InterfaceAddress>), SystemError> {
    let name = &options.name;
    let failed = |what: &str, error: io::Error| {
        SystemError::from_io(format!("{what} {name}"), error, "try again")
    };
    let index = name
        .index()
        .ok_or_else(|| failed("find", Errno::ENODEV.into()))?;
    let mut netlink = Netlink::open().map_err(|error| failed("open netlink for", error))?;
    let present = address::assigned(&mut netlink)
        .map_err(|error| failed("list the addresses around", error))?;
    address::check_free(name, Some(index), &present, &options.addresses)?;

    let kept = present
        .iter()
        .filter(|one| one.index == index)
        .map(|one| one.at.address);
    let wanted = options.addresses.iter().map(|one| one.address);
    let guarded: Vec<IpAddr> = kept.chain(wanted).collect();
    guard::install(name, &guarded)?;

    address::set_up(&mut netlink, index, u32::from(mtu), QUEUE_PACKETS)
        .map_err(|error| failed("set MTU and queue of", error))?;
    let addresses = address::reconcile(&mut netlink, index, &options.addresses)?;
    Ok((index, addresses))
}

#[cfg(test)]
mod tests;
