//! Both ends of the control socket together.

use std::future::poll_fn;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::time::Duration;

use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use super::peer::Rights;
use super::server::ACCEPTS;
use super::*;

struct Stage {
    _directory: tempfile::TempDir,
    path: PathBuf,
    server: ControlServer<ClientCommand>,
}

fn stage() -> Stage {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("client.sock");
    let server = ControlServer::bind(&path).expect("bound");
    Stage {
        _directory: directory,
        path,
        server,
    }
}

async fn next(server: &mut ControlServer<ClientCommand>) -> Request<ClientCommand> {
    let request = poll_fn(|cx| server.poll_request(cx));
    timeout(Duration::from_secs(5), request)
        .await
        .expect("a request in time")
}

/// Writes `bytes` and reads the one line that comes back, while the server is polled.
async fn raw(stage: &mut Stage, bytes: Vec<u8>) -> String {
    let path = stage.path.clone();
    let exchange = spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).expect("connected");
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("set");
        let written = stream.write_all(&bytes);
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("a line");
        drop(written);
        line
    });
    let server = &mut stage.server;
    tokio::select! {
        line = exchange => line.expect("no panic"),
        request = next(server) => panic!("let through: {request:?}"),
    }
}

#[tokio::test]
async fn a_question_is_answered() {
    let mut stage = stage();
    let path = stage.path.clone();
    let asked = spawn_blocking(move || {
        ask::<Page<u64, u64>>(&path, &ClientCommand::Flows { after: Some(7) })
    });

    let request = next(&mut stage.server).await;
    assert_eq!(request.command, ClientCommand::Flows { after: Some(7) });
    assert_eq!(request.caller.uid, nix::unistd::Uid::effective().as_raw());
    request.answer(&Page {
        rows: vec![8_u64, 9],
        next: None::<u64>,
    });

    let page = asked.await.expect("no panic").expect("answered");
    assert_eq!(
        page,
        Page {
            rows: vec![8, 9],
            next: None
        }
    );
}

#[tokio::test]
async fn a_refusal_reaches_the_caller() {
    let mut stage = stage();
    let path = stage.path.clone();
    let asked = spawn_blocking(move || ask::<()>(&path, &ClientCommand::Disconnect));

    next(&mut stage.server)
        .await
        .refuse("no_session", "there is no session; nothing to do");

    let error = asked
        .await
        .expect("no panic")
        .expect_err("refused")
        .to_string();
    assert_eq!(
        error,
        "the daemon refused: there is no session; nothing to do (no_session)"
    );
}

#[tokio::test]
async fn a_request_that_the_daemon_drops_is_answered_all_the_same() {
    let mut stage = stage();
    let path = stage.path.clone();
    let asked = spawn_blocking(move || ask::<()>(&path, &ClientCommand::Reconnect));

    drop(next(&mut stage.server).await);

    let error = asked
        .await
        .expect("no panic")
        .expect_err("stopping")
        .to_string();
    assert!(error.contains("the daemon is stopping"), "{error}");
}

