//! Who may attach: keys that are listed, used once at a time, and nobody else.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use tund_tests::lab::{ClientDaemon, Download, Family, Keys, Settings, wait};

use crate::support::{Echo, LATER, SOON, Scene};

/// A second client that dials at once, in the router, where it disturbs nobody.
fn second_client(scene: &Scene, keys: &Keys, server_key: &str) -> ClientDaemon {
    let settings = Settings::new().client("link", "connect", "\"always\"");
    ClientDaemon::start(
        &scene.lab,
        &scene.lab.router,
        ("second", keys),
        server_key,
        &settings,
    )
}

#[test]
fn a_key_in_use_is_refused_to_the_second_and_the_first_is_untouched() {
    let scene = Scene::new("key in use", &Settings::new());
    let mut echo = scene.echo();
    let before = scene.tund.client.status();

    let second = second_client(
        &scene,
        &scene.tund.client_keys,
        &scene.tund.server_keys.public,
    );

    let status = second.wait_for("refused", LATER);
    let error = status.error.expect("refused for a reason");
    assert_eq!(error.code.to_lowercase(), "key_in_use", "{}", error.message);
    echo.round_trip().unwrap();
    let after = scene.tund.client.status();
    assert_eq!(after.session_id, before.session_id);
    assert_eq!(after.outages.count, before.outages.count);
}

#[test]
fn an_unlisted_key_is_refused_and_told_so() {
    let scene = Scene::new("unlisted key", &Settings::new());
    let stranger = Keys::generate(scene.lab.directory(), "stranger");

    let second = second_client(&scene, &stranger, &scene.tund.server_keys.public);

    let status = second.wait_for("refused", LATER);
    assert!(
        status.error.is_some() && status.session_id.is_none(),
        "{status:?}"
    );
}

#[test]
fn a_wrong_server_key_is_shown_and_never_final() {
    let scene = Scene::new("wrong server key", &Settings::new());
    let other = Keys::generate(scene.lab.directory(), "other");

    let second = second_client(&scene, &scene.tund.client_keys, &other.public);

    let error = wait::until("status shows the error", LATER, || second.status().error);
    assert_eq!(error.code, "server_key_mismatch", "{}", error.message);
    // Attempts go on, two a second.
    wait::throughout("it is not final", Duration::from_secs(2), || {
        second.status().state != "refused"
    });
    let log = second.process.log();
    let told = log.lines().filter(|line| line.contains("not our server"));
    assert_eq!(told.count(), 1, "{log}");
    assert!(scene.tund.server.sessions().unwrap().is_empty());
}

#[test]
fn a_key_taken_off_the_list_loses_everything_within_a_second() {
    let scene = Scene::new("a removed key", &Settings::new());
    let mut echo = scene.echo();

    scene.tund.server.unlist(&scene.tund.client_keys);

    wait::until_true("its session is gone", Duration::from_secs(1), || {
        scene.tund.server.sessions().unwrap().is_empty()
    });
    assert!(
        scene.lab.server.run("ss -Htn dport = :8080").is_empty(),
        "its origins are gone"
    );
    assert!(
        echo.round_trip().is_err(),
        "the application's connection is gone too"
    );
    // The next flow has the client ask again, and be told.
    drop(Download::start(&scene.lab.client, scene.target(), 1, 1));
    let status = scene.tund.client.wait_for("refused", LATER);
    assert!(status.error.is_some(), "refused for a reason");
}

#[test]
fn a_removed_key_whose_client_is_away_leaves_nothing_of_what_was_held_for_it() {
    let scene = Scene::new("a removed key, detached", &Settings::new());
    let size = 30 << 20;
    let download = Download::start(&scene.lab.client, scene.target(), 1, size);
    wait::until_true("it runs", LATER, || download.timeline().total() > 0);
    scene.lab.cut();
    scene.lab.forget();
    wait::until_true("the server holds what the origin sends", LATER, || {
        let rows = scene.tund.server.sessions().unwrap();
        rows[0]["state"] == "detached" && rows[0]["buffered_bytes"]["down"].as_u64() > Some(4 << 20)
    });

    scene.tund.server.unlist(&scene.tund.client_keys);

    wait::until_true(
        "session and buffers are gone",
        Duration::from_secs(1),
        || {
            let status = scene.tund.server.status().unwrap();
            status["sessions"]["detached"] == 0 && status["memory"]["used_bytes"] == 0
        },
    );
    assert!(
        scene.lab.server.run("ss -Htan dport = :8080").is_empty(),
        "its origins are gone"
    );
    scene.lab.heal();
    let status = scene.tund.client.wait_for("refused", LATER);
    assert_eq!(status.error.unwrap().code, "key_not_listed");
}

