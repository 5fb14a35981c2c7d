//! One table of a configuration file while it is read: asks for keys, notes what is wrong.

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::value::{Fault, Parsed, Value, describe};
use super::{Mistake, line_of};

/// How many mistakes are kept: a binary file must not fill the terminal.
pub(super) const MISTAKES_MAX: usize = 50;

/// What was found wrong or odd while a file is read.
#[derive(Debug)]
pub(super) struct Notes {
    file: PathBuf,
    text: String,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
    /// Keys that nothing asked for; judged at the end, when all known keys have been seen.
    unknown: Vec<Unknown>,
    /// Every key that was asked for, as (section, key).
    known: Vec<(String, &'static str)>,
}

#[derive(Debug)]
struct Unknown {
    section: String,
    key: String,
    offset: usize,
}

impl Notes {
    pub(super) fn new(file: &Path, text: &str) -> Self {
        Self {
            file: file.to_path_buf(),
            text: text.to_owned(),
            mistakes: Vec::new(),
            warnings: Vec::new(),
            unknown: Vec::new(),
            known: Vec::new(),
        }
    }

    pub(super) fn into_known(self) -> Vec<(String, &'static str)> {
        self.known
    }

    /// Mistakes and warnings, unknown keys among the former.
    pub(super) fn conclude(mut self) -> (Vec<Mistake>, Vec<Mistake>) {
        for unknown in std::mem::take(&mut self.unknown) {
            let remedy = self.remedy_for(&unknown);
            let key = join(&unknown.section, &unknown.key);
            self.mistake(unknown.offset, key, Fault::new("unknown key", remedy));
        }
        (self.mistakes, self.warnings)
    }

    fn remedy_for(&self, unknown: &Unknown) -> String {
        let elsewhere = self
            .known
            .iter()
            .find(|(section, key)| *key == unknown.key && *section != unknown.section);
        let nearest = self
            .known
            .iter()
            .filter(|(section, _)| *section == unknown.section)
            .min_by_key(|(_, key)| strsim::damerau_levenshtein(key, &unknown.key))
            .map_or("", |(_, key)| *key);
        let far = strsim::damerau_levenshtein(nearest, &unknown.key) > 2;
        match elsewhere {
            Some((section, key)) if far && section.is_empty() => {
                format!("write it as a section of its own, [{key}]")
            }
            Some((section, _)) if far => format!("it belongs to [{section}]"),
            Some(_) | None => format!("the nearest known key is `{nearest}`"),
        }
    }

    fn add_unknown(&mut self, section: &str, key: &str, offset: usize) {
        if self.unknown.len() < MISTAKES_MAX {
            let (section, key) = (section.to_owned(), key.to_owned());
            self.unknown.push(Unknown {
                section,
                key,
                offset,
            });
        }
    }

    fn add_known(&mut self, section: &str, keys: &[&'static str]) {
        if !self.known.iter().any(|(seen, _)| seen == section) {
            self.known
                .extend(keys.iter().map(|key| (section.to_owned(), *key)));
        }
    }

    fn mistake(&mut self, offset: usize, key: String, fault: Fault) {
        for fault in fault.each() {
            if self.mistakes.len() < MISTAKES_MAX {
                let mistake = self.note(offset, key.clone(), fault);
                self.mistakes.push(mistake);
            }
        }
    }

    fn warning(&mut self, offset: usize, key: String, fault: Fault) {
        if self.warnings.len() < MISTAKES_MAX {
            let warning = self.note(offset, key, fault);
            self.warnings.push(warning);
        }
    }

    fn note(&self, offset: usize, key: String, fault: Fault) -> Mistake {
        let offset = fault.offset.unwrap_or(offset);
        Mistake {
            file: self.file.clone(),
            line: Some(line_of(&self.text, offset)),
            key,
            found: fault.found,
            remedy: fault.remedy,
        }
    }
}

/// A table of the file, or the place where one could stand.
///
/// Every key that the daemon knows is asked for exactly once, whether the table is there or not:
/// what was not asked for is reported as unknown when the section is done.
#[derive(Debug)]
pub struct Section<'s> {
    notes: &'s mut Notes,
    name: String,
    table: Option<&'s DeTable<'s>>,
    /// Where the table begins; for what is missing in it.
    offset: usize,
    known: Vec<&'static str>,
}

impl<'s> Section<'s> {
    pub(super) fn root(notes: &'s mut Notes, table: &'s DeTable<'s>) -> Self {
        Section {
            notes,
            name: String::new(),
            table: Some(table),
            offset: 0,
            known: Vec::new(),
        }
    }

