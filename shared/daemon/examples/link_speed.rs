//! Measures a link over loopback beside plain TCP: Gbit/s, and CPU seconds per GB of both ends.
//!
//! `cargo run --release -p tund-daemon --example link_speed -- [GIGABYTES]`

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::resource::{UsageWho, getrusage};
use socket2::{Domain, Socket, Type};
use tund_daemon::clock;
use tund_daemon::identity::PrivateKey;
use tund_daemon::link::{ClientKeys, ClientTls, Link, ServerTls, SocketOptions};

const GIGABYTE: u64 = 1_000_000_000;
/// One frame: a header and a payload, as the session makes them.
const HEADER: [u8; 12] = [1; 12];
const PAYLOAD_BYTES: usize = 16 << 10;

#[expect(clippy::print_stdout, reason = "a measurement prints its result")]
fn main() -> Result<()> {
    let bytes = match std::env::args().nth(1) {
        Some(text) => text
            .parse::<u64>()
            .context("GIGABYTES is a number")?
            .saturating_mul(GIGABYTE),
        None => 2 * GIGABYTE,
    };
    for name in ["tcp", "link"] {
        let (start, cpu) = (clock::now(), cpu()?);
        if name == "tcp" {
            plain(bytes)
        } else {
            link(bytes)
        }?;
        let seconds = clock::now().saturating_duration_since(start).as_secs_f64();
        let gigabytes = Duration::from_nanos(bytes).as_secs_f64();
        let used = (self::cpu()? - cpu).as_secs_f64();
        println!(
            "{name:5} {:6.2} Gbit/s  {:.3} CPU s/GB, both ends",
            gigabytes * 8.0 / seconds,
            used / gigabytes
        );
    }
    Ok(())
}

fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let total = usage.user_time() + usage.system_time();
    let micros = total
        .tv_sec()
        .saturating_mul(1_000_000)
        .saturating_add(total.tv_usec());
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

fn listen() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn plain(bytes: u64) -> Result<()> {
    let (listener, address) = listen()?;
    let reader = thread::spawn(move || -> Result<u64> {
        let (mut stream, _) = listener.accept()?;
        let (mut space, mut got) = (vec![0; 256 << 10], 0);
        loop {
            match stream.read(&mut space)? {
                0 => return Ok(got),
                count => got += u64::try_from(count)?,
            }
        }
    });
    let mut stream = TcpStream::connect(address)?;
    let (data, mut left) = (vec![7; 128 << 10], bytes);
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
        stream.write_all(data.get(..part).unwrap_or_default())?;
        left -= u64::try_from(part)?;
    }
    drop(stream);
    expect_all(join(reader)?, bytes)
}

fn link(bytes: u64) -> Result<()> {
    let (client, server) = (PrivateKey::generate()?, PrivateKey::generate()?);
    let server_tls = ServerTls::new(&server, ClientKeys::new([client.public()]))?;
    let client_tls = ClientTls::new(&client, vec![server.public()])?;
    let (listener, address) = listen()?;
    let reader = thread::spawn(move || -> Result<u64> {
        runtime()?.block_on(async {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            let stream = tokio::net::TcpStream::from_std(stream)?;
            let mut link = Link::accept(stream, &server_tls, &SocketOptions::default())?;
            poll_fn(|cx| link.poll_handshake(cx)).await?;
            let mut got = 0;
            while let Some(data) = poll_fn(|cx| link.poll_recv(cx, usize::MAX)).await? {
                got += u64::try_from(data.len())?;
            }
            Ok(got)
        })
    });
    runtime()?.block_on(async {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let mut link = Link::connect(socket, address, &client_tls, &SocketOptions::default())?;
        poll_fn(|cx| link.poll_handshake(cx)).await?;
        let mut left = bytes;
        let payload = vec![7; PAYLOAD_BYTES];
        poll_fn(|cx| send(&mut link, cx, &payload, &mut left)).await
    })?;
    let got = join(reader)?;
    let frames = bytes.div_ceil(u64::try_from(PAYLOAD_BYTES)?);
    expect_all(got, frames * u64::try_from(HEADER.len() + PAYLOAD_BYTES)?)
}

/// Keeps the link full, as a daemon's loop does.
fn send(link: &mut Link, cx: &mut Context<'_>, payload: &[u8], left: &mut u64) -> Poll<Result<()>> {
    loop {
        let frame = HEADER.len() + PAYLOAD_BYTES;
        let wanted = left.div_ceil(u64::try_from(PAYLOAD_BYTES)?);
        let frames = wanted.min(u64::try_from(link.room() / frame)?);
        if frames > 0 {
            let count = usize::try_from(frames)?;
            let slices = std::iter::repeat_n([HEADER.as_slice(), payload], count).flatten();
            link.send(slices)?;
            *left = left.saturating_sub(frames * u64::try_from(PAYLOAD_BYTES)?);
        }
        match link.poll_flush(cx)? {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(()) if *left > 0 => {}
            Poll::Ready(()) if link.room() == 0 => return Poll::Ready(Ok(())),
            Poll::Ready(()) => link.shutdown(),
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?)
}

fn join(thread: JoinHandle<Result<u64>>) -> Result<u64> {
    thread.join().map_err(|_| anyhow!("the reader panicked"))?
}

fn expect_all(got: u64, wanted: u64) -> Result<()> {
    if got != wanted {
        bail!("{got} of {wanted} bytes arrived");
    }
    Ok(())
}
