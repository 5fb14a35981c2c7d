//! Tests of admission: every range from both sides, every spelling, and who wins over whom.

use super::*;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

fn rules(list: &[&str]) -> Vec<Rule> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn own() -> Vec<IpNet> {
    [
        "127.0.0.1/8",
        "10.7.0.5/24",
        "203.0.113.7/24",
        "2001:db8:7::5/64",
        "fe80::5/64",
    ]
    .map(|net| net.parse().unwrap())
    .to_vec()
}

fn admission(allow: &[&str], deny: &[&str]) -> Admission {
    Admission::new(rules(allow), rules(deny), own())
}

fn with_port(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 443)
}

fn verdict(admission: &Admission, ip: &str) -> Result<IpAddr, DeniedBy> {
    let verdict = admission.check(&[], with_port(ip), Protocol::Tcp);
    verdict.map(|used| used.ip()).map_err(|denied| denied.by())
}

#[test]
fn never_allowed_stays_refused_even_when_an_entry_names_it() {
    for (ip, entry) in [
        ("0.0.0.0", "0.0.0.0"),
        ("0.255.255.255", "0.0.0.0/8"),
        ("224.0.0.1", "224.0.0.0/4"),
        ("239.255.255.255", "239.255.255.255"),
        ("240.0.0.0", "240.0.0.0/4"),
        ("255.255.255.254", "255.255.255.254"),
        ("255.255.255.255", "255.255.255.255"),
        ("10.7.0.255", "10.7.0.255"),
        ("203.0.113.255", "203.0.113.255"),
        ("::", "::"),
        ("::0.0.0.9", "::/96"),
        ("ff02::1", "ff00::/8"),
        ("ff0e::1", "ff0e::1"),
        ("4000::1", "4000::1"),
        ("fe00::1", "fe00::/9"),
        ("1fff::1", "1fff::1"),
    ] {
        let verdict = verdict(&admission(&[entry, "0.0.0.0/0", "::/0"], &[]), ip);
        assert_eq!(verdict, Err(DeniedBy::Never), "{ip}");
    }
}

/// First and last address of each range that is refused by default.
const BY_DEFAULT: [(&str, &str, &str); 21] = [
    ("10.0.0.0", "10.255.255.255", "10.0.0.0/8"),
    ("100.64.0.0", "100.127.255.255", "100.64.0.0/10"),
    ("127.0.0.0", "127.255.255.255", "127.0.0.0/8"),
    ("169.254.0.0", "169.254.255.255", "169.254.0.0/16"),
    ("169.254.169.0", "169.254.169.255", "169.254.169.0/24"),
    ("168.63.129.16", "168.63.129.16", "168.63.129.16"),
    ("100.100.100.200", "100.100.100.200", "100.100.100.200"),
    ("172.16.0.0", "172.31.255.255", "172.16.0.0/12"),
    ("192.0.0.0", "192.0.0.255", "192.0.0.0/24"),
    ("192.168.0.0", "192.168.255.255", "192.168.0.0/16"),
    ("198.18.0.0", "198.19.255.255", "198.18.0.0/15"),
    ("10.7.0.5", "10.7.0.5", "10.7.0.5"),
    ("203.0.113.7", "203.0.113.7", "203.0.113.7"),
    ("2001:db8:7::5", "2001:db8:7::5", "2001:db8:7::5"),
    ("::1", "::1", "::1"),
    (
        "fe80::",
        "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fe80::/10",
    ),
    (
        "fec0::",
        "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fec0::/10",
    ),
    (
        "fc00::",
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fc00::/7",
    ),
    (
        "fd00:ec2::",
        "fd00:ec2:ffff:ffff:ffff:ffff:ffff:ffff",
        "fd00:ec2::/32",
    ),
    ("fd20:ce::254", "fd20:ce::254", "fd20:ce::254"),
    ("100::", "100::ffff:ffff:ffff:ffff", "100::/63"),
];

