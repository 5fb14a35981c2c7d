//! The invention itself: while the network is away, both daemons take what applications write.

use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tund_tests::lab::{
    Download, Family, Pattern, Report, Settings, Timeline, read_pattern, wait, write_pattern,
};

use crate::support::{Echo, LATER, LONG, SOON, Scene, figure};

const MIB: u64 = 1 << 20;
const PORT: u16 = 9000;

/// The size of the kernel's socket buffers between a writer and its daemon.
const KERNEL_BYTES: usize = 256 << 10;

const BUFFER: u64 = 64 * MIB;

fn scene(title: &str) -> Scene {
    let scene = Scene::new(title, &Settings::new().buffer("64MiB"));
    // What the server daemon's kernel takes from an origin counts as the kernel's too.
    let fixed = format!("4096 {KERNEL_BYTES} {KERNEL_BYTES}");
    for host in [&scene.lab.server, &scene.lab.origin, &scene.lab.client] {
        host.sysctl("ipv4.tcp_rmem", &fixed);
    }
    scene
}

/// Connections of `count` applications to the origin, made with fixed kernel buffers.
fn pairs(scene: &Scene, count: usize) -> Vec<(TcpStream, TcpStream)> {
    let listener = scene
        .lab
        .origin
        .listen_with_buffer(PORT, Some(KERNEL_BYTES));
    let to = scene.lab.origin_address(Family::V4, PORT);
    let connect = || {
        let near = scene
            .lab
            .client
            .connect_with_buffer(to, KERNEL_BYTES, LATER)
            .unwrap();
        (near, listener.accept().unwrap().0)
    };
    (0..count).map(|_| connect()).collect()
}

fn receive(stream: TcpStream, seed: u64) -> thread::JoinHandle<Report> {
    thread::spawn(move || read_pattern(stream, Pattern::new(seed), &Timeline::new()))
}

/// Writes `length` bytes and FIN, closes, and hands back whether that went well.
fn write_and_exit(stream: TcpStream, seed: u64, length: u64) -> thread::JoinHandle<bool> {
    thread::spawn(move || {
        write_pattern(&stream, Pattern::new(seed), length, &AtomicU64::new(0))
            .and_then(|()| stream.shutdown(Shutdown::Write))
            .is_ok()
    })
}

fn forty_mebibytes_pass_through_an_outage(outage: Duration) {
    let scene = scene("40 MiB each way in an outage");
    let mut pairs = pairs(&scene, 2);
    let (down_near, down_far) = pairs.pop().unwrap();
    let (up_near, up_far) = pairs.pop().unwrap();
    scene.tund.client.wait_attached(SOON);
    let start = wait::now();
    scene.lab.cut();
    scene.lab.forget();

    let up = write_and_exit(up_near, 1, 40 * MIB);
    let down = write_and_exit(down_far, 2, 40 * MIB);
    wait::until_true("neither writer is blocked", LATER, || {
        up.is_finished() && down.is_finished()
    });
    assert!(up.join().unwrap() && down.join().unwrap());
    scene.tund.client.wait_for("detached", LATER);
    let held = scene.tund.client.status().buffered_bytes.up;
    assert!((38 * MIB..=40 * MIB).contains(&held), "{held} bytes held");
    let held = wait::until("the server holds what the origin wrote", LATER, || {
        let rows = scene.tund.server.sessions().unwrap();
        let held = rows[0]["buffered_bytes"]["down"].as_u64()?;
        (held >= 38 * MIB).then_some(held)
    });
    assert!(held <= 40 * MIB, "{held} bytes held downwards");
    wait::let_pass(outage.saturating_sub(wait::now() - start));
    scene.lab.heal();

    let (up, down) = (receive(up_far, 1), receive(down_near, 2));
    up.join().unwrap().assert_intact(40 * MIB);
    down.join().unwrap().assert_intact(40 * MIB);
    scene.wait_without_flows();
}

/// Waits until `written` has not grown for a second.
fn wait_until_stopped(written: &AtomicU64) -> u64 {
    let mut last = (0, wait::now());
    wait::until("the writer is stopped", LONG, || {
        let now = wait::now();
        let total = written.load(Ordering::Relaxed);
        if total != last.0 {
            last = (total, now);
        }
        (now - last.1 > Duration::from_secs(1)).then_some(total)
    })
}

fn start_writer(stream: TcpStream, seed: u64) -> Arc<AtomicU64> {
    let written = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&written);
    drop(thread::spawn(move || {
        write_pattern(&stream, Pattern::new(seed), 200 * MIB, &counted)
            .and_then(|()| stream.shutdown(Shutdown::Write))
    }));
    written
}

#[track_caller]
fn assert_bounded(held: u64, written: u64) {
    let kernel = 2 * KERNEL_BYTES as u64;
    figure(&format!(
        "200 MiB writer stopped: {held} bytes buffered, {written} written"
    ));
    assert!(
        (BUFFER * 9 / 10..=BUFFER).contains(&held),
        "{held} bytes are buffered"
    );
    assert!(
        written <= BUFFER + kernel,
        "the writer has written {written} bytes"
    );
}

#[test]
fn forty_mebibytes_each_way_are_taken_during_an_outage_and_arrive_after_it() {
    forty_mebibytes_pass_through_an_outage(Duration::from_secs(5));
}

#[test]
#[ignore = "long: an outage of 60 s"]
fn long_forty_mebibytes_each_way_are_taken_during_60_s_and_arrive_after_it() {
    forty_mebibytes_pass_through_an_outage(Duration::from_secs(60));
}

