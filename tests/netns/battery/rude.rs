//! Origins that are not there, do not answer, or end in the middle, as programs report them.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use tund_tests::lab::{Lab, wait};

use super::check::{Check, Middle};
use super::servers::NGINX;
use super::stage::run_beside;
use crate::support::{LONG, reset};

/// Resets a connection in the middle of its answer.
const RESETS: u16 = 9101;
/// Ends one there in order.
const ENDS: u16 = 9102;
/// Answers no SYN.
const SILENT: u16 = 9103;

/// What is promised, and what comes of it.
const PROMISED: usize = 20_000_000;
const SENT: usize = 8_000_000;

const CHECKS: [Check; 6] = [
    Check {
        title: "curl, refused 100 times",
        run: r#"for n in $(seq 100); do curl -s "http://$TO:1/" || echo "$?"; done"#,
        ends: 0,
        shows: "sort out | uniq -c",
        middle: Middle::Bytes(5000),
    },
    Check {
        title: "nc -z, 2,000 ports, one of them open",
        run: r#"nc -nzv -w 20 "$TO" 79-2078 || true"#,
        ends: 0,
        shows: r#"
            grep -c 'failed: Connection refused' err
            grep -o '[0-9]* port .*succeeded' err
        "#,
        middle: Middle::Bytes(20_000),
    },
    Check {
        title: "curl, a port that does not answer",
        run: r#"curl -sS --connect-timeout "$LASTS" "http://$TO:9103/""#,
        ends: 28,
        shows: "",
        middle: Middle::Bytes(60),
    },
    Check {
        title: "curl, an address of nobody",
        run: r#"curl -sS --connect-timeout 30 "http://$NOBODY/""#,
        ends: 7,
        shows: "",
        middle: Middle::Bytes(60),
    },
    Check {
        title: "curl, reset in the middle of the answer",
        run: r#"curl -sS -o part "http://$TO:9101/""#,
        ends: 56,
        shows: "wc -c <part; grep -o 'reset by peer' err",
        middle: Middle::Bytes(2_000_000),
    },
    Check {
        title: "curl, an end in the middle of the answer",
        run: r#"curl -sS -o part "http://$TO:9102/""#,
        ends: 18,
        shows: "wc -c <part; sed 's/[0-9]* out of/some of/' err",
        middle: Middle::Bytes(2_000_000),
    },
];

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn what_is_refused_silent_reset_or_cut_off_ends_as_it_does_directly() {
    run_beside("rude", &[&NGINX], &CHECKS, |lab| {
        serve(lab, RESETS, |stream| {
            wait_until_all_is_acknowledged(&stream)?;
            reset(stream);
            Ok(())
        });
        serve(lab, ENDS, |stream| {
            stream.shutdown(Shutdown::Write)?;
            // Until the peer has closed too, so that no reset overtakes the last bytes.
            (&stream).read(&mut [0]).map(drop)
        });
        lab.origin.nft(&format!(
            "add table inet silent\n\
             add chain inet silent in {{ type filter hook input priority 0; }}\n\
             add rule inet silent in tcp dport {SILENT} drop\n"
        ));
    });
}

/// Answers every request on `port` with less than it promises, and then ends as `end` does; until
/// the test's process does.
fn serve(lab: &Lab, port: u16, end: fn(TcpStream) -> io::Result<()>) {
    let listener = lab.origin.listen(port);
    drop(lab.origin.spawn("rude", move || answer_all(&listener, end)));
}

fn answer_all(listener: &TcpListener, end: fn(TcpStream) -> io::Result<()>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        // What goes wrong here is what the program sees, and says.
        drop(thread::spawn(move || answer(stream, end)));
    }
}

fn answer(mut stream: TcpStream, end: fn(TcpStream) -> io::Result<()>) -> io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
        request.extend(byte);
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {PROMISED}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&vec![0x55; SENT])?;
    end(stream)
}

/// Waits until the kernel has got everything acknowledged: bytes that have not left are lost with a
/// reset, on the direct way as on any other.
fn wait_until_all_is_acknowledged(stream: &TcpStream) -> io::Result<()> {
    let (own, peer) = (stream.local_addr()?.port(), stream.peer_addr()?.port());
    wait::until_true("all that was sent is acknowledged", LONG, || {
        let filter = format!("sport = :{own} and dport = :{peer}");
        let listing = Command::new("ss").args(["-Htn", &filter]).output();
        let listing = listing.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let queued = listing
            .unwrap_or_default()
            .split_ascii_whitespace()
            .nth(2)
            .map(str::to_owned);
        queued.as_deref() == Some("0")
    });
    Ok(())
}
