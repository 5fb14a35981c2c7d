//! The namespace lab: hosts, access links and the bad days of a network, on one machine.
//!
//! ```text
//!   client                        router                          server             origin
//!  ┌────────────────┐   wifi    ┌──────────────────┐            ┌────────────────┐
//!  │ wifi   .1.2    ├───────────┤ w .1.1           │            │                │
//!  │                │           │       s0 .3.1    ├────────────┤ up     .3.2    │
//!  │ mobile .2.2    ├───────────┤ m .2.1           │            │                │  ┌──────────────┐
//!  │ (down at       │  mobile   │       o0 .4.1    ├──────┐     │ direct .5.1    ├──┤ direct  .5.2 │
//!  │  first)        │           │                  │      └─────┼────────────────┼──┤ up      .4.2 │
//!  └────────────────┘           └──────────────────┘            └────────────────┘  └──────────────┘
//! ```
//!
//! Addresses are `10.77.N.x` and `fd77:0:0:N::x`, the same in each lab: labs share nothing, so that
//! several run side by side. The client's default route goes by the access link that is up, those
//! of server and origin to the router. The origin has an address that only the server reaches
//! (`.5.2`), and one that is never steered through tund, for direct connections (`.4.3`). What goes
//! wrong goes wrong on the router, between an access link and the rest.

mod app;
mod claim;
mod daemon;
mod events;
mod log;
mod names;
mod namespace;
mod origin;
mod portal;
mod process;
mod scene;
mod settings;
mod status;
mod stream;
mod timeline;
pub mod wait;
mod weather;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::emulator::{Emulator, Profile};

pub use app::{Download, Ending, Pattern, Report, Upload, ending_of, read_pattern, write_pattern};
pub use claim::Claim;
pub use daemon::{ClientDaemon, Keys, ServerDaemon, TUN, Tund, program, steer};
pub use events::Direction;
pub use log::{LogLine, earliest, latest};
pub use names::NameServer;
pub use namespace::{Namespace, narrate};
pub use origin::{ORIGIN_PORT, Origin, Request};
pub use portal::Portal;
pub use process::Process;
pub use scene::{Echo, Scene};
pub use settings::Settings;
pub use status::{BothWays, Flows, Link, Outages, Status, StatusError};
pub use stream::{Pace, Stream};
pub use timeline::Timeline;
pub use weather::Event;

/// The port on which the server daemon listens, and which a portal takes over.
pub const SERVER_PORT: u16 = 443;

/// An internet protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One of the client's two ways to the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The mobile network, without addresses and route at first.
    Mobile,
    /// The wireless network, in use at first.
    Wifi,
}

impl Access {
    /// The client's device.
    pub fn device(self) -> &'static str {
        match self {
            Self::Mobile => "mobile",
            Self::Wifi => "wifi",
        }
    }

    /// The router's end of it.
    pub fn router_device(self) -> &'static str {
        match self {
            Self::Mobile => "m0",
            Self::Wifi => "w0",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Mobile => Self::Wifi,
            Self::Wifi => Self::Mobile,
        }
    }

    /// Which of the lab's subnets it is.
    fn subnet(self) -> u8 {
        match self {
            Self::Wifi => 1,
            Self::Mobile => 2,
        }
    }
}

/// The address with number `host` in the lab's subnet `subnet`.
pub fn address(family: Family, subnet: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 77, subnet, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd77, 0, 0, subnet.into(), 0, 0, 0, host.into()).into(),
    }
}

/// Four hosts and their network; gone when it is dropped, or when its process ends.
#[derive(Debug)]
pub struct Lab {
    /// Where applications and the client daemon run.
    pub client: Namespace,
    /// Where both access links end, and where everything goes wrong.
    pub router: Namespace,
    /// Where the server daemon runs.
    pub server: Namespace,
    /// Where origins run.
    pub origin: Namespace,
    access: Access,
    /// Of wifi and mobile, where they are emulated.
    emulators: Option<[Emulator; 2]>,
    /// Below all that lives inside of it: fields are dropped in order.
    claim: Claim,
}

impl Lab {
    /// Builds the lab; `title` is for the transcript.
    pub fn new(title: &str) -> Self {
        Self::build(title, None)
    }

    /// Builds a lab whose access links go through a link emulator each.
    pub fn emulated(title: &str, profile: Profile) -> Self {
        Self::build(title, Some(profile))
    }

    fn build(title: &str, profile: Option<Profile>) -> Self {
        let claim = Claim::new();
        narrate(claim.name(), &format!("lab of {title}"));
        let make = |role: &str| Namespace::create(&format!("{}-{role}", claim.name()), role);
        let [client, router, server, origin] = claim::ROLES.map(make);
        let mut lab = Self {
            client,
            router,
            server,
            origin,
            access: Access::Wifi,
            emulators: None,
            claim,
        };
        lab.tune();
        lab.wire(profile);
        lab.router.nft(events::TABLE);
        lab.raise(Access::Wifi);
        lab.wait_until_ready();
        lab
    }

    /// The prefix of its namespaces' names.
    pub fn name(&self) -> &str {
        self.claim.name()
    }

    /// A directory for keys, configuration, sockets and logs; gone with the lab.
    pub fn directory(&self) -> &Path {
        self.claim.directory()
    }

    /// The guardian's process id, for the tests of the removal.
    pub fn guardian_pid(&self) -> u32 {
        self.claim.guardian_pid()
    }

    /// The access link in use.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The emulator of an access link; only in an emulated lab.
    #[track_caller]
    pub fn emulator(&self, access: Access) -> &Emulator {
        let [wifi, mobile] = self
            .emulators
            .as_ref()
            .expect("the lab was built by Lab::emulated");
        match access {
            Access::Mobile => mobile,
            Access::Wifi => wifi,
        }
    }

