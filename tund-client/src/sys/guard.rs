//! The guard: packets for the TUN's addresses that arrive on another interface are dropped.
//!
//! Without it a neighbour on the access network sends datagrams to an application's socket that is
//! bound to the TUN's address, whatever `rp_filter` says: the address is local to the host, and
//! IPv6 has no such filter at all. The same holds for packets that claim to come from there.
//!
//! The rules are a table of their own, `inet tund-NAME`, replaced in one transaction. They know the
//! device by name, so they survive its removal and its return. The table stays when the daemon ends
//! because the persistent device and its addresses do; who removes the device removes the table
//! too: `ip link del NAME; nft delete table inet tund-NAME`. Loopback is exempt, so the host's own
//! traffic to these addresses goes on.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::error::{ErrorKind, SystemError};
use super::nft::apply;
use super::tun::TunName;

/// Guards `addresses` of the device `tun` in place of whatever was guarded for it before.
///
/// # Errors
///
/// [`ErrorKind::Missing`] without `nft`, [`ErrorKind::Privilege`] without CAP_NET_ADMIN.
pub(crate) fn install(tun: &TunName, addresses: &[IpAddr]) -> Result<(), SystemError> {
    let tried = format!("guard the addresses of {tun} against neighbours");
    let addresses: BTreeSet<IpAddr> = addresses.iter().copied().collect();
    match apply(
        &tried,
        &ruleset(tun, &addresses, ForwardRule::AnyLocalSource),
    ) {
        Err(error) if error.kind() == ErrorKind::Failed => {
            // The one rule that needs a kernel with nft_fib.
            tracing::debug!(%error, "guarding without the routing table");
            apply(&tried, &ruleset(tun, &addresses, ForwardRule::Absent))
        }
        result => result,
    }
}

/// Whether forwarded packets with a source that is local here are dropped before the TUN.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ForwardRule {
    Absent,
    AnyLocalSource,
}

fn table(tun: &TunName) -> String {
    format!("tund-{tun}")
}

/// One transaction: the table is made if it was not there, emptied, and made anew.
fn ruleset(tun: &TunName, addresses: &BTreeSet<IpAddr>, forward: ForwardRule) -> String {
    let table = table(tun);
    let mut rules = String::new();
    for (family, mine) in [
        ("ip", list(addresses.iter().filter(|one| one.is_ipv4()))),
        ("ip6", list(addresses.iter().filter(|one| one.is_ipv6()))),
    ] {
        if !mine.is_empty() {
            rules += &format!("    {family} daddr {{ {mine} }} counter drop\n");
            rules += &format!("    {family} saddr {{ {mine} }} counter drop\n");
        }
    }
    let forward = match forward {
        ForwardRule::Absent => String::new(),
        // What the host itself sends is not forwarded: such a source is a lie of a neighbour.
        ForwardRule::AnyLocalSource => format!(
            "  chain forwarded {{\n    type filter hook forward priority filter; policy accept;\n    \
             oifname \"{tun}\" fib saddr type local counter drop\n  }}\n"
        ),
    };
    format!(
        "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n  chain arriving {{\n    \
         type filter hook prerouting priority raw; policy accept;\n    \
         iif \"lo\" accept\n    iifname \"{tun}\" accept\n{rules}  }}\n{forward}}}\n"
    )
}

