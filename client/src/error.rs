//! Errors, by what the caller should do.

use inkfast_protocol::reader::Lost;
use inkfast_protocol::recovery::RecoveryError;
use inkfast_protocol::writer::WriteError;
use inkfast_protocol::{EntryId, LedgerId, MetadataError, PAYLOAD_BYTES_MAX};
use uuid::Uuid;

/// Why something could not be done, and so what to do next.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Stop: another client has taken the ledger over, and this writer's unconfirmed appends may
    /// or may not be in it. Read the ledger to find out; write to a new one.
    #[error("fenced: another client has taken ledger {0} over; stop writing to it")]
    Fenced(LedgerId),
    /// Too few bookies answer. Try again when they do.
    #[error("{0}; try again when they are back")]
    NotEnoughBookies(String),
    /// There is no such ledger, and no trace of one: it was never created.
    #[error("there is no ledger {0}")]
    LedgerNotFound(LedgerId),
    /// The ledger was deleted.
    #[error("ledger {0} was deleted")]
    LedgerDeleted(LedgerId),
    /// The request id was used by another client, or by an earlier call that gave out a writer.
    #[error(
        "request {request} has already created ledger {ledger}, which has its writer; use a new request id"
    )]
    AlreadyCreated {
        /// The request id.
        request: Uuid,
        /// The ledger.
        ledger: LedgerId,
    },
    /// The entry was not appended; the writer goes on. Split it.
    #[error("the entry has {0} bytes, and the limit is {PAYLOAD_BYTES_MAX}; split it")]
    EntryTooLarge(usize),
    /// The range goes beyond the end of a closed ledger.
    #[error("entry {entry} is beyond the end of ledger {ledger}, which {}", end(*.last))]
    BeyondEnd {
        /// The ledger.
        ledger: LedgerId,
        /// The last entry asked for.
        entry: EntryId,
        /// The ledger's last entry.
        last: Option<EntryId>,
    },
    /// The range goes beyond what is confirmed in a ledger that is still written. Try again later.
    #[error("entry {entry} is not confirmed yet in ledger {ledger}, which so far {}", end(*.last))]
    NotConfirmed {
        /// The ledger.
        ledger: LedgerId,
        /// The last entry asked for.
        entry: EntryId,
        /// The highest entry known to be confirmed.
        last: Option<EntryId>,
    },
    /// No bookie of its write set could give an entry. Some may when they are back.
    #[error("ledger {ledger}: {lost}")]
    Unreadable {
        /// The ledger.
        ledger: LedgerId,
        /// The entry, and what each bookie said.
        lost: Lost,
    },
    /// The recovery did not finish. The ledger stays in recovery; try again when the bookies
    /// that it names are back.
    #[error("ledger {ledger} could not be recovered: {why}; try again when they are back")]
    NotRecovered {
        /// The ledger.
        ledger: LedgerId,
        /// What was missing.
        why: RecoveryError,
    },
    /// The writer was closed or dropped.
    #[error("the writer of ledger {0} is closed")]
    Closed(LedgerId),
    /// It took too long. What it was meant to do may have happened, or may yet.
    #[error("timed out: {what}")]
    TimedOut {
        /// What was to be done.
        what: String,
    },
    /// The request makes no sense; the words say why.
    #[error("{0}")]
    Invalid(String),
    /// The metastore did not do what it was asked.
    #[error("metastore: {0}")]
    Metastore(#[from] inkfast_metastore::Error),
    /// The ledger's metadata cannot be used by this version of the program.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The network, or the certificates.
    #[error(transparent)]
    Network(#[from] inkfast_wire::Error),
}

impl Error {
    /// Says whether the metastore could not be asked, or has not answered.
    pub(crate) const fn is_metastore_away(&self) -> bool {
        use inkfast_metastore::Error as StoreError;
        matches!(
            self,
            Self::Metastore(StoreError::Unavailable { .. } | StoreError::TimedOut { .. })
        )
    }

    /// Says whether the metastore has forgotten changes that were to be followed.
    pub(crate) const fn is_compacted(&self) -> bool {
        matches!(self, Self::Metastore(inkfast_metastore::Error::Compacted))
    }

    pub(crate) fn of_writer(ledger: LedgerId, error: WriteError) -> Self {
        match error {
            WriteError::Fenced => Self::Fenced(ledger),
            WriteError::NotEnoughBookies(_) | WriteError::NotReplaced(_) => {
                Self::NotEnoughBookies(error.to_string())
            }
            WriteError::NotStored(why) => Self::Invalid(why),
            WriteError::Unsettled => Self::TimedOut {
                what: format!("closing ledger {ledger}; recover it to settle its end"),
            },
            WriteError::Deleted => Self::LedgerDeleted(ledger),
            WriteError::Closed => Self::Closed(ledger),
            WriteError::TooLarge(bytes) => Self::EntryTooLarge(bytes),
        }
    }
}

fn end(last: Option<EntryId>) -> String {
    match last {
        Some(last) => format!("ends with entry {last}"),
        None => "has no entries".to_owned(),
    }
}
