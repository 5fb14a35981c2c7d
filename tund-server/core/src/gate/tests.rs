//! Tests of the gate: every limit from both sides, floods, and crowds of honest clients.

use super::*;

const START: Instant = Instant::from_nanos(1_000_000_000_000);
const NANOSECOND: Duration = Duration::from_nanos(1);

fn at(millis: u64) -> Instant {
    START + Duration::from_millis(millis)
}

fn v4(network: u32, host: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 | (network << 8) | host))
}

/// A gate, and ids for who comes to it.
#[derive(Default)]
struct Crowd {
    gate: Gate,
    last: u64,
}

impl Crowd {
    fn come(&mut self, ip: IpAddr, now: Instant) -> (LinkId, Verdict) {
        self.last += 1;
        let id = LinkId(self.last);
        (id, self.gate.admit(id, ip, now))
    }

    fn fill(&mut self, networks: std::ops::Range<u32>, each: usize, now: Instant) {
        for network in networks {
            for _ in 0..each {
                assert_eq!(self.come(v4(network, 1), now).1, Verdict::Admitted);
            }
        }
    }
}

#[test]
fn one_network_has_64_places_and_another_its_own() {
    let mut crowd = Crowd::default();
    crowd.fill(0..1, MAX_PENDING_PER_NETWORK, START);

    assert_eq!(crowd.come(v4(0, 255), START).1, Verdict::Refused);
    assert_eq!(crowd.come(v4(1, 0), START).1, Verdict::Admitted);
    crowd.gate.gone(LinkId(7));
    assert_eq!(crowd.come(v4(0, 2), START).1, Verdict::Admitted);
    assert_eq!(crowd.come(v4(0, 2), START).1, Verdict::Refused);
}

#[test]
fn an_ipv6_network_is_a_64_and_a_mapped_address_is_ipv4() {
    let mut crowd = Crowd::default();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for host in 0..MAX_PENDING_PER_NETWORK {
        let address = format!("2001:db8:0:1:{host:x}::1");
        assert_eq!(crowd.come(ip(&address), START).1, Verdict::Admitted);
    }
    crowd.fill(0..1, MAX_PENDING_PER_NETWORK, START);

    assert_eq!(
        crowd.come(ip("2001:db8:0:1:ffff::1"), START).1,
        Verdict::Refused
    );
    assert_eq!(
        crowd.come(ip("2001:db8:0:2::1"), START).1,
        Verdict::Admitted
    );
    assert_eq!(crowd.come(ip("::ffff:11.0.0.9"), START).1, Verdict::Refused);
}

#[test]
fn in_a_full_network_a_newcomer_displaces_only_one_that_had_its_time() {
    let mut crowd = Crowd::default();
    crowd.fill(5..6, 3, START);
    crowd.fill(0..1, MAX_PENDING_PER_NETWORK, START + NANOSECOND);

    let (_, early) = crowd.come(v4(0, 9), START + UNDISTURBED_TIME);
    let (_, due) = crowd.come(v4(0, 9), START + NANOSECOND + UNDISTURBED_TIME);

    assert_eq!(early, Verdict::Refused);
    assert_eq!(
        due,
        Verdict::Displaces(LinkId(4)),
        "the oldest of its own network"
    );
    assert_eq!(crowd.gate.len(), MAX_PENDING_PER_NETWORK + 3);
}

#[test]
fn when_all_places_are_taken_the_largest_network_gives_way_at_once() {
    let mut crowd = Crowd::default();
    crowd.fill(0..8, MAX_PENDING_PER_NETWORK, START);
    assert_eq!(crowd.gate.len(), MAX_PENDING);

    let (_, verdict) = crowd.come(v4(9, 1), START);

    assert!(
        matches!(verdict, Verdict::Displaces(LinkId(1..=512))),
        "{verdict:?}"
    );
    assert_eq!(crowd.gate.len(), MAX_PENDING);
}

