//! Every way in which a connection can end or not begin is seen by the other end as what it was.

use std::io::{self, Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use tund_tests::lab::{
    Ending, Family, Pattern, Report, Settings, Timeline, ending_of, read_pattern, wait,
    write_pattern,
};

use crate::support::{
    LATER, LONG, SOON, Scene, figure, reset, wait_until_acknowledged, write_until_blocked,
};

const PORT: u16 = 9000;
const LENGTH: u64 = 3_000_000;

/// A connection of an application to a listener on the origin, through tund.
fn pair(scene: &Scene, family: Family) -> (TcpStream, TcpStream, TcpListener) {
    let listener = scene.lab.origin.listen(PORT);
    let near = scene
        .lab
        .client
        .connect(scene.lab.origin_address(family, PORT), LATER)
        .unwrap();
    let (far, _) = listener.accept().unwrap();
    (near, far, listener)
}

/// A reader that takes 64 KiB at a time with a pause between.
struct Slow(TcpStream);

impl Read for Slow {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        wait::let_pass(Duration::from_millis(10));
        let most = buf.len().min(64 << 10);
        self.0.read(&mut buf[..most])
    }
}

fn send(stream: &TcpStream, seed: u64) {
    write_pattern(stream, Pattern::new(seed), LENGTH, &AtomicU64::new(0)).unwrap();
}

fn receive(stream: impl Read, seed: u64) -> Report {
    read_pattern(stream, Pattern::new(seed), &Timeline::new())
}

#[test]
fn a_closed_port_refuses_at_once() {
    let scene = Scene::new("closed port", &Settings::new());
    drop(scene.echo());

    for family in [Family::V4, Family::V6] {
        let start = wait::now();
        let error = scene
            .lab
            .client
            .connect(scene.lab.origin_address(family, 9), SOON)
            .unwrap_err();
        let took = wait::now() - start;

        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        figure(&format!("closed port, {family:?}: refused after {took:?}"));
        assert!(took < Duration::from_millis(100), "{took:?}");
    }
    scene.wait_without_flows();
}

#[test]
fn a_black_hole_stays_silent_and_leaves_nothing() {
    let scene = Scene::new("black hole", &Settings::new());
    drop(scene.echo());
    scene.lab.origin.nft(
        "table inet hole { chain in { type filter hook input priority 0; tcp dport 9000 drop; }; }",
    );

    let to = scene.lab.origin_address(Family::V4, PORT);
    let error = scene
        .lab
        .client
        .connect(to, Duration::from_secs(2))
        .unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    scene.wait_without_flows();
    wait::until_true("the server's dial is cancelled", LATER, || {
        scene.lab.server.run("ss -Htan dport = :9000").is_empty()
    });
}

#[test]
fn an_unreachable_host_is_told_as_that() {
    let scene = Scene::new("unreachable", &Settings::new());
    drop(scene.echo());
    scene
        .lab
        .router
        .run("ip route add unreachable 10.77.4.66/32");
    scene.lab.client.run("ip route add 10.77.4.66/32 dev tund0");

    let to = "10.77.4.66:80".parse().unwrap();
    let error = scene.lab.client.connect(to, LATER).unwrap_err();

    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        ),
        "{error:?}"
    );
}

#[test]
fn an_origin_that_answers_after_half_close_is_heard() {
    for family in [Family::V4, Family::V6] {
        let scene = Scene::new("half-close up", &Settings::new());
        let (near, far, _listener) = pair(&scene, family);
        let replying = thread::spawn(move || {
            let report = receive(&far, 1);
            send(&far, 2);
            report
        });

        send(&near, 1);
        near.shutdown(Shutdown::Write).unwrap();
        receive(&near, 2).assert_intact(LENGTH);

        replying.join().unwrap().assert_intact(LENGTH);
    }
}

#[test]
fn an_application_that_answers_after_half_close_is_heard() {
    let scene = Scene::new("half-close down", &Settings::new());
    let (near, far, _listener) = pair(&scene, Family::V4);
    let replying = thread::spawn(move || {
        let report = receive(&near, 1);
        send(&near, 2);
        report
    });

    send(&far, 1);
    far.shutdown(Shutdown::Write).unwrap();
    receive(&far, 2).assert_intact(LENGTH);

    replying.join().unwrap().assert_intact(LENGTH);
    scene.wait_without_flows();
}

#[test]
fn a_half_close_lasts_through_an_outage() {
    let scene = Scene::new("half-close and outage", &Settings::new());
    let (near, far, _listener) = pair(&scene, Family::V4);
    send_in_background(near.try_clone().unwrap());
    receive(&far, 1).assert_intact(LENGTH);

    scene.lab.forget();
    send(&far, 2);
    far.shutdown(Shutdown::Write).unwrap();

    receive(&near, 2).assert_intact(LENGTH);
}

fn send_in_background(stream: TcpStream) {
    drop(thread::spawn(move || {
        send(&stream, 1);
        stream.shutdown(Shutdown::Write).unwrap();
    }));
}

#[test]
fn all_bytes_before_an_origins_reset_arrive_and_then_the_reset() {
    let scene = Scene::new("reset down", &Settings::new());
    let (near, far, _listener) = pair(&scene, Family::V4);
    let reader = thread::spawn(move || receive(Slow(near), 1));

    send(&far, 1);
    wait_until_acknowledged(&scene.lab.origin, far.local_addr().unwrap());
    reset(far);

    reader.join().unwrap().assert_reset_after(LENGTH);
}

