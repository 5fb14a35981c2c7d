//! `resolv.conf`: which name servers a host asks (resolv.conf(5)).

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Where name servers listen (RFC 1035 §4.2).
pub const DNS_PORT: u16 = 53;
/// As many as the C library uses.
const SERVERS_MAX: usize = 3;

/// The name servers in the text of a `resolv.conf` that are `wanted`, the first three of them.
pub fn name_servers(text: &str, wanted: impl Fn(&IpAddr) -> bool) -> Vec<SocketAddr> {
    let entries = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let is_server = words.next() == Some("nameserver");
        server(words.next().filter(|_| is_server)?)
    });
    entries
        .filter(|server| wanted(&server.ip()))
        .take(SERVERS_MAX)
        .collect()
}

/// A name server by its address; a link-local one has its device behind a percent sign (RFC 4007 §11).
fn server(text: &str) -> Option<SocketAddr> {
    let Some((address, device)) = text.split_once('%') else {
        let address: IpAddr = text.parse().ok()?;
        return Some(SocketAddr::new(address, DNS_PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let by_name = || nix::net::if_::if_nametoindex(device).ok();
    let scope = device.parse().ok().or_else(by_name)?;
    Some(SocketAddrV6::new(address, DNS_PORT, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str, wanted: impl Fn(&IpAddr) -> bool) -> Vec<String> {
        let servers = name_servers(text, wanted);
        servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_first_three_that_are_wanted_count() {
        let text = "# nameserver 9.9.9.9\nnameserver 127.0.0.53\nsearch example.org\n\
                    nameserver\t192.0.2.1 # here\nnameserver 2001:db8::1\nnameserver one\n\
                    nameserver 192.0.2.3\nnameserver 192.0.2.4\n";
        assert_eq!(
            texts(text, |ip| !ip.is_loopback()),
            ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.3:53"]
        );
        assert_eq!(
            texts(text, |_| true),
            ["127.0.0.53:53", "192.0.2.1:53", "[2001:db8::1]:53"]
        );
    }

    #[test]
    fn link_local_name_servers_are_behind_a_device() {
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
        let text = "nameserver fe80::1%lo\nnameserver fe80::2%7\nnameserver fe80::3%none.such\n\
                    nameserver 192.0.2.1%lo\nnameserver fe80::4\n";
        let first = format!("[fe80::1%{loopback}]:53");
        let wanted = [first.as_str(), "[fe80::2%7]:53", "[fe80::4]:53"];
        assert_eq!(texts(text, |_| true), wanted);
    }
}
