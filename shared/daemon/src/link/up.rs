//! A link whose handshake is done: its keys, what passed by them, and how the stream ends.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rustls::AlertDescription;
use tokio::net::TcpStream;
use tund_session::Instant;

use super::error::LinkError;
use super::inbox::Inbox;
use super::record::{Opened, Opener, Sealer, take_record};
use super::tuning::Tuning;

/// When the owner should replace a link (PROTOCOL.md): keys are never renewed within one.
pub(super) const KEY_AGE_MAX: Duration = Duration::from_secs(3600);
pub(super) const KEY_BYTES_MAX: u64 = 64 << 30;
/// Half of what AES-GCM bears (2²⁴ records), so that a replacement has time to attach.
pub(super) const KEY_RECORDS_MAX: u64 = 1 << 23;

/// What one link may cost before others get their turn, in bytes as they arrived.
pub(super) const READ_TURN_BYTES: usize = 512 << 10;
/// What a record counts for at least. Chosen: the smallest has 23 bytes, and costs its owner more
/// than a kilobyte within a full record does; counted by bytes, 20,000 of them would be one turn.
pub(super) const RECORD_COST_BYTES: usize = 1 << 10;

/// How much a link's keys have been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wear {
    /// Since the handshake.
    pub age: Duration,
    /// Plaintext sent and received.
    pub bytes: u64,
    /// Records of the busier direction.
    pub records: u64,
}

impl Wear {
    pub(super) const NONE: Self = Self {
        age: Duration::ZERO,
        bytes: 0,
        records: 0,
    };

    /// How long its age still allows; never nothing while [`Wear::is_due`] is false.
    pub const fn lasts(&self) -> Duration {
        KEY_AGE_MAX.saturating_sub(self.age)
    }

    /// Whether it is time to make another link in place of this one.
    pub const fn is_due(&self) -> bool {
        self.age.as_nanos() >= KEY_AGE_MAX.as_nanos()
            || self.bytes >= KEY_BYTES_MAX
            || self.records >= KEY_RECORDS_MAX
    }
}

#[derive(Debug)]
pub(super) struct Up {
    pub(super) sealer: Sealer,
    pub(super) tuning: Tuning,
    pub(super) opener: Opener,
    pub(super) since: Instant,
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
    /// Left of [`READ_TURN_BYTES`] in this turn.
    turn_bytes: usize,
    /// The rest of a record that the owner had no room for.
    pub(super) rest: Bytes,
    /// The peer has ended its stream in order.
    pub(super) peer_ended: bool,
    pub(super) ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Bytes may be sent.
    Open,
    /// The end is in the outbox, FIN follows it.
    Asked,
    Done,
}

impl Up {
    pub(super) fn new(sealer: Sealer, opener: Opener, now: Instant) -> Self {
        Self {
            sealer,
            tuning: Tuning::new(),
            opener,
            since: now,
            sent_bytes: 0,
            received_bytes: 0,
            turn_bytes: READ_TURN_BYTES,
            rest: Bytes::new(),
            peer_ended: false,
            ending: Ending::Open,
        }
    }

    pub(super) fn wear(&self, now: Instant) -> Wear {
        Wear {
            age: now.saturating_duration_since(self.since),
            bytes: self.sent_bytes.saturating_add(self.received_bytes),
            records: self.sealer.records().max(self.opener.records()),
        }
    }

    /// The next bytes from the peer; `None` after its orderly end.
    ///
    /// Pending ends a turn: the socket is empty, or others shall have theirs, and then the waker
    /// is woken at once.
    pub(super) fn poll_data(
        &mut self,
        inbox: &mut Inbox,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, LinkError>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.rest))));
        }
        loop {
            if self.peer_ended {
                return Poll::Ready(Ok(None));
            }
            if self.turn_bytes == 0 {
                self.turn_bytes = READ_TURN_BYTES;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(record) = take_record(&mut inbox.bytes).map_err(LinkError::Tls)? {
                let cost = record.len().max(RECORD_COST_BYTES);
                self.turn_bytes = self.turn_bytes.saturating_sub(cost);
                match self.opener.open(record).map_err(LinkError::Tls)? {
                    Opened::Data(data) => {
                        self.received_bytes = self.received_bytes.saturating_add(wide(data.len()));
                        return Poll::Ready(Ok(Some(data)));
                    }
                    Opened::Alert(alert) => self.handle_alert(alert)?,
                    Opened::Nothing => {}
                }
                continue;
            }
            let Poll::Ready(filled) = inbox.poll_fill(stream, cx) else {
                self.turn_bytes = READ_TURN_BYTES;
                return Poll::Pending;
            };
            if filled? == 0 {
                return Poll::Ready(Err(LinkError::PeerClosed));
            }
        }
    }

    /// An alert on an established link is the peer's own: its key is proved.
    fn handle_alert(&mut self, alert: AlertDescription) -> Result<(), LinkError> {
        const REFUSED: [AlertDescription; 3] = [
            AlertDescription::AccessDenied,
            AlertDescription::BadCertificate,
            AlertDescription::CertificateUnknown,
        ];
        if alert == AlertDescription::CloseNotify {
            self.peer_ended = true;
            Ok(())
        } else if REFUSED.contains(&alert) {
            Err(LinkError::KeyNotListed(None))
        } else {
            Err(LinkError::Tls(rustls::Error::AlertReceived(alert)))
        }
    }
}

pub(super) fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
