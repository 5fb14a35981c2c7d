//! What a schedule has met, so that a quiet simulation is not taken for a thorough one.

use std::fmt;

macro_rules! situations {
    ($($(#[$doc:meta])* $name:ident = $words:literal,)*) => {
        /// A situation that random schedules must meet often.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Situation {
            $($(#[$doc])* #[doc = $words] $name,)*
        }

        impl Situation {
            /// All of them, in the order of the report.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it is.
            pub const fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)*
                }
            }
        }
    };
}

situations! {
    CutMidFrame = "link cut in the middle of a frame",
    TwoLinks = "two live links at one end",
    OneWayCut = "one direction of a link cut, nobody noticed",
    NoticedByOne = "link cut, noticed by one end",
    StalledOneWay = "link stalled one way",
    StalledBothWays = "link stalled both ways",
    LostHello = "attach lost: HELLO",
    LostWelcome = "attach lost: WELCOME",
    LostFirstAfterWelcome = "attach lost: first frame after WELCOME",
    LostResume = "attach lost: RESUME",
    LostResumeOk = "attach lost: RESUME_OK",
    LostFirstAfterResumeOk = "attach lost: first frame after RESUME_OK",
    LateHello = "HELLO or WELCOME that came too late",
    LateLink = "link that attached after a newer one",
    StaleReject = "refusal that must not count",
    OldSecret = "RESUME that proved a secret older than the newest",
    LostOpen = "OPEN lost",
    LostOpenOk = "OPEN_OK lost",
    LostOpenErr = "OPEN_ERR lost",
    LostReset = "RESET lost",
    LostDone = "DONE lost",
    LostAck = "ACK or FLOW_STATE lost",
    LostControlAck = "CONTROL_ACK lost",
    LostData = "DATA lost",
    LostFin = "FIN lost",
    DuplicateControl = "control message seen twice",
    EarlyControl = "control message ahead of its turn",
    DuplicateData = "DATA seen twice",
    EarlyData = "DATA ahead of its turn",
    DataBeforeOpenOk = "DATA or ACK before OPEN_OK",
    SmallerAck = "ACK smaller than one from another link",
    StopCrossingOpenOk = "STOP crossing OPEN_OK",
    CancelledOpen = "OPEN cancelled before its answer",
    RefusedOrigin = "origin refused",
    NoRoomForMessages = "no room for the messages of a flow that may be stored",
    TakenEarly = "bytes taken before the origin had answered",
    EarlyLeft = "bytes left that were taken before the origin had answered",
    StoredAtExpiry = "expired flow with messages to be stored",
    StoredAtEnd = "ended session with messages to be stored",
    BoundaryKept = "message kept of which a part was released",
    OriginFailedDetached = "origin failed under a flow that may be stored, while detached",
    StoredDelivered = "stored messages delivered",
    LostDeliver = "DELIVER lost",
    DeliveryResumed = "delivery that went on after an outage",
    DeliveryInterrupted = "delivery interrupted: grace, end of the session, restart",
    DeliveryRefused = "origin refused a delivery",
    DeliveryNoRoom = "no room for a delivery",
    RecordSkipped = "record left out: it had been delivered",
    RecordTrimmed = "messages left out of a record",
    MessageDoubled = "message delivered twice",
    NotRecorded = "server restarted before it had recorded what was acknowledged",
    HandedOff = "bytes held for a user's next connection",
    HandedOffAgain = "bytes held again that had been handed on already",
    SaidAgain = "message said again whole of which a part had come",
    HeldForAnother = "connection of a user while bytes are held for another one",
    ClaimedByAnother = "connection of a user that asks for what is held for another one",
    ClientRestartStored = "client restarted with stored messages",
    TooManyFlows = "no room for a flow",
    LateAnswer = "origin answered after the flow was cancelled",
    HalfClose = "half-close with bytes the other way after it",
    FinThenReset = "RESET behind FIN",
    ResetAfterFinDelivered = "RESET heard after FIN was delivered",
    BothReset = "RESET from both ends",
    ResetWhileDetached = "RESET while detached",
    ResetStalled = "reset that a stuck reader held up",
    CreditExhausted = "credit used to its end",
    BufferFull = "writer stopped by a full buffer",
    BufferFullDetached = "writer stopped by a full buffer while detached",
    StuckReader = "reader stuck to the end",
    Suspect = "link suspect, then heard again",
    SilentDeath = "link found dead by silence",
    LinkDown = "LINK_DOWN closed a link",
    Moved = "flows moved to a link that the owner prefers",
    LostByDevice = "link known to be lost before anybody asked",
    RetireBusy = "RETIRE closed a link with bytes under way",
    ExpiryAtClient = "grace over at the client first",
    ExpiryAtServer = "grace over at the server first",
    SingleExpiry = "one flow expired, another went on",
    LateResume = "RESUME of a session that had ended",
    Superseded = "session superseded",
    Unconfirmed = "provisional session forgotten",
    Abandoned = "session without flows and link ended",
    UserDisconnect = "user disconnected",
    UserDisconnectDetached = "user disconnected while detached",
    ServerRestart = "server restarted under a session",
    ClientRestart = "client restarted with flows",
    LongSleep = "sleep of more than 15 s with flows",
    EarlyTimeout = "timeout called early",
    LostDatagram = "DATAGRAM of a client lost",
    LostAnswer = "DATAGRAM of a server lost",
    LostPiece = "DATAGRAM_PIECE lost",
    DatagramInPieces = "datagram caught that came in pieces",
    DatagramStale = "datagram dropped because it had waited too long",
    DatagramCrowdedOut = "datagram dropped because too many waited",
    DatagramAbandoned = "datagram dropped with its mapping or link",
    ErrorOfDatagram = "error of a datagram heard",
    MappingOutlived = "datagram caught by a mapping that outlived an outage",
    MappingExpired = "mapping expired",
    MappingLetGo = "mapping let go by its client",
    MappingRefused = "mapping refused",
}

