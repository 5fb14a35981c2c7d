//! The client's configuration: every key, its default and its bounds; past here nothing is checked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tund_daemon::config::{Destination, Endpoint, Loaded, Mistakes, Prefix, Section, load, value};
use tund_daemon::identity::{PrivateKey, PublicKey};
use tund_daemon::telemetry::LogLevel;

mod policy;
mod unbuilt;

pub(crate) use policy::{ConnectDuringOutage, Downstream, Framing, OnExpiry, Policy, Protocol};

/// Where commands look for the daemon unless told otherwise.
pub(crate) const CONTROL_SOCKET: &str = "/run/tund/client.sock";

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The longest grace and retention: chosen; a month outlasts any journey.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// All of `client.toml`.
pub(crate) struct Config {
    /// The file it was read from, to read it again on SIGHUP.
    pub(crate) file: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) server: Server,
    pub(crate) link: Link,
    pub(crate) tun: Tun,
    pub(crate) routes: Routes,
    pub(crate) dns: Dns,
    pub(crate) udp: Udp,
    pub(crate) session: Session,
    /// The first whose destination and protocol match counts; `session` where none does.
    pub(crate) policies: Vec<Policy>,
    pub(crate) limits: Limits,
    pub(crate) spool: Spool,
    pub(crate) control: Control,
    pub(crate) metrics: Metrics,
    pub(crate) log: Log,
}

/// `[identity]`.
pub(crate) struct Identity {
    /// The file that was read: a systemd credential of that name, if there is one.
    pub(crate) private_key_file: PathBuf,
    /// What it holds.
    pub(crate) private_key: PrivateKey,
}

/// `[server]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// At least one; they are raced.
    pub(crate) addresses: Vec<Endpoint>,
    /// At least one; several while the server changes keys.
    pub(crate) public_keys: Vec<PublicKey>,
}

/// What carries a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// The best that is built.
    Auto,
    /// UDP.
    Quic,
    /// TCP.
    Tls,
}

/// When the client dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connect {
    /// From the start, and again whenever there is no link.
    Always,
    /// With the first flow.
    OnDemand,
}

/// `[link]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// [`Transport::Auto`] by default.
    pub(crate) transport: Transport,
    /// In order of preference; empty: what the routing table says.
    pub(crate) interfaces: Vec<String>,
    /// [`Connect::OnDemand`] by default.
    pub(crate) connect: Connect,
    /// How long an idle link without flows is kept.
    pub(crate) linger: Duration,
    /// Keep a second link while flows are active.
    pub(crate) standby: bool,
    /// Set on every socket of the daemon; only the top 8 bits are ours, the others are zero.
    pub(crate) fwmark: u32,
}

/// `[tun]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tun {
    /// At most 15 bytes.
    pub(crate) name: String,
    /// Addresses and prefix lengths, at least one.
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    /// None: chosen by the daemon; else at least 1280.
    pub(crate) mtu: Option<u16>,
    /// Also take packets whose source is not an address of this host.
    pub(crate) accept_forwarded: bool,
}

/// Who steers packets into the TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RoutesMode {
    /// The daemon.
    Auto,
    /// The user.
    Manual,
}

/// What happens to networks on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lan {
    /// They stay outside.
    Direct,
    /// They go through tund like everything else.
    Tund,
}

/// `[routes]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Routes {
    /// [`RoutesMode::Manual`] by default.
    pub(crate) mode: RoutesMode,
    /// What enters the TUN.
    pub(crate) include: Vec<Prefix>,
    /// What does not.
    pub(crate) exclude: Vec<Prefix>,
    /// [`Lan::Direct`] by default.
    pub(crate) lan: Lan,
    /// What would enter tund never leaves by another way.
    pub(crate) kill_switch: bool,
}

/// Who answers names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DnsMode {
    /// Whoever did before.
    Off,
    /// The server daemon's resolver, at [`Dns::address`].
    Stub,
}

/// `[dns]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dns {
    /// [`DnsMode::Off`] by default.
    pub(crate) mode: DnsMode,
    /// Where the stub answers.
    pub(crate) address: IpAddr,
}

/// Who may answer on a UDP mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filtering {
    /// Addresses that the application has sent to.
    Address,
    /// Anybody.
    Endpoint,
}

/// `[udp]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Udp {
    /// How long a silent mapping lives; stands still during an outage.
    pub(crate) idle: Duration,
    /// Older datagrams are dropped.
    pub(crate) max_age: Duration,
    /// [`Filtering::Address`] by default.
    pub(crate) filtering: Filtering,
}

/// `[session]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    /// How long an outage may last before connections A and C are closed.
    pub(crate) grace: Duration,
    /// [`ConnectDuringOutage::Hold`] by default; never accept, which only a policy may say.
    pub(crate) connect_during_outage: ConnectDuringOutage,
    /// Unacknowledged bytes kept per direction.
    pub(crate) buffer_bytes: u64,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// All buffers together; a percentage has been worked out.
    pub(crate) memory_bytes: u64,
}

