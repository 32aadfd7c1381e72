//! The batches that were written last, in memory: they were written past the system's cache, and
//! who follows a ledger wants them next.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::record::{self, HEADER_BYTES};
use super::{Mark, Place, SegmentNumber};
use crate::disk::BLOCK_BYTES;

/// The last batches that are durable, as they were written. They hold no other memory, least of
/// all the packets in which the entries arrived.
pub(super) struct Recent {
    batches: Mutex<Batches>,
    /// The most memory that they take.
    bytes_max: usize,
}

#[derive(Default)]
struct Batches {
    /// In the order of the log.
    batches: VecDeque<Batch>,
    /// The memory that they take.
    bytes: usize,
}

struct Batch {
    segment: SegmentNumber,
    offset: u32,
    bytes: Bytes,
}

impl Recent {
    /// Makes a place for batches that take so much memory.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { batches: Mutex::default(), bytes_max }
    }

    /// Adds the batch that ends at a mark, and lets the oldest go for it.
    pub(super) fn push(&self, mark: Mark, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let mut recent = self.batches();
        let offset = mark.offset - record::length(&bytes);
        recent.bytes += memory_bytes(&bytes);
        recent.batches.push_back(Batch { segment: mark.segment, offset, bytes });
        while recent.bytes > self.bytes_max
            && let Some(oldest) = recent.batches.pop_front()
        {
            recent.bytes -= memory_bytes(&oldest.bytes);
        }
    }

    /// Returns the payloads that are here. Each keeps its batch in memory: copy what may be kept
    /// for long.
    pub(super) fn find(&self, places: &[Place]) -> Vec<Option<Bytes>> {
        let recent = self.batches();
        places.iter().map(|place| recent.find(*place)).collect()
    }

    fn batches(&self) -> MutexGuard<'_, Batches> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batches {
    fn find(&self, Place { segment, offset, payload_bytes }: Place) -> Option<Bytes> {
        let begin = |batch: &Batch| (batch.segment, batch.offset);
        let after = self.batches.partition_point(|batch| begin(batch) <= (segment, offset));
        let batch = &self.batches[after.checked_sub(1)?];
        if batch.segment != segment {
            return None;
        }
        let start = (offset - batch.offset) as usize + HEADER_BYTES;
        let end = start + payload_bytes as usize;
        (end <= batch.bytes.len()).then(|| batch.bytes.slice(start..end))
    }
}

/// Tells what a batch takes, with what aligns it.
fn memory_bytes(batch: &Bytes) -> usize {
    batch.len() + BLOCK_BYTES
}
