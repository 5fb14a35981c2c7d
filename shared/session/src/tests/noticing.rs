//! When a link that says nothing any more is held suspect.

use super::pair::{CLIENT, Pair, SERVER};
use super::*;

#[test]
fn a_silent_cut_is_noticed_in_little_over_a_second() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.seconds(70);
    pair.events.iter_mut().for_each(VecDeque::clear);

    pair.cut = true;
    pair.write(CLIENT, flow, 10);
    pair.run();
    pair.seconds(1);
    assert!(!pair.saw(CLIENT, &Event::Detached));
    pair.seconds(1);
    assert!(pair.saw(CLIENT, &Event::Detached));
}

/// It had begun with the PING, a second later than at the application.
#[test]
fn an_outage_begins_with_the_first_frame_that_nobody_answers() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.seconds(10);
    let cut_at = pair.now;
    pair.cut = true;
    pair.write(CLIENT, flow, 10);
    pair.run();

    pair.seconds(3);

    assert_eq!(pair.ends[CLIENT].detached_since(), Some(cut_at));
}

#[test]
fn a_kernel_that_hears_of_the_peer_vouches_for_a_slow_link() {
    for (heard_ms, vouches) in [(749, true), (750, false)] {
        let mut pair = Pair::new();
        let flow = pair.open_accepted();
        pair.cut = true;
        pair.heard_ago = Some(Duration::from_millis(heard_ms));
        pair.write(CLIENT, flow, 10);
        pair.run();

        pair.seconds(20);

        assert_eq!(pair.ends[CLIENT].is_attached(), vouches, "{heard_ms}");
    }
}

#[test]
fn an_end_that_measured_a_queue_believes_its_kernel_how_long_an_answer_takes() {
    for (round_trip_ms, is_attached) in [(None, true), (Some(200), false), (Some(700), true)] {
        let mut pair = Pair::new();
        let flow = pair.open_accepted();
        pair.answer_late(SERVER, Duration::from_millis(700));
        pair.cut = true;
        pair.round_trip = round_trip_ms.map(Duration::from_millis);
        pair.write(SERVER, flow, 10);
        pair.run();

        pair.tenths(15);

        assert_eq!(
            pair.ends[SERVER].is_attached(),
            is_attached,
            "{round_trip_ms:?}"
        );
    }
}

impl Pair {
    /// A PING of that end is answered after so long: 4 × RTTVAR is as much from then on.
    fn answer_late(&mut self, end: usize, after: Duration) {
        let link = self.links[0];
        let mut out = Outbox::new();
        self.ends[end].probe(self.now);
        assert!(self.ends[end].poll_transmit(link, 60_000, &mut out, self.now));
        self.now = self.now + after;
        self.ends[1 - end].handle_bytes(link, out.to_vec().into(), self.now);
        self.run();
    }
}

/// A download had filled the socket when its device lost the address: reading on made the link
/// look alive, nothing was dialled meanwhile, and one outage was counted as two.
#[test]
fn what_is_read_from_a_lost_link_does_not_speak_for_it() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.write(SERVER, flow, 5000);
    let mut out = Outbox::new();
    pair.ends[SERVER].poll_transmit(pair.links[0], 60_000, &mut out, pair.now);

    pair.ends[CLIENT].handle_link_lost(pair.links[0], pair.now);
    pair.ends[CLIENT].handle_bytes(pair.links[0], out.to_vec().into(), pair.now);

    assert!(!pair.ends[CLIENT].is_attached());
    assert_eq!(pair.read(CLIENT, flow), 5000, "nothing of it is lost");

    pair.ends[CLIENT].handle_link_found(pair.links[0], pair.now);
    assert!(!pair.ends[CLIENT].is_attached(), "nobody was heard yet");
    pair.run();
    assert!(pair.ends[CLIENT].is_attached());
}

impl Pair {
    /// What the server writes comes through, and nothing the other way.
    fn hear_the_server(&mut self, flow: FlowId) {
        self.write(SERVER, flow, 10);
        let mut out = Outbox::new();
        self.ends[SERVER].poll_transmit(self.links[0], 60_000, &mut out, self.now);
        self.ends[CLIENT].handle_bytes(self.links[0], out.to_vec().into(), self.now);
    }

