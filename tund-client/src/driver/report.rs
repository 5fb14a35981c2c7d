//! What the client tells and does over its control socket.

use super::links::LinkSlot;
use super::{Daemon, accounts};
use std::time::Duration;
use tund_client_core::netstack::Stats;
use tund_client_core::packet::{DatagramKind, Reason};
use tund_client_core::{
    ClientEvent, ClientFlow, ClientMapping, FlowAccount, NotStored, Refused, State,
};
use tund_daemon::control::{
    ByteCounts, ClientCommand, ClientState, ClientStatus, DatagramReport, EndedFlowRow,
    ErrorReport, FLOW_ROWS_MAX, FlowCounts, FlowRow, LinkReport, OutageReport, Page, Request,
};
use tund_daemon::telemetry::{Redacted, Tally};
use tund_session::wire::frame::DeniedBy;
use tund_session::{DatagramCounts, FlowId, Instant};

/// Code and message of an error that needs a person.
pub(super) const fn refusal(why: Refused) -> (&'static str, &'static str) {
    match why {
        Refused::KeyInUse => (
            "key_in_use",
            "the server says that another live client uses our key; stop that one, or make a key \
             of its own for this client (`tund-client keygen`)",
        ),
        Refused::KeyNotListed => (
            "key_not_listed",
            "the server does not list our public key; its administrator adds it as a [[client]] \
             (`tund-client pubkey FILE` prints it)",
        ),
        Refused::Version => (
            "version",
            "the server speaks no protocol version that we speak; update the older of the two",
        ),
    }
}

/// What became of bytes that a policy wants stored.
pub(super) fn tell_stored(event: &ClientEvent) {
    if *event == ClientEvent::Undeliverable {
        tracing::warn!(
            "stored bytes wait for delivery, and the server does not deliver; update it, or drop \
             them with `tund-client spool drop`"
        );
    }
    let ClientEvent::Stored {
        destination,
        stored_bytes,
        lost_bytes,
        why,
    } = event
    else {
        return;
    };
    let destination = Redacted(destination);
    let Some(why) = why else {
        tracing::info!(%destination, stored_bytes, lost_bytes, "stored what is left of a connection");
        return;
    };
    let (found, remedy) = match why {
        NotStored::Failed => ("the disk did not take it", "see the error before"),
        NotStored::Full => (
            "the spool, or the user's quarter of it, is full",
            "raise [spool] max_bytes, or look at `tund-client spool ls`",
        ),
        NotStored::Opaque => (
            "it is no run of messages",
            "is the framing of its [[policy]] right? TLS, SSH and HTTP/2 are never stored",
        ),
    };
    tracing::warn!(
        %destination,
        stored_bytes,
        lost_bytes,
        "could not store what is left of a connection: {found}; {remedy}"
    );
}

/// What of applications' packets is not carried, for the log: at most one line a minute.
#[derive(Debug, Default)]
pub(super) struct Untaken {
    tally: Tally,
    /// Of each reason, how many were counted before.
    seen: [u64; Reason::COUNT],
}

impl Untaken {
    /// The server does not connect there.
    pub(super) fn denied(&mut self, by: DeniedBy) {
        self.tally.add(match by {
            DeniedBy::Never => "origins that no server connects to (no setting opens them)",
            DeniedBy::Default => {
                "origins that the server refuses unless its [origin] allow names them"
            }
            DeniedBy::Deny => "origins that the server's [origin] deny names",
        });
    }

    /// Takes in what connection A has counted, and says what is due to be said.
    pub(super) fn tell(&mut self, stats: &Stats, now: Instant) {
        for (reason, seen) in Reason::ALL.into_iter().zip(&mut self.seen) {
            let count = stats.untaken(reason);
            if let Some(advice) = reason.advice().filter(|_| count > *seen) {
                self.tally.add_many(advice, count - *seen);
            }
            *seen = count;
        }
        if let Some(summary) = self.tally.poll_summary(now) {
            tracing::warn!("connections or packets were not taken: {summary}");
        }
    }

    /// When there is something to say; nothing wakes for it while there is not.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.tally.poll_timeout()
    }
}

impl Daemon {
    pub(super) fn on_request(&mut self, request: Request<ClientCommand>, now: Instant) {
        match request.command.clone() {
            ClientCommand::Status => request.answer(&self.status(now)),
            ClientCommand::Flows { after } => request.answer(&self.flow_rows(after, now)),
            ClientCommand::EndedFlows => request.answer(&self.ended_rows()),
            ClientCommand::Disconnect => {
                self.client.disconnect(now);
                request.answer(&());
            }
            ClientCommand::Reconnect => {
                self.client.reconnect(now);
                request.answer(&());
            }
            ClientCommand::Spool { after } => request.answer(&self.spool_page(after, now)),
            ClientCommand::SpoolDrop { files } => request.answer(&self.drop_files(files, now)),
            ClientCommand::SpoolRetry { files } => request.answer(&self.retry_files(files, now)),
        }
    }

