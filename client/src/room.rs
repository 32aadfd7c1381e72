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

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn entries_share_room_until_it_has_become_large() {
        let free = Arc::new(Semaphore::new(ROOM_BYTES));
        let take = |kib: u32| Arc::clone(&free).try_acquire_many_owned(kib << 10).unwrap();
        let first = Room::with(None, take(30));
        let second = Room::with(Some(&first), take(34));
        let third = Room::with(Some(&second), take(1));
        assert!(first.is(&second) && !second.is(&third));
        assert_eq!(free.available_permits(), ROOM_BYTES - (65 << 10));
        drop(first);
        drop(third);
        assert_eq!(free.available_permits(), ROOM_BYTES - (64 << 10));
        drop(second);
        assert_eq!(free.available_permits(), ROOM_BYTES);
    }
}
