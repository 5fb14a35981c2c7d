//! Parsers of single values: each says what it found and what to write instead.

use std::env;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::de::{DeInteger, DeValue};

use super::destination::parse_interface_address;
use super::{format_duration, format_size, parse_duration, parse_size, total_memory_bytes};
use crate::identity::PrivateKey;

/// A value as it stands in the file, with its place.
pub type Value<'i> = toml::Spanned<DeValue<'i>>;

/// What a parser returns.
pub type Parsed<T> = Result<T, Fault>;

/// The longest path that fits a Unix socket address, less what a temporary name beside it adds.
const SOCKET_PATH_BYTES_MAX: usize = 96;

/// What is wrong with a value and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What was found, as a clause: `found "10 min", which is not a duration`.
    pub found: String,
    /// What to do, as an order: `write …`.
    pub remedy: String,
    /// Where in the text, if not at the beginning of the value.
    pub(super) offset: Option<usize>,
    /// More of the same value, where it is a list: each has its own line and remedy.
    others: Vec<Self>,
}

impl Fault {
    /// Each of them, in the order of the file.
    pub(super) fn each(mut self) -> impl Iterator<Item = Self> {
        let others = std::mem::take(&mut self.others);
        std::iter::once(self).chain(others)
    }

    /// A fault of the value as a whole.
    pub fn new(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            found: found.into(),
            remedy: remedy.into(),
            offset: None,
            others: Vec::new(),
        }
    }

    fn not(value: &Value<'_>, what: &str, remedy: impl Into<String>) -> Self {
        Self::new(
            format!("found {}, which is not {what}", describe(value)),
            remedy,
        )
    }
}

/// The value as a person would quote it, cut to a length that fits a line.
pub(super) fn describe(value: &Value<'_>) -> String {
    match value.get_ref() {
        DeValue::String(text) => quote(text),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(truth) => format!("{truth}"),
        DeValue::Datetime(time) => format!("the time {time}"),
        DeValue::Array(items) => format!("a list of {}", items.len()),
        DeValue::Table(_) => "a single section".to_owned(),
    }
}

/// `text` in quotes, control characters escaped, at most 64 characters of it.
fn quote(text: &str) -> String {
    let mut short: String = text.chars().take(64).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// Any text.
///
/// # Errors
///
/// Not a string.
pub fn text(value: &Value<'_>) -> Parsed<String> {
    plain_text(value)
        .map(str::to_owned)
        .ok_or_else(|| Fault::not(value, "text", "put it in double quotes"))
}

/// `true` or `false`.
///
/// # Errors
///
/// Anything else.
pub fn boolean(value: &Value<'_>) -> Parsed<bool> {
    value.get_ref().as_bool().ok_or_else(|| {
        Fault::not(
            value,
            "a truth value",
            "write true or false, without quotes",
        )
    })
}

/// A whole number within `range`.
pub fn integer(range: RangeInclusive<u64>) -> impl Fn(&Value<'_>) -> Parsed<u64> {
    move |value| {
        let number = value.get_ref().as_integer().and_then(to_u64);
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let remedy = format!(
                    "write a whole number from {} to {}, without quotes",
                    range.start(),
                    range.end()
                );
                Fault::not(value, "in range", remedy)
            })
    }
}

fn to_u64(number: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A duration within `range`.
pub fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value<'_>) -> Parsed<Duration> {
    move |value| {
        let parsed = plain_text(value).and_then(parse_duration);
        let Some(duration) = parsed else {
            let remedy = "write a number and a unit in quotes, like \"250ms\", \"30s\", \"10m\", \
                          \"24h\"";
            return Err(Fault::not(value, "a duration", remedy));
        };
        if !range.contains(&duration) {
            let (least, most) = (
                format_duration(*range.start()),
                format_duration(*range.end()),
            );
            let remedy = format!("write a duration from \"{least}\" to \"{most}\"");
            return Err(Fault::not(value, "in range", remedy));
        }
        Ok(duration)
    }
}

/// A size in bytes within `range`.
pub fn size(range: RangeInclusive<u64>) -> impl Fn(&Value<'_>) -> Parsed<u64> {
    move |value| {
        let parsed = plain_text(value).and_then(parse_size);
        let Some(size) = parsed else {
            let remedy =
                "write a number and a unit in quotes, like \"512KiB\", \"64MiB\", \"2GiB\"";
            return Err(Fault::not(value, "a size", remedy));
        };
        in_size_range(value, size, &range)
    }
}

