//! A disk in memory that forgets on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{BLOCK_BYTES, Disk, DiskFile, Space};

#[cfg(test)]
mod tests;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// What a disk without a limit says that it holds.
const CAPACITY_BYTES: u64 = 1 << 40;

/// What becomes of unsynced changes in a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// All of them are lost.
    Lost,
    /// Each file keeps its first `bytes` changed bytes, counted from the first sector touched;
    /// names are kept.
    Prefix {
        /// How many bytes are kept.
        bytes: usize,
    },
    /// Sectors are kept or lost by chance, and of the changes of names the first few are kept.
    Sectors {
        /// The same seed makes the same choice.
        seed: u64,
    },
}

/// A disk in memory that loses unsynced changes in a [`crash`](Self::crash), and fails to order.
///
/// Clones share the disk. Files opened before a crash must not be used after it.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Contents>,
    /// The names now. Behind them what a crash can bring back: the synced names, then the names
    /// after each change since.
    names: Names,
    earlier_names: Vec<Names>,
    capacity_bytes: Option<usize>,
    sync_fails: bool,
    /// Changes until the power goes; it is gone at zero.
    power: Option<u64>,
    data_syncs: u64,
    reads: u64,
}

type Names = BTreeMap<String, u64>;

#[derive(Default)]
struct Contents {
    /// What is read.
    cached: Vec<u8>,
    /// What a crash leaves.
    durable: Vec<u8>,
    /// Sectors that the next sync will write.
    dirty: BTreeSet<usize>,
    /// Bytes that the system's cache has otherwise than the disk.
    stale: Option<Range<usize>>,
    unreadable: bool,
}

impl MemoryDisk {
    /// Makes an empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses power and comes back: unsynced changes meet their fate, failures ordered are over.
    pub fn crash(&self, unsynced: Unsynced) {
        let mut state = self.state();
        let seed = if let Unsynced::Sectors { seed } = unsynced { seed } else { 0 };
        let mut random = fastrand::Rng::with_seed(seed);
        for file in state.files.values_mut() {
            file.crash(unsynced, &mut random);
        }
        let synced = state.earlier_names.len();
        let lost = match unsynced {
            Unsynced::Lost => synced,
            Unsynced::Prefix { .. } => 0,
            Unsynced::Sectors { .. } => random.usize(0..=synced),
        };
        if lost > 0 {
            state.names = state.earlier_names.swap_remove(synced - lost);
        }
        state.earlier_names.clear();
        state.sync_fails = false;
        state.power = None;
    }

    /// Lets everything work again after a loss of power, as if only the process had ended: nothing
    /// is lost that a later crash does not lose.
    pub fn go_on(&self) {
        self.state().power = None;
    }

    /// Loses the power during the change or sync of this number, counted from 1: it fails and is
    /// left to chance, and everything after it fails, until the crash.
    pub fn lose_power_at(&self, change: u64) {
        self.state().power = Some(change);
    }

    /// Fails the next sync of a file's data, whose unsynced bytes are lost in the next crash even
    /// if a later sync succeeds. Until then they can be read.
    pub fn fail_next_sync(&self) {
        self.state().sync_fails = true;
    }

    /// Limits the length of all files together; `None` lifts the limit.
    pub fn set_capacity_bytes(&self, capacity_bytes: Option<usize>) {
        self.state().capacity_bytes = capacity_bytes;
    }

    /// Flips a bit of a file at rest. Panics if there is no such byte.
    pub fn flip_bit(&self, name: &str, offset: usize, bit: u8) {
        let mut state = self.state();
        let id = state.names[name];
        let file = state.files.get_mut(&id).expect("a name has a file");
        file.cached[offset] ^= 1 << bit;
        if let Some(byte) = file.durable.get_mut(offset) {
            *byte ^= 1 << bit;
        }
    }