#[test]
fn equals_do_not_displace_each_other_before_their_time() {
    let mut crowd = Crowd::default();
    crowd.fill(0..256, 2, START);

    let (_, of_more) = crowd.come(v4(0, 1), START);
    let (_, of_one_less) = crowd.come(v4(300, 1), START);
    let (_, level) = crowd.come(v4(300, 1), START);
    let (_, later) = crowd.come(v4(300, 1), START + UNDISTURBED_TIME);

    assert_eq!(of_more, Verdict::Refused);
    assert!(
        matches!(of_one_less, Verdict::Displaces(_)),
        "{of_one_less:?}"
    );
    assert_eq!(level, Verdict::Refused);
    assert!(matches!(later, Verdict::Displaces(_)), "{later:?}");
}

#[test]
fn time_is_over_at_ten_seconds_and_not_a_nanosecond_before() {
    let mut crowd = Crowd::default();
    let (first, _) = crowd.come(v4(0, 1), START);
    let (second, _) = crowd.come(v4(0, 1), START + NANOSECOND);
    let over = START + AUTHENTICATION_TIME;

    assert_eq!(crowd.gate.poll_timeout(), Some(over));
    assert_eq!(crowd.gate.poll_expired(at(9_999)), None);
    assert_eq!(crowd.gate.poll_expired(over), Some(first));
    assert_eq!(crowd.gate.poll_expired(over), None);
    assert_eq!(crowd.gate.poll_expired(over + NANOSECOND), Some(second));
    assert!(crowd.gate.is_empty());
}

#[test]
fn who_has_authenticated_never_expires_and_makes_room() {
    let mut crowd = Crowd::default();
    crowd.fill(0..1, MAX_PENDING_PER_NETWORK, START);

    crowd.gate.authenticated(LinkId(1));

    assert_eq!(crowd.come(v4(0, 1), START).1, Verdict::Admitted);
    let mut expired = Vec::new();
    while let Some(id) = crowd.gate.poll_expired(at(60_000)) {
        expired.push(id);
    }
    assert_eq!(expired.len(), MAX_PENDING_PER_NETWORK);
    assert!(!expired.contains(&LinkId(1)));
    assert_eq!(
        crowd.gate.poll_timeout(),
        Some(Instant::default()),
        "a report is due"
    );
}

#[test]
fn reports_come_at_once_and_then_once_a_minute() {
    let mut crowd = Crowd::default();
    let turned_away = |gate: &mut Gate, now| gate.poll_report(now).map(|r| r.unauthenticated);
    assert_eq!(crowd.gate.poll_report(START), None, "nothing to tell");

    for _ in 0..3 {
        let (id, _) = crowd.come(v4(0, 1), START);
        crowd.gate.gone(id);
    }
    assert_eq!(turned_away(&mut crowd.gate, START), Some(3));
    assert_eq!(crowd.gate.poll_timeout(), None);

    let (id, _) = crowd.come(v4(0, 1), at(1));
    crowd.gate.gone(id);
    let due = START + REPORT_INTERVAL;
    assert_eq!(crowd.gate.poll_timeout(), Some(due));
    assert_eq!(turned_away(&mut crowd.gate, at(59_999)), None);
    assert_eq!(turned_away(&mut crowd.gate, due), Some(1));
    assert_eq!(turned_away(&mut crowd.gate, due + REPORT_INTERVAL), None);
}

#[test]
fn unknown_ids_change_nothing() {
    let mut crowd = Crowd::default();
    let (id, _) = crowd.come(v4(0, 1), START);

    crowd.gate.gone(LinkId(99));
    crowd.gate.authenticated(LinkId(99));
    crowd.gate.gone(id);
    crowd.gate.gone(id);

    assert!(crowd.gate.is_empty());
    let report = crowd.gate.poll_report(START);
    assert_eq!(
        report,
        Some(TurnedAway {
            unauthenticated: 1,
            ..TurnedAway::default()
        })
    );
}

