//! What the lab's events do to plain TCP: each verb shown to have its effect, and no other.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use tund_tests::lab::{
    Access, Download, Ending, Family, Lab, ORIGIN_PORT, Origin, Request, SERVER_PORT, Upload, wait,
};

const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(30);

/// A slow enough network that a transfer of `LENGTH` meets what happens to it.
const MEGABITS: u32 = 200;
const LENGTH: u64 = 40 << 20;

fn lab_with_origin(title: &str) -> (Lab, Origin) {
    let lab = Lab::new(title);
    let origin = Origin::start(&lab.origin);
    lab.limit_rate(MEGABITS);
    (lab, origin)
}

fn start_download(lab: &Lab) -> Download {
    let from = lab.origin_address(Family::V4, ORIGIN_PORT);
    let download = Download::start(&lab.client, from, 1, LENGTH);
    wait::until_true("the download runs", SHORT, || {
        download.timeline().total() > 1 << 20
    });
    download
}

/// An open connection whose other end sends everything back.
fn open_echo(lab: &Lab, family: Family) -> TcpStream {
    let to = lab.origin_address(family, ORIGIN_PORT);
    let mut stream = lab.client.connect(to, SHORT).unwrap();
    Request::Echo.send(&mut stream).unwrap();
    stream.set_read_timeout(Some(SHORT)).unwrap();
    round_trip(&mut stream).unwrap();
    stream
}

fn round_trip(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

#[test]
fn transfers_arrive_whole_both_ways_and_over_both_families() {
    let lab = Lab::new("plain transfers");
    let origin = Origin::start(&lab.origin);

    for (seed, family) in [(1, Family::V4), (2, Family::V6)] {
        let to = lab.origin_address(family, ORIGIN_PORT);
        let down = Download::start(&lab.client, to, seed, LENGTH);
        let up = Upload::start(&lab.client, to, seed, LENGTH);

        down.finish(LONG).assert_intact(LENGTH);
        assert_eq!(up.finish(LONG).unwrap(), LENGTH);
        origin.upload_report(seed, SHORT).assert_intact(LENGTH);
    }
}

#[test]
fn a_cut_stops_a_connection_silently_and_healing_lets_it_go_on() {
    let (lab, _origin) = lab_with_origin("a cut");
    let download = start_download(&lab);

    lab.cut();
    let cut_at = wait::now();
    wait::let_pass(Duration::from_secs(1));
    let arrived = download.timeline().total();
    wait::let_pass(Duration::from_millis(300));
    assert_eq!(
        download.timeline().total(),
        arrived,
        "bytes while the network is cut"
    );
    assert!(!download.has_ended(), "a silent cut is not noticed");
    lab.heal();

    let report = download.finish(LONG);
    report.assert_intact(LENGTH);
    assert!(
        report.timeline.longest_silence() > Duration::from_secs(1),
        "since {cut_at:?}"
    );
}

#[test]
fn a_forgotten_connection_is_dead_for_good_and_a_new_one_works() {
    for family in [Family::V4, Family::V6] {
        let (lab, _origin) = lab_with_origin("forget");
        let mut old = open_echo(&lab, family);

        assert_eq!(lab.forget(), 1);

        old.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let error = round_trip(&mut old).unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::WouldBlock,
            "no answer, and no error either"
        );
        round_trip(&mut open_echo(&lab, family)).unwrap();
    }
}

