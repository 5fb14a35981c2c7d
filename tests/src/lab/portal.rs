//! A captive portal: something else answers on the server's port.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Lab, SERVER_PORT};

/// Has the router answer connections to the server's port itself.
///
/// What was connected before is redirected too, to where it has no socket, and so reset.
const DIVERSION: &str = "
table inet portal {
    chain answer {
        type nat hook prerouting priority dstnat; policy accept;
        iifname { w0, m0 } ip daddr 10.77.3.2 tcp dport 443 redirect
        iifname { w0, m0 } ip6 daddr fd77:0:0:3::2 tcp dport 443 redirect
    }
    chain replies {
        type filter hook forward priority -20; policy accept;
        iifname s0 oifname { w0, m0 } tcp sport 443 drop
    }
}
";

/// How long the portal waits for a request before it answers anyway.
const PATIENCE: Duration = Duration::from_millis(500);

/// A portal at work: the router itself answers for the server's address.
///
/// What was connected before is answered with a RST, as it has no socket there. It ends with
/// [`Lab::portal_off`].
#[derive(Debug)]
pub struct Portal {
    stop: Arc<AtomicBool>,
    visits: Arc<AtomicUsize>,
    worker: Option<JoinHandle<()>>,
}

impl Portal {
    /// How many connections have come to it.
    pub fn visits(&self) -> usize {
        self.visits.load(Ordering::Relaxed)
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            // A panic of the worker has been printed; it had nothing that a test relies on.
            drop(worker.join());
        }
    }
}

impl Lab {
    /// Puts a portal in front of the server that answers everything with a redirect in plain HTTP.
    pub fn portal(&self) -> Portal {
        let listener = self.router.listen(SERVER_PORT);
        listener
            .set_nonblocking(true)
            .expect("a listener can be made non-blocking");
        let stop = Arc::new(AtomicBool::new(false));
        let visits = Arc::new(AtomicUsize::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&visits));
        let worker = self.router.spawn("portal", move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    counted.fetch_add(1, Ordering::Relaxed);
                    answer(stream);
                } else {
                    super::wait::let_pass(Duration::from_millis(5));
                }
            }
        });
        self.divert();
        Portal {
            stop,
            visits,
            worker: Some(worker),
        }
    }

    /// Has the router answer for the server's address, whatever runs on it there.
    pub fn divert(&self) {
        self.router.nft(DIVERSION);
    }

    /// Takes the portal away.
    pub fn portal_off(&self, portal: Portal) {
        self.divert_off();
        drop(portal);
    }

    /// Undoes [`Self::divert`].
    pub fn divert_off(&self) {
        self.router.nft("delete table inet portal\n");
    }
}

fn answer(mut stream: TcpStream) {
    let mut request = [0; 2048];
    let answered = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
        .map(|()| stream.read(&mut request).unwrap_or(0))
        .and_then(|_| {
            stream.write_all(
                b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\nContent-Length: 0\r\n\r\n",
            )
        });
    // A visitor who has gone again is as good as one who has read the answer.
    drop(answered);
}
