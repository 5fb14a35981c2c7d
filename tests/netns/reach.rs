//! What can be reached through tund, and what cannot, from either side.

use std::net::SocketAddr;
use std::time::Duration;
use std::{fs, io};

use nix::sys::signal::Signal;
use tund_tests::lab::{Access, Download, Family, ORIGIN_PORT, Origin, Settings, Upload, wait};

use crate::support::{Echo, LATER, LONG, SOON, Scene};

const MIB: u64 = 1 << 20;

/// What an ICMP "administratively prohibited" becomes at an application.
fn refusal(of: SocketAddr) -> io::ErrorKind {
    if of.is_ipv4() {
        io::ErrorKind::HostUnreachable
    } else {
        io::ErrorKind::PermissionDenied
    }
}

/// Asserts that the application is told so.
#[track_caller]
fn assert_refused(scene: &Scene, target: SocketAddr) {
    match scene.lab.client.connect(target, SOON) {
        Ok(_) => panic!("{target} was reached"),
        Err(error) => assert_eq!(error.kind(), refusal(target), "{target}: {error:?}"),
    }
}

#[test]
fn refused_destinations_are_told_at_once_and_name_the_setting() {
    let settings = Settings::new().server("origin", "allow", "[\"10.77.4.2\", \"fd77:0:0:4::2\"]");
    let scene = Scene::new("refused destinations", &settings);
    drop(scene.echo());
    // Private, metadata, and the server's own in every spelling.
    let refused = [
        "10.77.5.2:8080",
        "10.77.4.1:80",
        "169.254.169.254:80",
        "10.77.3.2:443",
        "10.77.5.1:443",
        "[fd77:0:0:5::2]:8080",
        "[fd77:0:0:3::2]:443",
        "[64:ff9b::a4d:302]:443",
        "[2002:a4d:302::1]:443",
    ];
    for target in refused {
        let target: SocketAddr = target.parse().unwrap();
        let route = format!("ip route replace {} dev tund0", target.ip());
        scene.lab.client.run(&route);
        assert_refused(&scene, target);
    }
    let log = scene.tund.server.process.log();
    let named = log.lines().filter(|line| line.contains("[origin] allow"));
    // A kernel that is still busy with `connect` asks once more.
    assert!(named.count() >= refused.len(), "{log}");
    // Refused by the client itself, as no packet may have it.
    scene.lab.client.run("ip route replace 240.0.0.1 dev tund0");
    assert_refused(&scene, "240.0.0.1:80".parse().unwrap());
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
    assert_refused(&scene, own);
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
    assert_refused(&scene, scene.target());
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
    // Another port of the server.
    assert_refused(&scene, target);
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
fn an_ipv6_only_network_leads_to_an_ipv4_server_by_its_translator() {
    let scene = Scene::new("NAT64", &Settings::new());
    let device = Access::Wifi.device();
    // What a translator would make of the server's address; here the server has it itself.
    scene
        .lab
        .server
        .run("ip address add 64:ff9b::10.77.3.2/128 dev up nodad");
    scene
        .lab
        .router
        .run("ip route add 64:ff9b::/96 via fd77:0:0:3::2 dev s0");
    scene
        .lab
        .client
        .run(&format!("ip -4 address flush dev {device}"));

    scene.echo();

    let status = scene.tund.client.wait_attached(LATER);
    let remote = status.link.unwrap().remote;
    assert_eq!(remote, "[64:ff9b::a4d:302]:443");
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