    fn client_kernel_says(&mut self, bytes_acked: u64) {
        let progress = Progress {
            bytes_acked,
            ..Progress::default()
        };
        self.ends[CLIENT].handle_progress(self.links[0], progress, self.now);
    }
}

/// After an upload was cut, the server's kernel sent again first, and the client took the old link
/// for sound and gave its attempts up; its own kernel sent again two seconds later.
#[test]
fn who_is_heard_again_may_hear_nothing_yet() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.cut = true;
    pair.write(CLIENT, flow, 10);
    pair.run();
    pair.seconds(3);
    assert!(!pair.ends[CLIENT].is_attached());
    pair.events.iter_mut().for_each(VecDeque::clear);

    pair.hear_the_server(flow);
    assert!(!pair.ends[CLIENT].is_attached());
    let since = pair.ends[CLIENT].detached_since();
    assert_eq!(since, Some(pair.now), "grace runs from the last frame");
    let link = pair.links[0];
    pair.run();
    assert!(pair.saw(CLIENT, &Event::WantProgress { link }));
    pair.client_kernel_says(0);
    assert!(!pair.ends[CLIENT].is_attached());
    pair.client_kernel_says(1);
    assert!(pair.ends[CLIENT].is_attached());
}

#[test]
fn a_link_that_only_brings_is_sound_once_it_brings_something() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.cut = true;
    pair.ends[CLIENT].probe(pair.now);
    pair.run();
    pair.seconds(3);
    assert!(!pair.ends[CLIENT].is_attached());

    pair.hear_the_server(flow);

    assert!(pair.ends[CLIENT].is_attached());
}

#[test]
fn an_answered_ping_shows_that_a_link_works_both_ways() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.write(CLIENT, flow, 10);
    pair.ends[CLIENT].probe(pair.now);
    let mut delayed = Outbox::new();
    pair.ends[CLIENT].poll_transmit(pair.links[0], 60_000, &mut delayed, pair.now);
    pair.cut = true;
    pair.seconds(3);
    assert!(!pair.ends[CLIENT].is_attached());

    pair.cut = false;
    pair.ends[SERVER].handle_bytes(pair.links[0], delayed.to_vec().into(), pair.now);
    pair.run();

    assert!(pair.ends[CLIENT].is_attached());
}

/// It was asked again only after as long as a PONG may take, twice that of a download at its end.
#[test]
fn a_kernel_is_asked_again_when_it_has_heard_nothing_for_long_enough() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.answer_late(CLIENT, Duration::from_millis(4000));
    pair.cut = true;
    pair.heard_ago = Some(Duration::from_millis(650));
    pair.write(CLIENT, flow, 10);
    pair.run();
    pair.seconds(5);
    let next_look = |pair: &Pair| pair.ends[CLIENT].poll_timeout().map(|(at, _)| at);
    while next_look(&pair).is_some_and(|at| at > pair.now + Duration::from_millis(100)) {
        pair.tenths(1);
    }
    pair.tenths(1);
    assert!(pair.ends[CLIENT].is_attached());

    pair.heard_ago = Some(Duration::from_millis(750));
    pair.tenths(1);

    assert!(!pair.ends[CLIENT].is_attached());
}

#[test]
fn beside_a_link_that_answers_another_has_no_longer_than_usual() {
    for (second_answers, is_dead) in [(true, true), (false, false)] {
        let mut pair = Pair::new();
        pair.open_accepted();
        pair.answer_late(CLIENT, Duration::from_millis(700));
        pair.join();
        for link in pair.links.clone() {
            pair.ends[CLIENT].keep(link, true, pair.now);
        }
        pair.run();
        pair.seconds(1);
        let first = pair.links.remove(0);
        pair.cut = !second_answers;
        pair.ends[CLIENT].probe(pair.now);
        pair.run();

        for _ in 0..5 {
            pair.ends[CLIENT].handle_progress(first, Progress::default(), pair.now);
            pair.tenths(1);
            pair.ends[CLIENT].handle_progress(first, Progress::default(), pair.now);
        }

        let dead = Event::LinkDead {
            link: first,
            death: LinkDeath::Silent,
        };
        assert_eq!(pair.saw(CLIENT, &dead), is_dead, "{second_answers}");
    }
}