/// `[spool]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spool {
    /// Where stored bytes wait.
    pub(crate) directory: PathBuf,
    /// All of them together.
    pub(crate) max_bytes: u64,
}

/// `[control]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    /// The control socket.
    pub(crate) socket: PathBuf,
}

/// `[metrics]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metrics {
    /// None: no metrics.
    pub(crate) listen: Option<SocketAddr>,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    /// `RUST_LOG` wins over it.
    pub(crate) level: LogLevel,
}

impl Config {
    /// Reads and checks the file, and the key file that it names.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub(crate) fn load(file: &Path) -> Result<Loaded<Self>, Mistakes> {
        load(file, |root| build(file, root))
    }
}

fn build(file: &Path, root: &mut Section<'_>) -> Option<Config> {
    let identity = root.table("identity", identity);
    let own_key = identity
        .as_ref()
        .map(|identity| identity.private_key.public());
    let server = root.table("server", |section| server(section, own_key));
    let link = root.table("link", link);
    let tun = root.table("tun", tun);
    let routes = root.table("routes", routes);
    let dns = root.table("dns", dns);
    let udp = root.table("udp", udp);
    let session = root.table("session", session);
    let policies = root.tables("policy", |section| policy::policy(section, &session));
    let limits = root.table("limits", |section| limits(section, &session));
    let spool = root.table("spool", spool);
    let control = root.table("control", |section| Control {
        socket: section.or("socket", CONTROL_SOCKET.into(), value::socket_path),
    });
    let metrics = root.table("metrics", |section| {
        let listen = section.or("listen", None, value::optional_socket_address);
        unbuilt::metrics(section, listen);
        Metrics { listen }
    });
    let log = root.table("log", |section| Log {
        level: section.or("level", LogLevel::Info, value::choice(&LogLevel::CHOICES)),
    });
    Some(Config {
        file: file.to_path_buf(),
        identity: identity?,
        server: server?,
        link,
        tun,
        routes,
        dns,
        udp,
        session,
        policies,
        limits,
        spool,
        control,
        metrics,
        log,
    })
}

fn identity(section: &mut Section<'_>) -> Option<Identity> {
    let remedy = "make a key with `tund-client keygen --out /etc/tund/client.key` and add \
                  private_key_file = \"/etc/tund/client.key\" to [identity]";
    let key = section.required("private_key_file", remedy, value::private_key);
    key.map(|(private_key_file, private_key)| Identity {
        private_key_file,
        private_key,
    })
}

fn server(section: &mut Section<'_>, own_key: Option<PublicKey>) -> Option<Server> {
    let addresses = section.required(
        "address",
        "add address = [\"HOST:443\"] to [server]",
        value::one_or_list(16, value::from_text::<Endpoint>("an address with a port")),
    );
    let public_keys = section.required(
        "public_key",
        "run `tund-server pubkey FILE` on the server and add public_key = \"…\" to [server]",
        value::one_or_list(8, value::from_text::<PublicKey>("a public key")),
    );
    let has_own_key = |keys: &Vec<PublicKey>| own_key.is_some_and(|own| keys.contains(&own));
    if public_keys.as_ref().is_some_and(has_own_key) {
        section.reject(
            "public_key",
            "this is the client's own public key",
            "write the server's: run `tund-server pubkey FILE` on the server",
        );
    }
    Some(Server {
        addresses: addresses?,
        public_keys: public_keys?,
    })
}

fn link(section: &mut Section<'_>) -> Link {
    let transports = [
        ("auto", Transport::Auto),
        ("tls", Transport::Tls),
        ("quic", Transport::Quic),
    ];
    let connects = [
        ("on-demand", Connect::OnDemand),
        ("always", Connect::Always),
    ];
    let link = Link {
        transport: section.or("transport", Transport::Auto, value::choice(&transports)),
        interfaces: section.or(
            "interfaces",
            Vec::new(),
            value::list(32, value::interface_name),
        ),
        connect: section.or("connect", Connect::OnDemand, value::choice(&connects)),
        linger: section.or(
            "linger",
            5 * MINUTE,
            value::duration(Duration::ZERO..=24 * HOUR),
        ),
        standby: section.or("standby", true, value::boolean),
        fwmark: section.or("fwmark", 0x7d00_0000, fwmark),
    };
    unbuilt::link(section, &link);
    link
}

