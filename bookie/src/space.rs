//! How much room there is on the file systems of a bookie, and who is let in.
//!
//! On a disk that is full all writes wait, so adds are refused before: those of writers, who go to
//! another bookie, below one mark, and those of recoveries below a lower one. Fences and what the
//! log does for itself have the rest. The room that lets writers in again is more than what keeps
//! them in, so that one who comes does not at once shut the door.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use inkfast_protocol::Refusal;
use inkfast_protocol::gate::Adder;

use crate::directories::Directory;
use crate::disk::Space;
use crate::executor::Executor;

/// Unless it is said, writers are refused below this part of the capacity.
const MIN_FREE_USUAL: MinFree = MinFree::Percent(5);
/// And never if there is more than this.
const MIN_FREE_USUAL_MAX_BYTES: u64 = 16 << 30;

/// The free space of a directory's file system below which its bookie refuses writers.
///
/// They are let in again above 1.4 times as much. Below a quarter of it recoveries are refused too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// So many bytes; 0 refuses nobody.
    Bytes(u64),
    /// A part of the capacity.
    Percent(u8),
}

/// Who is let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// All.
    #[default]
    Plenty,
    /// Recoveries.
    Low,
    /// Nobody.
    Full,
}

/// What is known of the room of one directory.
pub(crate) struct Gauge {
    dir: Directory,
    min_free: Option<MinFree>,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    space: Space,
    level: Level,
}

/// Free bytes at which the level changes.
#[derive(Clone, Copy, Debug)]
struct Marks {
    /// Above it there is plenty.
    high: u64,
    /// Below it there is no plenty, and from it on it is not full.
    low: u64,
    /// Below it, it is full.
    floor: u64,
}

impl FromStr for MinFree {
    type Err = String;

    /// Reads a number of bytes, or with `%` at its end a part of the capacity.
    fn from_str(words: &str) -> Result<Self, String> {
        let read = match words.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|it| *it <= 100).map(Self::Percent),
            None => words.parse().ok().map(Self::Bytes),
        };
        read.ok_or_else(|| {
            format!("'{words}' is neither a number of bytes nor a percentage such as 5%")
        })
    }
}

impl MinFree {
    const fn bytes(self, capacity_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => capacity_bytes / 100 * percent as u64,
        }
    }
}

impl Marks {
    fn new(min_free: Option<MinFree>, capacity_bytes: u64) -> Self {
        let usual = MIN_FREE_USUAL.bytes(capacity_bytes).min(MIN_FREE_USUAL_MAX_BYTES);
        let low = min_free.map_or(usual, |min_free| min_free.bytes(capacity_bytes));
        Self { high: low.saturating_add(low / 5 * 2), low, floor: low / 4 }
    }
}

impl Level {
    /// Returns the level after this one, with so much room.
    const fn next(self, free_bytes: u64, marks: Marks) -> Self {
        match self {
            _ if free_bytes < marks.floor => Self::Full,
            _ if free_bytes > marks.high => Self::Plenty,
            Self::Plenty if free_bytes >= marks.low => Self::Plenty,
            Self::Full if free_bytes < marks.low => Self::Full,
            _ => Self::Low,
        }
    }
}

impl Gauge {
    /// Begins without having looked: there is plenty.
    pub(crate) fn new(dir: Directory, min_free: Option<MinFree>) -> Self {
        Self { dir, min_free, seen: Mutex::default() }
    }

    /// Returns what was found last; zeros if nothing was.
    pub(crate) fn space(&self) -> Space {
        self.seen().space
    }

    pub(crate) fn level(&self) -> Level {
        self.seen().level
    }

    /// Says why adds are refused, if they are.
    pub(crate) fn let_in(&self, adder: &Adder) -> Result<(), Refusal> {
        let Seen { space, level } = *self.seen();
        match (level, adder) {
            (Level::Plenty, _) | (Level::Low, Adder::Recovery) => Ok(()),
            (Level::Low, Adder::Writer { .. }) | (Level::Full, _) => {
                let (dir, free) = (self.dir.path.display(), space.free_bytes);
                let why = format!("the disk of {dir} is nearly full: {free} bytes free");
                Err(Refusal::ReadOnly(why))
            }
        }
    }

