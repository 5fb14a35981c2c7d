//! When attempts start, overlap, wait and are given up.

use super::*;

const WIFI: PathId = PathId {
    interface: 2,
    address: 0,
};

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn started(orders: &[DialOrder]) -> usize {
    orders
        .iter()
        .filter(|order| matches!(order, DialOrder::Start(..)))
        .count()
}

#[test]
fn attempts_overlap_every_half_second_and_one_old_one_is_kept() {
    let mut dialer = Dialer::new(1);
    let mut orders = Vec::new();
    dialer.want(Want::Link, at(0), &mut Vec::new());
    let mut most = 0;
    for tick in 0..100 {
        let now = at(tick * 100);
        dialer.handle_timeout(now, &mut orders);
        if dialer.is_look_due(now) {
            dialer.paths(&[WIFI], now, &mut orders);
        }
        most = most.max(dialer.attempts.len());
    }

    assert_eq!(started(&orders), 20);
    assert_eq!(most, UNANSWERED);
    assert_eq!(dialer.attempts.keys().next(), Some(&LinkId(1)));
}

#[test]
fn answered_attempts_are_not_displaced_and_four_are_enough() {
    let mut dialer = Dialer::new(1);
    let mut orders = Vec::new();
    dialer.want(Want::Link, at(0), &mut Vec::new());
    for tick in 0..20 {
        dialer.paths(&[WIFI], at(tick * 500), &mut orders);
        (1..=tick + 1).for_each(|link| dialer.answered(LinkId(link), at(tick * 500), &mut orders));
    }

    assert_eq!(started(&orders), ANSWERED);
    assert!(
        !orders
            .iter()
            .any(|order| matches!(order, DialOrder::GiveUp(_)))
    );
    dialer.handle_timeout(at(14_999), &mut orders);
    assert!(
        !orders
            .iter()
            .any(|order| matches!(order, DialOrder::GiveUp(_)))
    );
    dialer.handle_timeout(at(15_000), &mut orders);
    assert!(orders.contains(&DialOrder::GiveUp(LinkId(1))));
}

#[test]
fn a_server_that_answers_late_is_not_dialled_twice_within_two_seconds() {
    let mut dialer = Dialer::new(1);
    let mut orders = Vec::new();
    dialer.want(Want::Link, at(0), &mut Vec::new());
    dialer.paths(&[WIFI], at(0), &mut orders);
    dialer.answered(LinkId(1), at(0), &mut Vec::new());

    dialer.paths(&[WIFI], at(1999), &mut orders);
    assert_eq!(started(&orders), 1);
    dialer.paths(&[WIFI], at(2000), &mut orders);
    assert_eq!(started(&orders), 2);
}

#[test]
fn a_hint_is_believed_for_minutes_and_not_for_days() {
    let mut dialer = Dialer::new(1);
    dialer.want(Want::Link, at(0), &mut Vec::new());
    dialer.wait(Some(Duration::from_secs(100_000)), at(0));

    assert!(!dialer.is_look_due(at(299_000)));
    assert!(dialer.is_look_due(at(450_000)));
}

#[test]
fn nothing_is_dialled_that_nobody_wants() {
    let mut dialer = Dialer::new(1);
    let mut orders = Vec::new();

    assert!(!dialer.is_look_due(at(1000)));
    dialer.paths(&[WIFI], at(1000), &mut orders);

    assert!(orders.is_empty());
    assert_eq!(dialer.poll_timeout(), None);
}

#[test]
fn without_a_path_nothing_is_looked_for_before_there_are_news() {
    let mut dialer = Dialer::new(7);
    dialer.want(Want::Link, at(0), &mut Vec::new());
    assert!(dialer.is_look_due(at(0)));
    dialer.paths(&[], at(0), &mut Vec::new());

    assert!(!dialer.is_look_due(at(59_999)));
    assert!(dialer.is_look_due(at(60_000)));
    dialer.paths(&[], at(60_000), &mut Vec::new());
    dialer.news(at(60_001));
    assert!(!dialer.is_look_due(at(60_049)));
    assert!(dialer.is_look_due(at(60_050)));
}

