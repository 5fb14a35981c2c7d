//! For the tests beside: a network namespace of one's own, and waiting without sleeping.

use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

/// How long a test waits for what must happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `body` in a network namespace of its own, with loopback up; it ends with the thread.
pub(super) fn in_namespace<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            ip("link set lo up");
            body()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Waits until `condition` holds.
pub(super) fn eventually(condition: impl Fn() -> bool) {
    const PAUSE_MS: u8 = 5;
    let tries = PATIENCE.as_millis() / u128::from(PAUSE_MS);
    for _ in 0..tries {
        if condition() {
            return;
        }
        let _cut_short = nix::poll::poll(&mut [], PAUSE_MS);
    }
    panic!("what must happen did not happen in {PATIENCE:?}");
}

/// Runs `ip ARGUMENTS…` in the namespace of this thread.
pub(super) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What `ip ARGUMENTS…` prints in the namespace of this thread.
pub(super) fn ip_output(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("iproute2 is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A thread in a second namespace that runs what it is handed, in order.
pub(super) struct Neighbour {
    orders: Option<mpsc::SyncSender<Box<dyn FnOnce() + Send>>>,
    thread: Option<thread::JoinHandle<()>>,
    tid: nix::unistd::Pid,
}

impl Neighbour {
    /// Makes the second namespace.
    pub(super) fn new() -> Self {
        let (orders, inbox) = mpsc::sync_channel::<Box<dyn FnOnce() + Send>>(1);
        let (ready, started) = mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            ip("link set lo up");
            ready
                .send(nix::unistd::gettid())
                .expect("the test waits for it");
            while let Ok(order) = inbox.recv() {
                order();
            }
        });
        let tid = started
            .recv_timeout(PATIENCE)
            .expect("the namespace is made");
        Self {
            orders: Some(orders),
            thread: Some(thread),
            tid,
        }
    }

    /// The thread whose namespace it is, as `ip link … netns` takes it.
    pub(super) fn tid(&self) -> nix::unistd::Pid {
        self.tid
    }

    /// Runs `body` there and waits for its end.
    pub(super) fn run<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::sync_channel(1);
        let order: Box<dyn FnOnce() + Send> = Box::new(move || {
            done.send(body()).expect("the test waits for it");
        });
        self.orders
            .as_ref()
            .expect("not dropped yet")
            .send(order)
            .expect("the thread lives");
        result
            .recv_timeout(PATIENCE * 4)
            .expect("the neighbour finishes in time")
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(
                result.is_ok() || thread::panicking(),
                "the neighbour panicked"
            );
        }
    }
}
