//! What can be reached through tund, and what cannot, from either side.

use std::net::SocketAddr;
use std::time::Duration;
use std::{fs, io};

use nix::sys::signal::Signal;
use tund_tests::lab::{Download, Family, ORIGIN_PORT, Origin, Settings, Upload, wait};

use crate::support::{Echo, LATER, LONG, SOON, Scene};

const MIB: u64 = 1 << 20;

/// The kinds that an ICMP "administratively prohibited" becomes at an application.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::PermissionDenied
    )
}

#[test]
fn refused_destinations_are_told_at_once_and_name_the_setting() {
    let settings = Settings::new().server("origin", "allow", "[\"10.77.4.2\", \"fd77:0:0:4::2\"]");
    let scene = Scene::new("refused destinations", &settings);
    drop(scene.echo());
    // Private, metadata, the server's own in both spellings, and what is never allowed.
    let refused = [
        "10.77.5.2:8080",
        "10.77.4.1:80",
        "169.254.169.254:80",
        "10.77.3.2:443",
        "10.77.5.1:443",
        "240.0.0.1:80",
        "[fd77:0:0:5::2]:8080",
        "[fd77:0:0:3::2]:443",
        "[fe80::1]:80",
        "[64:ff9b::a4d:302]:443",
        "[2002:a4d:302::1]:443",
        "[ff0e::1]:80",
    ];
    for target in refused {
        let target: SocketAddr = target.parse().unwrap();
        // Some of these have no route by an ordinary table, whatever stands in it.
        if scene
            .lab
            .client
            .try_run(&format!("ip route replace {} dev tund0", target.ip()))
            .is_err()
        {
            continue;
        }
        match scene.lab.client.connect(target, SOON) {
            Ok(_) => panic!("{target} was reached"),
            Err(error) => assert!(
                is_refusal(&error) || error.kind() == io::ErrorKind::InvalidInput,
                "{target}: {error:?}"
            ),
        }
    }
    let log = scene.tund.server.process.log();
    assert!(log.contains("allow"), "the log names the setting: {log}");
    wait::until_true("the client's log names it too", SOON, || {
        scene.tund.client.process.log().contains("[origin] allow")
    });
    drop(scene.echo());
}

#[test]
fn what_may_be_reached_is_read_again_on_sighup_and_flows_stay() {
    let scene = Scene::new("a reload of what may be reached", &Settings::new());
    let mut echo = scene.echo();
    let _local = Origin::start(&scene.lab.server);
    scene.lab.client.run("ip route add 10.77.3.2 dev tund0");
    let own = SocketAddr::new(scene.lab.server_address(Family::V4).ip(), ORIGIN_PORT);
    let refused = scene.lab.client.connect(own, SOON).unwrap_err();
    assert!(is_refusal(&refused), "{refused:?}");
    let config = scene.tund.server.config();
    let text = fs::read_to_string(config).unwrap();
    let changed = text
        .replace("allow = [", "allow = [\"10.77.3.2:8080\", ")
        .replace("[origin]", "[origin]\ndeny = [\"10.77.4.2\"]");
    fs::write(config, changed).unwrap();

    scene.tund.server.process.signal(Signal::SIGHUP);

    wait::until_true("what was refused is reached", SOON, || {
        Echo::open(&scene.lab.client, own).is_ok()
    });
    let refused = scene.lab.client.connect(scene.target(), SOON).unwrap_err();
    assert!(is_refusal(&refused), "{refused:?}");
    echo.round_trip().unwrap();
}

#[test]
fn an_origin_on_the_servers_own_host_is_opened_by_allow_and_survives_an_outage() {
    let settings = Settings::new().server("origin", "allow", "[\"10.77.3.2:8080\"]");
    let scene = Scene::new("origin on the server", &settings);
    let _local = Origin::start(&scene.lab.server);
    scene.lab.client.run("ip route add 10.77.3.2 dev tund0");
    let target = scene.lab.server_address(Family::V4);
    let mut echo =
        Echo::open(&scene.lab.client, SocketAddr::new(target.ip(), ORIGIN_PORT)).unwrap();

    scene.lab.cut();
    scene.lab.forget();
    scene.lab.heal();

    echo.round_trip().unwrap();
    let error = scene.lab.client.connect(target, SOON).unwrap_err();
    assert!(is_refusal(&error), "another port of the server: {error:?}");
}

#[test]
fn steering_everything_into_the_device_makes_no_loop() {
    let scene = Scene::new("no loop", &Settings::new());
    for half in ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"] {
        scene
            .lab
            .client
            .run(&format!("ip route add {half} dev tund0"));
    }
    let length = 20 * MIB;

    let down = Download::start(&scene.lab.client, scene.target(), 1, length);
    let up = Upload::start(&scene.lab.client, scene.target(), 2, length);
    down.finish(LONG).assert_intact(length);
    assert_eq!(up.finish(LONG).unwrap(), length);

    let mut echo = scene.echo();
    scene.lab.cut();
    scene.lab.forget();
    scene.lab.heal();
    echo.round_trip().unwrap();
    let status = scene.tund.client.wait_attached(LATER);
    let link = status.link.unwrap();
    assert_eq!(link.interface.as_deref(), Some("wifi"));
    let links = &scene.tund.server.sessions().unwrap()[0]["links"];
    let same = |seen: &serde_json::Value| seen["remote"] == link.local.as_str();
    assert!(
        links.as_array().unwrap().iter().any(same),
        "both ends name it alike: {link:?}, {links}"
    );
}

#[test]
fn a_client_without_any_route_waits_and_attaches_when_there_is_one() {
    let scene = Scene::new("no route", &Settings::new());
    let mut echo = scene.echo();
    let access = scene.lab.access();

    scene.lab.lower(access);
    scene.tund.client.wait_for("detached", LATER);
    wait::let_pass(Duration::from_secs(1));
    scene.lab.raise(access);

    echo.round_trip().unwrap();
}
