//! How much room there is on the file systems of a bookie.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::{Disk, Space};
use crate::executor::Executor;

/// What is known of the room of one directory.
pub(crate) struct Gauge {
    disk: Arc<dyn Disk>,
    space: Mutex<Space>,
}

impl Gauge {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, space: Mutex::default() }
    }

    /// Returns what was found last; zeros if nothing was.
    pub(crate) fn space(&self) -> Space {
        *self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, space: Space) {
        *self.space.lock().unwrap_or_else(PoisonError::into_inner) = space;
    }
}

/// Looks how much room there is for each of these.
pub(crate) async fn measure(gauges: &[&Gauge], executor: Executor) {
    let disks: Vec<_> = gauges.iter().map(|gauge| gauge.disk.clone()).collect();
    let look = move || disks.iter().map(|disk| disk.space()).collect::<Vec<_>>();
    let mut seen = BTreeMap::new();
    for (gauge, found) in gauges.iter().zip(executor.run(look).await) {
        match found {
            // The same for all of a file system, though it has changed in between.
            Ok(space) => gauge.set(*seen.entry(space.device).or_insert(space)),
            Err(error) => tracing::warn!(%error, "cannot tell how much room there is"),
        }
    }
}

/// Adds up the room, once for each file system.
pub(crate) fn total(gauges: &[&Gauge]) -> Space {
    let spaces = gauges.iter().map(|gauge| gauge.space());
    let each: BTreeMap<u64, Space> = spaces.map(|space| (space.device, space)).collect();
    each.into_values().fold(Space::default(), |sum, space| Space {
        device: 0,
        capacity_bytes: sum.capacity_bytes + space.capacity_bytes,
        free_bytes: sum.free_bytes + space.free_bytes,
    })
}
