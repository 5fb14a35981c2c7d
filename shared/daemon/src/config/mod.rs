//! Configuration files: TOML read into plain structs, every mistake with file, line, key and remedy.
//!
//! A daemon describes its file as one function from a [`Section`] to its own struct. Reading goes
//! on after a mistake, so one run of `check` shows all of them.

mod destination;
mod memory;
mod section;
mod unit;
pub mod value;

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

pub use destination::{BadAddress, Destination, Endpoint, Host, Prefix};
pub use memory::total_memory_bytes;
pub use section::Section;
pub use unit::{format_duration, format_size, parse_duration, parse_size};
pub use value::{Fault, Parsed, Value};

/// The largest configuration file read: 100,000 clients fit; a larger file is refused.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// One thing to tell about a configuration file: where it is, what was found, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file, as it was named on the command line.
    pub file: PathBuf,
    /// The line, from 1; none if the file as a whole is meant.
    pub line: Option<usize>,
    /// The key with its section, like `link.transport`; empty if the file as a whole is meant.
    pub key: String,
    /// What was found there.
    pub found: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}; {}", self.found, self.remedy)
    }
}

/// All mistakes of one configuration file; the program ends with 78.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Mistakes(pub Vec<Mistake>);

/// A configuration without mistakes, and what is odd about it all the same.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    /// What the file says, defaults filled in.
    pub config: T,
    /// Settings that have no effect, each to be logged once at start and shown by `check`.
    pub warnings: Vec<Mistake>,
}

/// Reads the file and builds `T` from it.
///
/// `build` returns none only if something required is missing or wrong, which it has reported
/// through its section.
///
/// # Errors
///
/// Everything that is wrong with the file, in the order of its lines.
pub fn load<T>(
    file: &Path,
    build: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Result<Loaded<T>, Mistakes> {
    let text = read(file)?;
    parse(file, &text, build)
}

/// Builds `T` from the text of a configuration file; `file` is for messages only.
///
/// # Errors
///
/// Everything that is wrong with the text, in the order of its lines.
pub fn parse<T>(
    file: &Path,
    text: &str,
    build: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Result<Loaded<T>, Mistakes> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut broken: Vec<_> = errors
        .iter()
        .take(section::MISTAKES_MAX)
        .map(|error| syntax_mistake(file, text, error))
        .collect();
    broken.sort_by_key(|mistake| mistake.line);
    // A broken line may be complained of several times.
    broken.dedup_by_key(|mistake| mistake.line);
    // What is left of a broken document says nothing; of a key that stands there twice, one counts.
    if !errors.iter().all(is_duplicate) {
        return Err(Mistakes(broken));
    }
    let mut notes = section::Notes::new(file, text);

    let config = {
        let mut root = Section::root(&mut notes, document.get_ref());
        let config = build(&mut root);
        root.finish();
        config
    };

    let (mut mistakes, warnings) = notes.conclude();
    mistakes.extend(broken);
    mistakes.sort_by_key(|mistake| mistake.line);
    match config {
        Some(config) if mistakes.is_empty() => Ok(Loaded { config, warnings }),
        Some(_) | None => Err(Mistakes(mistakes)),
    }
}

/// Every key that `build` knows, as section and key; for checks that a manual is complete.
///
/// Keys of `[[tables]]` are known only if `text` has such a table.
pub fn known_keys<T>(
    text: &str,
    build: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Vec<(String, &'static str)> {
    let mut notes = section::Notes::new(Path::new(""), text);
    if let Ok(document) = DeTable::parse(text) {
        let mut root = Section::root(&mut notes, document.get_ref());
        drop(build(&mut root));
        root.finish();
    }
    let keys = notes.into_known().into_iter();
    keys.filter(|(section, _)| !section.is_empty()).collect()
}

fn read(file: &Path) -> Result<String, Mistakes> {
    let whole = |found: String, remedy: &str| {
        Mistakes(vec![Mistake {
            file: file.to_path_buf(),
            line: None,
            key: String::new(),
            found,
            remedy: remedy.to_owned(),
        }])
    };
    let unreadable = |error: std::io::Error| {
        whole(
            format!("cannot be read: {error}"),
            "name an existing file that this user may read after --config",
        )
    };
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|opened| opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(whole(
            format!("is larger than {}", format_size(FILE_BYTES_MAX)),
            "is this the configuration file?",
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = error
            .as_bytes()
            .iter()
            .take(error.utf8_error().valid_up_to());
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        whole(
            format!("line {line} is not UTF-8 text"),
            "save the file as UTF-8",
        )
    })
}

/// A key or section that the file has already.
fn is_duplicate(error: &toml::de::Error) -> bool {
    error.message().contains("duplicate key")
}

/// TOML's own complaint, with the key taken from the line where it has one.
fn syntax_mistake(file: &Path, text: &str, error: &toml::de::Error) -> Mistake {
    let offset = error.span().map_or(text.len(), |span| span.start);
    let line = line_of(text, offset);
    let content = text.lines().nth(line - 1).unwrap_or("");
    let key = content.split_once('=').map_or("", |(key, _)| key.trim());
    let found = error.message().replace('\n', ", ");
    let remedy = if is_duplicate(error) {
        "it stands further up already: remove one of the two, or put both together"
    } else {
        "write TOML: `key = value`, with text and durations in double quotes"
    };
    Mistake {
        file: file.to_path_buf(),
        line: Some(line),
        key: key.to_owned(),
        found: format!("{found} in `{}`", content.trim()),
        remedy: remedy.to_owned(),
    }
}

/// The line, from 1, of the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

#[cfg(test)]
mod tests;