#[test]
fn refused_by_default_is_opened_by_an_entry_that_names_it_and_by_no_wider_one() {
    for (first, last, entry) in BY_DEFAULT {
        let rule: Rule = entry.parse().unwrap();
        let wider = rule.net().supernet().unwrap().trunc().to_string();
        for ip in [first, last] {
            let asked: IpAddr = ip.parse().unwrap();
            let shut = [
                &[][..],
                &["0.0.0.0/0", "::/0"],
                &["0.0.0.0/1", "128.0.0.0/1"],
                &[&wider],
            ];
            for allow in shut {
                let verdict = verdict(&admission(allow, &[]), ip);
                assert_eq!(verdict, Err(DeniedBy::Default), "{ip} with {allow:?}");
            }
            assert_eq!(
                verdict(&admission(&[entry], &[]), ip),
                Ok(asked),
                "{ip} with {entry}"
            );
            assert_eq!(
                verdict(&admission(&[ip], &[]), ip),
                Ok(asked),
                "{ip} with itself"
            );
        }
    }
}

#[test]
fn what_lies_just_outside_a_special_range_is_open() {
    for ip in [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "168.63.129.15",
        "168.63.129.17",
        "203.0.113.6",
        "203.0.113.8",
        "2000::",
        "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db8:7::4",
        "192.0.2.1",
        "198.51.100.1",
    ] {
        assert_eq!(
            verdict(&admission(&[], &[]), ip),
            Ok(ip.parse().unwrap()),
            "{ip}"
        );
    }
}

#[test]
fn a_range_does_not_name_what_is_special_within_it() {
    for (ip, range) in [
        ("10.7.0.5", "10.7.0.0/24"),
        ("169.254.169.254", "169.254.0.0/16"),
        ("100.100.100.200", "100.64.0.0/10"),
        ("fd00:ec2::254", "fc00::/7"),
        ("203.0.113.7", "203.0.113.0/24"),
        ("fe80::5", "fe80::/10"),
    ] {
        assert_eq!(
            verdict(&admission(&[range], &[]), ip),
            Err(DeniedBy::Default),
            "{ip}"
        );
    }
    assert_eq!(
        verdict(&admission(&["169.254.169.0/24"], &[]), "169.254.169.254"),
        Ok("169.254.169.254".parse().unwrap())
    );
}

#[test]
fn deny_wins_over_allow_and_over_the_public_internet() {
    let admission = admission(&["10.0.0.0/8"], &["10.1.0.0/16", "8.8.8.8", "2002::/16"]);

    assert_eq!(verdict(&admission, "10.1.2.3"), Err(DeniedBy::Deny));
    assert_eq!(
        verdict(&admission, "10.2.2.3"),
        Ok("10.2.2.3".parse().unwrap())
    );
    assert_eq!(verdict(&admission, "8.8.8.8"), Err(DeniedBy::Deny));
    assert_eq!(verdict(&admission, "64:ff9b::808:808"), Err(DeniedBy::Deny));
    assert_eq!(verdict(&admission, "2002:101:101::1"), Err(DeniedBy::Deny));
    assert_eq!(
        verdict(&admission, "8.8.4.4"),
        Ok("8.8.4.4".parse().unwrap())
    );
}

#[test]
fn a_client_may_reach_what_its_own_entries_name_but_not_what_is_denied() {
    let admission = admission(&[], &["10.0.0.9"]);
    let client = rules(&["10.0.0.0/8"]);
    let ask = |allow: &[Rule], ip: [u8; 4]| {
        admission
            .check(allow, SocketAddr::from((ip, 80)), Protocol::Tcp)
            .map_err(|d| d.by())
    };

    assert_eq!(ask(&[], [10, 0, 0, 8]), Err(DeniedBy::Default));
    assert_eq!(
        ask(&client, [10, 0, 0, 8]),
        Ok(SocketAddr::from(([10, 0, 0, 8], 80)))
    );
    assert_eq!(ask(&client, [10, 0, 0, 9]), Err(DeniedBy::Deny));
}