    fn status(&mut self, now: Instant) -> ClientStatus {
        let state = self.client.state();
        let live = self.client.links().filter(|id| self.client.is_working(*id));
        let ids: Vec<_> = live.collect();
        let links: Vec<_> = ids
            .iter()
            .filter_map(|id| report(self.links.get(id)?, now))
            .collect();
        let (up, down) = self.client.buffered();
        let mappings = self.client.mappings();
        let traffic = self.client.traffic();
        let outages = self.client.outages();
        let refused = self.client.refused().map(refusal);
        let waits = matches!(state, State::Connecting | State::Detached);
        let last = self.last_error.as_ref().filter(|_| waits);
        let error = refused.or_else(|| last.map(|(code, text)| (*code, text.as_str())));
        ClientStatus {
            state: match state {
                State::Ready => ClientState::Ready,
                State::Connecting => ClientState::Connecting,
                State::Attached => ClientState::Attached,
                State::Detached => ClientState::Detached,
                State::Refused => ClientState::Refused,
            },
            session_id: self.client.session_id().map(|id| id.to_string()),
            link: links.first().cloned(),
            links,
            flows: FlowCounts {
                tcp: count(self.client.flows().len()),
                udp: count(mappings.len() - mappings.echoes()),
                icmp: count(mappings.echoes()),
            },
            bytes: ByteCounts {
                up: traffic.taken,
                down: traffic.released,
            },
            buffered_bytes: ByteCounts { up, down },
            outages: OutageReport {
                count: outages.count,
                last_gap_ms: outages.last_gap.map(millis),
                last_resume_ms: outages.last_resume.map(millis),
            },
            datagrams: datagrams(self.client.datagram_counts()),
            spool: self.spool_counts(),
            error: error.map(|(code, message)| ErrorReport {
                code: code.to_owned(),
                message: message.to_owned(),
            }),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn flow_rows(&self, after: Option<u64>, now: Instant) -> Page<FlowRow, u64> {
        let is_next = |id: &FlowId| after.is_none_or(|after| id.0 > after);
        let flows = self.client.flows().iter();
        let flows = flows
            .filter(|(id, _)| is_next(id))
            .take(FLOW_ROWS_MAX + 1)
            .map(|(id, flow)| self.flow_row(id, flow, now));
        let mappings = self.client.mappings().iter();
        let mappings = mappings
            .filter(|(id, _)| is_next(id))
            .take(FLOW_ROWS_MAX + 1)
            .map(|(id, mapping)| self.mapping_row(id, mapping, now));
        let mut rows: Vec<_> = flows.chain(mappings).collect();
        rows.sort_by_key(|row| row.id);
        let more = rows.len() > FLOW_ROWS_MAX;
        rows.truncate(FLOW_ROWS_MAX);
        let next = rows.last().filter(|_| more).map(|row| row.id);
        Page { rows, next }
    }

    fn flow_row(&self, id: FlowId, flow: &ClientFlow, now: Instant) -> FlowRow {
        let (up, down) = self.client.flow_buffered(id);
        FlowRow {
            id: id.0,
            protocol: "tcp".to_owned(),
            source: flow.source,
            destination: Some(flow.destination),
            state: if flow.is_open { "open" } else { "opening" }.to_owned(),
            bytes: ByteCounts {
                up: flow.up_bytes,
                down: flow.down_bytes,
            },
            buffered_bytes: ByteCounts { up, down },
            age_ms: millis(now.saturating_duration_since(flow.since)),
            outages: flow.outages,
            longest_silence_ms: millis(flow.longest_silence(now)),
        }
    }

    fn mapping_row(&self, id: FlowId, mapping: &ClientMapping, now: Instant) -> FlowRow {
        let (up, down) = self.client.flow_buffered(id);
        FlowRow {
            id: id.0,
            protocol: match mapping.kind {
                DatagramKind::Echo => "icmp",
                DatagramKind::Udp => "udp",
            }
            .to_owned(),
            source: mapping.source,
            destination: None,
            state: if mapping.is_open { "open" } else { "opening" }.to_owned(),
            bytes: ByteCounts {
                up: mapping.up_bytes,
                down: mapping.down_bytes,
            },
            buffered_bytes: ByteCounts { up, down },
            age_ms: millis(now.saturating_duration_since(mapping.since)),
            outages: mapping.outages,
            longest_silence_ms: millis(mapping.longest_silence(now)),
        }
    }

    fn ended_rows(&self) -> Vec<EndedFlowRow> {
        let ended = self.client.flows().ended();
        ended.map(ended_row).collect()
    }
}

fn ended_row(account: &FlowAccount) -> EndedFlowRow {
    EndedFlowRow {
        id: account.id.0,
        protocol: accounts::protocol(account.protocol).to_owned(),
        source: account.source,
        destination: account.destination,
        ended_by: accounts::by(account.by).to_owned(),
        how: accounts::how(account.how).to_owned(),
        bytes: ByteCounts {
            up: account.up_bytes,
            down: account.down_bytes,
        },
        lost_bytes: ByteCounts {
            up: account.lost.up,
            down: account.lost.down,
        },
        stored_bytes: account.stored_bytes,
        held_bytes: account.held_bytes,
        age_ms: millis(account.age),
        outages: account.outages,
        longest_silence_ms: millis(account.longest_silence),
    }
}

fn report(slot: &LinkSlot, now: Instant) -> Option<LinkReport> {
    Some(LinkReport {
        transport: "tls".to_owned(),
        local: slot.link.local_addr().ok()?,
        remote: slot.link.remote_addr(),
        interface: Some(slot.interface.clone()),
        rtt_us: slot.link.tcp_info().ok().map(|info| micros(info.rtt)),
        up_ms: millis(now.saturating_duration_since(slot.since)),
        congestion_control: slot.link.congestion_control().ok(),
    })
}

const fn datagrams(counts: DatagramCounts) -> DatagramReport {
    DatagramReport {
        up: counts.sent,
        down: counts.delivered,
        stale: counts.stale,
        dropped: counts.crowded_out + counts.abandoned + counts.unwanted,
    }
}

fn count(flows: usize) -> u64 {
    u64::try_from(flows).unwrap_or(u64::MAX)
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
