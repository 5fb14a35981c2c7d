//! A thousand flows that all have something under way, each way, when the network comes back.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::{Direct, Job, LONG, RTTS, Row, SOON, Sample, Target};
use crate::emulator::Profile;
use crate::lab::{Family, Namespace, Pattern, Scene, Settings, wait};

/// Of both access links, each way.
const MEGABITS: u64 = 50;

/// Bytes of each flow, each way.
const LENGTH: usize = 64 << 10;

/// Where the flows end.
const PORT: u16 = 9100;

/// Flows that are being opened at once: one after the other, each would take its round trips.
const OPENING: usize = 50;

/// How long the network is away.
const CUT: Duration = Duration::from_secs(30);

/// All bytes of all flows must have arrived by then: many times what the rate needs.
const LIMIT: Duration = Duration::from_secs(180);

/// What one end of a flow has seen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// When its first byte came.
    first: Instant,
    /// Every byte came, and was right.
    intact: bool,
}

/// What both ends of all flows have in common.
#[derive(Debug)]
struct Common {
    /// When it turns true, both ends write.
    go: watch::Sender<bool>,
    /// Of every end that is done.
    seen: Mutex<Vec<Seen>>,
}

/// Writes the own pattern once told to, reads the other one; `side` 0 is the application's.
async fn exchange(
    mut stream: TcpStream,
    (number, side): (u32, u32),
    common: Arc<Common>,
) -> io::Result<()> {
    let pattern = |side: u32| Pattern::new(u64::from(number) * 2 + u64::from(side));
    let mut go = common.go.subscribe();
    let (mut reading, mut writing) = stream.split();
    let write = async {
        let mut bytes = vec![0; LENGTH];
        pattern(side).fill(0, &mut bytes);
        go.wait_for(|go| *go).await.map_err(io::Error::other)?;
        writing.write_all(&bytes).await
    };
    let read = async {
        let mut bytes = vec![0; LENGTH];
        let mut count = reading.read(&mut bytes).await?;
        let first = wait::now();
        if count > 0 {
            count += reading.read_exact(&mut bytes[count..]).await?;
        }
        let intact = count == LENGTH && pattern(1 - side).first_difference(0, &bytes).is_none();
        Ok(Seen { first, intact })
    };
    let ((), seen) = tokio::try_join!(write, read)?;
    let mut all = common.seen.lock().unwrap_or_else(PoisonError::into_inner);
    all.push(seen);
    Ok(())
}

/// Runs one side of all flows in a thread of its own.
fn side<F>(
    host: &Namespace,
    title: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> JoinHandle<io::Result<()>>
where
    F: Future<Output = io::Result<()>>,
{
    host.spawn(title, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(work())
    })
}

async fn finish(mut flows: JoinSet<io::Result<()>>) -> io::Result<()> {
    while let Some(ended) = flows.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok(())
}

async fn applications(to: SocketAddr, flows: u32, common: Arc<Common>) -> io::Result<()> {
    let mut all = JoinSet::new();
    let places = Arc::new(Semaphore::new(OPENING));
    for number in 0..flows {
        let place = Arc::clone(&places).acquire_owned().await;
        let common = Arc::clone(&common);
        all.spawn(async move {
            let mut stream = TcpStream::connect(to).await?;
            stream.write_all(&number.to_be_bytes()).await?;
            // The origin has it: what the cut meets is all still to come.
            stream.read_exact(&mut [0]).await?;
            drop(place);
            exchange(stream, (number, 0), common).await
        });
    }
    finish(all).await
}

async fn origin(
    listener: std::net::TcpListener,
    flows: u32,
    common: Arc<Common>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut all = JoinSet::new();
    for _ in 0..flows {
        let (mut stream, _) = listener.accept().await?;
        let common = Arc::clone(&common);
        all.spawn(async move {
            let mut number = [0; 4];
            stream.read_exact(&mut number).await?;
            stream.write_all(b".").await?;
            exchange(stream, (u32::from_be_bytes(number), 1), common).await
        });
    }
    finish(all).await
}

