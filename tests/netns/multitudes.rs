//! Thousands of short connections and refusals, one after the other and many at a time: none is
//! lost, none answered by somebody else, none said to have succeeded that did not.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use tund_tests::lab::{Family, ORIGIN_PORT, Request, Settings, wait};

use crate::support::{LATER, Scene, figure};

/// For one connection, whatever the machine is doing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `one` so often, by `workers` threads of an application's host; panics if any is at fault.
#[track_caller]
fn many(
    scene: &Scene,
    (count, workers): (u32, u32),
    one: impl Fn(u32) -> Result<(), String> + Send + Sync + 'static,
) {
    let (next, one) = (Arc::new(AtomicU32::new(0)), Arc::new(one));
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let (next, one) = (Arc::clone(&next), Arc::clone(&one));
            scene.lab.client.spawn("application", move || {
                let mut faults = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return faults;
                    }
                    faults.extend(one(number).err().map(|fault| format!("{number}: {fault}")));
                }
            })
        })
        .collect();
    let faults: Vec<String> = threads
        .into_iter()
        .map(thread::JoinHandle::join)
        .flat_map(|faults| faults.expect("no thread panics"))
        .collect();
    assert!(
        faults.is_empty(),
        "{}: {:?}",
        faults.len(),
        &faults[..faults.len().min(5)]
    );
}

/// Connects, says which one it is, and must hear that and the end.
fn exchange(to: SocketAddr, number: u32) -> Result<(), String> {
    let fault = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(fault("connect"))?;
    let timeouts = stream.set_read_timeout(Some(PATIENCE));
    timeouts.map_err(fault("set a timeout"))?;
    Request::Echo.send(&mut stream).map_err(fault("ask"))?;
    let said = number.to_be_bytes();
    stream.write_all(&said).map_err(fault("write"))?;
    stream.shutdown(Shutdown::Write).map_err(fault("finish"))?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).map_err(fault("read"))?;
    (heard == said)
        .then_some(())
        .ok_or_else(|| format!("heard {heard:?}"))
}

fn short_connections(in_a_row: u32, side_by_side: u32) {
    let scene = Scene::new("short connections", &Settings::new());
    let to = scene.target();
    for (count, workers) in [(in_a_row, 1), (side_by_side, 64)] {
        let start = wait::now();
        many(&scene, (count, workers), move |number| exchange(to, number));
        let took = wait::now() - start;
        figure(&format!(
            "{count} short connections, {workers} at a time: {took:?}"
        ));
    }
    scene.wait_without_flows();
    wait::until_true("nothing is left on the server either", LATER, || {
        scene.tund.server.sessions().unwrap()[0]["flows"]["tcp"] == 0
    });
    let accepted = scene.origin.accepted();
    assert_eq!(accepted, u64::from(in_a_row + side_by_side));
}

#[test]
fn a_thousand_short_connections_are_all_answered() {
    short_connections(500, 1500);
}

#[test]
#[ignore = "takes a minute: scripts/test long"]
fn long_ten_thousand_short_connections_are_all_answered() {
    short_connections(10_000, 10_000);
}

#[test]
fn two_thousand_connects_to_closed_ports_are_refused() {
    let scene = Scene::new("closed ports", &Settings::new());
    let [v4, v6] = [Family::V4, Family::V6].map(|family| scene.lab.origin_address(family, 0));
    many(&scene, (2000, 16), move |number| {
        // Nobody listens there but the origin.
        let port = u16::try_from(20_000 + number).unwrap_or(u16::MAX);
        assert_ne!(port, ORIGIN_PORT);
        let mut to = if number % 2 == 0 { v4 } else { v6 };
        to.set_port(port);
        match TcpStream::connect_timeout(&to, PATIENCE) {
            Ok(_) => Err("succeeded".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    });
    scene.wait_without_flows();
}