#[test]
fn an_entry_with_a_port_is_about_that_port_of_tcp_and_udp_only() {
    let admission = admission(&["10.0.0.0/8:443", "[fd00::/8]:53"], &["1.1.1.1:25"]);
    let ask = |destination: &str, protocol| {
        admission
            .check(&[], destination.parse().unwrap(), protocol)
            .map_err(|d| d.by())
    };

    for protocol in [Protocol::Tcp, Protocol::Udp] {
        assert!(ask("10.0.0.1:443", protocol).is_ok());
        assert_eq!(ask("10.0.0.1:444", protocol), Err(DeniedBy::Default));
        assert!(ask("[fd00::1]:53", protocol).is_ok());
        assert_eq!(ask("[fd00::1]:443", protocol), Err(DeniedBy::Default));
        assert_eq!(ask("1.1.1.1:25", protocol), Err(DeniedBy::Deny));
        assert!(ask("1.1.1.1:26", protocol).is_ok());
    }
    assert_eq!(ask("10.0.0.1:443", Protocol::Icmp), Err(DeniedBy::Default));
    assert!(ask("1.1.1.1:25", Protocol::Icmp).is_ok());
}

#[test]
fn a_refusal_names_the_setting_and_not_the_destination() {
    let denied = |allow: &[&str], deny: &[&str], ip: &str| {
        let destination = SocketAddr::new(ip.parse().unwrap(), 80);
        admission(allow, deny)
            .check(&[], destination, Protocol::Tcp)
            .unwrap_err()
            .to_string()
    };

    assert_eq!(
        denied(&[], &[], "10.1.2.3"),
        "private addresses (10.0.0.0/8) are refused unless an entry of [origin] allow, or of the \
         client's allow, that lies within 10.0.0.0/8 covers them"
    );
    assert_eq!(
        denied(&["10.0.0.0/8"], &["10.0.0.0/9:80"], "10.1.2.3"),
        "refused by the entry \"10.0.0.0/9:80\" of [origin] deny"
    );
    assert_eq!(
        denied(&[], &[], "2002:0:0::1"),
        "unspecified addresses are never reached, and no setting opens them; its IPv6 address \
         stands for such an IPv4 address"
    );
    assert!(denied(&[], &[], "10.7.0.5").contains("names exactly that address"));
}

#[test]
fn own_addresses_can_be_replaced() {
    let mut admission = admission(&[], &[]);

    admission.set_own_addresses(["198.51.100.9/24".parse().unwrap()]);

    assert_eq!(
        verdict(&admission, "203.0.113.7"),
        Ok("203.0.113.7".parse().unwrap())
    );
    assert_eq!(verdict(&admission, "198.51.100.9"), Err(DeniedBy::Default));
    assert_eq!(verdict(&admission, "198.51.100.255"), Err(DeniedBy::Never));
}

#[test]
fn mapped_addresses_are_used_as_the_ipv4_address_they_are_and_others_as_given() {
    let admission = admission(&[], &[]);
    for (given, used) in [
        ("[::ffff:8.8.8.8]:80", "8.8.8.8:80"),
        ("[64:ff9b::8.8.8.8]:80", "[64:ff9b::8.8.8.8]:80"),
        ("[2002:808:808::1]:80", "[2002:808:808::1]:80"),
        ("8.8.8.8:80", "8.8.8.8:80"),
    ] {
        let verdict = admission.check(&[], given.parse().unwrap(), Protocol::Tcp);
        assert_eq!(verdict, Ok(used.parse().unwrap()), "{given}");
    }
}

