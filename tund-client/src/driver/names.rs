//! Whom this host asks for names: the stub while the daemon looks after routes.

use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use tokio::task::JoinSet;
use tund_client_core::names::{self, File, Found, GiveBack, Keeps, Names, Outside, Resolved, Take};
use tund_daemon::resolv_conf;

use crate::sys::error::SystemError;
use crate::sys::names::{
    FileWatch, Keep, Place, asked_by_resolved, has_resolved, is_resolved_told, tell_resolved,
    untell_resolved,
};
use crate::sys::tun::TunName;

/// This host asks the stub.
pub(super) struct HostNames {
    names: Names,
    place: Place,
    stub: IpAddr,
    tun: TunName,
    watch: FileWatch,
    /// systemd-resolved is being told.
    telling: JoinSet<Result<(), SystemError>>,
}

/// What a look has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Looked {
    /// Something was changed.
    pub(super) is_mended: bool,
    /// Another look is due soon.
    pub(super) looks_again: bool,
}

impl HostNames {
    /// Has this host ask `stub`, which is reached by the device `tun`.
    ///
    /// # Errors
    ///
    /// Where neither systemd-resolved can be told nor the file be replaced. Nothing is changed then.
    pub(super) fn begin(stub: IpAddr, tun: &TunName) -> Result<Self, SystemError> {
        let place = Place::of_this_host(tun);
        let mut names = Self {
            names: Names::new(tun.as_str(), stub),
            watch: place.watch()?,
            place,
            stub,
            tun: tun.clone(),
            telling: JoinSet::new(),
        };
        if let Err(error) = names.begin_asking() {
            // Of what systemd-resolved takes, it may have taken a part.
            if let Err(left) = untell_resolved(tun) {
                tracing::error!(error = %left, "systemd-resolved still asks the stub for names");
            }
            return Err(error);
        }
        Ok(names)
    }

    fn begin_asking(&mut self) -> Result<(), SystemError> {
        // Later it is looked at again with the next news; now it must be known.
        self.place.read()?;
        let take = self.names.take(&look(&self.place, &self.tun), true);
        if take.tells {
            match tell_resolved(&self.tun, self.stub) {
                // Who reads the file asks the stub all the same.
                Err(error) if take.write.is_some() => {
                    tracing::warn!(%error, "systemd-resolved does not ask the stub for names");
                }
                result => result?,
            }
        }
        self.write(&take)
    }

    /// Ready when somebody, this daemon too, has changed the file.
    pub(super) fn poll_news(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(Some(told)) = self.telling.poll_join_next(cx) {
            if let Ok(Err(error)) = told {
                tracing::warn!(%error, "systemd-resolved does not ask the stub for names");
            }
        }
        self.watch.poll_news(cx)
    }

    /// Makes sure that the stub is asked.
    ///
    /// # Errors
    ///
    /// Where the file cannot be replaced.
    pub(super) fn mend(&mut self) -> Result<Looked, SystemError> {
        let take = self.names.take(&look(&self.place, &self.tun), false);
        let tells = take.tells && self.telling.is_empty();
        if tells {
            let (tun, stub) = (self.tun.clone(), self.stub);
            self.telling
                .spawn_blocking(move || tell_resolved(&tun, stub));
        }
        self.write(&take)?;
        Ok(Looked {
            is_mended: tells || take.write.is_some(),
            looks_again: take.looks_again,
        })
    }

    fn write(&self, take: &Take) -> Result<(), SystemError> {
        let Some(new) = &take.write else {
            return Ok(());
        };
        let keep = match &new.keeps {
            Keeps::AsBefore => Keep::AsBefore,
            Keeps::WhatIsThere => Keep::WhatIsThere,
            Keeps::This(own) => Keep::This(own),
        };
        self.place.write(&new.text, keep)
    }

    /// This host asks whom it asked before.
    ///
    /// # Errors
    ///
    /// When that cannot be done; it says then where the host's own file is.
    pub(super) fn end(self) -> Result<(), SystemError> {
        give_back(&self.place, &self.tun, Some(self.stub)).map(drop)
    }
}

/// Removes what an earlier daemon with that device has left; true if there was anything.
///
/// # Errors
///
/// As for [`HostNames::end`].
pub(super) fn remove(tun: &TunName) -> Result<bool, SystemError> {
    give_back(&Place::of_this_host(tun), tun, None)
}

