//! A daemon that is killed and started again: connections end honestly, and new ones work.

use std::io::{self, Read as _};
use std::time::Duration;

use nix::sys::signal::Signal;
use tund_tests::lab::{Family, Settings, wait};

use crate::support::{Echo, LATER, LONG, SOON, Scene, figure};

/// Within which everything is as it should be after a restart.
const BACK: Duration = Duration::from_secs(2);

#[test]
fn a_killed_server_resets_every_connection_on_its_return_and_new_ones_work() {
    let mut scene = Scene::new("kill -9 of the server", &Settings::new());
    let mut echoes: Vec<_> = (0..10).map(|_| scene.echo()).collect();
    let old = scene.tund.client.status().session_id;

    scene.tund.server.process.kill();
    scene.tund.server.start_again(&scene.lab);
    let back = wait::now();

    for echo in &mut echoes {
        let error = echo.stream.read_exact(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    assert!(wait::now() - back < BACK, "{:?}", wait::now() - back);
    Echo::open(&scene.lab.client, scene.target()).unwrap();
    let took = wait::now() - back;
    figure(&format!("server killed: new connections after {took:?}"));
    assert!(took < BACK, "{took:?}");
    let new = scene.tund.client.wait_attached(SOON).session_id;
    assert!(new.is_some() && new != old, "{old:?} then {new:?}");
}

#[test]
fn a_killed_client_finds_its_device_again_and_new_connections_work() {
    let mut scene = Scene::new("kill -9 of the client", &Settings::new());
    let mut echo = scene.echo();
    let old = scene.tund.client.status().session_id.expect("a session");

    scene.tund.client.process.kill();
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
    scene.tund.client.start_again(&scene.lab);
    let back = wait::now();

    Echo::open(&scene.lab.client, scene.target()).unwrap();
    let took = wait::now() - back;
    figure(&format!("client killed: new connections after {took:?}"));
    assert!(took < BACK, "{took:?}");
    wait::until_true("the server's old session is gone", LATER, || {
        let rows = scene.tund.server.sessions().unwrap();
        rows.len() == 1 && rows[0]["session_id"] != old.as_str()
    });
    assert!(
        echo.round_trip().is_err(),
        "a connection of the killed daemon does not go on"
    );
}

#[test]
fn a_server_that_ends_in_order_says_so_to_everybody() {
    let mut scene = Scene::new("sigterm of the server", &Settings::new());
    let mut echo = scene.echo();

    let status = scene.tund.server.process.terminate(LATER);

    assert!(status.success(), "{status:?}");
    let error = echo.stream.read_exact(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    scene.tund.server.start_again(&scene.lab);
    scene.echo();
}

/// Who still waits for its origin is no part of the session that ends: it was told ECONNREFUSED.
#[test]
fn a_connection_that_still_waits_at_an_orderly_restart_is_made_by_the_next_start() {
    let mut scene = Scene::new("waiting at a restart", &Settings::new());
    let mut echo = scene.echo();
    scene.lab.origin.nft(
        "table inet silent {
            chain input {
                type filter hook input priority 0;
                tcp dport 9100 drop;
            }
        }",
    );
    let _listener = scene.lab.origin.listen(9100);
    let to = scene.lab.origin_address(Family::V4, 9100);
    let waiting = scene.lab.client.connect_slowly(to).unwrap();
    wait::until_true("the server asks the origin", LATER, || {
        scene.tund.client.status().flows.tcp == 2
    });

    assert!(scene.tund.server.process.terminate(LATER).success());
    let error = echo.stream.read_exact(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    scene.tund.server.start_again(&scene.lab);
    let back = wait::now();
    scene.lab.origin.nft("delete table inet silent\n");

    let refused = wait::until("it is connected", LATER, || {
        let error = waiting.take_error().unwrap();
        (error.is_some() || waiting.peer_addr().is_ok()).then_some(error)
    });
    assert!(refused.is_none(), "{refused:?}");
    let took = wait::now() - back;
    figure(&format!(
        "who waited at a restart: connected after {took:?}"
    ));
}

#[test]
fn a_killed_server_during_an_outage_is_found_out_afterwards() {
    let mut scene = Scene::new("restart in an outage", &Settings::new());
    let mut echo = scene.echo();
    scene.lab.cut();
    scene.lab.forget();
    scene.tund.server.process.kill();
    scene.tund.server.start_again(&scene.lab);

    scene.lab.heal();

    let error = echo.round_trip().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    scene.echo();
}

#[test]
#[ignore = "long: the server waits 35 s before it gives a session up"]
fn long_how_a_session_ended_is_told_over_a_restart() {
    let mut scene = Scene::new("tombstones", &Settings::new().grace("5s"));
    let mut echo = scene.echo();
    // It sleeps, and so neither notices the outage nor lets its own grace pass.
    scene.tund.client.process.signal(Signal::SIGSTOP);
    scene.lab.cut();
    wait::until_true("the server has given the session up", LONG, || {
        scene
            .tund
            .server
            .sessions()
            .is_ok_and(|rows| rows.is_empty())
    });
    let file = scene.lab.directory().join("server-state/tombstones");
    wait::until_true("its end is written down", SOON, || {
        std::fs::metadata(&file).is_ok_and(|data| data.len() > 8)
    });
    scene.tund.server.process.kill();
    scene.tund.server.start_again(&scene.lab);

    scene.lab.heal();
    scene.tund.client.process.signal(Signal::SIGCONT);

    let error = echo.stream.read_exact(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let log = scene.tund.server.process.log();
    assert!(log.contains("turned away reason=Expired"), "{log}");
    scene.echo();
}

#[test]
fn a_server_without_a_directory_for_its_state_says_so_and_runs() {
    let settings = Settings::new().server("state", "directory", "\"/proc/tund\"");
    let mut scene = Scene::new("no state directory", &settings);
    scene.echo();
    let log = scene.tund.server.process.log();
    assert!(log.contains("cannot keep state in /proc/tund"), "{log}");
    assert!(
        log.contains("[state] directory"),
        "it says what to do: {log}"
    );

    scene.tund.server.process.kill();
    scene.tund.server.start_again(&scene.lab);

    scene.echo();
}

#[test]
fn a_journal_that_a_crash_has_cut_short_or_another_program_wrote_stops_no_server() {
    let mut scene = Scene::new("damaged state", &Settings::new());
    let file = scene.lab.directory().join("server-state/tombstones");
    for (content, told) in [
        (&b"tundlog\x01\x40\0\0\0torn"[..], "cut short by a crash"),
        (&b"something else"[..], "moved to"),
    ] {
        assert!(scene.tund.server.process.terminate(LATER).success());
        std::fs::write(&file, content).unwrap();

        scene.tund.server.start_again(&scene.lab);

        let log = scene.tund.server.process.log();
        assert!(log.contains(told), "{log}");
        scene.echo();
    }
    let aside = std::fs::read(file.with_extension("unreadable")).unwrap();
    assert_eq!(aside, b"something else");
}