/// Every IPv6 spelling of an IPv4 address that some host, router or translator understands.
fn spellings(v4: Ipv4Addr, fill: u64) -> Vec<Ipv6Addr> {
    let [a, b, c, d] = v4.octets();
    let v4 = u128::from(v4.to_bits());
    let fill = u128::from(fill);
    let low =
        |prefix: &str| Ipv6Addr::from_bits(prefix.parse::<Ipv6Addr>().unwrap().to_bits() | v4);
    let octets = |octets: [u8; 16]| Ipv6Addr::from(octets);
    let teredo = |server: u128, client: u128| {
        let ports = (fill & 0xffff_ffff) << 32;
        Ipv6Addr::from_bits((0x2001_0000 << 96) | (server << 64) | ports | (!client & 0xffff_ffff))
    };
    let elsewhere = 0x0909_0909;
    let (p, q, n) = (0x64, 0xff, 0x9b);
    vec![
        low("::ffff:0:0"),
        low("::"),
        low("::ffff:0:0:0"),
        low("64:ff9b::"),
        low("64:ff9b:1::"),
        low("64:ff9b:1:ffff:ffff::"),
        octets([0, p, q, n, 0, 1, a, b, 0, c, d, 0, 0, 0, 0, 0]),
        octets([0, p, q, n, 0, 1, 7, a, 0, b, c, d, 0, 0, 0, 0]),
        octets([0, p, q, n, 0, 1, 7, 8, 0, a, b, c, d, 0, 0, 0]),
        Ipv6Addr::from_bits((0x2002_u128 << 112) | (v4 << 80) | fill),
        teredo(elsewhere, v4),
        teredo(v4, elsewhere),
        low("2600:1:2:3:0:5efe::"),
        low("2600:1:2:3:200:5efe::"),
    ]
}

/// An IPv4 address that is refused, mostly out of the special ranges.
fn refused_v4() -> impl Strategy<Value = Ipv4Addr> {
    let bases = prop_oneof![
        Just((0x0000_0000_u32, 8)),
        Just((0x0a00_0000, 8)),
        Just((0x6440_0000, 10)),
        Just((0x7f00_0000, 8)),
        Just((0xa9fe_0000, 16)),
        Just((0xac10_0000, 12)),
        Just((0xc0a8_0000, 16)),
        Just((0xe000_0000, 4)),
        Just((0xf000_0000, 4)),
        Just((0xa83f_8110, 32)),
        Just((0x6464_64c8, 32)),
        Just((0xcb00_7107, 32)),
    ];
    (bases, any::<u32>()).prop_map(|((base, len), host)| {
        Ipv4Addr::from_bits(base | (host & u32::MAX.checked_shr(len).unwrap_or(0)))
    })
}

proptest! {
    #[test]
    fn no_spelling_of_a_refused_address_passes(v4 in refused_v4(), fill in any::<u64>()) {
        let entries = ["64:ff9b:1::/48", "0.0.0.0/0", "::/0", "::/1", "2002::/16", "64:ff9b::/96"];
        for admission in [admission(&[], &[]), admission(&entries, &[])] {
            let plain = verdict(&admission, &v4.to_string());
            prop_assert!(plain.is_err(), "{v4}");
            for spelling in spellings(v4, fill) {
                // Of a site's NAT64, a place with 0.0.0.0/8 is one that is not used.
                let unused = v4.octets()[0] == 0 && spelling.segments()[..3] == [0x64, 0xff9b, 1];
                let verdict = verdict(&admission, &spelling.to_string());
                prop_assert!(verdict.is_err() || unused, "{spelling}");
            }
        }
    }

    #[test]
    fn any_spelling_of_an_open_address_passes_where_its_prefix_is_open(
        host in 0x0800_0000_u32..0x0a00_0000,
    ) {
        let v4 = Ipv4Addr::from_bits(host);
        let admission = admission(&["64:ff9b:1::/48"], &[]);
        for spelling in spellings(v4, 0x0808_0808_0808_0808).into_iter().take(5) {
            prop_assert!(verdict(&admission, &spelling.to_string()).is_ok(), "{spelling}");
        }
    }

    #[test]
    fn an_answer_is_the_address_asked_about_and_nothing_panics(
        bits in any::<u128>(), port in any::<u16>(),
    ) {
        let ip = Ipv6Addr::from_bits(bits);
        let asked = SocketAddr::new(IpAddr::V6(ip), port);
        if let Ok(used) = admission(&[], &[]).check(&[], asked, Protocol::Udp) {
            prop_assert_eq!(used, SocketAddr::new(IpAddr::V6(ip).to_canonical(), port));
        }
    }

    #[test]
    fn an_entry_reads_back_as_it_was_written(
        bits in any::<u128>(), v4 in any::<bool>(), len in 0_u8..=128, port in any::<Option<u16>>(),
    ) {
        let net = if v4 {
            let [.., low] = bits.to_be_bytes();
            IpNet::new(IpAddr::V4(Ipv4Addr::new(low, 1, 2, 3)), len % 33)
        } else {
            IpNet::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), len)
        };
        let net = net.unwrap().trunc();
        let (open, close) = if net.addr().is_ipv6() { ("[", "]") } else { ("", "") };
        let text = match port.filter(|port| *port != 0) {
            Some(port) => format!("{open}{net}{close}:{port}"),
            None => net.to_string(),
        };
        let rule: Rule = text.parse().unwrap();
        prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        prop_assert_eq!(rule.port(), port.filter(|port| *port != 0));
    }

    #[test]
    fn arbitrary_text_is_an_entry_or_an_error_and_never_a_panic(text in "[0-9a-f:./\\[\\]]{0,24}") {
        if let Ok(rule) = text.parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }
}