#[test]
fn all_bytes_before_an_applications_reset_arrive_and_then_the_reset() {
    let scene = Scene::new("reset up", &Settings::new());
    let (near, far, _listener) = pair(&scene, Family::V4);
    let reader = thread::spawn(move || receive(Slow(far), 1));

    send(&near, 1);
    wait_until_acknowledged(&scene.lab.client, near.local_addr().unwrap());
    reset(near);

    reader.join().unwrap().assert_reset_after(LENGTH);
    scene.wait_without_flows();
}

#[test]
fn a_reset_during_an_outage_arrives_after_it_with_all_before_it() {
    let scene = Scene::new("reset in outage", &Settings::new());
    let (near, far, _listener) = pair(&scene, Family::V4);
    scene.lab.cut();
    scene.lab.forget();

    send(&near, 1);
    wait_until_acknowledged(&scene.lab.client, near.local_addr().unwrap());
    reset(near);
    wait::let_pass(Duration::from_secs(1));
    scene.lab.heal();

    receive(far, 1).assert_reset_after(LENGTH);
}

/// Reads to the end of a connection that has one.
fn end_of(mut stream: TcpStream) -> Ending {
    loop {
        match stream.read(&mut [0; 65536]) {
            Ok(0) => return Ending::Finished,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return ending_of(&error),
        }
    }
}

/// Nothing of a flow is left at either daemon.
#[track_caller]
fn wait_until_forgotten(scene: &Scene) {
    scene.wait_without_flows();
    wait::until_true("nothing is left on the server either", LATER, || {
        let rows = scene.tund.server.sessions().unwrap();
        let is_empty = |row: &serde_json::Value| {
            row["flows"]["tcp"] == 0
                && row["buffered_bytes"]["up"] == 0
                && row["buffered_bytes"]["down"] == 0
        };
        rows.iter().all(is_empty) && scene.lab.server.run("ss -Htan dport = :9000").is_empty()
    });
    let held = scene.tund.client.status().buffered_bytes;
    assert_eq!((held.up, held.down), (0, 0));
}

#[test]
fn a_stuck_application_does_not_hold_a_reset_for_ever() {
    // What the client daemon accepts for it, and more than all buffers between take.
    for length in [100_000, 3_000_000] {
        let scene = Scene::new("stuck application", &Settings::new());
        scene.lab.client.sysctl("ipv4.tcp_rmem", "4096 65536 65536");
        let (near, far, _listener) = pair(&scene, Family::V4);
        write_until_blocked(&far, length);

        reset(far);

        let filter = format!("ss -Htan sport = :{}", near.local_addr().unwrap().port());
        wait::until_true("the application's connection is reset", LATER, || {
            scene.lab.client.run(&filter).is_empty()
        });
        assert_eq!(end_of(near), Ending::Reset);
        wait_until_forgotten(&scene);
    }
}

#[test]
fn a_stuck_origin_does_not_hold_a_reset_for_ever() {
    for length in [300_000, 3_000_000] {
        let scene = Scene::new("stuck origin", &Settings::new());
        scene.lab.origin.sysctl("ipv4.tcp_rmem", "4096 65536 65536");
        let (near, far, _listener) = pair(&scene, Family::V4);
        write_until_blocked(&near, length);

        reset(near);

        wait::until_true("the origin's connection is reset", LATER, || {
            scene.lab.origin.run("ss -Htn sport = :9000").is_empty()
        });
        assert_eq!(end_of(far), Ending::Reset);
        wait_until_forgotten(&scene);
    }
}

#[test]
fn a_user_who_disconnects_ends_every_connection_and_may_begin_again() {
    let scene = Scene::new("disconnect", &Settings::new());
    let (mut near, mut far, _listener) = pair(&scene, Family::V4);
    near.write_all(b"x").unwrap();
    far.read_exact(&mut [0]).unwrap();

    scene.tund.client.command(&["disconnect"]).unwrap();

    for end in [&mut near, &mut far] {
        end.set_read_timeout(Some(SOON)).unwrap();
        let error = end.read_exact(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let status = scene.tund.client.wait_for("ready", SOON);
    assert_eq!(status.session_id, None);
    wait::until_true("the server has destroyed the session", SOON, || {
        scene
            .tund
            .server
            .sessions()
            .is_ok_and(|rows| rows.is_empty())
    });
    scene.echo();
}

#[test]
fn a_terminated_client_resets_its_connections_and_keeps_the_device() {
    let mut scene = Scene::new("sigterm", &Settings::new());
    let (mut near, mut far, _listener) = pair(&scene, Family::V4);

    let status = scene.tund.client.process.terminate(LONG);

    assert!(status.success(), "{status:?}");
    for end in [&mut near, &mut far] {
        end.set_read_timeout(Some(LATER)).unwrap();
        let error = end.read_exact(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    assert!(
        scene
            .lab
            .client
            .run("ip addr show dev tund0")
            .contains("10.111.0.2/32")
    );
    assert!(
        scene
            .lab
            .client
            .run("ip route show dev tund0")
            .contains("10.77.4.2")
    );
}
