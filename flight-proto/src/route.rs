//! How a request says why it was sent to this server of a cluster and not to another.

/// Header of a `DoGet` that was sent where a slot map says: the map's epoch. A server that knows a newer one, by which the ticket's
/// slot is not its own, answers [`crate::ErrorKind::Moved`].
pub const EPOCH_HEADER: &str = "flightcache-epoch";

/// Header of the answer to a `DoGet` by a server of several: the number of other answers it is sending. Of two owners, the one that has
/// fewer is the one to ask.
pub const ANSWERS_HEADER: &str = "flightcache-answers";

/// Header of a `DoGet` of one server by another, for column chunks as they rest: a [`PeerAsk`].
///
/// [`crate::accept::ACCEPT_HEADER`] says in which forms: [`crate::accept::PARQUET`] for the bytes of the columns' chunks, in pieces, one
/// column after the other and without a file around them, since both servers have the object's footer; and
/// [`crate::accept::DICTIONARIES`] for arrays, dictionaries included, of a server that keeps no such bytes.
pub const PEER_HEADER: &str = "flightcache-peer";

/// What a server that is asked for column chunks does about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAsk {
    /// Sends those that are resident, and loads none.
    Resident,
    /// Sends all, and loads what is missing, if it is their slot's preferred owner.
    Load,
    /// Loads what is missing, and sends nothing.
    Warm,
}

impl PeerAsk {
    /// Every ask.
    pub const ALL: [Self; 3] = [Self::Resident, Self::Load, Self::Warm];

    /// As the header has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resident => "resident",
            Self::Load => "load",
            Self::Warm => "warm",
        }
    }
}
