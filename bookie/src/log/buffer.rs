//! Memory that is aligned as direct reads and writes want it.

use bytes::Bytes;

use crate::disk::BLOCK_BYTES;

/// Bytes that begin at a multiple of [`BLOCK_BYTES`]; they never move.
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// Makes a buffer that takes so many bytes.
    pub(super) fn new(capacity: usize) -> Self {
        let mut memory: Vec<u8> = Vec::with_capacity(capacity + BLOCK_BYTES);
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        memory.resize(start, 0);
        Self { memory, start }
    }

    /// Makes a buffer of so many zeros, to be filled.
    pub(super) fn zeroed(bytes: usize) -> Self {
        let mut buffer = Self::new(bytes);
        buffer.memory.resize(buffer.start + bytes, 0);
        buffer
    }

    /// Appends bytes. Panics if they are too many.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.check_room(bytes.len());
        self.memory.extend_from_slice(bytes);
    }

    /// Appends zeros up to a multiple of `alignment`.
    pub(super) fn pad(&mut self, alignment: usize) {
        let len = self.bytes().len();
        let zeros = len.next_multiple_of(alignment) - len;
        self.check_room(zeros);
        self.memory.resize(self.memory.len() + zeros, 0);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }

    /// Gives the bytes away. They hold [`BLOCK_BYTES`] more than they are.
    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from(self.memory).slice(self.start..)
    }

    fn check_room(&self, bytes: usize) {
        assert!(self.memory.len() + bytes <= self.memory.capacity(), "the buffer is too small");
    }
}