    /// The value of `key`, if the file has it and it is right.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        parser: impl FnOnce(&Value<'_>) -> Parsed<T>,
    ) -> Option<T> {
        let (_, value) = self.entry(key)?;
        match parser(value) {
            Ok(parsed) => Some(parsed),
            Err(fault) => {
                self.notes
                    .mistake(value.span().start, join(&self.name, key), fault);
                None
            }
        }
    }

    /// The value of `key`, or its default.
    pub fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        parser: impl FnOnce(&Value<'_>) -> Parsed<T>,
    ) -> T {
        self.optional(key, parser).unwrap_or(default)
    }

    /// The value of `key`; that it is missing is a mistake, which `remedy` mends.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        remedy: &str,
        parser: impl FnOnce(&Value<'_>) -> Parsed<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.reject(key, "is required and missing", remedy);
        }
        self.optional(key, parser)
    }

    /// The table `key`, built by `build`, which is called for a missing table too.
    pub fn table<T>(&mut self, key: &'static str, build: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let found = self.entry(key);
        let mut offset = self.notes.text.trim_end().len();
        let mut table = None;
        if let Some((name, value)) = found {
            offset = name.span().start;
            table = value.get_ref().as_table();
            if table.is_none() {
                self.not_a_table(key, value, &format!("[{key}]"));
            }
        }
        self.child(key, table, offset, build)
    }

    /// The tables `[[key]]`, each built by `build`.
    pub fn tables<T>(
        &mut self,
        key: &'static str,
        mut build: impl FnMut(&mut Section<'_>) -> Option<T>,
    ) -> Vec<T> {
        let Some((_, value)) = self.entry(key) else {
            return Vec::new();
        };
        let remedy = format!("[[{key}]]");
        let Some(items) = value.get_ref().as_array() else {
            self.not_a_table(key, value, &remedy);
            return Vec::new();
        };
        let mut built = Vec::new();
        for item in items.iter() {
            let table = item.get_ref().as_table();
            if table.is_none() {
                self.not_a_table(key, item, &remedy);
            } else {
                built.extend(self.child(key, table, item.span().start, &mut build));
            }
        }
        built
    }

    /// Whether the file has `key` in this section.
    pub fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether the section itself is in the file.
    pub const fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Notes a mistake at `key`, or where it should stand.
    pub fn reject(&mut self, key: &str, found: impl Into<String>, remedy: impl Into<String>) {
        let offset = self.offset_of(key);
        self.notes
            .mistake(offset, join(&self.name, key), Fault::new(found, remedy));
    }

    /// Notes something odd at `key` with which the daemon runs all the same.
    pub fn warn(&mut self, key: &str, found: impl Into<String>, remedy: impl Into<String>) {
        let offset = self.offset_of(key);
        self.notes
            .warning(offset, join(&self.name, key), Fault::new(found, remedy));
    }

    /// Reports every key that nothing asked for.
    pub(super) fn finish(self) {
        self.notes.add_known(&self.name, &self.known);
        for (key, _) in self.table.into_iter().flat_map(DeTable::iter) {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                self.notes.add_unknown(&self.name, name, key.span().start);
            }
        }
    }

    fn child<T>(
        &mut self,
        key: &str,
        table: Option<&DeTable<'_>>,
        offset: usize,
        build: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let name = join(&self.name, key);
        let mut child = Section {
            notes: &mut *self.notes,
            name,
            table,
            offset,
            known: Vec::new(),
        };
        let built = build(&mut child);
        child.finish();
        built
    }

    fn entry(
        &mut self,
        key: &'static str,
    ) -> Option<(&'s toml::Spanned<toml::de::DeString<'s>>, &'s Value<'s>)> {
        self.known.push(key);
        self.table?.get_key_value(key)
    }

    fn not_a_table(&mut self, key: &str, value: &Value<'_>, header: &str) {
        let fault = Fault::new(
            format!("found {} in place of a section", describe(value)),
            format!("write {header} on a line of its own and its keys below"),
        );
        self.notes
            .mistake(value.span().start, join(&self.name, key), fault);
    }

    fn offset_of(&self, key: &str) -> usize {
        self.table
            .and_then(|table| table.get_key_value(key))
            .map_or(self.offset, |(name, _)| name.span().start)
    }
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}