#[test]
fn a_further_link_is_tried_ever_less_often_and_on_its_paths_only() {
    let other = PathId {
        interface: 3,
        address: 0,
    };
    let mut dialer = Dialer::new(7);
    let mut orders = Vec::new();
    dialer.want(Want::Further(vec![other]), at(0), &mut orders);
    for tick in 0..3000 {
        let now = at(tick * 100);
        dialer.handle_timeout(now, &mut orders);
        if dialer.is_look_due(now) {
            dialer.paths(&[WIFI, other], now, &mut orders);
        }
    }

    // 1 + 2 + 4 + … + 32 s, and then every minute or so.
    assert!((7..=11).contains(&started(&orders)), "{}", started(&orders));
    let on = |order: &DialOrder| match order {
        DialOrder::Start(_, path) => *path == other,
        DialOrder::GiveUp(_) => true,
    };
    assert!(orders.iter().all(on), "{orders:?}");
}

#[test]
fn attempts_by_paths_that_are_not_wanted_any_more_are_given_up() {
    let mut dialer = Dialer::new(7);
    let mut orders = Vec::new();
    dialer.want(Want::Link, at(0), &mut orders);
    dialer.paths(&[WIFI], at(0), &mut orders);

    dialer.want(Want::Further(vec![WIFI]), at(1), &mut orders);
    assert!(!orders.contains(&DialOrder::GiveUp(LinkId(1))));
    dialer.want(Want::Nothing, at(2), &mut orders);

    assert!(orders.contains(&DialOrder::GiveUp(LinkId(1))));
    assert_eq!(dialer.poll_timeout(), None);
}

#[test]
fn an_old_outage_is_tried_less_often() {
    let mut dialer = Dialer::new(7);
    dialer.want(Want::Link, at(0), &mut Vec::new());
    let mut looks = 0;
    for tick in 0..600 {
        looks += usize::from(dialer.is_look_due(at(300_000 + tick * 100)));
    }
    assert!((5..40).contains(&looks), "{looks} in a minute");
}

/// The server held the old link suspect when RESUME came, and buried it; the client had heard of the
/// old one meanwhile, gave the new one up, and had none.
#[test]
fn an_attempt_is_not_given_up_once_the_server_has_been_asked() {
    for (want, kept) in [
        (Want::Nothing, vec![LinkId(1)]),
        (Want::Further(Vec::new()), vec![LinkId(1)]),
        (Want::Link, vec![LinkId(1), LinkId(2)]),
    ] {
        let mut dialer = Dialer::new(1);
        let mut orders = Vec::new();
        dialer.want(Want::Link, at(0), &mut orders);
        dialer.paths(&[WIFI], at(0), &mut orders);
        dialer.paths(&[WIFI], at(500), &mut orders);
        dialer.committed(LinkId(1));

        dialer.want(want.clone(), at(600), &mut orders);

        let left: Vec<LinkId> = dialer.attempts.keys().copied().collect();
        assert_eq!(left, kept, "{want:?}");
        dialer.give_up_all(&mut orders);
        assert!(dialer.attempts.is_empty());
    }
}

/// A stream that moved to a link that was back stalled for 90 ms: its SYN had been sent three times,
/// and its connection began with one segment.
#[test]
fn a_further_link_begins_with_a_fresh_syn() {
    let mut orders = Vec::new();
    for (want, answered_at, is_replaced) in [
        (Want::Further(vec![WIFI]), 1_999, false),
        (Want::Further(vec![WIFI]), 2_000, true),
        (Want::Link, 2_000, false),
    ] {
        let mut dialer = Dialer::new(1);
        dialer.want(want, at(0), &mut orders);
        dialer.paths(&[WIFI], at(0), &mut orders);
        orders.clear();

        dialer.answered(LinkId(1), at(answered_at), &mut orders);

        if !is_replaced {
            assert!(orders.is_empty());
            continue;
        }
        let fresh = DialOrder::Start(LinkId(2), WIFI);
        assert_eq!(orders, [DialOrder::GiveUp(LinkId(1)), fresh]);
        orders.clear();
        dialer.answered(LinkId(2), at(answered_at + 3_000), &mut orders);
        assert!(orders.is_empty(), "a slow path answers no sooner");
    }
}