/// A mark in the top 8 bits: netd and kube-proxy use the low ones.
fn fwmark(mark: &value::Value<'_>) -> value::Parsed<u32> {
    let number = value::integer(1..=u64::from(u32::MAX))(mark)?;
    u32::try_from(number).ok().filter(|mark| mark & 0x00ff_ffff == 0).ok_or_else(|| {
        value::Fault::new(
            format!("found {number:#010x}, which has bits set below the top 8"),
            "write a mark from 0x01000000 to 0xff000000 that ends in six zeros, like 0x7d000000",
        )
    })
}

fn tun(section: &mut Section<'_>) -> Tun {
    let default_addresses = vec![(IpAddr::V4(Ipv4Addr::new(10, 111, 0, 2)), 32)];
    let mtu = section.or("mtu", 0, value::integer(0..=65_535));
    let mtu = u16::try_from(mtu).ok().filter(|mtu| *mtu != 0);
    if mtu.is_some_and(|mtu| mtu < 1280) {
        section.reject(
            "mtu",
            "found a number below 1280, which IPv6 does not work with",
            "write 0 to let the daemon choose, or 1280 to 65535",
        );
    }
    let tun = Tun {
        name: section.or("name", "tund0".to_owned(), value::interface_name),
        addresses: section.or(
            "addresses",
            default_addresses,
            value::list(8, value::interface_address),
        ),
        mtu,
        accept_forwarded: section.or("accept_forwarded", false, value::boolean),
    };
    if tun.addresses.is_empty() {
        section.reject(
            "addresses",
            "found an empty list",
            "write at least one address of your own, like [\"10.111.0.2/32\"]",
        );
    }
    tun
}

fn routes(section: &mut Section<'_>) -> Routes {
    let everything = ["0.0.0.0/0", "::/0"]
        .into_iter()
        .filter_map(|text| text.parse().ok());
    let prefix = || value::list(4096, value::from_text::<Prefix>("a prefix"));
    let modes = [("manual", RoutesMode::Manual), ("auto", RoutesMode::Auto)];
    let routes = Routes {
        mode: section.or("mode", RoutesMode::Manual, value::choice(&modes)),
        include: section.or("include", everything.collect(), prefix()),
        exclude: section.or("exclude", Vec::new(), prefix()),
        lan: section.or(
            "lan",
            Lan::Direct,
            value::choice(&[("direct", Lan::Direct), ("tund", Lan::Tund)]),
        ),
        kill_switch: section.or("kill_switch", false, value::boolean),
    };
    unbuilt::routes(section, &routes);
    routes
}

fn dns(section: &mut Section<'_>) -> Dns {
    let default_address = IpAddr::V4(Ipv4Addr::new(10, 111, 0, 1));
    let dns = Dns {
        mode: section.or(
            "mode",
            DnsMode::Off,
            value::choice(&[("off", DnsMode::Off), ("stub", DnsMode::Stub)]),
        ),
        address: section.or("address", default_address, value::address),
    };
    unbuilt::dns(section, &dns);
    dns
}

fn udp(section: &mut Section<'_>) -> Udp {
    let filterings = [
        ("address", Filtering::Address),
        ("endpoint", Filtering::Endpoint),
    ];
    let udp = Udp {
        idle: section.or("idle", 5 * MINUTE, value::duration(10 * SECOND..=24 * HOUR)),
        max_age: section.or(
            "max_age",
            2 * SECOND,
            value::duration(SECOND / 100..=MINUTE),
        ),
        filtering: section.or("filtering", Filtering::Address, value::choice(&filterings)),
    };
    unbuilt::udp(section);
    udp
}

fn session(section: &mut Section<'_>) -> Session {
    let choices = [
        ("hold", ConnectDuringOutage::Hold),
        ("refuse", ConnectDuringOutage::Refuse),
    ];
    Session {
        grace: section.or(
            "grace",
            10 * MINUTE,
            value::duration(Duration::ZERO..=LONGEST),
        ),
        connect_during_outage: section.or(
            "connect_during_outage",
            ConnectDuringOutage::Hold,
            value::choice(&choices),
        ),
        buffer_bytes: section.or("buffer", 64 << 20, value::size(64 << 10..=64 << 30)),
    }
}

fn limits(section: &mut Section<'_>, session: &Session) -> Limits {
    let memory_bytes = section.or(
        "memory",
        value::memory_share(10),
        value::memory(16 << 20..=1 << 50),
    );
    if section.has("memory") && memory_bytes < session.buffer_bytes {
        section.warn(
            "memory",
            "is less than [session] buffer, and is reached first",
            "raise it, or lower [session] buffer",
        );
    }
    Limits { memory_bytes }
}

fn spool(section: &mut Section<'_>) -> Spool {
    let spool = Spool {
        directory: section.or("directory", "/var/lib/tund/spool".into(), value::path),
        max_bytes: section.or("max_bytes", 256 << 20, value::size(1 << 20..=1 << 50)),
    };
    unbuilt::spool(section);
    spool
}

#[cfg(test)]
mod tests;