/// A size, or a percentage of RAM: in bytes, within `range`.
pub fn memory(range: RangeInclusive<u64>) -> impl Fn(&Value<'_>) -> Parsed<u64> {
    move |value| {
        let percent = plain_text(value).and_then(|text| text.strip_suffix('%'));
        if let Some(percent) = percent {
            let percent: Option<u64> = percent.parse().ok().filter(|part| (1..=100).contains(part));
            let Some(percent) = percent else {
                let remedy = "write a whole percentage from \"1%\" to \"100%\"";
                return Err(Fault::not(value, "a share of memory", remedy));
            };
            return in_size_range(value, memory_share(percent), &range);
        }
        size(range.clone())(value).map_err(|fault| Fault {
            remedy: format!("{}, or a share of memory, like \"10%\"", fault.remedy),
            ..fault
        })
    }
}

/// `percent` of the RAM that the daemon may count on.
pub fn memory_share(percent: u64) -> u64 {
    total_memory_bytes() / 100 * percent
}

fn in_size_range(value: &Value<'_>, size: u64, range: &RangeInclusive<u64>) -> Parsed<u64> {
    if range.contains(&size) {
        return Ok(size);
    }
    let (least, most) = (format_size(*range.start()), format_size(*range.end()));
    let found = format!(
        "found {}, which is {} and not in range",
        describe(value),
        format_size(size)
    );
    Err(Fault::new(
        found,
        format!("write a size from \"{least}\" to \"{most}\""),
    ))
}

/// One of a few words.
pub fn choice<T: Copy>(choices: &[(&str, T)]) -> impl Fn(&Value<'_>) -> Parsed<T> {
    move |value| {
        let word = plain_text(value);
        let found = choices.iter().find(|(name, _)| Some(*name) == word);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<String> = choices
                .iter()
                .map(|(name, _)| format!("{name:?}"))
                .collect();
            let nearest = word.and_then(|word| {
                let distance = |name: &str| strsim::damerau_levenshtein(name, word);
                let nearest = choices
                    .iter()
                    .map(|(name, _)| *name)
                    .min_by_key(|name| distance(name))?;
                (distance(nearest) <= 2).then_some(nearest)
            });
            let hint = nearest.map_or(String::new(), |name| format!(" (did you mean {name:?}?)"));
            Fault::not(
                value,
                "one of the choices",
                format!("write {}{hint}", names.join(" or ")),
            )
        })
    }
}

/// Anything that reads itself from text and says in its error what to write.
pub fn from_text<T>(what: &str) -> impl Fn(&Value<'_>) -> Parsed<T>
where
    T: FromStr,
    T::Err: Display,
{
    move |value| {
        let text =
            plain_text(value).ok_or_else(|| Fault::not(value, what, "put it in double quotes"))?;
        text.parse()
            .map_err(|error: T::Err| Fault::not(value, what, error.to_string()))
    }
}

/// An address and port to listen on.
///
/// # Errors
///
/// Not an address with a port.
pub fn socket_address(value: &Value<'_>) -> Parsed<SocketAddr> {
    plain_text(value)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            let remedy = "write an address and a port, like \"0.0.0.0:443\", \"[::]:443\" or \
                      \"127.0.0.1:9464\"";
            Fault::not(value, "an address with a port", remedy)
        })
}

/// An address with a port, or none for an empty text.
///
/// # Errors
///
/// Anything else.
pub fn optional_socket_address(value: &Value<'_>) -> Parsed<Option<SocketAddr>> {
    match plain_text(value) {
        Some("") => Ok(None),
        Some(_) | None => socket_address(value).map(Some),
    }
}

/// An IP address.
///
/// # Errors
///
/// Anything else.
pub fn address(value: &Value<'_>) -> Parsed<IpAddr> {
    plain_text(value)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            Fault::not(
                value,
                "an address",
                "write an IP address, like \"10.111.0.1\"",
            )
        })
}

/// An address of an interface with its prefix length.
///
/// # Errors
///
/// Not an address, a prefix too long, or an address that no interface can have.
pub fn interface_address(value: &Value<'_>) -> Parsed<(IpAddr, u8)> {
    let text = plain_text(value)
        .ok_or_else(|| Fault::not(value, "an address", "put it in double quotes"))?;
    let (address, len) = parse_interface_address(text)
        .map_err(|error| Fault::not(value, "an address", error.to_string()))?;
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        let remedy = "write an address of your own, like \"10.111.0.2/32\" or \"fd7d::2/128\"";
        return Err(Fault::not(value, "usable on an interface", remedy));
    }
    Ok((address, len))
}

