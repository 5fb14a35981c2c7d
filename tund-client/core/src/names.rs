//! Whom programs of this host ask for names while the stub answers: systemd-resolved is told of it where
//! it runs, and where `resolv.conf`(5) does not lead to that, the stub stands there.
//!
//! Other programs write the same file, some in place and line by line. What they have written is kept as
//! the host's own, and put back in the end; what they are still writing is left alone until it stays as
//! it is.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

/// Where systemd-resolved listens.
const RESOLVED: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];

/// What is found in the place of `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum File {
    /// Nothing can be said of it.
    Unreadable,
    /// Nothing is there.
    #[default]
    Missing,
    /// What it says; a link that leads nowhere says nothing.
    Text(String),
}

/// What systemd-resolved does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolved {
    /// It does not run, or cannot be told.
    #[default]
    Absent,
    /// It has not been told of our device.
    Untold,
    /// It has.
    Told,
}

/// What is found on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// In the place of the file.
    pub file: File,
    /// What the host's own says, if it is beside it.
    pub kept: Option<String>,
    /// What systemd-resolved does.
    pub resolved: Resolved,
}

/// What makes this host ask the stub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Take {
    /// systemd-resolved is to be told.
    pub tells: bool,
    /// A new file.
    pub write: Option<NewFile>,
    /// Somebody is still writing: to be looked at again soon.
    pub looks_again: bool,
}

/// A file of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// What it says.
    pub text: String,
    /// What is to be kept beside it.
    pub keeps: Keeps,
}

/// What is to be kept as the host's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// What was kept before, if anything.
    AsBefore,
    /// What our file takes the place of.
    WhatIsThere,
    /// This.
    This(String),
}

/// What makes this host ask whom it asked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveBack {
    /// It does already, or nothing can be done.
    Nothing,
    /// What was kept goes back to its place.
    PutBack,
    /// There was no file before ours.
    Remove,
    /// Another program has made a new one, and what was kept is of no use any more.
    Forget,
}

/// The name servers that a `resolv.conf` names.
fn servers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let is_server = words.next() == Some("nameserver");
        words.next().filter(|_| is_server)
    })
}

fn names_any(text: &str) -> bool {
    servers(text).next().is_some()
}

/// Whether whoever reads this asks systemd-resolved, and nobody else.
pub fn leads_to_resolved(text: &str) -> bool {
    let is_its_own = |server: &str| RESOLVED.iter().any(|own| server.parse() == Ok(*own));
    names_any(text) && servers(text).all(is_its_own)
}

/// Whether whoever reads this asks the stub, and nobody else.
pub fn leads_to(stub: IpAddr, text: &str) -> bool {
    names_any(text) && servers(text).all(|server| server.parse() == Ok(stub))
}

/// Whom this host would ask without the stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside<'a> {
    /// A `resolv.conf` that names them.
    pub text: &'a str,
    /// Whoever reads the host's file asks the stub.
    pub is_stub_asked: bool,
    /// Those on this host are of them: where the stub has not taken their place, the C library asks.
    counts_local: bool,
    stub: Option<IpAddr>,
}

impl<'a> Outside<'a> {
    /// From the file, what is kept beside it, and whom systemd-resolved asks, which was told of the
    /// stub or not.
    pub fn of(
        (device, stub): (&str, Option<IpAddr>),
        [file, kept, behind]: [&'a str; 3],
        is_resolved_told: bool,
    ) -> Self {
        let is_ours = is_ours(device, file);
        let own = if is_ours { kept } else { file };
        let is_behind = leads_to_resolved(own);
        let is_stub_named = stub.is_some_and(|stub| leads_to(stub, file));
        Self {
            text: if is_behind { behind } else { own },
            is_stub_asked: is_ours || is_stub_named || (is_behind && is_resolved_told),
            counts_local: is_ours,
            stub,
        }
    }

    /// Whether that one is to be asked.
    pub fn has(&self, server: IpAddr) -> bool {
        let is_reached = self.counts_local || !server.is_loopback();
        is_reached && !server.is_unspecified() && Some(server) != self.stub
    }
}

/// Whom this host asks, as long as the daemon with that device runs.
#[derive(Clone, Debug)]
pub struct Names {
    device: String,
    stub: IpAddr,
    /// What another program had written when it was looked at last.
    seen: Option<String>,
}

impl Names {
    /// Of the daemon with that device, whose stub answers there.
    pub fn new(device: &str, stub: IpAddr) -> Self {
        Self {
            device: device.to_owned(),
            stub,
            seen: None,
        }
    }