#[test]
fn an_uploader_of_200_mebibytes_is_stopped_at_the_buffer_and_loses_nothing() {
    let scene = scene("a writer that is stopped, up");
    let (near, far) = pairs(&scene, 1).pop().unwrap();
    scene.tund.client.wait_attached(SOON);
    scene.lab.cut();
    scene.lab.forget();

    let written = start_writer(near.try_clone().unwrap(), 1);
    // Until the outage is noticed, the flow has what credit it had.
    scene.tund.client.wait_for("detached", LATER);
    let total = wait_until_stopped(&written);
    assert_bounded(scene.tund.client.status().buffered_bytes.up, total);
    scene.lab.heal();

    receive(far, 1).join().unwrap().assert_intact(200 * MIB);
}

#[test]
fn an_origin_of_200_mebibytes_is_stopped_at_the_buffer_and_loses_nothing() {
    let scene = scene("a writer that is stopped, down");
    let (near, far) = pairs(&scene, 1).pop().unwrap();
    scene.tund.client.wait_attached(SOON);
    scene.lab.cut();
    scene.lab.forget();

    let written = start_writer(far.try_clone().unwrap(), 1);
    wait::until_true("the server notices the outage", LATER, || {
        scene.tund.server.sessions().unwrap()[0]["state"] == "detached"
    });
    let total = wait_until_stopped(&written);
    let rows = scene.tund.server.sessions().unwrap();
    let held = rows[0]["buffered_bytes"]["down"].as_u64().unwrap();
    assert_bounded(held, total);
    scene.lab.heal();

    receive(near, 1).join().unwrap().assert_intact(200 * MIB);
}

#[test]
fn a_stalled_reader_leaves_another_flow_half_of_its_rate() {
    let scene = scene("a stalled reader");
    scene.lab.limit_rate(400);
    let length = 60 * MIB;
    let rate_of = |seed| {
        let start = wait::now();
        let report = Download::start(&scene.lab.client, scene.target(), seed, length).finish(LONG);
        report.assert_intact(length);
        (wait::now() - start).as_secs_f64().recip()
    };
    let alone = rate_of(1);
    let (near, far) = pairs(&scene, 1).pop().unwrap();
    let written = start_writer(far, 2);
    wait_until_stopped(&written);

    let beside = rate_of(3);

    figure(&format!(
        "beside a stalled reader: {:.2} of the rate",
        beside / alone
    ));
    assert!(
        beside >= alone / 2.0,
        "{alone} alone, {beside} beside a stalled reader"
    );
    receive(near, 2).join().unwrap().assert_intact(200 * MIB);
}

#[test]
#[ignore = "long: 1,000 stalled uploaders for 60 s"]
fn long_a_thousand_stalled_uploaders_stay_within_the_buffer() {
    let scene = scene("stalled uploaders");
    let pairs = pairs(&scene, 1000);
    let idle = scene.tund.client.process.resident_kib();
    scene.lab.cut();
    scene.lab.forget();
    let writers: Vec<_> = pairs
        .iter()
        .map(|(near, _)| start_writer(near.try_clone().unwrap(), 1))
        .collect();
    let start = wait::now();
    let mut highest = 0;
    while wait::now() - start < Duration::from_secs(60) {
        highest = highest.max(scene.tund.client.process.resident_kib());
        wait::let_pass(Duration::from_millis(200));
    }
    figure(&format!(
        "1,000 stalled uploaders: client {idle} KiB idle, {highest} KiB at most"
    ));
    assert!(highest <= (64 + 40) * 1024, "{highest} KiB");
    // Writers are not asked: the first write of one that is stalled early does not return.
    let held = scene.tund.client.status().buffered_bytes.up;
    assert!((BUFFER / 2..=BUFFER).contains(&held), "{held} bytes held");
    drop(writers);
}

#[test]
#[ignore = "long: 1,000 stalled downloaders for 60 s"]
fn long_a_thousand_stalled_origins_stay_within_the_buffer() {
    let scene = scene("stalled origins");
    let pairs = pairs(&scene, 1000);
    scene.lab.cut();
    scene.lab.forget();
    let writers: Vec<_> = pairs
        .iter()
        .map(|(_, far)| start_writer(far.try_clone().unwrap(), 1))
        .collect();
    let start = wait::now();
    let mut highest = 0;
    while wait::now() - start < Duration::from_secs(60) {
        highest = highest.max(scene.tund.server.process.resident_kib());
        wait::let_pass(Duration::from_millis(200));
    }
    figure(&format!(
        "1,000 stalled origins: server {highest} KiB at most"
    ));
    assert!(highest <= (64 + 40) * 1024, "{highest} KiB");
    let rows = scene.tund.server.sessions().unwrap();
    let held = rows[0]["buffered_bytes"]["down"].as_u64().unwrap();
    assert!((BUFFER / 2..=BUFFER).contains(&held), "{held} bytes held");
    drop(writers);
}

#[test]
fn interactive_bytes_arrive_first_after_an_outage_with_much_to_send() {
    let scene = scene("interactive after an outage");
    let mut echo = Echo::open(&scene.lab.client, scene.target()).unwrap();
    let (near, far) = pairs(&scene, 1).pop().unwrap();
    scene.lab.limit_rate(50);
    scene.tund.client.wait_attached(SOON);
    scene.lab.cut();
    scene.lab.forget();
    let bulk = write_and_exit(near, 1, 40 * MIB);
    wait::until_true("the writer is not blocked", LATER, || bulk.is_finished());
    let reader = receive(far, 1);

    let healed = wait::now();
    scene.lab.heal();
    echo.round_trip().unwrap();
    let took = wait::now() - healed;

    // 40 MiB at 50 Mbit/s last 6.7 s.
    assert!(
        took < Duration::from_millis(2500),
        "a byte there and back took {took:?}"
    );
    reader.join().unwrap().assert_intact(40 * MIB);
}
