//! A lab with an origin and both daemons in front of it, and the smallest application.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{Family, Lab, Namespace, ORIGIN_PORT, Origin, Request, Settings, Tund, wait};
use crate::emulator::Profile;

/// For what may need several attempts on a busy machine.
const LATER: Duration = Duration::from_secs(20);

/// A lab with an origin, and both daemons in front of it.
#[derive(Debug)]
pub struct Scene {
    /// Both daemons.
    pub tund: Tund,
    /// The origin's service.
    pub origin: Origin,
    /// Below the daemons: fields are dropped in order.
    pub lab: Lab,
}

impl Scene {
    /// Builds it and starts the daemons.
    #[track_caller]
    pub fn new(title: &str, settings: &Settings) -> Self {
        Self::within(Lab::new(title), settings)
    }

    /// As [`Self::new`], with emulated access links.
    #[track_caller]
    pub fn emulated(title: &str, profile: Profile, settings: &Settings) -> Self {
        Self::within(Lab::emulated(title, profile), settings)
    }

    /// Starts the daemons in a lab.
    #[track_caller]
    pub fn within(lab: Lab, settings: &Settings) -> Self {
        let origin = Origin::start(&lab.origin);
        let tund = Tund::start(&lab, settings);
        Self { tund, origin, lab }
    }

    /// The origin's service over IPv4.
    pub fn target(&self) -> SocketAddr {
        self.lab.origin_address(Family::V4, ORIGIN_PORT)
    }

    /// The same service, past tund.
    pub fn plain_target(&self) -> SocketAddr {
        self.lab.plain_origin_address(Family::V4, ORIGIN_PORT)
    }

    /// An open connection through tund whose other end sends everything back.
    #[track_caller]
    pub fn echo(&self) -> Echo {
        Echo::open(&self.lab.client, self.target()).expect("a connection through tund")
    }

    /// Waits until no flow is left on the client daemon.
    #[track_caller]
    pub fn wait_without_flows(&self) {
        wait::until_true("no flow is left on the client daemon", LATER, || {
            self.tund.client.status().flows.tcp == 0
        });
    }
}

/// A connection on which single bytes go there and back.
#[derive(Debug)]
pub struct Echo {
    /// The application's end.
    pub stream: TcpStream,
}

impl Echo {
    /// Opens it, with one byte there and back.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn open(from: &Namespace, to: SocketAddr) -> io::Result<Self> {
        let mut stream = from.connect(to, LATER)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LATER))?;
        Request::Echo.send(&mut stream)?;
        let mut echo = Self { stream };
        echo.round_trip()?;
        Ok(echo)
    }

    /// One byte there and back.
    ///
    /// # Errors
    /// Those of the connection; `WouldBlock` when nothing came for 20 s.
    pub fn round_trip(&mut self) -> io::Result<()> {
        let sent = [0x5a];
        let mut received = [0];
        self.stream.write_all(&sent)?;
        self.stream.read_exact(&mut received)?;
        assert_eq!(received, sent);
        Ok(())
    }
}