    /// Lets reads of these bytes of a file give wrong ones until the cache has forgotten some of
    /// them. Panics if there is no such file.
    pub fn spoil_cache(&self, name: &str, bytes: Range<usize>) {
        let mut state = self.state();
        let id = state.names[name];
        state.contents(id).stale = Some(bytes);
    }

    /// Fails the reads of a file from now on, or no more. Panics if there is no such file.
    pub fn fail_reads(&self, name: &str, fail: bool) {
        let mut state = self.state();
        let id = state.names[name];
        state.contents(id).unreadable = fail;
    }

    /// Makes another disk with the same files, all durable.
    pub fn copy(&self) -> Self {
        let state = self.state();
        let copy = |file: &Contents| Contents {
            cached: file.cached.clone(),
            durable: file.cached.clone(),
            ..Contents::default()
        };
        let files = state.files.iter().map(|(id, file)| (*id, copy(file))).collect();
        let names = state.names.clone();
        Self(Arc::new(Mutex::new(State { files, names, ..State::default() })))
    }

    /// Tells how often data of files was synced.
    pub fn data_syncs(&self) -> u64 {
        self.state().data_syncs
    }

    /// Tells how often files were read.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, id: u64) -> Arc<dyn DiskFile> {
        Arc::new(MemoryFile { disk: self.clone(), id })
    }
}