    /// What is to be done so that this host asks the stub; at the start what another program has
    /// written is taken for whole.
    pub fn take(&mut self, found: &Found, is_start: bool) -> Take {
        let tells = found.resolved == Resolved::Untold;
        let seen = self.seen.take();
        let mut take = Take {
            tells,
            ..Take::default()
        };
        let text = match &found.file {
            File::Unreadable => return take,
            File::Missing => {
                take.write = Some(self.anew("", Keeps::AsBefore));
                return take;
            }
            File::Text(text) => text,
        };
        let is_resolved_asked = leads_to_resolved(text) && found.resolved != Resolved::Absent;
        if is_resolved_asked || leads_to(self.stub, text) {
            return take;
        }
        if is_ours(&self.device, text) {
            let added = self.added(text);
            let own = found.kept.clone().unwrap_or_default();
            let keeps = match added.is_empty() {
                true => Keeps::AsBefore,
                false => Keeps::This(own + &added),
            };
            take.write = Some(self.anew(text, keeps));
        } else if is_start || seen.as_ref() == Some(text) {
            // One without name servers may be the ruin of one that is kept.
            let keeps = match found.kept.is_some() && !names_any(text) {
                true => Keeps::AsBefore,
                false => Keeps::WhatIsThere,
            };
            take.write = Some(self.anew(text, keeps));
        } else {
            self.seen = Some(text.clone());
            take.looks_again = true;
        }
        take
    }

    /// The name servers that another program has added to a file of ours, behind the stub of then.
    fn added(&self, text: &str) -> String {
        let others = servers(text).skip(1);
        let others = others.filter(|server| server.parse() != Ok(self.stub));
        others
            .flat_map(|server| ["nameserver ", server, "\n"])
            .collect()
    }

