//! The client's configuration: every key, its default and its bounds; past here nothing is checked.

mod policy;
mod routes;
mod unbuilt;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tund_daemon::config::{Endpoint, Loaded, Mistakes, Section, format_size, value};
use tund_daemon::identity::{PrivateKey, PublicKey};
use tund_daemon::telemetry::LogLevel;

pub(crate) use policy::{Framing, Kept, Policy, Protocol, Spool};
pub(crate) use routes::Routes;

/// Where commands look for the daemon unless told otherwise.
pub(crate) const CONTROL_SOCKET: &str = "/run/tund/client.sock";

/// Interfaces of mobile networks, as systemd, pppd and Android name them. The kernel does not know
/// what costs; network managers do, each in its own way.
const METERED: [&str; 3] = ["ww*", "ppp*", "rmnet*"];

/// What datagrams that wait take of `[limits] memory`, both ways together.
const DATAGRAMS: u64 = 2 << 20;
const _: () = assert!(tund_session::limits::DATAGRAM_BYTES == 1 << 20);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The longest grace and retention: chosen; a month outlasts any journey.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// IPv6 works with no smaller packets (RFC 8200 §5).
const MTU_MIN: u16 = 1280;

/// All of `client.toml`. The key file has been read, percentages have been worked out.
///
/// Features that are not built have no field: their keys are checked, and whoever sets one is told.
pub(crate) struct Config {
    /// Of `[identity]`.
    pub(crate) private_key: PrivateKey,
    /// At least one; they are raced.
    pub(crate) server_addresses: Vec<Endpoint>,
    /// At least one; several while the server changes keys.
    pub(crate) server_keys: Vec<PublicKey>,
    /// In order of preference; empty: what the routing table says.
    pub(crate) interfaces: Vec<String>,
    /// Interfaces where bytes cost: names, or their beginning and `*`.
    pub(crate) metered: Vec<String>,
    /// Keep a second link while flows are active, where not metered.
    pub(crate) standby: bool,
    /// When the client dials.
    pub(crate) connect: Connect,
    /// On demand: how long an idle link without flows is kept.
    pub(crate) linger: Duration,
    /// Set on every socket of the daemon; only the top 8 bits are ours, the others are zero.
    pub(crate) fwmark: u32,
    /// At most 15 bytes.
    pub(crate) tun_name: String,
    /// Addresses with prefix lengths; at least one.
    pub(crate) tun_addresses: Vec<(IpAddr, u8)>,
    /// None: chosen by the daemon; else at least 1280.
    pub(crate) tun_mtu: Option<u16>,
    /// Also take packets whose source is not an address of this host.
    pub(crate) accept_forwarded: bool,
    /// None: the user steers.
    pub(crate) routes: Option<Routes>,
    /// Where the server's resolver answers.
    pub(crate) stub: Option<IpAddr>,
    /// How long an outage may last before connections A and C are closed.
    pub(crate) grace: Duration,
    /// What happens to a new connection during an outage.
    pub(crate) connect_during_outage: ConnectDuringOutage,
    /// Other rules for some destinations, in the order in which they are asked.
    pub(crate) policies: Vec<Policy>,
    /// Mappings of datagrams.
    pub(crate) udp: Udp,
    /// Unacknowledged bytes kept per direction.
    pub(crate) buffer_bytes: u64,
    /// The buffers of both directions together.
    pub(crate) memory_bytes: u64,
    /// Where bytes wait that are stored.
    pub(crate) spool: Spool,
    /// The control socket.
    pub(crate) control_socket: PathBuf,
    /// `RUST_LOG` wins over it.
    pub(crate) log_level: LogLevel,
}

/// When the client dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connect {
    /// From the start, and again whenever there is no link.
    Always,
    /// With the first flow.
    OnDemand,
}

/// What happens to a new connection during an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectDuringOutage {
    /// It is accepted, and its bytes are taken.
    Accept,
    /// It waits for the end of the outage, or for the application's patience.
    Hold,
    /// It is refused at once.
    Refuse,
}

/// Reads and checks the file, and the key file that it names.
///
/// # Errors
///
/// Everything that is wrong with it.
pub(crate) fn load(file: &Path) -> Result<Loaded<Config>, Mistakes> {
    tund_daemon::config::load(file, build)
}