impl Disk for MemoryDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = self.state().find(name)?;
        Ok(self.file(id))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        if state.find(name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = state.files.last_key_value().map_or(0, |(id, _)| id + 1);
        state.files.insert(id, Contents::default());
        state.rename(|names| names.insert(name.to_owned(), id))?;
        drop(state);
        Ok(self.file(id))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.check_power()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.find(name)?;
        state.rename(|names| names.remove(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let id = state.find(from)?;
        state.rename(|names| {
            names.remove(from);
            names.insert(to.to_owned(), id)
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state();
        state.use_power()?;
        state.earlier_names.clear();
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.state();
        state.check_power()?;
        let capacity_bytes = state.capacity_bytes.map_or(CAPACITY_BYTES, |bytes| bytes as u64);
        let free_bytes = capacity_bytes.saturating_sub(state.used_bytes() as u64);
        // No other disk is there as long as this one is.
        let device = Arc::as_ptr(&self.0).addr() as u64;
        Ok(Space { device, capacity_bytes, free_bytes })
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    id: u64,
}

impl MemoryFile {
    /// Reads what is there, and tells which bytes the system's cache has wrong.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<Range<usize>>> {
        let mut state = self.disk.state();
        state.check_power()?;
        state.reads += 1;
        let start = index(offset);
        let file = state.contents(self.id);
        if file.unreadable {
            return Err(io::Error::other("the disk failed to read"));
        }
        let bytes = file.cached.get(start..start + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(file.stale.clone())
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let stale = self.read(offset, buffer)?;
        let start = index(offset);
        for stale in stale.into_iter().flatten() {
            if let Some(byte) = stale.checked_sub(start).and_then(|index| buffer.get_mut(index)) {
                *byte = !*byte;
            }
        }
        Ok(())
    }

    fn read_blocks(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        assert_aligned(offset, buffer);
        self.read(offset, buffer).map(drop)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let start = index(offset);
        let all = state.used_bytes();
        let own = state.contents(self.id).cached.len();
        let limit = state
            .capacity_bytes
            .map_or(usize::MAX, |capacity| own.max(capacity.saturating_sub(all - own)));
        let fits = limit.saturating_sub(start).min(bytes.len());
        state.check_power()?;
        state.contents(self.id).write(start, &bytes[..fits]);
        state.use_power()?;
        if fits < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn write_blocks(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert_aligned(offset, bytes);
        self.write_at(offset, bytes)?;
        self.sync_data()
    }

    fn reserve(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check_power()?;
        if index(offset + bytes) > state.limit(self.id) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn forget(&self, offset: u64, bytes: u64) {
        let mut state = self.disk.state();
        let forgotten = index(offset)..index(offset + bytes);
        let is_met =
            |stale: &mut Range<usize>| stale.start < forgotten.end && forgotten.start < stale.end;
        state.contents(self.id).stale.take_if(is_met);
    }

    fn len_bytes(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.check_power()?;
        Ok(state.contents(self.id).cached.len() as u64)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check_power()?;
        state.contents(self.id).set_len(index(len_bytes));
        state.use_power()
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.use_power()?;
        state.data_syncs += 1;
        if std::mem::take(&mut state.sync_fails) {
            state.contents(self.id).dirty.clear();
            return Err(io::Error::other("the disk failed to sync"));
        }
        state.contents(self.id).sync();
        Ok(())
    }
}

/// Panics if a disk would refuse a direct access.
fn assert_aligned(offset: u64, bytes: &[u8]) {
    let address = bytes.as_ptr().addr();
    let aligned = [index(offset), bytes.len(), address].map(|it| it % BLOCK_BYTES);
    assert_eq!(aligned, [0; 3], "a direct access that a disk would refuse");
}

impl State {
    fn find(&self, name: &str) -> io::Result<u64> {
        self.check_power()?;
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used_bytes(&self) -> usize {
        self.files.values().map(|file| file.cached.len()).sum()
    }

    /// Tells how long a file may be.
    fn limit(&mut self, id: u64) -> usize {
        let all: usize = self.files.values().map(|file| file.cached.len()).sum();
        let own = self.contents(id).cached.len();
        let capacity = self.capacity_bytes;
        capacity.map_or(usize::MAX, |capacity| own.max(capacity.saturating_sub(all - own)))
    }

    fn contents(&mut self, id: u64) -> &mut Contents {
        self.files.get_mut(&id).expect("an open file has contents")
    }

    fn rename<T>(&mut self, change: impl FnOnce(&mut Names) -> T) -> io::Result<()> {
        self.earlier_names.push(self.names.clone());
        change(&mut self.names);
        self.use_power()
    }

    fn check_power(&self) -> io::Result<()> {
        if self.power == Some(0) { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    fn use_power(&mut self) -> io::Result<()> {
        if let Some(changes) = &mut self.power {
            *changes = changes.saturating_sub(1);
        }
        self.check_power()
    }
}

impl Contents {
    fn write(&mut self, start: usize, bytes: &[u8]) {
        let end = start + bytes.len();
        if end > self.cached.len() {
            self.set_len(end);
        }
        self.cached[start..end].copy_from_slice(bytes);
        self.dirty.extend(start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
    }

    fn set_len(&mut self, len: usize) {
        let from = len.min(self.cached.len());
        self.cached.resize(len, 0);
        self.dirty.extend(from / SECTOR_BYTES..len.div_ceil(SECTOR_BYTES));
    }

    fn sync(&mut self) {
        self.durable.resize(self.cached.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            self.keep(sector, usize::MAX);
        }
    }

    /// Makes a sector durable as far as it lies before `limit`.
    fn keep(&mut self, sector: usize, limit: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(limit).min(self.cached.len());
        if start < end {
            self.durable.resize(self.durable.len().max(end), 0);
            self.durable[start..end].copy_from_slice(&self.cached[start..end]);
        }
    }

    fn crash(&mut self, unsynced: Unsynced, random: &mut fastrand::Rng) {
        let dirty = std::mem::take(&mut self.dirty);
        let first = dirty.first().map_or(0, |sector| sector * SECTOR_BYTES);
        match unsynced {
            Unsynced::Lost => {}
            Unsynced::Prefix { bytes } => {
                dirty.iter().for_each(|&sector| self.keep(sector, first + bytes));
            }
            Unsynced::Sectors { .. } => {
                for sector in dirty {
                    if random.bool() {
                        self.keep(sector, usize::MAX);
                    }
                }
                // The new length is metadata, which goes its own way.
                if random.bool() {
                    self.durable.resize(self.cached.len(), 0);
                }
            }
        }
        self.cached.clone_from(&self.durable);
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a file in memory fits in memory")
}
