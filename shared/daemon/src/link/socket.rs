//! What we ask of the kernel for a link's TCP socket, and what it tells us about it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use socket2::{SockRef, Socket, TcpKeepalive};
use tund_session::Progress;

use super::tuning::{Advice, Congestion, Tuning};

/// What can be chosen for a link's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// How long sent bytes may stay unanswered before the kernel gives up. Default 60 s.
    pub user_timeout: Duration,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            user_timeout: Duration::from_secs(60),
        }
    }
}

/// Longest pause between two retransmissions, where the kernel lets us say so.
///
/// Chosen: a link that was cut for some minutes is tried again soon after; a fresh dial is faster
/// still, so more would not help.
const RETRANSMIT_PAUSE_MS: u32 = 2_000;

/// How long a link at the server may be silent before the kernel asks whether the client's host is
/// there, and how long that may take. A session without flows asks nothing, since that would wake
/// sleeping clients; so a client that lost power then would keep its link, and its place, for ever.
/// Chosen: as seldom as RFC 1122 (4.2.3.6) wants it. With `TCP_USER_TIMEOUT` Linux gives up when
/// the first probe has not been answered for the second of these times. That costs the link only.
const ASK_AFTER: Duration = Duration::from_secs(2 * 3600);
const ANSWER_WITHIN: Duration = Duration::from_secs(75);

/// `TCP_RTO_MAX_MS`, Linux 6.15; not yet in the headers that we build with.
const TCP_RTO_MAX_MS: libc::c_int = 44;

sockopt_impl!(
    /// Longest retransmission timeout in milliseconds.
    RtoMax, SetOnly, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, u32
);
sockopt_impl!(
    /// What the kernel counts for a connection.
    RawInfo, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, TcpInfoHead
);

/// The head of the kernel's `struct tcp_info`, as far as we read it (Linux 4.9 and later).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(unreachable_pub, reason = "nix's macro makes its option public")]
pub struct TcpInfoHead {
    states_and_options: [u8; 8],
    until_data_heard: [u32; 11],
    data_heard_ms: u32,
    ack_heard_ms: u32,
    until_rtt: [u32; 2],
    rtt_us: u32,
    rtt_var_us: u32,
    until_pacing: [u32; 7],
    pacing_rates: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segments: [u32; 2],
    notsent_bytes: u32,
    rtt_min_us: u32,
    data_segments: [u32; 2],
    delivery_rate: u64,
}

/// What the kernel knows of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// Bytes acknowledged by the peer and received from it.
    pub progress: Progress,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Its variation.
    pub rtt_var: Duration,
    /// The shortest of the last minutes.
    pub rtt_min: Duration,
    /// Bytes per second that the peer has lately acknowledged; 0 if not known.
    pub delivery_rate: u64,
    /// That was no more because there was no more to send, as after the handshake.
    pub is_app_limited: bool,
}

/// Reads `TCP_INFO`.
pub(super) fn tcp_info(socket: &impl AsFd) -> io::Result<TcpInfo> {
    let raw = getsockopt(socket, RawInfo)?;
    let heard_ms = raw.data_heard_ms.min(raw.ack_heard_ms);
    Ok(TcpInfo {
        progress: Progress {
            bytes_acked: raw.bytes_acked,
            bytes_received: raw.bytes_received,
            heard_ago: Some(Duration::from_millis(heard_ms.into())),
            round_trip: (raw.rtt_us > 0).then(|| {
                Duration::from_micros(u64::from(raw.rtt_us) + 4 * u64::from(raw.rtt_var_us))
            }),
        },
        rtt: Duration::from_micros(raw.rtt_us.into()),
        rtt_var: Duration::from_micros(raw.rtt_var_us.into()),
        rtt_min: Duration::from_micros(raw.rtt_min_us.into()),
        delivery_rate: raw.delivery_rate,
        is_app_limited: raw.states_and_options[7] & 1 == 1,
    })
}

/// The name of the congestion control in use.
pub(super) fn congestion_control(socket: &impl AsFd) -> io::Result<String> {
    let name = SockRef::from(socket).tcp_congestion()?;
    let name: Vec<u8> = name.into_iter().take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// Prepares a socket for a link; what only some kernels have is asked for quietly.
pub(super) fn set_options(socket: &impl AsFd, options: &SocketOptions) -> io::Result<()> {
    let tcp = SockRef::from(socket);
    tcp.set_tcp_nodelay(true)?;
    tcp.set_tcp_user_timeout(Some(options.user_timeout))?;
    // The session asks itself whether the peer is there, and knows when it matters.
    tcp.set_keepalive(false)?;
    follow(socket, Tuning::FIRST)?;
    if setsockopt(socket, RtoMax, &RETRANSMIT_PAUSE_MS).is_err() {
        tracing::debug!("no TCP_RTO_MAX_MS here; retransmissions back off as the kernel likes");
    }
    Ok(())
}

/// Sets what can change while a link works. What the kernel does not have it need not do.
pub(super) fn follow(socket: &impl AsFd, advice: Advice) -> io::Result<()> {
    let tcp = SockRef::from(socket);
    let name = match advice.congestion {
        Congestion::Reno => "reno",
        Congestion::Bbr => "bbr",
    };
    if let Err(error) = tcp.set_tcp_congestion(name.as_bytes()) {
        tracing::debug!(%error, name, "the link keeps the congestion control that it has");
    }
    tcp.set_tcp_notsent_lowat(advice.ahead_bytes)
}

/// Prepares a listener, whose connections inherit this: set later, it would not undo what the
/// system's choice has begun.
///
/// # Errors
///
/// When the socket takes no options.
pub fn prepare_listener(socket: &impl AsFd) -> io::Result<()> {
    follow(socket, Tuning::FIRST)
}

/// Lets the kernel find out that a client's host is gone, though nothing is sent to it.
pub(super) fn ask_when_idle(socket: &impl AsFd) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(ASK_AFTER)
        .with_interval(ANSWER_WITHIN);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// Sends the SYN and does not wait for its answer.
pub(super) fn start_connect(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        Err(error) => Err(error),
    }
}