#[test]
fn entries_are_written_as_documented() {
    for (text, shown) in [
        ("10.0.0.9", "10.0.0.9"),
        ("10.0.0.9/32", "10.0.0.9"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.9:514", "10.0.0.9:514"),
        ("10.0.0.0/8:443", "10.0.0.0/8:443"),
        ("fd00::1", "fd00::1"),
        ("fd00::/8", "fd00::/8"),
        ("[fd00::1]", "fd00::1"),
        ("[::1]:80", "[::1]:80"),
        ("[fd00::/8]:443", "[fd00::/8]:443"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::/0", "::/0"),
    ] {
        assert_eq!(text.parse::<Rule>().unwrap().to_string(), shown, "{text}");
    }
}

#[test]
fn a_mistaken_entry_is_told_with_its_remedy() {
    let error = |text: &str| text.parse::<Rule>().unwrap_err();

    assert!(matches!(error("10.0.0.1/8"), RuleError::HostBits { .. }));
    assert!(error("10.0.0.1/8").to_string().contains("10.0.0.0/8"));
    for text in [
        "10.0.0.0/8:0",
        "10.0.0.1:65536",
        "10.0.0.1:",
        "10.0.0.1:+80",
        "[::1]:x",
    ] {
        assert!(matches!(error(text), RuleError::Port(_)), "{text}");
    }
    for text in [
        "",
        "10.0.0",
        "10.0.0.0/33",
        "example.org",
        "example.org:80",
        "[10.0.0.1]:80",
        "[::1",
        "[::1]80",
        "::1/129",
        "fe80::1%eth0",
        " 10.0.0.1",
        "10.0.0.1/",
        "[]:80",
    ] {
        assert!(matches!(error(text), RuleError::Address(_)), "{text}");
    }
}

#[test]
fn an_address_is_shown_to_whom_some_port_of_it_is_open() {
    let deny = [
        "198.51.100.0/24",
        "10.0.0.0/16",
        "10.2.0.0/16:25",
        "192.0.2.1:25",
    ];
    let admission = admission(&["10.0.0.0/8:443"], &deny);
    let own = rules(&["192.168.0.0/16", "198.51.100.1", "0.0.0.0/0"]);
    for (ip, is_shown) in [
        ("203.0.113.1", true),
        ("192.168.1.1", true),
        ("172.16.0.1", false),
        ("10.1.0.1", true),
        // `deny` wins, unless it is about one port.
        ("10.0.0.1", false),
        ("198.51.100.1", false),
        ("64:ff9b::198.51.100.1", false),
        ("10.2.0.1", true),
        ("192.0.2.1", true),
        ("::ffff:172.16.0.1", false),
        ("127.0.0.1", false),
        ("224.0.0.1", false),
    ] {
        assert_eq!(admission.shows(&own, ip.parse().unwrap()), is_shown, "{ip}");
    }
}
