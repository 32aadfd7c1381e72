//! Disks in memory for tests, which know what has been synced, count, fail, and lose power.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use redb::StorageBackend;

use crate::directory::Files;

/// The files of a member on one disk. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestFiles(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    disks: BTreeMap<String, TestDisk>,
    /// What was removed since the last rename, and may come back.
    removed: BTreeMap<String, TestDisk>,
    power: Power,
}

/// How many more writes there are before the power is cut; none if it is not.
type Power = Arc<Mutex<Option<usize>>>;

/// One file. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestDisk {
    state: Arc<Mutex<State>>,
    power: Power,
    hang: Arc<Hang>,
}

/// Whether syncs hang now.
#[derive(Debug, Default)]
struct Hang {
    hangs: Mutex<bool>,
    changed: Condvar,
}

/// Lets every sync of a file hang until it is dropped.
pub(crate) struct Hanging(Arc<Hang>);

impl Drop for Hanging {
    fn drop(&mut self) {
        *self.0.hangs.lock().unwrap() = false;
        self.0.changed.notify_all();
    }
}

#[derive(Debug, Default)]
struct State {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// What has been written since the last sync, and where.
    unsynced: Vec<(usize, Vec<u8>)>,
    syncs: usize,
    broken: bool,
}

impl TestFiles {
    /// Cuts the power after so many more writes, syncs and renames: all that follow fail.
    pub(crate) fn cut_power_after(&self, writes: usize) {
        *self.names().power.lock().unwrap() = Some(writes);
    }

    /// Returns what a power cut leaves, now or when it was: what was synced, and of the later
    /// writes and removals those whose turn in `kept` says so.
    pub(crate) fn after_power_cut(&self, kept: &[bool]) -> Self {
        let names = self.names();
        let mut disks = names.disks.clone();
        let back = names.removed.iter().zip(kept.iter().cycle()).filter(|(_, kept)| !**kept);
        for ((name, disk), _) in back {
            disks.entry(name.clone()).or_insert_with(|| disk.clone());
        }
        let disks = disks.into_iter().map(|(name, disk)| (name, disk.after_power_cut(kept)));
        let left = Self::default();
        for (name, disk) in disks {
            let disk = TestDisk { power: left.names().power.clone(), ..disk };
            left.names().disks.insert(name, disk);
        }
        left
    }

    /// Returns what is in a file now.
    pub(crate) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.names().disks.get(name).map(|disk| disk.state().now.clone())
    }

    pub(crate) fn file_names(&self) -> Vec<String> {
        self.names().disks.keys().cloned().collect()
    }

    pub(crate) fn syncs(&self, name: &str) -> usize {
        self.names().disks[name].state().syncs
    }

    /// Lets every sync of a file fail from now on.
    pub(crate) fn break_down(&self, name: &str) {
        self.names().disks[name].state().broken = true;
    }

    /// Lets syncs succeed again, though what was written before may be lost.
    pub(crate) fn mend(&self, name: &str) {
        self.names().disks[name].state().broken = false;
    }

    /// Lets every sync of a file hang.
    pub(crate) fn hang(&self, name: &str) -> Hanging {
        let hang = self.names().disks[name].hang.clone();
        *hang.hangs.lock().unwrap() = true;
        Hanging(hang)
    }

    /// Puts other bytes into a file that nobody has open.
    pub(crate) fn set_bytes(&self, name: &str, bytes: Vec<u8>) {
        self.names().disks.insert(name.into(), TestDisk::with(bytes));
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap()
    }
}

impl Files for TestFiles {
    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.names().disks.contains_key(name))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let mut names = self.names();
        let power = names.power.clone();
        let disk = names.disks.entry(name.into());
        let disk = disk.or_insert_with(|| TestDisk { power, ..TestDisk::default() });
        Ok(Box::new(disk.clone()))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.names();
        spend(&names.power)?;
        let disk = names.disks.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.state().sync()?;
        names.disks.insert(to.into(), disk);
        names.removed.clear();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut names = self.names();
        spend(&names.power)?;
        if let Some(disk) = names.disks.remove(name) {
            names.removed.insert(name.into(), disk);
        }
        Ok(())
    }
}

impl TestDisk {
    fn with(bytes: Vec<u8>) -> Self {
        let state = State { now: bytes.clone(), synced: bytes, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), ..Self::default() }
    }

    fn after_power_cut(&self, kept: &[bool]) -> Self {
        let state = self.state();
        let mut left = state.synced.clone();
        for ((offset, data), _) in
            state.unsynced.iter().zip(kept.iter().cycle()).filter(|(_, kept)| **kept)
        {
            left.resize(left.len().max(offset + data.len()), 0);
            left[*offset..offset + data.len()].copy_from_slice(data);
        }
        Self::with(left)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn sync(&mut self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the disk is broken"));
        }
        self.syncs += 1;
        self.synced = self.now.clone();
        self.unsynced.clear();
        Ok(())
    }
}

fn spend(power: &Power) -> io::Result<()> {
    match &mut *power.lock().unwrap() {
        Some(0) => Err(io::Error::other("the power was cut")),
        Some(left) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl StorageBackend for TestDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let state = self.state();
        let data = state.now.get(offset..offset + out.len());
        out.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        spend(&self.power)?;
        let len = usize::try_from(len).unwrap();
        let mut state = self.state();
        state.now.resize(len, 0);
        // Lengths are kept at once; what is written there is not.
        state.synced.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        spend(&self.power)?;
        let hangs = self.hang.hangs.lock().unwrap();
        drop(self.hang.changed.wait_while(hangs, |hangs| *hangs).unwrap());
        self.state().sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        spend(&self.power)?;
        let offset = usize::try_from(offset).unwrap();
        let mut state = self.state();
        state.now[offset..offset + data.len()].copy_from_slice(data);
        state.unsynced.push((offset, data.to_vec()));
        Ok(())
    }
}
