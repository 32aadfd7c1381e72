//! A disk in memory for tests, which knows what has been synced, counts, and fails.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// What has been written since the last sync, and where.
    unsynced: Vec<(usize, Vec<u8>)>,
    syncs: usize,
    broken: bool,
}

impl TestDisk {
    pub(crate) fn with(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { now: bytes.clone(), synced: bytes, ..State::default() })))
    }

    /// Returns what a power cut leaves: what was synced, and of the later writes those whose turn
    /// in `kept` says so.
    pub(crate) fn after_power_cut(&self, kept: &[bool]) -> Self {
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

    pub(crate) fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// Lets every sync fail from now on.
    pub(crate) fn break_down(&self) {
        self.state().broken = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
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
        let len = usize::try_from(len).unwrap();
        let mut state = self.state();
        state.now.resize(len, 0);
        // Lengths are kept at once; what is written there is not.
        state.synced.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.broken {
            return Err(io::Error::other("the disk is broken"));
        }
        state.syncs += 1;
        state.synced = state.now.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let mut state = self.state();
        state.now[offset..offset + data.len()].copy_from_slice(data);
        state.unsynced.push((offset, data.to_vec()));
        Ok(())
    }
}
