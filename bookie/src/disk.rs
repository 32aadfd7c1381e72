//! The files of one data directory, as the storage engine sees them.
//!
//! A directory is flat, and a written byte or a changed name is safe from a power loss only after
//! the sync that belongs to it. There are two implementations: [`OsDisk`] and [`MemoryDisk`],
//! which loses on demand whatever was not synced.

use std::io;
use std::sync::Arc;

mod memory;
mod os;
mod overlay;

pub use memory::{MemoryDisk, Unsynced};
pub use os::OsDisk;
pub(crate) use overlay::Overlay;

/// What direct reads and writes begin and end with: a multiple of every usual sector.
pub const BLOCK_BYTES: usize = 4096;

/// A flat directory of files.
///
/// All calls block. A change of names (create, remove, rename) survives a power loss once
/// `sync_names` has returned; until then any number of the last changes may be undone.
pub trait Disk: Send + Sync {
    /// Opens a file for reading and writing; `NotFound` if there is none of that name.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes an empty file and opens it; `AlreadyExists` if there is one of that name.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Lists the names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Removes a file; who has it open goes on reading it.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames a file in one step, replacing one that has the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes all changes of names durable. After an error nothing is known about them.
    fn sync_names(&self) -> io::Result<()>;
    /// Tells how much room there is.
    fn space(&self) -> io::Result<Space>;
}

/// How much room a file system has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Tells file systems apart while the process runs.
    pub device: u64,
    /// What it holds when it is empty.
    pub capacity_bytes: u64,
    /// What can still be written.
    pub free_bytes: u64,
}

/// One open file. All calls block.
pub trait DiskFile: Send + Sync {
    /// Fills the buffer from `offset` on; `UnexpectedEof` if the file ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Fills the buffer from `offset` on, past the system's cache where it can: for much that is
    /// read once. Offset, length and the address of the buffer are multiples of [`BLOCK_BYTES`].
    ///
    /// It fails if the file ends before.
    fn read_blocks(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all the bytes at `offset`, growing the file; after an error a part may be written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes all the bytes at `offset`, durably and with the new length, past the system's cache
    /// where it can. Offset, length and the address of the bytes are multiples of [`BLOCK_BYTES`].
    ///
    /// After an error it is as with [`sync_data`](Self::sync_data).
    fn write_blocks(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Lets the disk set aside room for what will be written there, without a change of the length;
    /// `StorageFull` or `QuotaExceeded` if there is none. Where the disk cannot do that, nothing
    /// happens, and it is the write that fails.
    fn reserve(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Lets the system forget what its cache has of these bytes, so that the next read is one of
    /// the disk. Only a hint.
    fn forget(&self, offset: u64, bytes: u64);
    /// Tells how long the file is.
    fn len_bytes(&self) -> io::Result<u64>;
    /// Cuts the file or grows it with zeros.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
    /// Makes contents and length durable. After an error what was written since the last sync may
    /// be lost for good, also when a later sync succeeds.
    fn sync_data(&self) -> io::Result<()>;
}

/// Says whether all that was wrong is that the disk is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conforms(disk: &dyn Disk) {
        assert_eq!(disk.list().unwrap(), Vec::<String>::new());
        assert_eq!(disk.open("a").err().unwrap().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.remove("a").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.rename("a", "b").unwrap_err().kind(), io::ErrorKind::NotFound);

        let file = disk.create("b").unwrap();
        assert_eq!(disk.create("b").err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(file.len_bytes().unwrap(), 0);
        file.write_at(3, b"abc").unwrap();
        file.write_at(4, b"x").unwrap();
        file.sync_data().unwrap();
        let mut buffer = [9; 6];
        file.forget(1, 3);
        file.read_at(0, &mut buffer).unwrap();
        assert_eq!(&buffer, b"\0\0\0axc");
        let past_end = file.read_at(1, &mut buffer).unwrap_err();
        assert_eq!(past_end.kind(), io::ErrorKind::UnexpectedEof);

        let mut memory = vec![0; 3 * BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        let aligned = &mut memory[start..][..2 * BLOCK_BYTES];
        assert!(file.read_blocks(0, aligned).is_err());
        file.set_len(2 * BLOCK_BYTES as u64).unwrap();
        file.write_at(BLOCK_BYTES as u64, b"second").unwrap();
        file.read_blocks(0, aligned).unwrap();
        assert_eq!(
            (&aligned[..6], &aligned[BLOCK_BYTES..][..6]),
            (&b"\0\0\0axc"[..], &b"second"[..])
        );

        file.set_len(4).unwrap();
        file.set_len(5).unwrap();
        assert_eq!(file.len_bytes().unwrap(), 5);
        file.read_at(3, &mut buffer[..2]).unwrap();
        assert_eq!(&buffer[..2], b"a\0");

        disk.create("a").unwrap().write_at(0, b"old").unwrap();
        assert_eq!(disk.list().unwrap(), ["a", "b"]);
        disk.rename("b", "a").unwrap();
        disk.sync_names().unwrap();
        assert_eq!(disk.list().unwrap(), ["a"]);
        assert_eq!(disk.open("a").unwrap().len_bytes().unwrap(), 5);
        disk.remove("a").unwrap();
        assert_eq!(disk.list().unwrap(), Vec::<String>::new());
        file.read_at(3, &mut buffer[..1]).unwrap();
        assert_eq!(&buffer[..1], b"a");

        let space = disk.space().unwrap();
        assert!(space.free_bytes <= space.capacity_bytes && space.capacity_bytes > 0, "{space:?}");
        assert_eq!(disk.space().unwrap().device, space.device);
    }

    #[test]
    fn all_disks_conform() {
        conforms(&MemoryDisk::new());
        conforms(&Overlay::new(Arc::new(MemoryDisk::new())));
        let dir = tempfile::tempdir().unwrap();
        conforms(&OsDisk::open(&dir.path().join("not/yet/there")).unwrap());
    }
}
