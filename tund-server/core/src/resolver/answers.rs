//! Answers: which of them a client gets as they are, and what is taken out of the others.

use super::message::{self, HEADER_BYTES, Record, TYPE_AND_CLASS_BYTES, kind};
use super::names;
use simple_dns::rdata::{RData, SVCB, SVCParam};
use simple_dns::{Packet, PacketFlag, ResourceRecord};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest answer from which something is taken …
const STRIPPED_BYTES: usize = 4096;
/// … and of so many records: what is written anew costs more than what passes.
const STRIPPED_RECORDS: usize = 64;
/// Labels and references of the names in an answer that are looked at: a thousand of the longest
/// usual ones.
const STEPS: usize = 16_384;

/// What there is in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nothing that the client may not learn.
    Open,
    /// Addresses that it may not.
    Closed,
    /// Names that are somebody's own.
    Local,
}

/// What is in an answer; none if it cannot be told.
pub(super) fn look(answer: &[u8], may_learn: &impl Fn(IpAddr) -> bool) -> Option<Finding> {
    let mut steps = STEPS;
    let mut is_closed = false;
    let mut is_local = false;
    // Where the owner that was looked at last stands: mostly, each record refers to the same.
    let mut seen = None;
    for record in message::records(answer) {
        let record = record?;
        let data = answer.get(record.data.clone())?;
        is_closed |= !addresses(record.kind, data)?.into_iter().all(may_learn);
        if record.is_answer && leads_on(record.kind) {
            let owner = message::number(answer, record.owner);
            if seen.is_none() || owner != seen {
                let labels = message::name(answer, record.owner, &mut steps)?;
                is_local |= names::is_local(&labels);
                seen = owner.filter(|bytes| *bytes >= 0xc000);
            }
            is_local |= leads_to_local(answer, &record, &mut steps)?;
        }
    }
    Some(if is_local {
        Finding::Local
    } else if is_closed {
        Finding::Closed
    } else {
        Finding::Open
    })
}

/// By which an application gets from a name to a host.
const fn leads_on(of: u16) -> bool {
    use kind::{A, AAAA, CNAME, DNAME, HTTPS, SVCB};
    matches!(of, A | AAAA | CNAME | DNAME | SVCB | HTTPS)
}

fn leads_to_local(answer: &[u8], record: &Record, steps: &mut usize) -> Option<bool> {
    if !matches!(record.kind, kind::CNAME | kind::DNAME) {
        return Some(false);
    }
    let target = message::name(answer, record.data.start, steps)?;
    Some(names::is_local(&target))
}

/// The addresses that a record tells of; none of a record that makes no sense.
fn addresses(of: u16, data: &[u8]) -> Option<Vec<IpAddr>> {
    match of {
        kind::A => Some(vec![Ipv4Addr::from(*whole(data)?).into()]),
        kind::AAAA => Some(vec![Ipv6Addr::from(*whole(data)?).into()]),
        kind::SVCB | kind::HTTPS => hints(data),
        _ => Some(Vec::new()),
    }
}

fn whole<const N: usize>(data: &[u8]) -> Option<&[u8; N]> {
    data.try_into().ok()
}

fn hints(data: &[u8]) -> Option<Vec<IpAddr>> {
    const IPV4_HINT: u16 = 4;
    const IPV6_HINT: u16 = 6;
    let mut all: Vec<IpAddr> = Vec::new();
    for (key, value) in message::parameters(data)? {
        match key {
            IPV4_HINT => {
                let (hints, rest) = value.as_chunks();
                all.extend(hints.iter().map(|ip| IpAddr::V4(Ipv4Addr::from(*ip))));
                rest.is_empty().then_some(())?;
            }
            IPV6_HINT => {
                let (hints, rest) = value.as_chunks();
                all.extend(hints.iter().map(|ip| IpAddr::V6(Ipv6Addr::from(*ip))));
                rest.is_empty().then_some(())?;
            }
            _ => {}
        }
    }
    Some(all)
}

/// An answer to a question, written anew without what may not be learnt; none if it is too long for
/// that, or cannot be read.
pub(super) fn strip(answer: &[u8], may_learn: &impl Fn(IpAddr) -> bool) -> Option<Vec<u8>> {
    let count = message::records(answer).count();
    if answer.len() > STRIPPED_BYTES || count > STRIPPED_RECORDS {
        return None;
    }
    let section = message::section(answer)?;
    // The library knows not all types that can be asked for, and need not know this one.
    let mut known = answer.to_vec();
    let asked = HEADER_BYTES + section.len() - TYPE_AND_CLASS_BYTES;
    let place = known.get_mut(asked..)?.first_chunk_mut()?;
    *place = kind::A.to_be_bytes();
    let mut packet = Packet::parse(&known).ok()?;
    for records in [
        &mut packet.answers,
        &mut packet.name_servers,
        &mut packet.additional_records,
    ] {
        records.retain(|record| addresses_in(record).into_iter().all(may_learn));
    }
    // What is said to be authentic is no longer what was signed.
    packet.remove_flags(PacketFlag::AUTHENTIC_DATA);
    let mut stripped = packet.build_bytes_vec_compressed().ok()?;
    let place = HEADER_BYTES..HEADER_BYTES + section.len();
    stripped.get_mut(place)?.copy_from_slice(section);
    keep_edns_flags(answer, &mut stripped);
    // Whether both readers have read the same.
    (look(&stripped, may_learn) == Some(Finding::Open)).then_some(stripped)
}

/// The library forgets them (RFC 3225).
fn keep_edns_flags(answer: &[u8], stripped: &mut [u8]) {
    let opt = |message: &[u8]| {
        let mut records = message::records(message).flatten();
        records.find(|record| record.kind == kind::OPT)
    };
    let (from, to) = (opt(answer), opt(stripped));
    if let Some((from, to)) = from.zip(to)
        && let Some((from, to)) = answer.get(from.ttl).zip(stripped.get_mut(to.ttl))
    {
        to.copy_from_slice(from);
    }
}

/// The addresses that a record tells of, as the library has read it.
fn addresses_in(record: &ResourceRecord<'_>) -> Vec<IpAddr> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "no other record of the library's many bears addresses to connect to"
    )]
    match &record.rdata {
        RData::A(a) => vec![Ipv4Addr::from(a.address).into()],
        RData::AAAA(aaaa) => vec![Ipv6Addr::from(aaaa.address).into()],
        RData::SVCB(svcb) => hints_in(svcb),
        RData::HTTPS(https) => hints_in(&https.0),
        _ => Vec::new(),
    }
}

fn hints_in(svcb: &SVCB<'_>) -> Vec<IpAddr> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "no other parameter bears addresses"
    )]
    let of = |param: &SVCParam<'_>| match param {
        SVCParam::Ipv4Hint(hints) => hints.iter().map(|ip| Ipv4Addr::from(*ip).into()).collect(),
        SVCParam::Ipv6Hint(hints) => hints.iter().map(|ip| Ipv6Addr::from(*ip).into()).collect(),
        _ => Vec::new(),
    };
    svcb.iter_params().flat_map(of).collect()
}
