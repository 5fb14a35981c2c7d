//! Names that are somebody's own: no resolver of the public internet knows them, and what this
//! server's host or network says of them is not for clients.

/// Zones whose names are nobody's business far away.
const LOCAL: [&str; 17] = [
    "alt",           // RFC 9476
    "corp",          // RFC 6762 appendix G
    "home",          // the same
    "home.arpa",     // RFC 8375
    "internal",      // reserved by ICANN's board, 2024
    "intranet",      // RFC 6762 appendix G
    "invalid",       // RFC 6761
    "lan",           // RFC 6762 appendix G
    "local",         // RFC 6762
    "localhost",     // RFC 6761
    "onion",         // RFC 7686
    "private",       // RFC 6762 appendix G
    "resolver.arpa", // RFC 9462
    "service.arpa",  // RFC 9665
    "test",          // RFC 6761
    "c.f.ip6.arpa",  // fc00::/7, RFC 6303
    "d.f.ip6.arpa",  // the same
];

/// Whether a name of these labels, all in lower case, lies in such a zone.
pub(super) fn is_local(labels: &[Vec<u8>]) -> bool {
    let lies_in = |zone: &&str| {
        let zone: Vec<&[u8]> = zone.split('.').map(str::as_bytes).collect();
        let tail = labels.len().checked_sub(zone.len());
        tail.and_then(|tail| labels.get(tail..))
            .is_some_and(|tail| tail.iter().map(Vec::as_slice).eq(zone))
    };
    LOCAL.iter().any(lies_in) || is_local_v4(labels) || is_local_v6(labels)
}

/// Reverse names of IPv4 addresses that are not public (RFC 6303 §4, RFC 7793).
fn is_local_v4(labels: &[Vec<u8>]) -> bool {
    let [rest @ .., inaddr, arpa] = labels else {
        return false;
    };
    if inaddr != b"in-addr" || arpa != b"arpa" {
        return false;
    }
    let number = |label: &Vec<u8>| str::from_utf8(label).ok()?.parse::<u8>().ok();
    let mut octets = rest.iter().rev().map(number);
    let (first, second) = (octets.next().flatten(), octets.next().flatten());
    matches!(
        (first, second),
        (Some(0 | 10 | 127), _)
            | (Some(100), Some(64..=127))
            | (Some(169), Some(254))
            | (Some(172), Some(16..=31))
            | (Some(192), Some(168))
            | (Some(255), Some(255))
    )
}

/// Reverse names of link-local, loopback and unspecified addresses of IPv6 (RFC 6303 §4).
fn is_local_v6(labels: &[Vec<u8>]) -> bool {
    let [rest @ .., ip6, arpa] = labels else {
        return false;
    };
    if ip6 != b"ip6" || arpa != b"arpa" {
        return false;
    }
    let digits: Vec<u8> = rest
        .iter()
        .rev()
        .map(|label| match label.as_slice() {
            [digit] => *digit,
            _ => b'?',
        })
        .collect();
    let is_link_local = matches!(
        digits.as_slice(),
        [b'f', b'e', b'8' | b'9' | b'a' | b'b', ..]
    );
    let is_host = digits.len() == 32 && digits[..31].iter().all(|digit| *digit == b'0');
    is_link_local || is_host
}