    /// The stub alone, with the search list and the options that there were.
    fn anew(&self, before: &str, keeps: Keeps) -> NewFile {
        let mut text = format!(
            "{}\n# It asks for names through the tunnel while it runs, and puts back what was here \
             before.\nnameserver {}\n",
            mark(&self.device),
            self.stub
        );
        for line in before.lines() {
            let word = line.split_ascii_whitespace().next();
            if matches!(word, Some("search" | "domain" | "options")) {
                // Writing into a string cannot fail.
                let _written = writeln!(text, "{line}").is_ok();
            }
        }
        NewFile { text, keeps }
    }
}

/// How a file of ours begins.
fn mark(device: &str) -> String {
    format!("# Written by tund-client for {device}")
}

/// Written by the daemon with that device, now or before a crash.
pub fn is_ours(device: &str, text: &str) -> bool {
    text.lines().next() == Some(mark(device).as_str())
}

/// What is to be done so that this host asks whom it asked before the daemon with that device, whose
/// stub answered there if that is known.
pub fn give_back(device: &str, stub: Option<IpAddr>, found: &Found) -> GiveBack {
    let text = match &found.file {
        File::Unreadable => return GiveBack::Nothing,
        File::Missing => "",
        File::Text(text) => text,
    };
    let is_marked = is_ours(device, text);
    let is_ours = is_marked || stub.is_some_and(|stub| leads_to(stub, text));
    match (found.kept.is_some(), is_ours || !names_any(text)) {
        (true, true) => GiveBack::PutBack,
        (true, false) => GiveBack::Forget,
        (false, _) if is_marked => GiveBack::Remove,
        (false, _) => GiveBack::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "# by a DHCP client\nsearch example.org\nnameserver 192.0.2.53\n\
                       nameserver 2001:db8::53\noptions edns0 trust-ad\n";

    fn stub() -> IpAddr {
        "10.111.0.1".parse().unwrap()
    }

    fn names() -> Names {
        Names::new("tund0", stub())
    }

    fn found(text: &str) -> Found {
        Found {
            file: File::Text(text.to_owned()),
            ..Found::default()
        }
    }

    fn kept(text: &str) -> Found {
        Found {
            kept: Some(OWN.to_owned()),
            ..found(text)
        }
    }

    fn ours() -> String {
        names().take(&found(OWN), true).write.unwrap().text
    }

    #[test]
    fn the_stub_alone_is_asked_with_the_hosts_own_search_list_and_options() {
        let new = names().take(&found(OWN), true).write.unwrap();

        assert_eq!(new.keeps, Keeps::WhatIsThere);
        let lines = new.text.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [
                "nameserver 10.111.0.1",
                "search example.org",
                "options edns0 trust-ad"
            ]
        );
        assert!(is_ours("tund0", &new.text) && !is_ours("tund01", &new.text));
        assert_eq!(names().take(&kept(&new.text), false), Take::default());
    }

    #[test]
    fn what_is_still_being_written_is_left_alone() {
        let mut names = names();
        for text in ["", "nameserver 192.0.2.1\n", OWN] {
            let take = names.take(&kept(text), false);
            assert!(take.looks_again && take.write.is_none(), "{text}");
        }
        let new = names.take(&kept(OWN), false).write.unwrap();
        assert_eq!(new.keeps, Keeps::WhatIsThere);

        let mut names = Names::new("tund0", stub());
        names.take(&kept(""), false);
        let new = names.take(&kept(""), false).write.unwrap();
        assert_eq!(new.keeps, Keeps::AsBefore, "a ruin is nobody's own");
        let take = names.take(
            &Found {
                file: File::Unreadable,
                ..kept("")
            },
            false,
        );
        assert_eq!(take, Take::default());
    }

    #[test]
    fn what_is_added_to_our_file_is_the_hosts_own() {
        let text = ours() + "nameserver 192.0.2.7\n";
        let new = names().take(&kept(&text), false).write.unwrap();
        let own = OWN.to_owned() + "nameserver 192.0.2.7\n";
        assert_eq!(new.keeps, Keeps::This(own));
        assert_eq!(new.text, ours());
    }

    #[test]
    fn what_we_wrote_is_never_kept() {
        let mut other = Names::new("tund0", "fd00::1".parse().unwrap());
        let new = other.take(&found(&ours()), true).write.unwrap();
        // It was left by a daemon with another stub, and that was nobody's own.
        assert_eq!(new.keeps, Keeps::AsBefore);
        assert!(
            new.text
                .contains("nameserver fd00::1\nsearch example.org\n")
        );
        let missing = Found::default();
        let new = names().take(&missing, false).write.unwrap();
        assert_eq!(new.keeps, Keeps::AsBefore);
    }

    #[test]
    fn systemd_resolved_is_told_where_it_runs_and_the_file_leads_there_or_to_the_stub() {
        for (text, resolved, tells, writes) in [
            ("nameserver 127.0.0.53\n", Resolved::Untold, true, false),
            ("nameserver 127.0.0.53\n", Resolved::Told, false, false),
            ("nameserver 127.0.0.53\n", Resolved::Absent, false, true),
            (
                "nameserver 127.0.0.53\nnameserver 127.0.0.54\n",
                Resolved::Untold,
                true,
                false,
            ),
            (
                "nameserver 127.0.0.53\nnameserver 192.0.2.1\n",
                Resolved::Untold,
                true,
                true,
            ),
            ("nameserver 192.0.2.1\n", Resolved::Told, false, true),
            ("search example.org\n", Resolved::Untold, true, true),
        ] {
            let found = Found {
                resolved,
                ..found(text)
            };
            let take = names().take(&found, true);
            let done = (take.tells, take.write.is_some());
            assert_eq!(done, (tells, writes), "{text} {resolved:?}");
        }
    }

    #[test]
    fn the_file_is_given_back_as_it_was() {
        let stubbed = "# merged\nnameserver 10.111.0.1\n";
        for (text, is_kept, step) in [
            (ours().as_str(), true, GiveBack::PutBack),
            (ours().as_str(), false, GiveBack::Remove),
            (stubbed, true, GiveBack::PutBack),
            (stubbed, false, GiveBack::Nothing),
            (OWN, true, GiveBack::Forget),
            (OWN, false, GiveBack::Nothing),
            ("", true, GiveBack::PutBack),
            ("", false, GiveBack::Nothing),
        ] {
            let found = match is_kept {
                true => kept(text),
                false => found(text),
            };
            let done = give_back("tund0", Some(stub()), &found);
            assert_eq!(done, step, "{text} {is_kept}");
        }
        let gone = Found {
            file: File::Missing,
            ..kept("")
        };
        assert_eq!(give_back("tund0", None, &gone), GiveBack::PutBack);
        let unreadable = Found {
            file: File::Unreadable,
            ..gone
        };
        assert_eq!(give_back("tund0", None, &unreadable), GiveBack::Nothing);
        let others = found(&ours());
        assert_eq!(give_back("other", None, &others), GiveBack::Nothing);
    }
}
