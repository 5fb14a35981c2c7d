//! The clock of mappings, and what is kept of each.

use super::*;

const IDLE: Duration = Duration::from_secs(300);

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

fn source(number: u64) -> SocketAddr {
    let address = u32::try_from(number).unwrap();
    (std::net::Ipv4Addr::from(address), 4000).into()
}

fn remote() -> SocketAddr {
    "192.0.2.53:53".parse().unwrap()
}

fn first(number: u64) -> Datagram {
    Datagram {
        kind: DatagramKind::Udp,
        source: source(number),
        destination: remote(),
        ip_header_bytes: 20,
        datagram_bytes: 8,
    }
}

fn with(count: u64) -> Mappings {
    let mut mappings = Mappings::default();
    for number in 1..=count {
        mappings.insert(FlowId(number), &first(number), IDLE, at(1000));
    }
    mappings
}

/// The server is heard as often as it is asked.
fn hear(mappings: &mut Mappings, from: u64, to: u64) {
    for second in (from..=to).step_by(25) {
        mappings.heard(at(second));
    }
}

#[test]
fn idle_time_stands_still_during_an_outage() {
    let mut mappings = with(1);
    hear(&mut mappings, 1000, 1100);
    mappings.pause(at(1100));
    assert_eq!(mappings.poll_timeout(), None);
    assert_eq!(mappings.next_idle(at(9000)), None);

    mappings.go_on(at(2100));
    hear(&mut mappings, 2125, 2275);

    assert_eq!(mappings.poll_timeout(), Some(at(2300)));
    let just_before = Instant::from_nanos(at(2300).as_nanos() - 1);
    assert!(!mappings.asks(just_before));
    // There may be another outage.
    assert_eq!(mappings.next_idle(at(2300)), None);
    assert!(mappings.asks(at(2300)));
    assert_eq!(mappings.poll_timeout(), None);
    assert!(!mappings.asks(at(2301)));
    mappings.heard(at(2301));
    assert_eq!(mappings.poll_timeout(), Some(at(2300)));
    assert_eq!(mappings.next_idle(at(2301)), Some(FlowId(1)));
}

#[test]
fn what_the_application_sends_keeps_a_mapping_alive_and_what_it_gets_does_not() {
    let mut mappings = with(2);
    mappings.sent(FlowId(1), remote(), (&[4; 28], 5), at(1200));
    mappings.received(FlowId(2), 6, at(1250));

    let just_before = Instant::from_nanos(at(1300).as_nanos() - 1);
    hear(&mut mappings, 1000, 1275);
    mappings.heard(just_before);
    assert_eq!(mappings.next_idle(just_before), None);
    mappings.heard(at(1300));
    assert_eq!(mappings.next_idle(at(1300)), Some(FlowId(2)));
    mappings.leave(FlowId(2), (EndedBy::Client, HowEnded::Idle));
    assert_eq!(mappings.find(DatagramKind::Udp, source(2)), None);
    assert!(mappings.knows(FlowId(2)));
    let account = mappings.settle(FlowId(2), LostBytes::default(), at(1301));
    let account = account.expect("an account");
    assert_eq!((account.down_bytes, account.how), (6, HowEnded::Idle));
    assert_eq!(account.longest_silence, Duration::from_secs(250));
    hear(&mut mappings, 1325, 1475);
    mappings.heard(at(1499));
    assert_eq!(mappings.next_idle(at(1499)), None);
    assert_eq!(mappings.poll_timeout(), Some(at(1500)));
    mappings.heard(at(1500));
    assert_eq!(mappings.next_idle(at(1500)), Some(FlowId(1)));
}

#[test]
fn the_clock_runs_only_up_to_when_the_server_was_heard() {
    let mut mappings = with(1);
    mappings.heard(at(1001));
    // A sleep, and nobody has noticed.
    assert_eq!(mappings.next_idle(at(9000)), None);
    assert!(mappings.asks(at(9000)));
    assert_eq!(mappings.poll_timeout(), None);
    mappings.heard(at(9000));
    assert_eq!(mappings.next_idle(at(9000)), None);

    hear(&mut mappings, 9025, 9275);
    assert_eq!(mappings.next_idle(at(9275)), None);
    assert_eq!(mappings.poll_timeout(), Some(at(9299)));
    mappings.heard(at(9299));
    assert_eq!(mappings.next_idle(at(9299)), Some(FlowId(1)));
}

#[test]
fn an_outage_begins_when_the_server_was_heard_last() {
    let mut mappings = with(1);
    hear(&mut mappings, 1000, 1250);
    // It is due before anybody has noticed.
    assert!(mappings.asks(at(1300)));
    mappings.pause(at(1302));
    assert_eq!(mappings.next_idle(at(1302)), None);
    mappings.go_on(at(2250));
    assert_eq!(mappings.poll_timeout(), Some(at(2300)));
    assert_eq!(mappings.next_idle(at(2250)), None);
}

#[test]
fn the_first_mapping_after_a_while_has_nothing_to_do_with_what_was_before() {
    let mut mappings = Mappings::default();
    mappings.heard(at(1));
    mappings.insert(FlowId(1), &first(1), IDLE, at(1000));

    hear(&mut mappings, 1001, 1276);

    assert_eq!(mappings.poll_timeout(), Some(at(1300)));
}

#[test]
fn what_an_application_has_just_sent_counts_though_the_server_was_not_heard_since() {
    let mut mappings = with(1);
    hear(&mut mappings, 1000, 1275);
    mappings.sent(FlowId(1), remote(), (&[4; 28], 5), at(1299));
    mappings.heard(at(1300));
    assert_eq!(mappings.next_idle(at(1300)), None);
    assert!(!mappings.asks(at(1300)));
    assert_eq!(mappings.poll_timeout(), Some(at(1599)));
}

