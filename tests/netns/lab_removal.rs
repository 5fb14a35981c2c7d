//! A lab leaves nothing behind, however its owner ends, and does not disturb its neighbours.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tund_tests::lab::{Access, Family, Lab, ORIGIN_PORT, Origin, Process, Request, wait};

const LIMIT: Duration = Duration::from_secs(10);

/// Set in the environment of this very test program when it plays a lab's owner.
const PLAY_OWNER: &str = "TUND_TEST_PLAY_OWNER";

/// What is left of a lab: its namespaces, its lock and its directory.
fn traces(name: &str) -> Vec<String> {
    let directories = ["/run/netns".into(), std::env::temp_dir().join("tund-lab")];
    directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|entry| {
            entry.starts_with(&format!("{name}-"))
                || entry.starts_with(&format!("{name}."))
                || entry == name
        })
        .collect()
}

fn is_alive(pid: i32) -> bool {
    // A zombie (whose parent is gone and was not yet replaced) is as good as dead.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z"))
    })
}

/// Plays a lab's owner when asked to: builds one with a process in it, tells about it, waits.
#[test]
#[ignore = "a part for the tests below, which start it"]
fn play_owner() {
    if std::env::var_os(PLAY_OWNER).is_none() {
        return;
    }
    let lab = Lab::new("an owner to be killed");
    let sleeper = Process::start(
        &lab.server,
        lab.directory(),
        "sleeper",
        Command::new("sleep").arg("600"),
    );
    eprintln!(
        "OWNS {} {} {}",
        lab.name(),
        lab.guardian_pid(),
        sleeper.pid()
    );
    drop(std::io::stdin().read(&mut [0]));
}

/// A lab owned by another process: its owner, its name, its guardian, and a process inside.
struct Foreign {
    owner: Child,
    name: String,
    guardian: i32,
    sleeper: i32,
}

fn foreign_lab() -> Foreign {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "lab_removal::play_owner",
            "--ignored",
            "--nocapture",
        ])
        .env(PLAY_OWNER, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stderr.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("OWNS ").map(str::to_owned))
        .expect("the owner builds its lab");
    let words: Vec<_> = line.split(' ').collect();
    let (name, guardian, sleeper) = (
        words[0],
        words[1].parse().unwrap(),
        words[2].parse().unwrap(),
    );
    Foreign {
        owner,
        name: name.to_owned(),
        guardian,
        sleeper,
    }
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    let lab = Lab::new("to be dropped");
    let name = lab.name().to_owned();
    assert_eq!(
        traces(&name).len(),
        6,
        "four namespaces, a lock, a directory"
    );

    drop(lab);

    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_killed_owner_leaves_nothing() {
    let mut foreign = foreign_lab();
    assert_eq!(traces(&foreign.name).len(), 6);

    foreign.owner.kill().unwrap();
    foreign.owner.wait().unwrap();

    wait::until_true("its guardian removes the lab", LIMIT, || {
        traces(&foreign.name).is_empty()
    });
    wait::until_true("its processes are gone", LIMIT, || {
        !is_alive(foreign.sleeper) && !is_alive(foreign.guardian)
    });
}

#[test]
fn the_next_lab_removes_what_a_killed_owner_and_guardian_left() {
    let mut foreign = foreign_lab();
    kill(Pid::from_raw(foreign.guardian), Signal::SIGKILL).unwrap();
    foreign.owner.kill().unwrap();
    foreign.owner.wait().unwrap();

    wait::until_true("a later lab removes it", LIMIT, || {
        drop(Lab::new("the next"));
        traces(&foreign.name).is_empty()
    });

    wait::until_true("its process is gone", LIMIT, || !is_alive(foreign.sleeper));
}

#[test]
fn two_labs_do_not_see_each_other() {
    let quiet = Lab::new("the quiet one");
    let mut loud = Lab::new("the loud one");
    assert_ne!(quiet.name(), loud.name());
    let _origin = Origin::start(&quiet.origin);
    let to = quiet.origin_address(Family::V4, ORIGIN_PORT);
    let mut stream = quiet.client.connect(to, LIMIT).unwrap();
    Request::Echo.send(&mut stream).unwrap();

    loud.cut();
    loud.carrier(Access::Wifi, false);
    loud.switch();
    drop(loud);

    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}