fn build(root: &mut Section<'_>) -> Option<Config> {
    let private_key = root.table("identity", private_key);
    let own_key = private_key.as_ref().map(PrivateKey::public);
    let server = root.table("server", |section| server(section, own_key));
    let link = root.table("link", link);
    let tun = root.table("tun", tun);
    let routes = routes::routes(root);
    let stub = root.table("dns", |section| dns(section, &tun.addresses));
    let udp = root.table("udp", udp);
    let session = root.table("session", session);
    let policies = policy::policies(root);
    let memory_bytes = root.table("limits", |section| memory(section, session.buffer_bytes));
    let spool = root.table("spool", policy::spool);
    let control_socket = root.table("control", |section| {
        section.or("socket", CONTROL_SOCKET.into(), value::socket_path)
    });
    unbuilt::metrics(root);
    let log_level = root.table("log", |section| {
        section.or("level", LogLevel::Info, value::choice(&LogLevel::CHOICES))
    });
    let (server_addresses, server_keys) = server?;
    Some(Config {
        private_key: private_key?,
        server_addresses,
        server_keys,
        interfaces: link.interfaces,
        metered: link.metered,
        standby: link.standby,
        connect: link.connect,
        linger: link.linger,
        fwmark: link.fwmark,
        tun_name: tun.name,
        tun_addresses: tun.addresses,
        tun_mtu: tun.mtu,
        accept_forwarded: tun.accept_forwarded,
        routes,
        stub,
        grace: session.grace,
        connect_during_outage: session.connect_during_outage,
        policies,
        udp,
        buffer_bytes: session.buffer_bytes,
        memory_bytes,
        spool,
        control_socket,
        log_level,
    })
}

/// `[dns]`: where the server's resolver answers, if it does.
fn dns(section: &mut Section<'_>, own: &[(IpAddr, u8)]) -> Option<IpAddr> {
    let modes = [("off", false), ("stub", true)];
    let is_stub = section.or("mode", false, value::choice(&modes));
    let default = IpAddr::V4(Ipv4Addr::new(10, 111, 0, 1));
    let address = section.or("address", default, value::address);
    if !is_stub && address != default {
        let found = "has no effect: mode is \"off\"".to_owned();
        section.warn("address", found, "write mode = \"stub\", or remove address");
    } else if own.iter().any(|(own, _)| *own == address) {
        section.reject(
            "address",
            format!("{address} is one of [tun] addresses, and does not leave this host"),
            "choose another one that nothing else uses",
        );
    } else if tund_client_core::packet::is_special(address) || address.is_multicast() {
        section.reject(
            "address",
            format!("nothing is sent to {address} by way of a device"),
            "choose a private address that nothing else uses, such as 10.111.0.1",
        );
    }
    is_stub.then_some(address)
}

fn private_key(section: &mut Section<'_>) -> Option<PrivateKey> {
    let remedy = "make a key with `tund-client keygen --out /etc/tund/client.key` and add \
                  private_key_file = \"/etc/tund/client.key\" to [identity]";
    section
        .required("private_key_file", remedy, value::private_key)
        .map(|(_, key)| key)
}

fn server(
    section: &mut Section<'_>,
    own_key: Option<PublicKey>,
) -> Option<(Vec<Endpoint>, Vec<PublicKey>)> {
    let addresses = section.required(
        "address",
        "add address = [\"HOST:443\"] to [server]",
        value::one_or_list(16, value::from_text::<Endpoint>("an address with a port")),
    );
    let keys = section.required(
        "public_key",
        "run `tund-server pubkey FILE` on the server and add public_key = \"…\" to [server]",
        value::one_or_list(8, value::from_text::<PublicKey>("a public key")),
    );
    let has_own_key = |keys: &Vec<PublicKey>| own_key.is_some_and(|own| keys.contains(&own));
    if keys.as_ref().is_some_and(has_own_key) {
        section.reject(
            "public_key",
            "this is the client's own public key",
            "write the server's: run `tund-server pubkey FILE` on the server",
        );
    }
    Some((addresses?, keys?))
}

/// `[link]`.
struct Link {
    interfaces: Vec<String>,
    metered: Vec<String>,
    standby: bool,
    connect: Connect,
    linger: Duration,
    fwmark: u32,
}

