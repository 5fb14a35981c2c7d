//! A long run in the lab: a random event every few seconds, several flows of every kind, and not
//! a byte lost.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{LONG, SOON, fresh_seed, profile};
use crate::harness::rng::Rng;
use crate::lab::{
    Direction, Ending, Event, Pace, Pattern, Request, Scene, Settings, Stream, Timeline, narrate,
    read_pattern, wait,
};

/// Round-trip time of the access links.
pub const RTT: Duration = Duration::from_millis(40);

/// Between two KiB of a slow stream.
const SIPS: Duration = Duration::from_millis(20);

/// Bytes of a connection that comes and goes.
const VISIT: u64 = 256 << 10;

/// Between two such connections, and between two small requests.
const PAUSE: Duration = Duration::from_millis(500);

/// What became of everything.
#[derive(Debug, Default)]
pub struct Summary {
    /// How long it went on.
    pub lasted: Duration,
    /// Each event, and how long after it the first byte came to the slow download.
    pub events: BTreeMap<Event, Vec<Duration>>,
    /// As the client daemon counts them.
    pub outages: u64,
    /// The longest silence of the slow download, events included.
    pub longest_silence: Duration,
    /// The longest event.
    pub longest_event: Duration,
    /// Bytes of all streams, all of them right.
    pub bytes: u64,
    /// Connections that came and went, and small requests that were answered.
    pub visits: [u64; 2],
    /// How long a direct connection lived.
    pub direct: Duration,
    /// What was wrong.
    pub wrong: Vec<String>,
}

impl Summary {
    /// Events of all kinds.
    pub fn count(&self) -> usize {
        self.events.values().map(Vec::len).sum()
    }
}

/// Threads of applications that come again and again, until told to stop.
struct Visitors {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Result<u64, String>>>,
}

impl Visitors {
    fn start(scene: &Scene) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (to, stopped) = (scene.target(), Arc::clone(&stop));
        let visits = scene
            .lab
            .client
            .spawn("visitor", move || repeat(&stopped, || visit(to)));
        let mut echo = scene.echo();
        let patience = echo.stream.set_read_timeout(Some(LONG * 2));
        patience.expect("an open socket takes options");
        let stopped = Arc::clone(&stop);
        let requests = thread::spawn(move || {
            repeat(&stopped, || {
                echo.round_trip()
                    .map_err(|cause| format!("request: {cause}"))
            })
        });
        Self {
            stop,
            workers: vec![visits, requests],
        }
    }

    fn finish(self, wrong: &mut Vec<String>) -> [u64; 2] {
        self.stop.store(true, Ordering::Relaxed);
        let mut counts = [0; 2];
        for (count, worker) in counts.iter_mut().zip(self.workers) {
            match worker.join() {
                Ok(Ok(done)) => *count = done,
                Ok(Err(what)) => wrong.push(what),
                Err(_) => wrong.push("an application panicked".to_owned()),
            }
        }
        counts
    }
}

fn repeat(stop: &AtomicBool, mut work: impl FnMut() -> Result<(), String>) -> Result<u64, String> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        work().map_err(|what| format!("after {count}: {what}"))?;
        count += 1;
        wait::let_pass(PAUSE);
    }
    Ok(count)
}

/// A connection that downloads a little, whatever the network does meanwhile.
fn visit(to: SocketAddr) -> Result<(), String> {
    let seed = fresh_seed();
    let stream = TcpStream::connect_timeout(&to, LONG).and_then(|mut stream| {
        let length = VISIT;
        Request::Down { seed, length }.send(&mut stream)?;
        Ok(stream)
    });
    let stream = stream.map_err(|cause| format!("a connection: {cause}"))?;
    let report = read_pattern(&stream, Pattern::new(seed), &Timeline::new());
    let found = (report.bytes, report.first_bad, report.ending);
    if found == (VISIT, None, Ending::Finished) {
        Ok(())
    } else {
        Err(format!("of {VISIT} bytes came {found:?}"))
    }
}

/// How long an event lasts: mostly a moment, sometimes many seconds.
fn draw_length(rng: &mut Rng) -> Duration {
    let millis = match rng.below(12) {
        0 => 5000 + rng.below(10_000),
        _ => 100 + rng.below(2400),
    };
    Duration::from_millis(millis.try_into().unwrap_or(0))
}

/// The streams that go on all the time.
fn streams(scene: &Scene) -> Vec<Stream> {
    let paces = [Pace::Sips(SIPS), Pace::Bulk];
    let ways = [Direction::Down, Direction::Up];
    let all = paces
        .into_iter()
        .flat_map(|pace| ways.map(|way| (pace, way)));
    let start = |(pace, way)| {
        let target = (&scene.origin, scene.target());
        let stream = Stream::start(&scene.lab.client, target, (way, fresh_seed()), pace);
        stream.expect("a connection on a network that works")
    };
    all.map(start).collect()
}

/// Lets events happen for `length`.
///
/// # Panics
/// If the lab cannot be built; what goes wrong in it is in the summary.
pub fn run(length: Duration, seed: u64) -> Summary {
    let mut rng = Rng::new(seed);
    let settings = Settings::new().buffer(super::BUFFER);
    let mut scene = Scene::emulated("the long run", profile(RTT), &settings);
    let streams = streams(&scene);
    let watched = streams[0].timeline().clone();
    let target = (&scene.origin, scene.plain_target());
    let what = (Direction::Down, fresh_seed());
    let direct = Stream::start(&scene.lab.client, target, what, Pace::Sips(SIPS));
    let direct = direct.expect("a connection on a network that works");
    let visitors = Visitors::start(&scene);
    let start = wait::now();
    let mut happened: Vec<(Event, Instant, Instant)> = Vec::new();
    let mut summary = Summary::default();
    while wait::now() - start < length {
        let event = rng.pick(&Event::ALL);
        let lasts = draw_length(&mut rng);
        let away = wait::now();
        let back = event.happen(&mut scene.lab, lasts);
        happened.push((event, away, back));
        summary.longest_event = summary.longest_event.max(back - away);
        let pause = 500 + rng.below(4900);
        wait::let_pass(Duration::from_millis(pause.try_into().unwrap_or(0)));
        if let Some(stream) = streams.iter().position(Stream::has_ended) {
            summary
                .wrong
                .push(format!("stream {stream} ended by itself"));
            break;
        }
    }
    summary.lasted = wait::now() - start;
    scene.tund.client.wait_attached(SOON);
    wait::until_true("bytes after the last event", SOON, || {
        watched.is_flowing(super::FLOWING)
    });
    for (event, away, back) in happened {
        let took = watched.recovery(away, back).unwrap_or(summary.lasted);
        narrate("long run", &format!("{event:?}: {took:?}"));
        summary.events.entry(event).or_default().push(took);
    }
    summary.longest_silence = watched.longest_silence();
    summary.outages = scene.tund.client.status().outages.count;
    summary.direct = lived(direct.timeline());
    direct.abandon();
    summary.visits = visitors.finish(&mut summary.wrong);
    for stream in streams {
        match stream.stop(&scene.origin, LONG) {
            Ok(bytes) => summary.bytes += bytes,
            Err(what) => summary.wrong.push(what),
        }
    }
    summary
}

/// From the first to the last byte.
fn lived(timeline: &Timeline) -> Duration {
    let points = timeline.points();
    points.last().map_or(Duration::ZERO, |(at, _)| *at)
}