    fn set(&self, space: Space) {
        let mut seen = self.seen();
        let marks = Marks::new(self.min_free, space.capacity_bytes);
        let level = seen.level.next(space.free_bytes, marks);
        if level != seen.level {
            let (dir, free) = (self.dir.path.display(), space.free_bytes);
            tracing::warn!(%dir, free, ?marks, "the room is {level:?} now, and was {:?}", seen.level);
        }
        *seen = Seen { space, level };
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks how much room there is for each of these.
pub(crate) async fn measure(gauges: &[&Gauge], executor: Executor) {
    let disks: Vec<_> = gauges.iter().map(|gauge| gauge.dir.disk.clone()).collect();
    let look = move || disks.iter().map(|disk| disk.space()).collect::<Vec<_>>();
    let mut seen = BTreeMap::new();
    for (gauge, found) in gauges.iter().zip(executor.run(look).await) {
        match found {
            // The same for all of a file system, though it has changed in between.
            Ok(space) => gauge.set(*seen.entry(space.device).or_insert(space)),
            Err(error) => {
                let dir = gauge.dir.path.display();
                tracing::warn!(%dir, %error, "cannot tell how much room there is");
            }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::disk::MemoryDisk;

    const GIB: u64 = 1 << 30;

    proptest! {
        #[test]
        fn the_level_follows_the_room_and_is_kept_within_a_band(
            low in 1u64..1000,
            steps in prop::collection::vec(0u64..2000, 1..50),
        ) {
            let marks = Marks::new(Some(MinFree::Bytes(low)), 1 << 20);
            let mut level = Level::Plenty;
            for free in steps {
                let before = level;
                level = level.next(free, marks);
                prop_assert_eq!(level, level.next(free, marks), "it has settled");
                match level {
                    Level::Plenty => prop_assert!(free >= low),
                    Level::Low => prop_assert!(free >= low / 4 && free <= marks.high),
                    Level::Full => prop_assert!(free < low),
                }
                if (low..=marks.high).contains(&free) && before != Level::Full {
                    prop_assert_eq!(level, before);
                }
                if (low / 4..low).contains(&free) && before != Level::Plenty {
                    prop_assert_eq!(level, before);
                }
            }
        }
    }

    #[test]
    fn the_usual_marks_are_those_of_a_part_and_of_a_lot() {
        let small = Marks::new(None, 100 * GIB);
        assert_eq!((small.low, small.floor), (100 * GIB / 100 * 5, 100 * GIB / 100 * 5 / 4));
        assert_eq!(Marks::new(None, 10_000 * GIB).low, 16 * GIB);
        assert_eq!(Marks::new(Some(MinFree::Percent(10)), 10_000 * GIB).low, 1000 * GIB);
        assert_eq!(Marks::new(Some(MinFree::Bytes(1000)), GIB).high, 1400);
        let none = Marks::new(Some(MinFree::Bytes(0)), GIB);
        assert_eq!(Level::Plenty.next(0, none), Level::Plenty);
    }

    #[test]
    fn the_least_room_is_given_in_bytes_or_as_a_part() {
        assert_eq!("123".parse(), Ok(MinFree::Bytes(123)));
        assert_eq!("100%".parse(), Ok(MinFree::Percent(100)));
        for words in ["", "%", "101%", "-1", "5 %", "5G", "0.5%"] {
            let refused = words.parse::<MinFree>().unwrap_err();
            assert!(refused.contains(&format!("'{words}'")), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_file_system_is_counted_once() {
        let (one, other) = (MemoryDisk::new(), MemoryDisk::new());
        let gauges = [&one, &one, &other].map(|disk| {
            let dir = Directory { path: "d".into(), disk: Arc::new(disk.clone()) };
            Gauge::new(dir, None)
        });
        let gauges: Vec<_> = gauges.iter().collect();
        measure(&gauges, Executor::Inline).await;
        assert_eq!(total(&gauges).capacity_bytes, 2 * gauges[0].space().capacity_bytes);
    }
}
