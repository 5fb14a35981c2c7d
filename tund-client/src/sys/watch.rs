//! News of the kernel's links, addresses, routes and rules, and what links can rely on then.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::task::{Context, Poll};

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::address::assigned;
use super::error::{SystemError, is_errno};
use super::netlink::Netlink;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV4_RULE`,
/// `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`, and group 19, `RTNLGRP_IPV6_RULE`
/// (`linux/rtnetlink.h`).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18;
/// From this number on messages are about routes and rules, before it about links and addresses.
const RTM_NEWROUTE: u16 = 24;
/// What is told is looked up anew, so nothing of a message but its type has to fit.
const RECEIVE_BYTES: usize = 4096;
/// Messages taken in one go; a daemon that changes a whole routing table must not hold up bytes.
const MESSAGES: usize = 256;

/// What the kernel has told.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct News {
    /// Routes or rules may have changed; else only links and addresses have.
    pub(crate) routes: bool,
}

/// What the links of the daemon can rely on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Facts {
    /// Indexes of the devices that are up and have a carrier.
    pub(crate) running: BTreeSet<u32>,
    /// Every address of this host.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Every network that it is on.
    pub(crate) networks: BTreeSet<IpNet>,
}

/// A second routing socket, which is told whatever changes; requests go by [`Netlink`].
#[derive(Debug)]
pub(crate) struct NetworkWatch {
    socket: AsyncFd<Watched<Socket>>,
    buffer: Vec<u8>,
}

/// What tells of changes by becoming readable; of the traits that tokio wants, neither the routing
/// socket nor the file watch has one.
#[derive(Debug)]
pub(super) struct Watched<T>(pub(super) T);

impl AsRawFd for Watched<Socket> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl NetworkWatch {
    /// Begins to watch the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// What the kernel answers to `socket` and `bind`, or outside a tokio runtime.
    pub(crate) fn open() -> Result<Self, SystemError> {
        let open = || -> io::Result<Self> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            socket.set_non_blocking(true)?;
            Ok(Self {
                socket: readable(Watched(socket))?,
                buffer: Vec::with_capacity(RECEIVE_BYTES),
            })
        };
        open().map_err(|error| {
            let remedy = "raise the limit of open files";
            SystemError::from_io("watch links, addresses and routes", error, remedy)
        })
    }

    /// Ready when something has changed since the last call.
    ///
    /// # Errors
    ///
    /// When the socket fails; news that did not fit into it are no failure but news.
    pub(crate) fn poll_news(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<News>> {
        let mut news: Option<News> = None;
        for _ in 0..MESSAGES {
            let mut guard = match self.socket.poll_read_ready(cx) {
                Poll::Ready(guard) => guard?,
                Poll::Pending => break,
            };
            let buffer = &mut self.buffer;
            buffer.clear();
            let Ok(read) = guard.try_io(|socket| socket.get_ref().0.recv(buffer, 0)) else {
                continue; // not readable any more
            };
            let told = match read {
                Ok(_) => News {
                    routes: tells_of_routes(buffer),
                },
                Err(error) if is_errno(&error, &[Errno::ENOBUFS]) => News { routes: true },
                Err(error) => return Poll::Ready(Err(error)),
            };
            news = Some(News {
                routes: told.routes || news.is_some_and(|news| news.routes),
            });
        }
        news.map_or(Poll::Pending, |news| Poll::Ready(Ok(news)))
    }
}

#[expect(
    unsafe_code,
    reason = "the safe constructor is deprecated; the other asks for a promise"
)]
pub(super) fn readable<T>(watched: Watched<T>) -> io::Result<AsyncFd<Watched<T>>>
where
    Watched<T>: AsRawFd,
{
    // SAFETY: `Watched` owns its descriptor and names no other, and nothing here takes it out.
    Ok(unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) }?)
}

/// Whether a message is about routes or rules; one that cannot be read may be.
fn tells_of_routes(message: &[u8]) -> bool {
    message
        .first_chunk::<6>()
        .is_none_or(|[.., low, high]| u16::from_ne_bytes([*low, *high]) >= RTM_NEWROUTE)
}

/// What is true at this moment.
///
/// # Errors
///
/// When the kernel's tables cannot be read.
pub(crate) fn facts() -> Result<Facts, SystemError> {
    let look = || -> io::Result<Facts> {
        let mut netlink = Netlink::open()?;
        let mut facts = Facts::default();
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        // What changes during the dumps is told, and looked up again.
        let _state = netlink.dump(request, |entry| {
            if let RouteNetlinkMessage::NewLink(link) = entry
                && link
                    .header
                    .flags
                    .contains(LinkFlags::Up | LinkFlags::Running)
            {
                facts.running.insert(link.header.index);
            }
        })?;
        let addresses = assigned(&mut netlink)?;
        facts
            .addresses
            .extend(addresses.iter().map(|one| one.at.address));
        let networks = addresses
            .iter()
            .filter_map(|one| IpNet::new(one.at.address, one.at.prefix_length).ok());
        facts
            .networks
            .extend(networks.map(|network| network.trunc()));
        Ok(facts)
    };
    look().map_err(|error| {
        let tried = "list the links and addresses of this host";
        SystemError::from_io(tried, error, "try again")
    })
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;
    use crate::sys::testing::{PATIENCE, in_namespace, ip};

    /// Runs `body` in a namespace with a watch, and a device `wifi` whose other end is `far`.
    fn watching(body: impl AsyncFnOnce(NetworkWatch) + Send) {
        in_namespace(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                ip("link add wifi type veth peer name far");
                ip("link set wifi up");
                ip("link set far up");
                let mut watch = NetworkWatch::open().unwrap();
                settle(&mut watch).await;
                body(watch).await;
            });
        });
    }

    async fn next(watch: &mut NetworkWatch) -> News {
        tokio::time::timeout(PATIENCE, poll_fn(|cx| watch.poll_news(cx)))
            .await
            .expect("nothing was told")
            .unwrap()
    }

    /// Takes what the beginning of the namespace still has to tell.
    async fn settle(watch: &mut NetworkWatch) {
        let quiet = Duration::from_millis(300);
        while tokio::time::timeout(quiet, poll_fn(|cx| watch.poll_news(cx)))
            .await
            .is_ok()
        {}
    }

    #[test]
    fn a_lost_carrier_and_its_return_are_told() {
        watching(async |mut watch| {
            let before = facts().unwrap().running;

            ip("link set far down");
            while facts().unwrap().running.len() == before.len() {
                next(&mut watch).await;
            }
            ip("link set far up");
            while facts().unwrap().running != before {
                next(&mut watch).await;
            }
        });
    }

    #[test]
    fn an_address_that_goes_is_told_and_no_route_is_suspected() {
        watching(async |mut watch| {
            let address: IpAddr = "192.0.2.1".parse().unwrap();
            ip("address add 192.0.2.1/32 dev wifi");
            settle(&mut watch).await;
            assert!(facts().unwrap().addresses.contains(&address));

            ip("address del 192.0.2.1/32 dev wifi");
            next(&mut watch).await;

            assert!(!facts().unwrap().addresses.contains(&address));
        });
    }

    #[test]
    fn routes_and_rules_of_both_families_are_told_as_such() {
        watching(async |mut watch| {
            for change in [
                "route add 198.51.100.0/24 dev wifi",
                "rule add fwmark 7 table 100",
                "-6 route add 2001:db8::/32 dev wifi",
                "-6 rule add fwmark 7 table 100",
            ] {
                ip(change);
                assert!(next(&mut watch).await.routes, "{change}");
                settle(&mut watch).await;
            }
            ip("link set wifi alias x");
            assert!(!next(&mut watch).await.routes);
        });
    }

    #[test]
    fn news_that_do_not_fit_are_news_of_everything() {
        watching(async |mut watch| {
            watch.socket.get_ref().0.set_rx_buf_sz(1_u32).unwrap();
            for n in 1..200 {
                ip(&format!("address add 192.0.2.{n}/32 dev wifi"));
            }
            let mut all = News::default();
            while !all.routes {
                all = next(&mut watch).await;
            }
        });
    }
}