impl Situation {
    /// Those that storing and delivering are about.
    pub const STORING: &[Self] = &[
        Self::NoRoomForMessages,
        Self::TakenEarly,
        Self::EarlyLeft,
        Self::StoredAtExpiry,
        Self::StoredAtEnd,
        Self::BoundaryKept,
        Self::OriginFailedDetached,
        Self::StoredDelivered,
        Self::LostDeliver,
        Self::DeliveryResumed,
        Self::DeliveryInterrupted,
        Self::DeliveryRefused,
        Self::DeliveryNoRoom,
        Self::RecordSkipped,
        Self::RecordTrimmed,
        Self::MessageDoubled,
        Self::NotRecorded,
        Self::ClientRestartStored,
    ];

    /// Those that handing on is about.
    pub const HANDING: &[Self] = &[
        Self::HandedOff,
        Self::HandedOffAgain,
        Self::SaidAgain,
        Self::HeldForAnother,
        Self::ClaimedByAnother,
    ];
}

impl Situation {
    /// Those that datagrams are about.
    pub const DATAGRAMS: &[Self] = &[
        Self::LostDatagram,
        Self::LostAnswer,
        Self::LostPiece,
        Self::DatagramInPieces,
        Self::DatagramStale,
        Self::DatagramCrowdedOut,
        Self::DatagramAbandoned,
        Self::ErrorOfDatagram,
        Self::MappingOutlived,
        Self::MappingExpired,
        Self::MappingLetGo,
        Self::MappingRefused,
    ];
}

/// How many schedules met each situation.
#[derive(Clone, Debug)]
pub struct Coverage {
    counts: Vec<u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            counts: vec![0; Situation::ALL.len()],
        }
    }
}

impl Coverage {
    /// This schedule has met it.
    pub fn met(&mut self, situation: Situation) {
        self.counts[situation as usize] = 1;
    }

    /// Counts another schedule, or others.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
    }

    /// Schedules that met it.
    pub fn count(&self, situation: Situation) -> u64 {
        self.counts[situation as usize]
    }

    /// Which of these fewer than `least` schedules met.
    pub fn below(&self, least: u64, wanted: impl Fn(Situation) -> bool) -> Vec<&'static str> {
        Situation::ALL
            .iter()
            .filter(|situation| wanted(**situation) && self.count(**situation) < least)
            .map(|situation| situation.words())
            .collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for situation in Situation::ALL {
            writeln!(f, "{:>8}  {}", self.count(*situation), situation.words())?;
        }
        Ok(())
    }
}