fn give_back(place: &Place, tun: &TunName, stub: Option<IpAddr>) -> Result<bool, SystemError> {
    let step = names::give_back(tun.as_str(), stub, &look(place, tun));
    let done = match step {
        GiveBack::Nothing => Ok(()),
        GiveBack::PutBack => place.put_back(),
        GiveBack::Remove => place.remove(),
        GiveBack::Forget => place.forget(),
    };
    let untold = untell_resolved(tun)?;
    done.map(|()| untold || step != GiveBack::Nothing)
}

fn look(place: &Place, tun: &TunName) -> Found {
    Found {
        file: match place.read() {
            Ok(Some(text)) => File::Text(text),
            Ok(None) => File::Missing,
            Err(error) => {
                tracing::debug!(%error, "resolv.conf cannot be read");
                File::Unreadable
            }
        },
        kept: place.is_kept().then(|| place.kept()),
        resolved: match (has_resolved(), is_resolved_told(tun)) {
            (false, _) => Resolved::Absent,
            (true, false) => Resolved::Untold,
            (true, true) => Resolved::Told,
        },
    }
}

/// The name servers of this host without the stub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NameServers {
    /// Those on other hosts; and, where the stub has taken their place in `resolv.conf`, those on this
    /// host too.
    pub(super) known: Vec<SocketAddr>,
    /// The C library asks the stub.
    pub(super) is_stub_asked: bool,
}

/// Those of this host, in whose place `stub` may stand.
pub(super) fn name_servers(tun: &TunName, stub: Option<IpAddr>) -> NameServers {
    servers_at(
        &Place::of_this_host(tun),
        tun,
        (&asked_by_resolved(), stub),
        is_resolved_told(tun),
    )
}

fn servers_at(
    place: &Place,
    tun: &TunName,
    (behind, stub): (&str, Option<IpAddr>),
    is_told: bool,
) -> NameServers {
    let file = place.read().ok().flatten().unwrap_or_default();
    let texts = [&*file, &place.kept(), behind];
    let outside = Outside::of((tun.as_str(), stub), texts, is_told);
    NameServers {
        known: resolv_conf::name_servers(outside.text, |ip| outside.has(*ip)),
        is_stub_asked: outside.is_stub_asked,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_servers_name_is_never_asked_for_at_the_stub() {
        let directory = tempfile::tempdir().unwrap();
        let tun: TunName = "tund0".parse().unwrap();
        let place = Place::at(directory.path().into(), &tun);
        let stub: IpAddr = "10.111.0.1".parse().unwrap();
        let servers = |own: &str, is_taken: bool, is_told: bool| {
            fs::write(directory.path().join("resolv.conf"), own).unwrap();
            if is_taken {
                let take = Names::new("tund0", stub).take(&look(&place, &tun), true);
                place
                    .write(&take.write.unwrap().text, Keep::WhatIsThere)
                    .unwrap();
            }
            let behind = "nameserver 192.0.2.99\nnameserver 10.111.0.1\n";
            let found = servers_at(&place, &tun, (behind, Some(stub)), is_told);
            let known = found.known.into_iter().map(|at| at.ip().to_string());
            (known.collect::<Vec<_>>(), found.is_stub_asked)
        };
        let own = "nameserver 192.0.2.53\n";
        let one = |server: &str| vec![server.to_owned()];
        assert_eq!(servers(own, false, false), (one("192.0.2.53"), false));
        assert_eq!(servers(own, true, false), (one("192.0.2.53"), true));
        // Without us the C library asks those on this host.
        let local = "nameserver 127.0.0.1\n";
        assert_eq!(servers(local, false, false), (Vec::new(), false));
        assert_eq!(servers(local, true, false), (one("127.0.0.1"), true));
        let resolved = "nameserver 127.0.0.53\n";
        assert_eq!(servers(resolved, false, true), (one("192.0.2.99"), true));
        assert_eq!(servers(resolved, false, false), (one("192.0.2.99"), false));
        let by_hand = "nameserver 10.111.0.1\n";
        assert_eq!(servers(by_hand, false, false), (Vec::new(), true));
    }
}
