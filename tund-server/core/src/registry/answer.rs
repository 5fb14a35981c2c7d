//! What a link is told that is turned away: made frame by frame, since a list may be long and many ask.

use super::BUSY_HINT;
use super::tombstones::Tombstones;
use std::time::Duration;
use tund_session::wire::frame::{Frame, RejectReason, ResumeReject};
use tund_session::wire::kind::MAX_RELEASED;
use tund_session::{FlowId, Offset, SessionId};

/// The frames that are left to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// Nothing more.
    Nothing,
    /// KEY_IN_USE.
    KeyInUse,
    /// RESUME_REJECT.
    Reject(RejectReason),
    /// The same, as often as the list of a tombstone takes; if that is forgotten meanwhile, the list
    /// ends there.
    Ended {
        session: SessionId,
        reason: RejectReason,
        /// So many of its flows were told.
        told: usize,
    },
}

impl Answer {
    /// Nothing is left to be sent.
    pub(super) const fn is_over(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// The next frame.
    pub(super) fn take(&mut self, tombstones: &Tombstones) -> Option<Frame> {
        let (frame, next) = match *self {
            Self::Nothing => return None,
            Self::KeyInUse => (Frame::KeyInUse, Self::Nothing),
            Self::Reject(reason) => (reject(reason, Vec::new()), Self::Nothing),
            Self::Ended {
                session,
                reason,
                told,
            } => {
                let released = tombstones.released(session);
                let rest = released.get(told..).unwrap_or_default();
                let list = rest.get(..MAX_RELEASED).unwrap_or(rest).to_vec();
                // A list that fills frames exactly is followed by an empty one (PROTOCOL.md §3.4).
                let next = if list.len() < MAX_RELEASED {
                    Self::Nothing
                } else {
                    let told = told + list.len();
                    Self::Ended {
                        session,
                        reason,
                        told,
                    }
                };
                (reject(reason, list), next)
            }
        };
        *self = next;
        Some(frame)
    }
}

fn reject(reason: RejectReason, released: Vec<(FlowId, Offset)>) -> Frame {
    Frame::ResumeReject(ResumeReject {
        reason,
        released,
        retry_after: retry_after(reason),
    })
}

const fn retry_after(reason: RejectReason) -> Duration {
    match reason {
        RejectReason::Busy => BUSY_HINT,
        RejectReason::Proof
        | RejectReason::Restarted
        | RejectReason::Expired
        | RejectReason::Superseded
        | RejectReason::Ended
        | RejectReason::Version => Duration::ZERO,
    }
}