#[test]
fn who_was_silent_longest_makes_room_but_not_at_once() {
    let mut mappings = with(3);
    mappings.sent(FlowId(1), remote(), (&[4; 28], 5), at(1010));
    mappings.received(FlowId(2), 5, at(1029));

    assert_eq!(mappings.next_to_go(at(1029)), None);
    assert_eq!(mappings.next_to_go(at(1030)), Some(FlowId(2)));
    mappings.remove(FlowId(2));
    assert_eq!(mappings.next_to_go(at(1030)), Some(FlowId(3)));
    mappings.remove(FlowId(3));
    assert_eq!(mappings.next_to_go(at(1030)), None);
}

#[test]
fn a_ping_that_goes_on_keeps_no_other_mapping_from_making_room() {
    let mut mappings = with(2);
    let echo = Datagram {
        kind: DatagramKind::Echo,
        ..first(3)
    };
    mappings.insert(FlowId(3), &echo, Duration::from_secs(60), at(1000));
    mappings.sent(FlowId(1), remote(), (&[4; 28], 5), at(1010));
    for second in 1001..1100 {
        mappings.sent(FlowId(3), remote(), (&[8; 28], 5), at(second));
        mappings.heard(at(second));
    }

    // It would end first.
    assert_eq!(mappings.next_to_go(at(1100)), Some(FlowId(2)));
    mappings.remove(FlowId(2));
    assert_eq!(mappings.next_to_go(at(1100)), Some(FlowId(1)));
    mappings.remove(FlowId(1));
    assert_eq!(mappings.next_to_go(at(1100)), None);
    hear(&mut mappings, 1100, 1150);
    assert_eq!(mappings.next_to_go(at(1130)), Some(FlowId(3)));
    mappings.insert(FlowId(4), &first(4), IDLE, at(1130));
    assert_eq!(mappings.poll_timeout(), Some(at(1159)));
    mappings.heard(at(1159));
    assert_eq!(mappings.next_idle(at(1159)), Some(FlowId(3)));
}

#[test]
fn the_last_headers_to_a_few_remotes_are_kept() {
    let mut mappings = with(1);
    let remotes: Vec<SocketAddr> = (1..=5).map(|port| (remote().ip(), port).into()).collect();
    for (headers, remote) in (1..).zip(&remotes) {
        mappings.sent(FlowId(1), *remote, (&[headers; 28], 5), at(1001));
    }
    mappings.sent(FlowId(1), remotes[1], (&[9; 48], 5), at(1001));

    let mapping = mappings.get(FlowId(1)).unwrap();
    assert_eq!(mapping.quote(remotes[0]), None);
    assert_eq!(mapping.quote(remotes[1]), Some(&[9; 48][..]));
    assert_eq!(mapping.quote(remotes[4]), Some(&[5; 28][..]));
}

#[test]
fn nothing_is_kept_of_what_has_ended() {
    let mut mappings = with(3);
    mappings.leave(FlowId(2), (EndedBy::Client, HowEnded::Idle));

    let end = (EndedBy::User, HowEnded::Disconnected);
    let ended = mappings.drain(end);

    assert_eq!(ended.len(), 3);
    assert_eq!(mappings.kept(), 0);
}

/// A tunnel of another program may use the port of name servers.
#[test]
fn who_does_not_only_ask_for_names_is_kept_as_long_as_ever() {
    let mut mappings = with(2);
    for _ in 0..17 {
        mappings.sent(FlowId(1), remote(), (&[4; 28], 5), at(1000));
        mappings.received(FlowId(1), 6, at(1000));
    }
    mappings.sent(FlowId(2), remote(), (&[4; 28], 5), at(1000));
    mappings.received(FlowId(2), 6, at(1000));
    mappings.received(FlowId(2), 6, at(1000));
    mappings.heard(at(1029));
    assert_eq!(mappings.next_to_go(at(1029)), None);
    assert_eq!(mappings.next_idle(at(1029)), None);
}

#[test]
fn a_mapping_whose_questions_are_answered_makes_room_soon_and_no_other() {
    let mut mappings = with(3);
    let elsewhere: SocketAddr = "192.0.2.53:123".parse().unwrap();
    for id in 1..=3 {
        let to = if id == 3 { elsewhere } else { remote() };
        mappings.sent(FlowId(id), to, (&[4; 28], 5), at(1000));
    }
    // The first asks for two kinds of address, and has one so far.
    mappings.sent(FlowId(1), remote(), (&[4; 28], 5), at(1000));
    mappings.received(FlowId(1), 6, at(1000));
    mappings.received(FlowId(2), 6, at(1000));
    mappings.received(FlowId(3), 6, at(1000));
    assert_eq!(mappings.next_to_go(at(1001)), None);
    assert_eq!(mappings.next_to_go(at(1002)), Some(FlowId(2)));
    mappings.received(FlowId(1), 6, at(1003));
    assert_eq!(mappings.next_to_go(at(1003)), Some(FlowId(1)));

    // Who asks again waits again.
    mappings.sent(FlowId(1), remote(), (&[4; 28], 5), at(1003));
    mappings.sent(FlowId(2), remote(), (&[4; 28], 5), at(1003));
    assert_eq!(mappings.next_to_go(at(1020)), None);
    mappings.received(FlowId(2), 6, at(1003));
    mappings.heard(at(1022));
    assert_eq!(mappings.next_idle(at(1022)), None);
    mappings.heard(at(1023));
    assert_eq!(mappings.next_idle(at(1023)), Some(FlowId(2)));
    mappings.remove(FlowId(2));
    assert_eq!(mappings.next_idle(at(1023)), None);
    assert_eq!(mappings.kept(), 2);
}