/// Cuts the network, lets both ends of `flows` flows write, heals it after `cut`; gives how long
/// after that each end had its first byte, longest last.
///
/// # Errors
/// What was wrong with the flows.
#[track_caller]
pub fn resume(
    scene: &Scene,
    flows: u32,
    cut: Duration,
    past_tund: bool,
) -> Result<Vec<Duration>, String> {
    let lab = &scene.lab;
    let common = Arc::new(Common {
        go: watch::Sender::new(false),
        seen: Mutex::default(),
    });
    let listener = lab.origin.listen(PORT);
    let to = match past_tund {
        true => lab.plain_origin_address(Family::V4, PORT),
        false => lab.origin_address(Family::V4, PORT),
    };
    let shared = Arc::clone(&common);
    let at_origin = side(&lab.origin, "origin of many", move || {
        origin(listener, flows, shared)
    });
    let shared = Arc::clone(&common);
    let at_client = side(&lab.client, "many applications", move || {
        applications(to, flows, shared)
    });
    let both = usize::try_from(flows).unwrap_or(usize::MAX) * 2;
    wait::until_true("all flows are open", LONG, || {
        common.go.receiver_count() == both
    });
    lab.cut();
    if !past_tund {
        scene.tund.client.wait_attached(SOON);
        lab.forget();
    }
    common.go.send_replace(true);
    wait::let_pass(cut);
    let back = wait::now();
    lab.heal();
    let start = wait::now();
    while !(at_client.is_finished() && at_origin.is_finished()) {
        if wait::now() - start > LIMIT {
            let seen = common.seen.lock().unwrap_or_else(PoisonError::into_inner);
            return Err(format!(
                "{} of {both} ends done after {LIMIT:?}",
                seen.len()
            ));
        }
        wait::let_pass(Duration::from_millis(20));
    }
    for ended in [at_client, at_origin] {
        let ended = ended.join().map_err(|_| "an end panicked")?;
        ended.map_err(|cause| format!("a flow met: {cause}"))?;
    }
    let seen = common.seen.lock().unwrap_or_else(PoisonError::into_inner);
    let wrong = seen.iter().filter(|seen| !seen.intact).count();
    if wrong > 0 || seen.len() != both {
        return Err(format!("{} of {both} ends, {wrong} not intact", seen.len()));
    }
    let mut times: Vec<_> = seen.iter().map(|seen| seen.first - back).collect();
    times.sort();
    Ok(times)
}

/// A lab for each run, one after the other: they keep the machine busy.
pub(super) fn jobs(runs: u32) -> Vec<Job> {
    let rtt = RTTS[1];
    let row = move |place: u32, what: &str| Row {
        place: 310 + place,
        what: format!("1,000 flows, 64 KiB each way, after 30 s: {what} has its first byte"),
        way: "both",
        rtt,
        target: Target::within(1500, 1500, 30, rtt),
    };
    let work = move |title: String| {
        let profile = Profile::delay(rtt / 2).megabits(MEGABITS);
        let scene = Scene::emulated(&title, profile, &Settings::new());
        let tund = resume(&scene, 1000, CUT, false);
        let direct = resume(&scene, 1000, CUT, true);
        let sample = |place: fn(usize) -> usize| {
            let at = |times: Vec<Duration>| times[place(times.len())];
            Sample {
                tund: tund.clone().map(at),
                direct: direct
                    .clone()
                    .map_or(Direct::Silent(LIMIT), |times| Direct::Took(at(times))),
            }
        };
        vec![
            (row(0, "the median end"), sample(|ends| ends / 2)),
            (row(1, "the last end"), sample(|ends| ends - 1)),
        ]
    };
    let jobs = (0..runs).map(|run| {
        let title = format!("a thousand flows, run {run}");
        Job {
            title: title.clone(),
            lasts: Duration::from_secs(150),
            alone: true,
            work: Box::new(move || work(title)),
        }
    });
    jobs.collect()
}