#[test]
fn a_reload_that_keeps_the_key_touches_nothing() {
    let scene = Scene::new("a reload", &Settings::new());
    let mut echo = scene.echo();

    scene.tund.server.process.signal(Signal::SIGHUP);
    scene.tund.client.process.signal(Signal::SIGHUP);

    wait::throughout("the flow works", Duration::from_secs(1), || {
        echo.round_trip().is_ok()
    });
    assert_eq!(scene.tund.client.status().outages.count, 0);
}

#[test]
fn random_bytes_and_silence_are_dropped_and_others_are_not_disturbed() {
    let scene = Scene::new("strangers", &Settings::new());
    let mut echo = scene.echo();
    let server = scene.lab.server_address(Family::V4);
    let stranger = |bytes: &[u8]| -> io::Result<TcpStream> {
        let mut stream = scene.lab.origin.connect(server, SOON)?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        stream.write_all(bytes)?;
        Ok(stream)
    };
    let rubbish: Vec<u8> = (0..9_999_u32)
        .map(|i| (i * 7 % 251).to_le_bytes()[0])
        .collect();
    // The beginning of a TLS record that announces a ClientHello and never goes on.
    let half_a_handshake = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

    let mut strangers = vec![
        stranger(&rubbish).unwrap(),
        stranger(&half_a_handshake).unwrap(),
        stranger(&[]).unwrap(),
    ];

    for stream in &mut strangers {
        // Closed or reset, but not kept beyond the 10 s before authentication.
        if let Err(error) = io::copy(stream, &mut io::sink()) {
            assert_ne!(
                error.kind(),
                io::ErrorKind::WouldBlock,
                "still open after 15 s"
            );
        }
        echo.round_trip().unwrap();
    }
}

/// Both listeners are woken in one turn of the server's loop and find no file to be had; each has to
/// look again by itself, as nothing wakes it for a connection that it knows of.
#[test]
fn every_address_is_served_again_after_a_shortage_of_files() {
    let listen = Settings::new().server("listen", "address", "[\"[::]:443\", \"[::]:444\"]");
    let scene = Scene::new("a shortage of files", &listen);
    let server = &scene.tund.server.process;
    let limit_files = |soft: &str| {
        let limit = format!("prlimit --pid {} --nofile={soft}:", server.pid());
        scene.lab.server.run(&limit);
    };
    server.signal(Signal::SIGSTOP);
    let mut visitors = [443, 444].map(|port| {
        let ip = scene.lab.server_address(Family::V4).ip();
        let stream = scene.lab.origin.connect((ip, port).into(), SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    });
    limit_files("3");
    server.signal(Signal::SIGCONT);
    wait::until_true("the server misses files", SOON, || {
        server.log().contains("accept failed")
    });

    limit_files("1024");

    for (number, stream) in visitors.iter_mut().enumerate() {
        stream.write_all(b"no handshake at all\r\n").unwrap();
        let end = stream.read(&mut [0; 100]);
        let closed = match &end {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        };
        assert!(closed, "address {number} takes no connection: {end:?}");
    }
}

#[test]
fn a_thousand_idle_strangers_keep_nobody_out() {
    let scene = Scene::new("idle strangers", &Settings::new());
    let server = scene.lab.server_address(Family::V4);
    let mut echo = scene.echo();
    let start = wait::now();
    let strangers: Vec<_> = (0..1000)
        .filter_map(|_| scene.lab.origin.connect(server, SOON).ok())
        .collect();
    assert!(strangers.len() > 500, "{} strangers", strangers.len());

    echo.round_trip().unwrap();
    scene.lab.forget();
    echo.round_trip().unwrap();

    Echo::open(&scene.lab.client, scene.target()).unwrap();
    let log = scene.tund.server.process.log();
    let about_them = log.lines().filter(|line| line.contains("refused in the"));
    let about_them = u64::try_from(about_them.count()).unwrap();
    let minutes = (wait::now() - start).as_secs() / 60;
    assert!((1..=1 + minutes).contains(&about_them), "{log}");
    // Its start, and what became of the one session.
    assert!(log.lines().count() < 10, "{log}");
}
