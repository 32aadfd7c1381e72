//! The room that the entries in flight of one writer have together.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

/// How much room there is, in bytes. An entry takes its payload's bytes, and at least
/// [`ENTRY_ROOM_MIN`], so that there are at most 4096.
pub(crate) const ROOM_BYTES: usize = 4 << 20;
/// The least room that an entry takes.
pub(crate) const ENTRY_ROOM_MIN: usize = 1 << 10;
/// The most that entries take and give back together.
const TOGETHER_BYTES_MAX: usize = 64 << 10;

/// The room of an entry, or of some that follow each other: it is free again when the last clone
/// is dropped.
#[derive(Clone)]
pub(crate) struct Room(Arc<Mutex<OwnedSemaphorePermit>>);

impl Room {
    /// Adds what an entry takes to the room of the entry before it, or to new room if there is none
    /// or that has become large.
    pub(crate) fn with(before: Option<&Self>, taken: OwnedSemaphorePermit) -> Self {
        if let Some(before) = before {
            let mut together = before.0.lock().unwrap_or_else(PoisonError::into_inner);
            if together.num_permits() + taken.num_permits() <= TOGETHER_BYTES_MAX {
                together.merge(taken);
                return before.clone();
            }
        }
        Self(Arc::new(Mutex::new(taken)))
    }

    /// Says whether it is the same room.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
