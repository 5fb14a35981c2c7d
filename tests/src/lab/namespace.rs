//! One network namespace: running commands and opening sockets inside it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

/// Pending connections of a listening socket; enough for a burst of 1,000 applications.
const BACKLOG: i32 = 1024;

/// A named network namespace of a lab.
///
/// Sockets and processes belong to the namespace of the thread that makes them, so everything here
/// happens in short threads that enter it; the socket may then be used from anywhere.
#[derive(Debug)]
pub struct Namespace {
    /// What it plays in the lab; the prefix of its lines in the transcript.
    role: String,
    /// Its name for `ip netns`.
    name: String,
    handle: File,
}

impl Namespace {
    /// Makes the namespace `name`, with its loopback up.
    pub fn create(name: &str, role: &str) -> Self {
        command_output(Command::new("ip").args(["netns", "add", name]), role);
        let path = format!("/run/netns/{name}");
        let handle = File::open(&path)
            .unwrap_or_else(|cause| panic!("opened {path} after ip netns add: {cause}"));
        let namespace = Self {
            role: role.to_owned(),
            name: name.to_owned(),
            handle,
        };
        namespace.run("ip link set lo up");
        namespace
    }

    /// The name under which `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `action` in a thread inside the namespace and hands back what it returns.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.join_namespace();
                action()
            });
            entered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread of the name `title` that lives inside the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        title: &str,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let handle = self
            .handle
            .try_clone()
            .expect("a file descriptor can be had");
        let title = format!("{} {title}", self.role);
        thread::Builder::new()
            .name(title)
            .spawn(move || {
                setns(&handle, CloneFlags::CLONE_NEWNET).expect("root may enter its namespace");
                action()
            })
            .expect("a thread can be started")
    }

    /// Runs a command line (split at blanks), and gives what it printed; panics when it fails.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        self.try_run(line)
            .unwrap_or_else(|failure| panic!("[{}] {line}: {failure}", self.role))
    }

    /// Runs a command line (split at blanks).
    ///
    /// # Errors
    /// What it wrote to stderr, when it did not end with 0.
    pub fn try_run(&self, line: &str) -> Result<String, String> {
        self.narrate(line);
        let mut words = line.split_ascii_whitespace();
        let mut command = Command::new(words.next().expect("a command line names a program"));
        command.args(words);
        self.enter(|| output_of(&mut command))
    }

    /// Runs `program` with `script` as its standard input; panics when it fails.
    #[track_caller]
    pub fn feed(&self, program: &str, arguments: &[&str], script: &str) {
        for line in script.lines() {
            self.narrate(&format!("{program} < {line}"));
        }
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.spawn_process(&mut command);
        let written = child
            .stdin
            .take()
            .expect("it was asked for")
            .write_all(script.as_bytes());
        let output = child.wait_with_output().expect("a child can be waited for");
        assert!(
            written.is_ok() && output.status.success(),
            "[{}] {program} < {script}: {} {written:?}",
            self.role,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }

    /// Runs several `ip` commands in one process.
    #[track_caller]
    pub fn ip_batch(&self, lines: &[String]) {
        self.feed("ip", &["-batch", "-"], &(lines.join("\n") + "\n"));
    }

    /// Feeds `script` to nft.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        self.feed("nft", &["-f", "-"], script);
    }

    /// Writes a setting below `/proc/sys/net`, of this namespace.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
        let written = self.enter(|| std::fs::write(&path, value));
        written.unwrap_or_else(|cause| panic!("[{}] wrote {value} to {path}: {cause}", self.role));
    }

    /// Starts a process inside the namespace.
    #[track_caller]
    pub fn spawn_process(&self, command: &mut Command) -> Child {
        let shown = command.get_program().to_string_lossy().into_owned();
        self.enter(|| command.spawn())
            .unwrap_or_else(|cause| panic!("[{}] started {shown}: {cause}", self.role))
    }

    /// Opens a TCP connection from here.
    ///
    /// # Errors
    /// Those of connect, `TimedOut` after `limit` among them.
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let connect = || TcpStream::connect_timeout(&to, limit);
        match self.enter(connect) {
            // The library saw the socket hang up and asked too late, or too early, why: seen once
            // in some thousand refusals. What the kernel says is what is tested, so ask again.
            Err(error)
                if error.raw_os_error().is_none() && error.kind() != io::ErrorKind::TimedOut =>
            {
                self.enter(connect)
            }
            result => result,
        }
    }

    /// Opens a TCP connection whose socket buffers have a fixed size of about `buffer_bytes`.
    ///
    /// # Errors
    /// Those of connect, `TimedOut` after `limit` among them.
    pub fn connect_with_buffer(
        &self,
        to: SocketAddr,
        buffer_bytes: usize,
        limit: Duration,
    ) -> io::Result<TcpStream> {
        self.enter(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            // The kernel doubles the number it is given, for its own bookkeeping.
            socket.set_send_buffer_size(buffer_bytes / 2)?;
            socket.set_recv_buffer_size(buffer_bytes / 2)?;
            socket.connect_timeout(&to.into(), limit)?;
            Ok(socket.into())
        })
    }

    /// Begins to open a TCP connection, and does not wait: it is open once it has a peer's address.
    ///
    /// # Errors
    /// Those of connect.
    pub fn connect_slowly(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.enter(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
                _ => Ok(socket.into()),
            }
        })
    }

    /// Listens here on `port` of every address of both families (0: any free port).
    #[track_caller]
    pub fn listen(&self, port: u16) -> TcpListener {
        self.listen_with_buffer(port, None)
    }

    /// As [`Self::listen`], with a fixed size of the accepted sockets' buffers.
    #[track_caller]
    pub fn listen_with_buffer(&self, port: u16, buffer_bytes: Option<usize>) -> TcpListener {
        let listener = self.enter(|| -> io::Result<TcpListener> {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            if let Some(bytes) = buffer_bytes {
                socket.set_send_buffer_size(bytes / 2)?;
                socket.set_recv_buffer_size(bytes / 2)?;
            }
            socket.bind(&SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port).into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        });
        listener.unwrap_or_else(|cause| panic!("[{}] listened on port {port}: {cause}", self.role))
    }

    /// Writes a line of the lab's transcript.
    pub fn narrate(&self, line: &str) {
        narrate(&self.role, line);
    }

    fn join_namespace(&self) {
        setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("root may enter its namespace");
    }
}

/// Writes a line of the transcript; the test runner shows it when the test fails.
pub fn narrate(role: &str, line: &str) {
    eprintln!("[{role}] {line}");
}

/// Runs a command outside of any namespace of the lab; panics when it fails.
#[track_caller]
pub(super) fn command_output(command: &mut Command, role: &str) -> String {
    let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let line = format!(
        "{} {}",
        command.get_program().to_string_lossy(),
        words.join(" ")
    );
    narrate(role, &line);
    output_of(command).unwrap_or_else(|failure| panic!("[{role}] {line}: {failure}"))
}

fn output_of(command: &mut Command) -> Result<String, String> {
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(cause) => Err(format!("{cause}; is it installed?")),
    }
}
