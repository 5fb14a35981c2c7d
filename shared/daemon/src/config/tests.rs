//! The machinery: lines, keys, nearest names, and that reading goes on after a mistake.

use std::path::Path;
use std::time::Duration;

use super::*;

#[derive(Debug, PartialEq)]
struct Sample {
    grace: Duration,
    names: Vec<String>,
    size: u64,
}

fn build(root: &mut Section<'_>) -> Option<Sample> {
    let (grace, size) = root.table("session", |section| {
        let grace = section.or(
            "grace",
            Duration::from_secs(600),
            value::duration(Duration::ZERO..=Duration::from_secs(3600)),
        );
        let size = section.required("buffer", "add buffer = \"64MiB\"", value::size(1..=1 << 30));
        (grace, size)
    });
    let names = root.tables("policy", |section| section.optional("name", value::text));
    Some(Sample {
        grace,
        names,
        size: size?,
    })
}

fn mistakes(text: &str) -> Vec<String> {
    match parse(Path::new("x.toml"), text, build) {
        Ok(loaded) => panic!("no mistake found: {:?}", loaded.config),
        Err(Mistakes(all)) => all.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_good_file_gives_its_values() {
    let text = "[session]\nbuffer = \"1MiB\"\n[[policy]]\nname = \"a\"\n[[policy]]\nname = \"b\"\n";

    let loaded = parse(Path::new("x.toml"), text, build).expect("a good file");

    let names = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(
        loaded.config,
        Sample {
            grace: Duration::from_secs(600),
            names,
            size: 1 << 20
        }
    );
    assert_eq!(loaded.warnings, []);
}

#[test]
fn all_mistakes_are_reported_in_the_order_of_their_lines() {
    let text = "[session]\ngrcae = \"10m\"\ngrace = 10\nbuffer = \"2TiB\"\n";

    assert_eq!(
        mistakes(text),
        [
            "x.toml:2: session.grcae: unknown key; the nearest known key is `grace`",
            "x.toml:3: session.grace: found the number 10, which is not a duration; write a number \
             and a unit in quotes, like \"250ms\", \"30s\", \"10m\", \"24h\"",
            "x.toml:4: session.buffer: found \"2TiB\", which is 2TiB and not in range; write a \
             size from \"1B\" to \"1GiB\"",
        ]
    );
}

#[test]
fn a_missing_key_is_reported_at_its_section_or_at_the_end() {
    assert_eq!(
        mistakes("\n[session]\ngrace = \"1m\"\n"),
        ["x.toml:2: session.buffer: is required and missing; add buffer = \"64MiB\""]
    );
    assert_eq!(
        mistakes("# nothing\n# here\n"),
        ["x.toml:2: session.buffer: is required and missing; add buffer = \"64MiB\""]
    );
}

#[test]
fn a_key_of_another_section_is_sent_there() {
    assert_eq!(
        mistakes("[session]\nbuffer = \"1MiB\"\n[[policy]]\nbuffer = \"1MiB\"\n"),
        ["x.toml:4: policy.buffer: unknown key; it belongs to [session]"]
    );
}

#[test]
fn an_unknown_section_names_the_nearest() {
    assert_eq!(
        mistakes("[sesion]\nbuffer = \"1MiB\"\n")[0],
        "x.toml:1: sesion: unknown key; the nearest known key is `session`"
    );
}

#[test]
fn a_section_of_the_wrong_kind_is_told_how_to_be_written() {
    assert_eq!(
        mistakes("session = 5\n")[0],
        "x.toml:1: session: found the number 5 in place of a section; write [session] on a line of its \
         own and its keys below"
    );
    assert_eq!(
        mistakes("[policy]\n[session]\nbuffer = \"1MiB\"\n"),
        [
            "x.toml:1: policy: found a single section in place of a section; write [[policy]] on a line of \
          its own and its keys below"
        ]
    );
}

#[test]
fn broken_toml_names_line_and_key() {
    let all = mistakes("[session]\nbuffer = 64MiB\n");

    assert_eq!(all.len(), 1);
    assert!(all[0].starts_with("x.toml:2: buffer: "), "{}", all[0]);
    assert!(
        all[0].ends_with("with text and durations in double quotes"),
        "{}",
        all[0]
    );
}

#[test]
fn a_key_given_twice_is_a_mistake_in_its_second_line() {
    let all = mistakes("[session]\nbuffer = \"1MiB\"\nbuffer = \"2MiB\"\n");

    assert!(all[0].starts_with("x.toml:3: buffer: "), "{}", all[0]);
    assert!(
        all[0].ends_with("remove one of the two, or put both together"),
        "{}",
        all[0]
    );

    let all = mistakes("[session]\nbuffer = \"1MiB\"\n[session]\ngrace = 5\n");
    assert!(all[0].starts_with("x.toml:3: "), "{}", all[0]);
    assert!(all[0].contains("remove one of the two"), "{}", all[0]);
}

#[test]
fn a_key_given_twice_hides_no_other_mistake() {
    let all = mistakes("[session]\ngrace = 5\nbuffer = \"1MiB\"\nbuffer = \"2MiB\"\nsize = 1\n");

    let lines: Vec<_> = all.iter().map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(
        lines,
        [Some("session.grace"), Some("buffer"), Some("session.size")],
        "{all:?}"
    );
}

#[test]
fn every_broken_line_is_told() {
    let all = mistakes("[session]\nbuffer = 64MiB\ngrace = 10m\n");

    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0].starts_with("x.toml:2: buffer: "), "{all:?}");
    assert!(all[1].starts_with("x.toml:3: grace: "), "{all:?}");
}

#[test]
fn every_bad_item_of_a_list_is_reported_on_its_own_line() {
    let text = "names = [\n  5,\n  \"a\",\n  true,\n]\n";
    let build = |root: &mut Section<'_>| root.optional("names", value::list(8, value::text));

    let Mistakes(all) = parse(Path::new("x.toml"), text, build).expect_err("two are not text");

    let told: Vec<_> = all.iter().map(|told| (told.line, &*told.found)).collect();
    assert_eq!(
        told,
        [
            (Some(2), "found the number 5, which is not text"),
            (Some(4), "found true, which is not text")
        ]
    );
    assert!(all.iter().all(|told| told.key == "names"));
}

#[test]
fn a_missing_file_is_named() {
    let Mistakes(all) = load(Path::new("/nonexistent/x.toml"), build).expect_err("no file");

    let text = all[0].to_string();
    assert!(
        text.starts_with("/nonexistent/x.toml: cannot be read: No such file"),
        "{text}"
    );
}

#[test]
fn a_file_that_is_not_text_names_the_line() {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    fs::write(file.path(), b"[session]\n\xff\xfe").expect("written");

    let Mistakes(all) = load(file.path(), build).expect_err("not text");

    assert_eq!(all[0].found, "line 2 is not UTF-8 text");
}
