//! What once went wrong: symptom, cause, and what would be seen without the fix.

use std::time::Duration;
use tund_session::wire::frame::{CloseCode, RejectReason};
use tund_session::{EndReason, FlowId};
use tund_tests::harness::world::{CLIENT, Knobs, SERVER, Who, World};

fn world() -> World {
    let mut world = World::calm(Knobs::ROOMY);
    world.story = Some(Vec::new());
    world
}

fn told(world: &World, what: &str) -> bool {
    let lines = world.story.as_deref().unwrap_or_default();
    lines.iter().any(|line| line.contains(what))
}

/// Two attempts overlap; the later-numbered one is answered, makes RETIRE and dies before RETIRE
/// is out; then the answer of the other comes. RETIRE went out on a link that it names itself:
/// the server saw a RETIRE of a link never confirmed, took it for a violation and ended a healthy
/// session.
#[test]
fn an_answer_behind_retire_of_its_own_link_ends_the_attempt_only() {
    let mut world = world();
    let unit = world.connect();
    world.lose(tund_session::LinkId(1));
    let older = world.dial().unwrap();
    let newer = world.dial().unwrap();
    for link in [older, newer] {
        world.transmit(link, CLIENT, 1);
        world.deliver(link, CLIENT, usize::MAX);
    }
    world.transmit(newer, SERVER, 1);
    world.deliver(newer, SERVER, usize::MAX);
    world.lose(newer);

    world.work(false);
    world.attach();

    world.demand();
    assert_eq!(world.socket(unit, CLIENT).write(5), 5);
    world.work(true);
    assert_eq!(world.socket(unit, SERVER).got, 5);
}

/// The application gives up while OPEN_ERR is on its way. OPEN_ERR counts as DONE from both, but
/// the owner was told neither FlowRefused nor FlowForgotten, and kept its books of that flow.
#[test]
fn a_cancelled_flow_that_is_refused_meanwhile_is_told_forgotten() {
    let mut world = world();
    world.connect();
    world.open(Duration::from_secs(60)).unwrap();
    world.run_links();
    let server = world.server();
    let Who::Server(id) = server else {
        unreachable!()
    };
    let flow = world.flows(server).pop().unwrap();
    world.answer(id, flow, true);

    world.socket(1, CLIENT).reset_by_app();
    world.pump(Who::Client, flow, 1);
    world.work(false);

    assert_eq!(world.flows(Who::Client).len(), 1);
}

/// The server has restarted, and the old link is silent instead of reset. Its suspicion did not
/// count as an outage, so RESUME_REJECT(restarted) did not count either: applications learned of
/// the restart a minute late, when the silent link was given up.
#[test]
fn a_suspect_link_does_not_keep_the_truth_from_applications() {
    let mut world = world();
    let unit = world.connect();
    world.silence(tund_session::LinkId(1));
    world.restart_server();
    world.socket(unit, CLIENT).write(5);
    world.work_for(Duration::from_secs(3));

    world.attach();

    let restarted = EndReason::Rejected(RejectReason::Restarted);
    assert!(told(&world, &format!("{restarted:?}")));
    assert!(world.socket(unit, CLIENT).is_reset());
}

/// A PING stays unanswered while other frames arrive; then all is silent. The outage was dated
/// back to that PING, before the last frame heard, and flows expired too early.
#[test]
fn no_outage_begins_before_the_last_frame() {
    let mut world = world();
    world.connect();
    let link = tund_session::LinkId(1);
    // PINGs get lost in a queue; what the server says by itself arrives late.
    world.pipes.get_mut(&link).unwrap().lanes[CLIENT].stalled = true;
    world.work_for(Duration::from_secs(20));
    assert!(told(&world, "Client: Detached"));
    world.socket(0, SERVER).write(5);
    world.work(false);
    assert!(told(&world, "Client: Reattached"));
    let heard = world.now;
    world.silence(link);

    world.work_for(Duration::from_secs(10));

    let since = world.client.as_ref().unwrap().session.detached_since();
    assert!(
        since.is_some_and(|since| since >= heard),
        "{since:?} {heard:?}"
    );
}

/// After a sleep a link owes a look at the kernel, and its death. Only the first was done, and the
/// deadline of the second lay in the past: a driver turned once more for nothing.
#[test]
fn after_a_sleep_no_deadline_lies_in_the_past() {
    let mut world = world();
    world.connect();
    world.silence(tund_session::LinkId(1));
    world.socket(0, CLIENT).write(5);
    world.work_for(Duration::from_millis(1100));

    world.sleep(Duration::from_secs(100));

    world.demand();
}

/// A user disconnects before the server has heard the first frame after WELCOME, and a new session
/// is made while that frame is still under way. When it came, it confirmed the old session, which
/// ended the new one: "all others of the key", not those made before it.
#[test]
fn a_session_that_is_confirmed_late_does_not_end_a_newer_one() {
    let mut world = world();
    world.open(Duration::from_secs(60)).unwrap();
    let old = world.dial().unwrap();
    world.transmit(old, CLIENT, 1);
    world.deliver(old, CLIENT, usize::MAX);
    world.transmit(old, SERVER, 1);
    world.deliver(old, SERVER, usize::MAX);
    world.close(CloseCode::Asked);

    world.open(Duration::from_secs(60)).unwrap();
    let new = world.dial().unwrap();
    world.transmit(new, CLIENT, 1);
    world.deliver(new, CLIENT, usize::MAX);
    world.transmit(new, SERVER, 1);
    world.deliver(new, SERVER, usize::MAX);
    world.deliver(old, CLIENT, usize::MAX);
    world.work(false);

    assert!(world.socket(1, CLIENT).connected);
    assert!(!told(&world, "Superseded"));
}

/// A writer finishes and resets, and its reader stands still with the last bit of credit used up.
/// RESET ended behind the FIN, which had no credit to go out; so "everything before it is here"
/// never came true, and the reset was held for as long as the reader stood still.
#[test]
fn a_fin_that_was_never_sent_does_not_hold_a_reset() {
    let mut world = World::calm(Knobs {
        buffer: [4096, 8],
        max_flows: [4, 4],
        ring: 3,
        ..Knobs::ROOMY
    });
    world.connect();
    world.socket(0, SERVER).stuck = true;
    for place in 1..20 {
        world.socket(0, CLIENT).write(1);
        world.work(false);
        if world.witness.granted(1, FlowId(1), SERVER) == place {
            break;
        }
    }
    assert_eq!(world.socket(0, CLIENT).inbound(), 0);

    world.socket(0, CLIENT).finish();
    world.work(false);
    world.socket(0, CLIENT).reset_by_app();
    world.work_for(Duration::from_secs(6));

    assert!(world.socket(0, SERVER).is_reset());
}