fn list<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> String {
    addresses
        .map(IpAddr::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::ErrorKind as Kind;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::sys::testing::{Neighbour, PATIENCE, in_namespace, ip};
    use crate::sys::tun::{Offload, READ_BYTES, TunDevice, TunOptions, VNET_HEADER_BYTES};

    /// What the neighbour's packets claim as their source: a stranger, and this host itself.
    const SPOOFED: [[&str; 2]; 2] = [
        ["203.0.113.9", "192.0.2.1"],
        ["2001:db8:bad::9", "2001:db8::1"],
    ];
    const UDP: u8 = 17;
    const MINE: [&str; 2] = ["10.111.0.2", "fd11::2"];

    #[test]
    fn a_neighbour_reaches_no_socket_at_the_guarded_address() {
        for rp_filter in ["0", "1", "2"] {
            in_namespace(|| {
                let neighbour = network(rp_filter);
                let victims = MINE.map(|mine| UdpSocket::bind((mine, 5000)).unwrap());
                let listeners = MINE.map(|mine| TcpListener::bind((mine, 6000)).unwrap());

                install(&tund0(), &MINE.map(|mine| mine.parse().unwrap())).unwrap();
                let connected = neighbour.run(attack);

                for victim in &victims {
                    assert_eq!(pending(victim), 0, "rp_filter {rp_filter}");
                }
                for listener in &listeners {
                    listener.set_nonblocking(true).unwrap();
                    assert_eq!(listener.accept().unwrap_err().kind(), Kind::WouldBlock);
                }
                assert_eq!(connected, [false, false], "rp_filter {rp_filter}");
            });
        }
    }

    #[test]
    fn without_the_guard_the_same_neighbour_reaches_them() {
        in_namespace(|| {
            let neighbour = network("0");
            let victims = MINE.map(|mine| UdpSocket::bind((mine, 5000)).unwrap());
            let _listeners = MINE.map(|mine| TcpListener::bind((mine, 6000)).unwrap());

            let connected = neighbour.run(attack);

            let reached = victims.each_ref().map(pending);

            // IPv4 refuses a packet from outside with a source of its own; IPv6 does not.
            assert_eq!(reached, [2, 3]);
            assert_eq!(connected, [true, true]);
            assert!(neighbour_poses_as_the_tun(&neighbour));
        });
    }

    #[test]
    fn a_neighbour_cannot_pose_as_the_tun() {
        in_namespace(|| {
            let neighbour = network("0");
            install(&tund0(), &MINE.map(|mine| mine.parse().unwrap())).unwrap();

            assert!(!neighbour_poses_as_the_tun(&neighbour));
        });
    }

    #[test]
    fn a_neighbour_whose_packets_are_forwarded_cannot_pose_as_this_host() {
        for (guarded, expected) in [(true, 1), (false, 2)] {
            in_namespace(|| {
                let neighbour = network("0");
                std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
                ip("link del tund0");
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.unwrap().block_on(async {
                    let mut tun = TunDevice::open(&TunOptions {
                        name: tund0(),
                        mtu: None,
                        addresses: vec![("fd11::2".parse().unwrap(), 128).into()],
                        offload: Offload::Segmentation,
                    })
                    .unwrap();
                    ip("route add 2001:db8:9::/48 dev tund0");
                    if !guarded {
                        nft("delete table inet tund-tund0");
                    }

                    // As this host, which is a lie, and last as a stranger, which the core judges.
                    neighbour.run(|| {
                        ip("route add 2001:db8:9::/48 dev home");
                        ip("neighbour add 2001:db8:9::9 lladdr 02:00:00:00:00:01 dev home");
                        for source in ["2001:db8::1", "2001:db8:bad::9"] {
                            let socket = UdpSocket::bind((source, 0)).unwrap();
                            socket.send_to(b"spoofed", "[2001:db8:9::9]:5000").unwrap();
                        }
                    });

                    let stranger: std::net::Ipv6Addr = "2001:db8:bad::9".parse().unwrap();
                    let mut buf = vec![0; READ_BYTES];
                    let mut seen = 0;
                    loop {
                        let read = poll_fn(|cx| tun.poll_read(cx, &mut buf));
                        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
                        let packet = &buf[VNET_HEADER_BYTES..];
                        seen += usize::from(packet[6] == UDP);
                        if packet[6] == UDP && packet[8..24] == stranger.octets() {
                            break;
                        }
                    }
                    assert_eq!(seen, expected, "guarded: {guarded}");
                });
            });
        }
    }

    #[test]
    fn the_hosts_own_traffic_to_the_address_goes_on() {
        in_namespace(|| {
            let _neighbour = network("1");
            install(&tund0(), &MINE.map(|mine| mine.parse().unwrap())).unwrap();

            for (mine, other) in [(MINE[0], "192.0.2.1"), (MINE[1], "2001:db8::1")] {
                let listener = TcpListener::bind((mine, 6000)).unwrap();
                let address = listener.local_addr().unwrap();
                TcpStream::connect_timeout(&address, PATIENCE).unwrap();
                let other = UdpSocket::bind((other, 0)).unwrap();
                let mine = UdpSocket::bind((mine, 5000)).unwrap();
                other.send_to(b"local", mine.local_addr().unwrap()).unwrap();
                assert_eq!(pending(&mine), 1);
            }
        });
    }

    #[test]
    fn installing_again_replaces_what_was_guarded() {
        in_namespace(|| {
            let name = tund0();
            install(&name, &["10.111.0.2".parse().unwrap()]).unwrap();
            install(&name, &["10.111.0.3".parse().unwrap()]).unwrap();
            install(&name, &["10.111.0.3".parse().unwrap()]).unwrap();

            let listed = listed();
            assert!(
                listed.contains("10.111.0.3") && !listed.contains("10.111.0.2"),
                "{listed}"
            );
            assert_eq!(listed.matches("ip daddr").count(), 1, "{listed}");
            assert!(listed.contains("fib saddr type local"), "{listed}");

            nft("delete table inet tund-tund0");
            assert_eq!(self::listed(), "");
        });
    }

    #[test]
    fn a_device_without_addresses_gets_an_empty_guard() {
        in_namespace(|| {
            install(&tund0(), &[]).unwrap();

            assert!(!listed().contains("daddr"));
        });
    }

    #[test]
    fn a_script_that_nft_refuses_is_reported_with_its_words() {
        in_namespace(|| {
            let error = apply("try", "no such command\n").unwrap_err();

            assert_eq!(error.kind(), ErrorKind::Failed);
            assert!(error.to_string().contains("syntax error"), "{error}");
        });
    }

    fn tund0() -> TunName {
        "tund0".parse().unwrap()
    }

    /// This host with a TUN and its addresses, and a neighbour on its access network who knows the
    /// way to them and has foreign addresses of his own.
    fn network(rp_filter: &str) -> Neighbour {
        let neighbour = Neighbour::new();
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter");
            std::fs::write(path, rp_filter).unwrap();
        }
        ip(&format!(
            "link add access address 02:00:00:00:00:01 type veth \
             peer name home address 02:00:00:00:00:02 netns {}",
            neighbour.tid()
        ));
        neighbour.run(|| ip("link set home up"));
        ip("link set access up");
        ip("address add 192.0.2.1/24 dev access");
        ip("address add 2001:db8::1/64 dev access nodad");
        // Neighbour discovery would take a second on an interface as young as this.
        ip("neighbour add 2001:db8::2 lladdr 02:00:00:00:00:02 dev access");
        ip("tuntap add dev tund0 mode tun");
        ip("address add 10.111.0.2/32 dev tund0");
        ip("address add fd11::2/128 dev tund0 nodad");
        ip("link set tund0 up");
        // Loose and strict filters let pass what the host would answer by the same way.
        ip("route add 203.0.113.0/24 via 192.0.2.2");
        ip("route add 2001:db8:bad::/48 via 2001:db8::2");
        neighbour.run(|| {
            ip("address add 192.0.2.2/24 dev home");
            ip("address add 2001:db8::2/64 dev home nodad");
            for spoofed in SPOOFED.as_flattened() {
                // Else it may not be bound to before the kernel has found time for it.
                let at_once = if spoofed.contains(':') { " nodad" } else { "" };
                ip(&format!("address add {spoofed} dev lo{at_once}"));
            }
            for target in MINE {
                ip(&format!("route add {target} dev home"));
                ip(&format!(
                    "neighbour add {target} lladdr 02:00:00:00:00:01 dev home"
                ));
            }
        });
        neighbour
    }

    /// Sends datagrams and opens connections to the TUN's addresses for long enough
    /// that the datagrams before them have been judged; returns which connections came about.
    fn attack() -> [bool; 2] {
        let mut connected = [false; 2];
        for (slot, (mine, spoofed)) in connected.iter_mut().zip(MINE.into_iter().zip(SPOOFED)) {
            let unspecified = if mine.contains(':') { "::" } else { "0.0.0.0" };
            for source in spoofed.into_iter().chain([unspecified]) {
                let socket = UdpSocket::bind((source, 0)).unwrap();
                socket.send_to(b"spoofed", (mine, 5000)).unwrap();
            }
            let target = SocketAddr::new(mine.parse().unwrap(), 6000);
            *slot = TcpStream::connect_timeout(&target, Duration::from_millis(100)).is_ok();
        }
        connected
    }

    /// How many datagrams wait at `socket`: all that the host took, as a veth delivers in order.
    fn pending(socket: &UdpSocket) -> usize {
        socket.set_nonblocking(true).unwrap();
        let mut buf = [0; 64];
        std::iter::from_fn(|| socket.recv(&mut buf).ok()).count()
    }

    /// Sends to another address of this host as if from the TUN's; tells whether it was taken.
    fn neighbour_poses_as_the_tun(neighbour: &Neighbour) -> bool {
        let victim = UdpSocket::bind("[2001:db8::1]:7000").unwrap();
        let last = UdpSocket::bind("[2001:db8::1]:7001").unwrap();
        last.set_read_timeout(Some(PATIENCE)).unwrap();
        neighbour.run(|| {
            ip("address add fd11::2/128 dev lo nodad");
            ip("neighbour add 2001:db8::1 lladdr 02:00:00:00:00:01 dev home");
            ip("address del 2001:db8::1/128 dev lo");
            let socket = UdpSocket::bind("[fd11::2]:0").unwrap();
            socket.send_to(b"spoofed", "[2001:db8::1]:7000").unwrap();
            let socket = UdpSocket::bind("[2001:db8::2]:0").unwrap();
            socket.send_to(b"honest", "[2001:db8::1]:7001").unwrap();
        });
        // The one that is allowed came after it by the same way.
        last.recv(&mut [0; 16]).unwrap();
        pending(&victim) != 0
    }

    fn nft(command: &str) {
        let status = Command::new("nft")
            .args(command.split(' '))
            .status()
            .unwrap();
        assert!(status.success(), "nft {command}");
    }

    fn listed() -> String {
        let output = Command::new("nft")
            .args(["list", "ruleset"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}
