//! What a writer wants to be done, and how it can fail.

#[cfg(doc)]
use super::Writer;
use crate::{
    BookieId, Entry, EntryId, LedgerMetadata, MetadataVersion, PAYLOAD_BYTES_MAX, Refusal, Tenure,
};

/// What the writer wants to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send an entry to the bookie at a place. Entries for one place and tenure go out in this
    /// order.
    Send {
        /// The place in the ensemble.
        place: usize,
        /// The tenure that its acknowledgement must carry.
        tenure: Tenure,
        /// What to send.
        entry: Entry,
    },
    /// Tell the bookie at a place the last add confirmed, behind what was sent to it.
    Tell {
        /// The place in the ensemble.
        place: usize,
        /// The tenure in which it is told.
        tenure: Tenure,
        /// The last add confirmed.
        confirmed: EntryId,
    },
    /// All entries up to this one are acknowledged.
    Confirm(EntryId),
    /// Every append that is not confirmed has failed, and so will every later one.
    Fail(WriteError),
    /// Find bookies for the places that [lack](Writer::lacking) one, and report by
    /// [`Writer::on_chosen`] once there is one.
    Choose,
    /// Read the metadata, and report by [`Writer::on_metadata`].
    ReadMetadata,
    /// Replace the metadata if its version is still this one, and report by [`Writer::on_cas`].
    Cas {
        /// The version to be replaced.
        version: MetadataVersion,
        /// What to put there.
        metadata: LedgerMetadata,
    },
    /// The ledger is closed with this end. It is the last action.
    Closed {
        /// The last entry.
        last: Option<EntryId>,
    },
    /// The ledger could not be closed by its writer. It is the last action.
    NotClosed(WriteError),
}

/// Why a writer cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WriteError {
    /// Another client recovers the ledger, or has closed it.
    #[error("fenced: another client has taken the ledger over")]
    Fenced,
    /// Too few bookies took entries for too long, and no others were found.
    #[error("not enough bookies: {}", list(.0))]
    NotEnoughBookies(Vec<(BookieId, Refusal)>),
    /// Too few bookies took entries for too long, and the metastore did not answer when they were
    /// to be replaced.
    #[error("the metastore did not answer, so bookies could not be replaced: {}", list(.0))]
    NotReplaced(Vec<(BookieId, Refusal)>),
    /// The metastore did not answer while the ledger was being closed. Whether it is closed is
    /// not known; a recovery settles it.
    #[error("the metastore did not answer, so it is not known whether the ledger is closed")]
    Unsettled,
    /// The metadata can never be stored.
    #[error("{0}")]
    NotStored(String),
    /// The ledger was deleted.
    #[error("the ledger was deleted")]
    Deleted,
    /// The writer was closed.
    #[error("the writer is closed")]
    Closed,
    /// The payload is longer than [`PAYLOAD_BYTES_MAX`]. The writer goes on.
    #[error("the entry has {0} bytes, and the limit is {PAYLOAD_BYTES_MAX}")]
    TooLarge(usize),
}

/// How a compare-and-set ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CasOutcome {
    /// It took effect, and the metadata has this version now.
    Won(MetadataVersion),
    /// Another version stood there, and nothing happened.
    Lost,
    /// No answer came: it may have taken effect, or may still do so.
    Unknown,
}

/// Names each bookie with what it said.
pub(crate) fn list(refusals: &[(BookieId, Refusal)]) -> String {
    if refusals.is_empty() {
        return "none has answered in time".to_owned();
    }
    let said = refusals.iter().map(|(bookie, refusal)| format!("bookie {bookie}: {refusal}"));
    said.collect::<Vec<_>>().join("; ")
}