    /// Where the server daemon is reached.
    pub fn server_address(&self, family: Family) -> SocketAddr {
        SocketAddr::new(address(family, 3, 2), SERVER_PORT)
    }

    /// The origin's address that everybody reaches through the router.
    pub fn origin_address(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(address(family, 4, 2), port)
    }

    /// The origin's address beside [`Self::origin_address`], which is never steered through tund:
    /// for direct connections to compare with.
    pub fn plain_origin_address(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(address(family, 4, 3), port)
    }

    /// The origin's address that only the server reaches.
    pub fn hidden_origin_address(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(address(family, 5, 2), port)
    }

    /// The client's address on an access link.
    pub fn access_address(&self, family: Family, access: Access) -> IpAddr {
        address(family, access.subnet(), 2)
    }

    /// Settings that every host gets before it has a device.
    fn tune(&self) {
        for host in [&self.client, &self.router, &self.server, &self.origin] {
            // For long paths, tund and direct alike: the machine's 4 MiB of tcp_wmem are less
            // than bandwidth times delay at 100 ms.
            host.sysctl("ipv4.tcp_wmem", "4096 16384 67108864");
            host.sysctl("ipv4.tcp_rmem", "4096 131072 67108864");
            for which in ["all", "default"] {
                // Duplicate detection would keep addresses tentative for a second.
                host.sysctl(&format!("ipv6.conf.{which}.accept_dad"), "0");
                host.sysctl(&format!("ipv6.conf.{which}.accept_ra"), "0");
                // A link that comes back has its addresses, as a router's has.
                host.sysctl(&format!("ipv6.conf.{which}.keep_addr_on_down"), "1");
                // Loose where hosts have two links; the router checks sources itself (TABLE).
                host.sysctl(&format!("ipv4.conf.{which}.rp_filter"), "2");
            }
        }
        self.router.sysctl("ipv4.ip_forward", "1");
        self.router.sysctl("ipv6.conf.all.forwarding", "1");
        // A host that is told "unreachable" too often must be told again, or tests depend on order.
        self.router.sysctl("ipv4.icmp_ratelimit", "0");
        self.router.sysctl("ipv6.icmp.ratelimit", "0");
    }

    /// Devices and addresses of all links, and the routes of router, server and origin.
    fn wire(&mut self, profile: Option<Profile>) {
        match profile {
            None => {
                self.link((&self.client, "wifi"), (&self.router, "w0"));
                self.link((&self.client, "mobile"), (&self.router, "m0"));
            }
            Some(profile) => {
                self.emulators = Some([Access::Wifi, Access::Mobile].map(|access| {
                    let near = (&self.client, access.device());
                    let far = (&self.router, access.router_device());
                    Emulator::start(near, far, profile, access.subnet().into())
                }));
            }
        }
        self.link((&self.router, "s0"), (&self.server, "up"));
        self.link((&self.router, "o0"), (&self.origin, "up"));
        self.link((&self.server, "direct"), (&self.origin, "direct"));
        self.number(
            &self.router,
            &[("w0", 1, 1), ("m0", 2, 1), ("s0", 3, 1), ("o0", 4, 1)],
            None,
        );
        self.number(
            &self.server,
            &[("up", 3, 2), ("direct", 5, 1)],
            Some(("up", 3)),
        );
        self.number(
            &self.origin,
            &[("up", 4, 2), ("up", 4, 3), ("direct", 5, 2)],
            Some(("up", 4)),
        );
    }

    fn link(&self, near: (&Namespace, &str), far: (&Namespace, &str)) {
        let ((near, near_device), (far, far_device)) = (near, far);
        near.ip_batch(&[
            format!(
                "link add name {near_device} type veth peer name {far_device} netns {}",
                far.name()
            ),
            format!("link set dev {near_device} up"),
        ]);
        far.ip_batch(&[format!("link set dev {far_device} up")]);
    }

    /// Waits until the kernel has noticed that all links are up, which it does a moment later, and
    /// until then answers "no route to host".
    fn wait_until_ready(&self) {
        for host in [&self.client, &self.router, &self.server, &self.origin] {
            let limit = Duration::from_secs(10);
            wait::until_true(
                &format!("the links of {} are up", host.name()),
                limit,
                || {
                    let links = host.run("ip -o link show up");
                    let tentative = host.run("ip -o -6 addr show tentative");
                    let waiting =
                        |line: &str| line.contains("NO-CARRIER") || line.contains("state DOWN");
                    tentative.is_empty() && !links.lines().any(waiting)
                },
            );
        }
    }

    /// Gives a host its addresses and, where there is a gateway, its default routes.
    fn number(&self, host: &Namespace, links: &[(&str, u8, u8)], gateway: Option<(&str, u8)>) {
        let mut lines = Vec::new();
        for family in [Family::V4, Family::V6] {
            for &(device, subnet, number) in links {
                lines.push(format!(
                    "addr add {} dev {device}",
                    prefixed(family, subnet, number)
                ));
            }
            if let Some((device, subnet)) = gateway {
                let router = address(family, subnet, 1);
                lines.push(format!("route add default via {router} dev {device}"));
            }
        }
        host.ip_batch(&lines);
    }
}

/// An address with the length of the lab's subnets.
fn prefixed(family: Family, subnet: u8, host: u8) -> String {
    let length = match family {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    format!("{}/{length}", address(family, subnet, host))
}

/// Panics with what to do when the lab cannot be built here.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces and needs root; run it through sudo"
    );
}
