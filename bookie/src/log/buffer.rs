//! Memory for a batch, aligned as direct writes want it.

use crate::disk::BLOCK_BYTES;

/// Bytes that begin at a multiple of [`BLOCK_BYTES`]; they never move.
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Makes a buffer that takes so many bytes.
    pub(super) fn new(capacity: usize) -> Self {
        let memory = vec![0; capacity + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, start, len: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends bytes. Panics if they are too many.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let from = self.start + self.len;
        self.memory[from..from + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends zeros up to a multiple of `alignment`.
    pub(super) fn pad(&mut self, alignment: usize) {
        let len = self.len.next_multiple_of(alignment);
        self.memory[self.start + self.len..self.start + len].fill(0);
        self.len = len;
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