#[test]
fn a_reset_by_a_middlebox_reaches_both_ends() {
    for family in [Family::V4, Family::V6] {
        let lab = Lab::new("rst");
        let listener = lab.origin.listen(ORIGIN_PORT);
        let to = lab.origin_address(family, ORIGIN_PORT);
        let mut near = lab.client.connect(to, SHORT).unwrap();
        let (mut far, _) = listener.accept().unwrap();

        assert_eq!(lab.rst(), 1);
        near.write_all(b"x").unwrap();
        far.write_all(b"x").unwrap();

        for end in [&mut near, &mut far] {
            end.set_read_timeout(Some(SHORT)).unwrap();
            let error = end.read_exact(&mut [0; 9]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        lab.client.connect(to, SHORT).unwrap();
    }
}

#[test]
fn a_switch_of_the_access_link_kills_a_direct_connection() {
    let (mut lab, _origin) = lab_with_origin("switch");
    let download = start_download(&lab);
    let mut echo = open_echo(&lab, Family::V6);

    lab.switch();

    assert_eq!(lab.access(), Access::Mobile);
    wait::let_pass(Duration::from_millis(300));
    let arrived = download.timeline().total();
    wait::throughout("nothing more arrives", Duration::from_secs(2), || {
        download.timeline().total() == arrived
    });
    echo.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    assert!(round_trip(&mut echo).is_err(), "the old address is gone");
    for family in [Family::V4, Family::V6] {
        let new = open_echo(&lab, family);
        let own = lab.access_address(family, Access::Mobile);
        assert_eq!(new.local_addr().unwrap().ip(), own);
    }
}

#[test]
fn a_switch_there_and_back_works() {
    let (mut lab, _origin) = lab_with_origin("switch and back");

    lab.switch();
    lab.switch();

    for family in [Family::V4, Family::V6] {
        let own = lab.access_address(family, Access::Wifi);
        assert_eq!(open_echo(&lab, family).local_addr().unwrap().ip(), own);
    }
}

#[test]
fn a_portal_answers_in_place_of_the_server_and_goes_away_again() {
    let lab = Lab::new("portal");
    let _server = Origin::start_on(&lab.server, SERVER_PORT);
    for family in [Family::V4, Family::V6] {
        let to = lab.server_address(family);
        let echo = || -> io::Result<TcpStream> {
            let mut stream = lab.client.connect(to, SHORT)?;
            stream.set_read_timeout(Some(SHORT))?;
            Request::Echo.send(&mut stream)?;
            Ok(stream)
        };
        let mut old = echo().unwrap();
        round_trip(&mut old).unwrap();

        let portal = lab.portal();
        let mut answer = String::new();
        // The portal closes with our request unread, hence perhaps a reset behind its answer.
        drop(echo().unwrap().read_to_string(&mut answer));
        assert!(answer.starts_with("HTTP/1.1 302"), "{answer:?}");
        assert_eq!(portal.visits(), 1);
        assert!(
            round_trip(&mut old).is_err(),
            "an old connection does not pass a portal"
        );
        lab.portal_off(portal);

        round_trip(&mut echo().unwrap()).unwrap();
    }
}

#[test]
fn a_lost_carrier_is_seen_by_the_client_and_comes_back() {
    let (lab, _origin) = lab_with_origin("carrier");
    let mut echo = open_echo(&lab, Family::V4);
    let has_carrier = || lab.client.run("ip link show dev wifi").contains("LOWER_UP");
    assert!(has_carrier());

    lab.carrier(Access::Wifi, false);
    wait::until_true("the carrier is gone", SHORT, || !has_carrier());
    lab.carrier(Access::Wifi, true);

    wait::until_true("the carrier is back", SHORT, has_carrier);
    round_trip(&mut echo).unwrap();
    round_trip(&mut open_echo(&lab, Family::V6)).unwrap();
}

#[test]
fn a_rate_limit_holds_both_ways() {
    let (lab, origin) = lab_with_origin("rate limit");
    let to = lab.origin_address(Family::V4, ORIGIN_PORT);
    let length = 25_000_000;
    let seconds = 8.0 * 25.0 / f64::from(MEGABITS);
    let bounds = seconds * 0.85..seconds * 4.0;

    let down = Download::start(&lab.client, to, 1, length).finish(LONG);
    let lasted = |points: Vec<(Duration, u64)>| {
        points[points.len() - 1].0.as_secs_f64() - points[0].0.as_secs_f64()
    };
    let took = lasted(down.timeline.points());
    assert!(bounds.contains(&took), "down: {took} s, not {bounds:?}");

    Upload::start(&lab.client, to, 2, length)
        .finish(LONG)
        .unwrap();
    let took = lasted(origin.upload_report(2, SHORT).timeline.points());
    assert!(bounds.contains(&took), "up: {took} s, not {bounds:?}");
}

#[test]
fn a_cut_one_way_lets_the_other_way_through() {
    use tund_tests::lab::Direction;
    let lab = Lab::new("one way");
    let listener = lab.origin.listen(ORIGIN_PORT);
    let to = lab.origin_address(Family::V4, ORIGIN_PORT);
    let mut near = lab.client.connect(to, SHORT).unwrap();
    let (mut far, _) = listener.accept().unwrap();

    lab.cut_one_way(Direction::Down);
    near.write_all(b"up").unwrap();
    far.set_read_timeout(Some(SHORT)).unwrap();
    far.read_exact(&mut [0; 2]).unwrap();
    far.write_all(b"down").unwrap();
    near.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    assert_eq!(
        near.read_exact(&mut [0; 9]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    lab.heal();

    near.set_read_timeout(Some(SHORT)).unwrap();
    near.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn nobody_but_the_server_reaches_the_hidden_address() {
    let lab = Lab::new("hidden origin");
    let origin = Origin::start(&lab.origin);

    for family in [Family::V4, Family::V6] {
        let hidden = lab.hidden_origin_address(family, ORIGIN_PORT);
        lab.server.connect(hidden, SHORT).unwrap();
        lab.client
            .connect(hidden, Duration::from_millis(500))
            .unwrap_err();
    }
    wait::until_true("both have been accepted", SHORT, || origin.accepted() == 2);
}

#[test]
fn a_closed_port_refuses_at_once() {
    let lab = Lab::new("closed port");

    let report =
        Download::start(&lab.client, lab.origin_address(Family::V4, 9), 1, 1).finish(SHORT);

    assert_eq!(
        report.ending,
        Ending::Failed(io::ErrorKind::ConnectionRefused)
    );
}