#[tokio::test]
async fn an_answer_given_last_still_arrives_and_the_file_goes() {
    let mut stage = stage();
    let path = stage.path.clone();
    let asked = spawn_blocking(move || ask::<()>(&path, &ClientCommand::Disconnect));

    next(&mut stage.server).await.answer(&());
    let path = stage.path.clone();
    stage.server.finish().await;

    asked.await.expect("no panic").expect("answered");
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_no_request_is_told_so() {
    let mut stage = stage();
    for line in [
        "",
        "\n",
        "status\n",
        "{\"command\":\"explode\"}\n",
        "{\"command\":7}\n",
        "\u{fffd}",
    ] {
        let path = stage.path.clone();
        let line = line.as_bytes().to_vec();
        let exchange = spawn_blocking(move || {
            let mut stream = UnixStream::connect(path).expect("connected");
            stream.write_all(&line).expect("written");
            stream
                .shutdown(std::net::Shutdown::Write)
                .expect("shut down");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("read");
            answer
        });
        let answer = tokio::select! {
            answer = exchange => answer.expect("no panic"),
            request = next(&mut stage.server) => panic!("let through: {request:?}"),
        };
        assert!(
            answer.starts_with("{\"error\":{\"code\":\"bad_request\""),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_request_without_end_is_cut_off() {
    let mut stage = stage();

    let answer = raw(&mut stage, vec![b'x'; REQUEST_BYTES_MAX]).await;

    assert!(answer.contains("request_too_long"), "{answer}");
}

#[tokio::test]
async fn a_reader_of_totals_may_not_see_flows_or_change_anything() {
    let may = |command: &ClientCommand, access| {
        let line = serde_json::to_vec(command).expect("written");
        server::parse::<ClientCommand>(&line, access)
    };
    assert!(may(&ClientCommand::Status, Access::Totals).is_ok());
    for command in [
        ClientCommand::Flows { after: None },
        ClientCommand::Disconnect,
        ClientCommand::Reconnect,
    ] {
        let refusal = may(&command, Access::Totals).expect_err("refused");
        assert!(refusal.contains("permission_denied"), "{refusal}");
        assert!(may(&command, Access::Everything).is_ok());
    }
}

#[tokio::test]
async fn silent_callers_hold_their_places_for_a_while_only() {
    let mut stage = stage();
    stage.server.step_timeout = Duration::from_millis(50);
    let silent: Vec<UnixStream> = (0..CONNECTIONS_MAX)
        .map(|_| UnixStream::connect(&stage.path).expect("connected"))
        .collect();
    let mut waiting = UnixStream::connect(&stage.path).expect("queued");
    waiting
        .write_all(b"{\"command\":\"status\"}\n")
        .expect("written");

    assert_eq!(next(&mut stage.server).await.command, ClientCommand::Status);
    drop(silent);
}

#[tokio::test]
async fn many_callers_at_once_all_get_their_own_answer() {
    let mut stage = stage();
    let mut callers = JoinSet::new();
    for number in 0..100_u64 {
        let path = stage.path.clone();
        callers.spawn_blocking(move || {
            let command = ClientCommand::Flows {
                after: Some(number),
            };
            (number, ask::<u64>(&path, &command).expect("answered"))
        });
    }

    let mut done = 0;
    while done < 100 {
        tokio::select! {
            request = next(&mut stage.server) => {
                let ClientCommand::Flows { after: Some(number) } = request.command.clone() else {
                    panic!("another request");
                };
                request.answer(&number);
            }
            Some(pair) = callers.join_next() => {
                let (asked, answered) = pair.expect("no panic");
                assert_eq!(asked, answered);
                done += 1;
            }
        }
    }
}

/// Callers without any right; root has to become somebody else for that.
fn callers_without_rights(stage: &Stage, count: usize) -> Vec<UnixStream> {
    for (path, mode) in [(stage._directory.path(), 0o755), (&stage.path, 0o666)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("changed");
    }
    let path = stage.path.clone();
    let caller = std::thread::spawn(move || {
        if nix::unistd::Uid::effective().is_root() {
            #[expect(
                unsafe_code,
                reason = "nix changes the whole process; this thread ends"
            )]
            // SAFETY: the call takes numbers only.
            let done = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1, 65534, -1) };
            assert_eq!(done, 0, "a thread of root may become anybody");
        }
        let connect = |_| {
            let stream = UnixStream::connect(&path).expect("queued");
            stream.set_nonblocking(true).expect("set");
            stream
        };
        (0..count).map(connect).collect()
    });
    caller.join().expect("no panic")
}

#[tokio::test]
async fn whoever_is_turned_away_comes_back_in_turns_that_end() {
    let mut stage = stage();
    stage.server.rights = Rights {
        own_uid: u32::MAX,
        readers: None,
        administrators: None,
    };
    // As many as the kernel queues.
    let callers = callers_without_rights(&stage, ACCEPTS + 1);
    let told = || {
        // The whole line, so that nobody is counted twice.
        let is_told =
            |mut stream: &UnixStream| stream.read(&mut [0; 512]).is_ok_and(|count| count > 0);
        callers.iter().filter(|stream| is_told(stream)).count()
    };

    let mut turns = Vec::new();
    while turns.iter().sum::<usize>() < callers.len() {
        let polled = poll_fn(|cx| Poll::Ready(stage.server.poll_request(cx).is_pending()));
        assert!(polled.await, "nobody has asked for anything");
        turns.push(told());
        assert!(turns.len() < 1000, "{turns:?}");
        tokio::task::yield_now().await;
    }

    turns.retain(|told| *told > 0);
    assert_eq!(turns, [ACCEPTS, 1]);
}

#[test]
fn a_caller_that_is_turned_away_unheard_learns_why() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("client.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let answer = b"{\"error\":{\"code\":\"permission_denied\",\"message\":\"no\"}}\n";
        stream.write_all(answer).expect("written");
    });

    let error = ask::<()>(&path, &ClientCommand::Status).expect_err("turned away");

    daemon.join().expect("no panic");
    assert!(error.is_denied(), "{error}");
}

#[test]
fn an_absent_daemon_is_asked_after() {
    let error = ask::<()>(
        Path::new("/nonexistent/client.sock"),
        &ClientCommand::Status,
    )
    .expect_err("nobody there");

    assert_eq!(
        error.to_string(),
        "is the daemon running? tried /nonexistent/client.sock: No such file or directory (os \
         error 2); start it, or name its socket with --control"
    );
    assert!(!error.is_denied());
}
