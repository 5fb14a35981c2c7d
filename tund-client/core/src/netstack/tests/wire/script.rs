//! The language of the scripts.
//!
//! A script begins with a line `= title`. Then, one a line:
//!
//! - `> SEGMENT` comes from the application's kernel, `< SEGMENT` is what the netstack says next;
//!   `< unreachable` is ICMP; `nothing` that it says nothing more; `rest` that the rest is not looked at.
//!   All that is said has to be written down before anything else happens.
//! - `wait 1500ms`, `wait 2s`, `wait 3h`: time passes.
//! - `syn`, `gone`, `finished`, `drained`, `reset by app`, `closed`: the next event; all are to be
//!   written down, but for those that say that there is something to read, or room to write.
//! - `accept`, `refuse`, `forbid` (ICMP), `intake N`, `read N` (there must be as much),
//!   `send N` (all of it must be taken), `finish`, `reset`, `reset when drained`: the owner.
//!
//! A segment is its flags of `SAFRU`, its place in its own direction, in which SYN stands at 0 and
//! the first byte at 1: `7` or, with payload up to before 12, `7..12`; then `ack N`, a place in the other direction, and
//! in any order: `win N`, the field as it stands; `mss N`, `scale N`, `sack`, `ts N`, `odd` (an
//! option that nobody knows), `blocks 5..9,11..12`; `urg N`; `spoiled`, with a wrong checksum.
//! A word `MSS` is the largest payload of the device, `LEAST` what a kernel takes that does not say.
//! Of what is expected, flags but PSH and all options have to be right, the window where it is said.

use std::ops::Range;
use std::time::Duration;

pub(super) struct Script {
    pub(super) title: String,
    pub(super) lines: Vec<(usize, String, Line)>,
}

pub(super) enum Line {
    In(Segment),
    Out(Segment),
    Unreachable,
    Nothing,
    Rest,
    Wait(Duration),
    Event(&'static str),
    Owner(Owner),
}

#[derive(Clone, Copy)]
pub(super) enum Owner {
    Accept,
    Refuse,
    Forbid,
    Intake(u64),
    Read(usize),
    Send(usize),
    Finish,
    Reset,
    ResetWhenDrained,
}

/// A number, some of which depend on the IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Plain(u32),
    /// So much more than the largest payload of the device.
    Mss(u32),
    /// So much more than the payload that goes without saying.
    Least(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TcpOption {
    Mss(Number),
    Scale(u8),
    SackPermitted,
    Timestamp(u32),
    Odd,
}

#[derive(Clone, Default)]
pub(super) struct Segment {
    pub(super) flags: String,
    pub(super) begin: Option<Number>,
    pub(super) end: Option<Number>,
    pub(super) ack: Option<Number>,
    pub(super) window: Option<u16>,
    pub(super) options: Vec<TcpOption>,
    pub(super) blocks: Vec<Range<u32>>,
    pub(super) urgent: u16,
    pub(super) is_spoiled: bool,
}

pub(super) fn parse(text: &str) -> Vec<Script> {
    let mut scripts: Vec<Script> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(title) = line.strip_prefix("= ") {
            scripts.push(Script {
                title: title.to_owned(),
                lines: Vec::new(),
            });
        } else if !line.is_empty() && !line.starts_with('#') {
            let parsed = parse_line(line).unwrap_or_else(|| panic!("line {number}: {line}"));
            let script = scripts.last_mut().expect("a title comes first");
            script.lines.push((number, line.to_owned(), parsed));
        }
    }
    scripts
}

fn parse_line(line: &str) -> Option<Line> {
    const EVENTS: [&str; 6] = [
        "syn",
        "gone",
        "finished",
        "drained",
        "reset by app",
        "closed",
    ];
    if let Some(event) = EVENTS.into_iter().find(|event| *event == line) {
        return Some(Line::Event(event));
    }
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    Some(match verb {
        "<" if rest == "unreachable" => Line::Unreachable,
        "<" => Line::Out(parse_segment(rest)?),
        ">" => Line::In(parse_segment(rest)?),
        "nothing" => Line::Nothing,
        "rest" => Line::Rest,
        "wait" => Line::Wait(parse_duration(rest)?),
        "accept" => Line::Owner(Owner::Accept),
        "refuse" => Line::Owner(Owner::Refuse),
        "forbid" => Line::Owner(Owner::Forbid),
        "intake" => Line::Owner(Owner::Intake(rest.parse().ok()?)),
        "read" => Line::Owner(Owner::Read(rest.parse().ok()?)),
        "send" => Line::Owner(Owner::Send(rest.parse().ok()?)),
        "finish" => Line::Owner(Owner::Finish),
        "reset" if rest == "when drained" => Line::Owner(Owner::ResetWhenDrained),
        "reset" => Line::Owner(Owner::Reset),
        _ => return None,
    })
}

fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (count, unit) = text.split_at(unit);
    let count: u64 = count.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(count)),
        "s" => Some(Duration::from_secs(count)),
        "h" => Some(Duration::from_secs(count * 3600)),
        _ => None,
    }
}

fn parse_number(text: &str) -> Option<Number> {
    let more = |text: &str| match text {
        "" => Some(0),
        more => more.strip_prefix('+')?.parse().ok(),
    };
    if let Some(rest) = text.strip_prefix("MSS") {
        return more(rest).map(Number::Mss);
    }
    if let Some(rest) = text.strip_prefix("LEAST") {
        return more(rest).map(Number::Least);
    }
    text.parse().ok().map(Number::Plain)
}

fn parse_segment(text: &str) -> Option<Segment> {
    let mut words = text.split_whitespace();
    let mut segment = Segment {
        flags: words.next()?.to_owned(),
        ..Segment::default()
    };
    if !segment.flags.chars().all(|flag| "SAFRU".contains(flag)) {
        return None;
    }
    let place = words.next()?;
    if let Some((begin, end)) = place.split_once("..") {
        segment.begin = Some(parse_number(begin)?);
        segment.end = Some(parse_number(end)?);
    } else {
        segment.begin = Some(parse_number(place)?);
    }
    while let Some(word) = words.next() {
        match word {
            "ack" => segment.ack = Some(parse_number(words.next()?)?),
            "win" => segment.window = Some(words.next()?.parse().ok()?),
            "mss" => {
                let option = TcpOption::Mss(parse_number(words.next()?)?);
                segment.options.push(option);
            }
            "scale" => {
                let option = TcpOption::Scale(words.next()?.parse().ok()?);
                segment.options.push(option);
            }
            "sack" => segment.options.push(TcpOption::SackPermitted),
            "ts" => {
                let option = TcpOption::Timestamp(words.next()?.parse().ok()?);
                segment.options.push(option);
            }
            "odd" => segment.options.push(TcpOption::Odd),
            "blocks" => {
                for block in words.next()?.split(',') {
                    let (begin, end) = block.split_once("..")?;
                    segment.blocks.push(begin.parse().ok()?..end.parse().ok()?);
                }
            }
            "urg" => segment.urgent = words.next()?.parse().ok()?,
            "spoiled" => segment.is_spoiled = true,
            _ => return None,
        }
    }
    Some(segment)
}
