//! The tables of PROTOCOL.md say what the code does.

use crate::limits;
use crate::wire::code::Code;
use crate::wire::codec::{MAX_ACKS, MAX_BODY, MAX_DATAGRAM, MAX_PAYLOAD, MAX_RELEASED, MAX_TAKES};
use crate::wire::frame::{
    CloseCode, FlowCode, LinkCloseReason, OnExpiry, OpenError, Protocol, RejectReason,
};
use crate::wire::kind::{Kind, reserved};
use std::fmt::Debug;
use std::time::Duration;

const DOCUMENT: &str = include_str!("../../../PROTOCOL.md");

#[test]
fn the_table_of_types_is_that_of_the_code() {
    let rows: Vec<String> = rows(section("### 3.3 "))
        .into_iter()
        .filter(|cells| cells.len() == 5 && cells[0].starts_with('`'))
        .map(|cells| format!("{} {} {}", cells[0], cells[1], cells[4]))
        .collect();

    let kinds: Vec<String> = Kind::ALL
        .iter()
        .map(|kind| {
            format!(
                "`{:#04x}` {} {}",
                kind.to_wire(),
                kind.name(),
                kind.max_body()
            )
        })
        .collect();

    assert_eq!(rows, kinds);
}

#[test]
fn every_frame_has_a_row_of_fields() {
    let described: Vec<&str> = rows(section("### 3.4 "))
        .into_iter()
        .flat_map(|cells| cells[0].split(", ").collect::<Vec<_>>())
        .collect();

    for kind in Kind::ALL {
        assert!(
            described.contains(&kind.name()),
            "{} is missing",
            kind.name()
        );
    }
}

#[test]
fn numbers_kept_for_later_are_those_of_the_code() {
    let kept: Vec<String> = rows(section("### 3.3 "))
        .into_iter()
        .filter(|cells| cells.len() == 2 && cells[0].starts_with('`'))
        .map(|cells| cells[0].to_owned())
        .collect();

    let expected: Vec<String> = [
        reserved::DELIVERY,
        reserved::HAND_OFF,
        reserved::OFFLINE_OBJECTS,
    ]
    .iter()
    .map(|types| format!("`{:#04x}`–`{:#04x}`", types.start(), types.end()))
    .collect();

    assert_eq!(kept, expected);
}

#[test]
fn the_tables_of_codes_are_those_of_the_code() {
    codes::<RejectReason>("### 10.1 RejectReason");
    codes::<FlowCode>("### 10.3 FlowCode");
    codes::<CloseCode>("### 10.4 CloseCode");
    codes::<LinkCloseReason>("### 10.5 LinkCloseReason");
    codes::<Protocol>("### 10.6 Protocol");
    codes::<OnExpiry>("### 10.7 OnExpiry");
}

#[test]
fn the_table_of_open_errors_is_that_of_the_code() {
    let mut count = 0;
    for cells in rows(section("### 10.2 OpenError")).into_iter().skip(1) {
        let number = cells[0].parse().expect("a number");
        let error = OpenError::from_wire(number, cells[2].parse().unwrap_or(7));
        let (again, errno) = error.to_wire();

        assert_eq!(again, number);
        if let OpenError::Other(_) = error {
            assert_eq!((cells[1], cells[2]), ("`Other`", "as met"));
        } else {
            assert_eq!(cells[1], format!("`{error:?}`"));
            assert_eq!(cells[2], errno.to_string());
        }
        count += 1;
    }

    assert_eq!(
        OpenError::from_wire(count, 7),
        OpenError::Other(7),
        "a code has no row"
    );
}

#[test]
fn times_and_bounds_are_those_of_the_code() {
    let times = [
        ("PING_AFTER", limits::PING_AFTER),
        ("PING_BESIDE", limits::PING_BESIDE),
        ("LATELY", limits::LATELY),
        ("KEEPALIVE", limits::KEEPALIVE),
        ("PONG_MIN", limits::PONG_MIN),
        ("KERNEL_QUIET", limits::KERNEL_QUIET),
        ("PONG_FIRST", limits::PONG_FIRST),
        ("LEAVING", limits::LEAVING),
        ("LINK_SILENT", limits::LINK_SILENT),
        ("UNCONFIRMED", limits::UNCONFIRMED),
        ("RESET_STALL", limits::RESET_STALL),
        ("SERVER_EXTRA", limits::SERVER_EXTRA),
        ("ABANDONED", limits::ABANDONED),
    ];
    let table = rows(section("## 9 "));
    let value = |name: &str| {
        let row = table
            .iter()
            .find(|cells| cells[0].trim_matches('`') == name);
        row.unwrap_or_else(|| panic!("{name} has no row"))[1]
    };

    for (name, time) in times {
        let written = match time.as_millis() {
            millis if millis % 1000 == 0 => format!("{} s", millis / 1000),
            millis => format!("{millis} ms"),
        };
        assert_eq!(
            Duration::from_millis(u64::try_from(time.as_millis()).unwrap()),
            time
        );
        assert_eq!(value(name), written, "{name}");
    }
    assert_eq!(
        value("payload of DATA or DATAGRAM"),
        format!("{MAX_PAYLOAD} bytes")
    );
    assert_eq!(value("datagram in pieces"), format!("{MAX_DATAGRAM} bytes"));
    assert_eq!(value("body of a frame"), format!("{MAX_BODY} bytes"));
    let counts = [
        ("entries of FLOW_STATE", MAX_ACKS),
        ("entries of RESUME_REJECT", MAX_RELEASED),
        ("entries of OPEN_HAND_OFF", MAX_TAKES),
        (
            "pieces under 4096 bytes held out of order in one session",
            limits::PIECES_OUT_OF_ORDER,
        ),
        ("LINK_DOWN never sent", limits::LINKS_DOWN),
        ("PONGs waiting on one link", limits::LINK_FRAMES),
        ("links of one session", limits::LINKS),
        ("secrets that count", limits::SECRETS),
    ];
    for (name, count) in counts {
        assert_eq!(value(name), count.to_string(), "{name}");
    }
    assert_eq!(
        value("control messages under way"),
        limits::CONTROL_WINDOW.to_string()
    );
}

fn codes<C: Code + Debug>(title: &str) {
    let written: Vec<String> = rows(section(title))
        .into_iter()
        .skip(1)
        .map(|cells| format!("{} {}", cells[0], cells[1]))
        .collect();

    let known: Vec<String> = C::ALL
        .iter()
        .map(|(number, code)| format!("{number} `{code:?}`"))
        .collect();

    assert_eq!(written, known, "{title}");
}

/// The text from that title to the next.
fn section(title: &str) -> &'static str {
    let start = DOCUMENT
        .find(&format!("\n{title}"))
        .unwrap_or_else(|| panic!("no {title}"))
        + 1;
    let rest = &DOCUMENT[start..];
    let end = rest[1..].find("\n#").map_or(rest.len(), |end| end + 1);
    &rest[..end]
}

/// The cells of each row of the tables of `text`, rules left out.
fn rows(text: &'static str) -> Vec<Vec<&'static str>> {
    text.lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("|-"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}