/// One millisecond after the other: 5,000 connections of an unlisted key at 100 a second, each
/// refused after 5 ms, and 1,000 that say nothing in the first second, all from one network.
/// Meanwhile a client of another network attaches every 50 ms, and needs 3 s each time.
#[test]
fn floods_from_one_network_never_lock_out_a_client_of_another() {
    let mut crowd = Crowd::default();
    let mut honest = BTreeMap::new();
    let mut unlisted = BTreeMap::new();
    let mut turned_away = TurnedAway::default();
    for ms in 0..60_000_u64 {
        let now = at(ms);
        let mut lost: Vec<_> = std::iter::from_fn(|| crowd.gate.poll_expired(now)).collect();
        if let Some(id) = honest.remove(&ms) {
            crowd.gate.authenticated(id);
        }
        if let Some(id) = unlisted.remove(&ms) {
            crowd.gate.gone(id);
        }
        if ms < 1_000 {
            let (_, verdict) = crowd.come(v4(0, 66), now);
            lost.extend(victim(verdict));
        }
        if ms.is_multiple_of(10) && ms < 50_000 {
            let (id, verdict) = crowd.come(v4(0, 66), now);
            unlisted.insert(ms + 5, id);
            lost.extend(victim(verdict));
        }
        if ms.is_multiple_of(50) {
            let (id, verdict) = crowd.come(v4(1, 1), now);
            assert_eq!(verdict, Verdict::Admitted, "at {ms} ms");
            honest.insert(ms + 3_000, id);
        }
        assert!(honest.values().all(|id| !lost.contains(id)), "at {ms} ms");
        turned_away = crowd.gate.poll_report(now).unwrap_or(turned_away);
    }
    let rest = crowd.gate.poll_report(at(120_000)).unwrap();
    assert!(
        turned_away.refused + rest.refused > 0,
        "the flood was one: {rest:?}"
    );
}

fn victim(verdict: Verdict) -> Option<LinkId> {
    match verdict {
        Verdict::Displaces(id) => Some(id),
        Verdict::Admitted | Verdict::Refused => None,
    }
}

#[test]
fn a_thousand_idle_connections_at_once_leave_room_for_others() {
    let mut crowd = Crowd::default();
    for _ in 0..1_000 {
        crowd.come(v4(0, 66), START);
    }

    assert_eq!(crowd.gate.len(), MAX_PENDING_PER_NETWORK);
    crowd.fill(1..8, MAX_PENDING_PER_NETWORK, START);
}

#[test]
fn two_hundred_clients_of_sixteen_networks_come_back_at_once() {
    let mut crowd = Crowd::default();
    for client in 0..200 {
        let (_, verdict) = crowd.come(v4(client % 16, client), START);
        assert_eq!(verdict, Verdict::Admitted, "client {client}");
    }
    for client in 0..200 {
        crowd.gate.authenticated(LinkId(client + 1));
    }
    assert!(crowd.gate.is_empty());
}

#[test]
fn two_hundred_clients_of_one_network_do_not_throw_each_other_out() {
    let mut crowd = Crowd::default();

    let verdicts: Vec<_> = (0..200)
        .map(|host| crowd.come(v4(0, host), START).1)
        .collect();

    assert!(
        verdicts
            .iter()
            .take(64)
            .all(|verdict| *verdict == Verdict::Admitted)
    );
    assert!(
        verdicts
            .iter()
            .skip(64)
            .all(|verdict| *verdict == Verdict::Refused)
    );
}

/// The worst that an attacker of eight networks can do: 512 connections, renewed all the time.
#[test]
fn a_client_of_its_own_network_passes_while_eight_others_hold_every_place() {
    let mut crowd = Crowd::default();
    crowd.fill(0..8, MAX_PENDING_PER_NETWORK, START);
    let (client, verdict) = crowd.come(v4(20, 1), at(1));
    assert!(matches!(verdict, Verdict::Displaces(_)));

    for step in 0..5_000_u32 {
        let (_, verdict) = crowd.come(v4(step % 8, 1), at(2 + u64::from(step)));
        assert_ne!(verdict, Verdict::Displaces(client), "step {step}");
    }
}
