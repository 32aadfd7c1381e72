//! How much memory a bookie keeps things in, and what for.

/// What a bookie takes if nothing else is said.
pub(crate) const DEFAULT_BYTES: u64 = 256 << 20;
/// With less nothing goes well.
pub(crate) const LEAST_BYTES: u64 = 32 << 20;

/// What one store may take. Besides, it takes some 25 bytes for each entry that its index does not
/// have, of which there are two millions at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// For entries that wait for the disk, or for their answers to be sent.
    pub(crate) room_bytes: usize,
    /// For what was written last, so that who follows a ledger need not read the disk.
    pub(crate) recent_bytes: usize,
    /// For pages of the index.
    pub(crate) index_bytes: usize,
}

impl Memory {
    /// More room than this is of no use.
    pub(crate) const ROOM_BYTES_MAX: usize = 64 << 20;

    /// Shares so many bytes between some stores. What is left is for the connections.
    pub(crate) fn share(bytes: u64, stores: usize) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX) / stores.max(1);
        Self {
            room_bytes: (bytes / 4).min(Self::ROOM_BYTES_MAX),
            recent_bytes: bytes / 8,
            index_bytes: bytes / 4,
        }
    }
}

#[cfg(test)]
impl Memory {
    /// So little that tests also read the disk.
    pub(crate) const LITTLE: Self =
        Self { room_bytes: Self::ROOM_BYTES_MAX, recent_bytes: 64 << 10, index_bytes: 16 << 10 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_store_takes_more_than_its_share() {
        for (bytes, stores) in [(LEAST_BYTES, 1), (DEFAULT_BYTES, 3), (1 << 40, 2)] {
            let Memory { room_bytes, recent_bytes, index_bytes } = Memory::share(bytes, stores);
            let all = (room_bytes + recent_bytes + index_bytes) * stores;
            assert!(all as u64 <= bytes * 3 / 4, "{stores} stores share {bytes} bytes");
            assert!(room_bytes <= Memory::ROOM_BYTES_MAX);
        }
    }
}