fn link(section: &mut Section<'_>) -> Link {
    unbuilt::link(section);
    let connects = [
        ("on-demand", Connect::OnDemand),
        ("always", Connect::Always),
    ];
    Link {
        interfaces: section.or(
            "interfaces",
            Vec::new(),
            value::list(32, value::interface_name),
        ),
        metered: section.or(
            "metered",
            METERED.map(str::to_owned).to_vec(),
            value::list(32, value::interface_pattern),
        ),
        standby: section.or("standby", true, value::boolean),
        connect: section.or("connect", Connect::OnDemand, value::choice(&connects)),
        linger: section.or(
            "linger",
            5 * MINUTE,
            value::duration(Duration::ZERO..=24 * HOUR),
        ),
        fwmark: section.or("fwmark", 0x7d00_0000, fwmark),
    }
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

/// `[tun]`.
struct Tun {
    name: String,
    addresses: Vec<(IpAddr, u8)>,
    mtu: Option<u16>,
    accept_forwarded: bool,
}

fn tun(section: &mut Section<'_>) -> Tun {
    let default_addresses = vec![(IpAddr::V4(Ipv4Addr::new(10, 111, 0, 2)), 32)];
    let addresses = value::one_or_list(8, value::interface_address);
    Tun {
        name: section.or("name", "tund0".to_owned(), tun_name),
        addresses: section.or("addresses", default_addresses, addresses),
        mtu: section.or("mtu", None, mtu),
        accept_forwarded: section.or("accept_forwarded", false, value::boolean),
    }
}

/// A name that can also stand in a rule of the guard; the kernel would take more.
fn tun_name(name: &value::Value<'_>) -> value::Parsed<String> {
    let text = value::interface_name(name)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if text.starts_with(['_', '-', '.']) || !text.bytes().all(plain) {
        return Err(value::Fault::new(
            format!("found {text:?}, which has a sign that rules of the firewall cannot name"),
            "write letters, digits, '_', '-' and '.', a letter or digit first, like \"tund0\"",
        ));
    }
    Ok(text)
}

fn mtu(mtu: &value::Value<'_>) -> value::Parsed<Option<u16>> {
    let number = value::integer(0..=u64::from(u16::MAX))(mtu)?;
    match u16::try_from(number) {
        Ok(0) => Ok(None),
        Ok(mtu) if mtu >= MTU_MIN => Ok(Some(mtu)),
        Ok(_) | Err(_) => Err(value::Fault::new(
            format!("found {number}, which is less than IPv6 works with"),
            format!("write 0 to let the daemon choose, or {MTU_MIN} to 65535"),
        )),
    }
}

/// `[session]`.
struct Session {
    grace: Duration,
    connect_during_outage: ConnectDuringOutage,
    buffer_bytes: u64,
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

/// `[udp]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Udp {
    /// A mapping ends when its application has sent nothing for so long, outages left out.
    pub(crate) idle: Duration,
    /// Datagrams that have waited for longer are dropped.
    pub(crate) max_age: Duration,
    /// Who may send to an application.
    pub(crate) filtering: Filtering,
}

/// Who may send to an application's UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filtering {
    /// Those that it has sent to.
    Address,
    /// Anybody.
    Endpoint,
}

fn udp(section: &mut Section<'_>) -> Udp {
    let filterings = [
        ("address", Filtering::Address),
        ("endpoint", Filtering::Endpoint),
    ];
    let idle = value::duration(10 * SECOND..=24 * HOUR);
    Udp {
        idle: section.or("idle", 5 * MINUTE, idle),
        max_age: section.or(
            "max_age",
            2 * SECOND,
            value::duration(SECOND / 100..=MINUTE),
        ),
        filtering: section.or("filtering", Filtering::Address, value::choice(&filterings)),
    }
}

fn memory(section: &mut Section<'_>, buffer_bytes: u64) -> u64 {
    let memory_bytes = section.or(
        "memory",
        value::memory_share(10),
        value::memory(16 << 20..=1 << 50),
    );
    let half = buffer_most(memory_bytes);
    if section.has("memory") && half < buffer_bytes {
        section.warn(
            "memory",
            format!("leaves only {} for each direction", format_size(half)),
            "raise it to twice [session] buffer and 2 MiB, or lower [session] buffer",
        );
    }
    memory_bytes
}

/// The largest buffer of one direction in so much memory: datagrams that wait have their own.
pub(crate) const fn buffer_most(memory_bytes: u64) -> u64 {
    memory_bytes.saturating_sub(DATAGRAMS) / 2
}

#[cfg(test)]
mod tests;