/// A name that Linux takes for an interface.
///
/// # Errors
///
/// Empty, longer than 15 bytes, or with characters that the kernel refuses.
pub fn interface_name(value: &Value<'_>) -> Parsed<String> {
    let name = text(value)?;
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        let remedy = "write 1 to 15 characters without spaces, '/', ':' and '%', like \"tund0\"";
        return Err(Fault::not(value, "an interface name", remedy));
    }
    Ok(name)
}

/// A name of network interfaces, or how their names begin, with `*` behind it.
///
/// # Errors
///
/// Not text, or nothing the kernel could take for the beginning of a name.
pub fn interface_pattern(value: &Value<'_>) -> Parsed<String> {
    let pattern = text(value)?;
    let begin = pattern.strip_suffix('*').unwrap_or(&pattern);
    let bad = |c: char| {
        c == '*' || c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control()
    };
    if begin.is_empty() || begin.len() > 15 || begin.contains(bad) {
        let remedy = "write a name like \"wwan0\", or how names begin, like \"wwan*\"";
        return Err(Fault::not(value, "a name of interfaces", remedy));
    }
    Ok(pattern)
}

/// An absolute path.
///
/// # Errors
///
/// Not text, or a relative path: the daemon's working directory is not the user's.
pub fn path(value: &Value<'_>) -> Parsed<PathBuf> {
    let path = PathBuf::from(text(value)?);
    if !path.is_absolute() {
        return Err(Fault::not(
            value,
            "an absolute path",
            "write the path from / on",
        ));
    }
    Ok(path)
}

/// An absolute path that fits a Unix socket.
///
/// # Errors
///
/// As [`path`], and too long.
pub fn socket_path(value: &Value<'_>) -> Parsed<PathBuf> {
    let path = path(value)?;
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX || path.file_name().is_none() {
        let remedy =
            format!("write the path of a file, at most {SOCKET_PATH_BYTES_MAX} bytes long");
        return Err(Fault::not(value, "the path of a Unix socket", remedy));
    }
    Ok(path)
}

/// A private key file, read at once: the path that was read, and the key.
///
/// Under systemd, a credential of the same file name (`LoadCredential=`) goes before the file, so
/// that the daemon's user need not be able to read the file itself.
///
/// # Errors
///
/// The file is missing, readable by others, owned by a stranger, or holds no key.
pub fn private_key(value: &Value<'_>) -> Parsed<(PathBuf, PrivateKey)> {
    let path = path(value)?;
    let credential = env::var_os("CREDENTIALS_DIRECTORY")
        .and_then(|directory| Some(Path::new(&directory).join(path.file_name()?)))
        .filter(|credential| credential.exists());
    let path = credential.unwrap_or(path);
    match PrivateKey::load(&path) {
        Ok(key) => Ok((path, key)),
        Err(error) => {
            let text = error.to_string();
            let (found, remedy) = text
                .split_once("; ")
                .unwrap_or((&text, "make one with keygen"));
            Err(Fault::new(found, remedy))
        }
    }
}

/// A list, each item read by `parser`; at most `max` items.
pub fn list<T>(
    max: usize,
    parser: impl Fn(&Value<'_>) -> Parsed<T>,
) -> impl Fn(&Value<'_>) -> Parsed<Vec<T>> {
    move |value| {
        let Some(items) = value.get_ref().as_array() else {
            return Err(Fault::not(
                value,
                "a list",
                "put it in square brackets: [\"…\", \"…\"]",
            ));
        };
        if items.len() > max {
            return Err(Fault::not(
                value,
                "in range",
                format!("write at most {max} items"),
            ));
        }
        let mut parsed = Vec::new();
        let mut faults = Vec::new();
        for item in items.iter() {
            match parser(item) {
                Ok(good) => parsed.push(good),
                Err(fault) => faults.push(Fault {
                    offset: fault.offset.or_else(|| Some(item.span().start)),
                    ..fault
                }),
            }
        }
        let mut faults = faults.into_iter();
        match faults.next() {
            None => Ok(parsed),
            Some(first) => Err(Fault {
                others: faults.collect(),
                ..first
            }),
        }
    }
}

/// A list with at least one item, or that one item alone.
pub fn one_or_list<T>(
    max: usize,
    parser: impl Fn(&Value<'_>) -> Parsed<T>,
) -> impl Fn(&Value<'_>) -> Parsed<Vec<T>> {
    move |value| match value.get_ref().as_array() {
        Some(items) if items.is_empty() => {
            Err(Fault::new("found an empty list", "write at least one item"))
        }
        Some(_) => list(max, &parser)(value),
        None => Ok(vec![parser(value)?]),
    }
}

fn plain_text<'v>(value: &'v Value<'_>) -> Option<&'v str> {
    value.get_ref().as_str()
}
