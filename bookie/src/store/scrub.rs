//! Scrub: reads all of the log now and then, so that what decays is noticed while others have it.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use inkfast_protocol::{EntryId, LedgerId, Refusal};
use tokio::time::{Instant, sleep, sleep_until};

use super::Store;
use crate::index::{Index, SegmentInfo};
use crate::log::{self, Found, LogError, Place, ReadError, SegmentNumber};
use crate::record;

/// How often it is looked whether the time of a segment has come.
const PAUSE: Duration = Duration::from_secs(10);
/// A segment is read again when it was not for so long.
const ROUND: Duration = Duration::from_secs(7 * 24 * 3600);
/// How much is read in one turn of the executor.
const STEP_BYTES: u32 = if cfg!(test) { 16 << 10 } else { 1 << 20 };
/// The most damaged ranges of a segment that are told apart.
const RANGES_MAX: usize = 1024;
/// The most damaged entries that are remembered; more are only counted.
const HITS_MAX: usize = if cfg!(test) { 20 } else { 100_000 };
/// How many ledgers of the index are looked through in one turn.
const LEDGERS_AT_ONCE: usize = 256;
/// How many entries are named in a line of the log.
const NAMED_MAX: usize = 20;

/// Verifies the segments that have ended for as long as the store is there, at so many bytes a
/// second: the one that was not verified for the longest first, each once a week.
///
/// It begins with all that was never verified, but for the segments that end while this process
/// runs: what it has written itself it reads a week later. So is a damaged segment.
pub(crate) async fn run(store: Store, bytes_per_second: NonZeroU64) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut scrub = Scrub::new(store, bytes_per_second, millis(since));
    loop {
        match scrub.step().await {
            Ok(true) => {}
            Ok(false) => sleep(PAUSE).await,
            Err(refusal) => {
                tracing::warn!(%refusal, "cannot verify a segment");
                sleep(PAUSE).await;
            }
        }
    }
}

/// What of the segments was found damaged.
#[derive(Default)]
pub(super) struct Damaged(Mutex<BTreeMap<SegmentNumber, Hits>>);

/// Entries that are damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hits {
    /// At most a hundred thousand.
    pub(crate) entries: Vec<(LedgerId, EntryId)>,
    /// How many there are beyond those.
    pub(crate) beyond: u64,
}

impl Store {
    /// Returns the entries whose only copy here was found damaged when their segments were last
    /// verified since the start: they are to be fetched from other bookies. Some of them may have
    /// been written again, or deleted, since.
    #[cfg_attr(not(test), expect(dead_code, reason = "what fetches them uses it next"))]
    pub(crate) fn damaged_entries(&self) -> Hits {
        let mut all = Hits::default();
        for hits in self.decayed.segments().values() {
            all.entries.extend_from_slice(&hits.entries);
            all.beyond += hits.beyond;
        }
        all
    }
}

pub(super) struct Scrub {
    store: Store,
    bytes_per_second: NonZeroU64,
    began: Instant,
    /// The same moment, in milliseconds since 1970.
    began_ms: u64,
    /// When segments were read in this process: the index hears only of those that are whole, and
    /// only with a checkpoint. Those that this process has filled, when they were seen to have ended.
    looked_at: BTreeMap<SegmentNumber, u64>,
    /// The segment that grew when they were first looked at.
    first_filled: Option<SegmentNumber>,
}

impl Scrub {
    pub(super) fn new(store: Store, bytes_per_second: NonZeroU64, now_ms: u64) -> Self {
        let (began, looked_at) = (Instant::now(), BTreeMap::new());
        Self { store, bytes_per_second, began, began_ms: now_ms, looked_at, first_filled: None }
    }

    /// Reads the segment that was not read for the longest, if its time has come; says whether
    /// there was one.
    pub(super) async fn step(&mut self) -> Result<bool, Refusal> {
        // What a log has that lost something is in no index, and one that failed is left alone.
        if self.is_unsound() {
            return Ok(false);
        }
        let Some((segments, growing)) = self.store.segments().await? else { return Ok(false) };
        self.looked_at.retain(|number, _| segments.contains_key(number));
        self.store.decayed.segments().retain(|number, _| is_needed(&segments, *number));
        let (now, first_filled) = (self.now_ms(), *self.first_filled.get_or_insert(growing));
        for number in segments.keys().filter(|number| (first_filled..growing).contains(number)) {
            self.looked_at.entry(*number).or_insert(now);
        }
        let ended = segments.range(..growing).filter(|(_, info)| !info.is_dead());
        let due = ended.map(|(number, info)| (self.last_look(*number, info), *number, info.bytes));
        let Some((_, number, end)) = due.filter(|(at, ..)| self.is_due(*at)).min() else {
            return Ok(false);
        };
        self.looked_at.insert(number, self.now_ms());
        let Some(ranges) = self.read(number, end).await? else { return Ok(false) };
        if ranges.0.is_empty() {
            self.store.decayed.segments().remove(&number);
            self.store.verified(number, self.now_ms()).await?;
        } else {
            self.report(number, ranges).await?;
        }
        Ok(true)
    }

    /// Reads a segment, and returns what of it is damaged; none if the log failed meanwhile.
    async fn read(&self, number: SegmentNumber, end: u32) -> Result<Option<Ranges>, Refusal> {
        let (mut ranges, mut from) = (Ranges::default(), Some(0));
        while let Some(offset) = from {
            if self.is_unsound() {
                return Ok(None);
            }
            let began = Instant::now();
            let reader = self.store.reader.clone();
            let work = move || {
                let mut visit = |found: Found<'_>| ranges.look_at(found);
                let next = reader.scan(number, (offset, end), STEP_BYTES, &mut visit);
                (next, ranges)
            };
            let next;
            (next, ranges) = self.store.executor.run(work).await;
            from = match next {
                Ok(next) => next,
                // That says nothing of the segment.
                Err(ReadError::Log(error @ LogError::Io { doing: "open", .. })) => {
                    return Err(Refusal::Unknown(error.to_string()));
                }
                Err(error) => {
                    // One that was dropped meanwhile is gone for good reason; that is asked later.
                    if !matches!(error, ReadError::Gone { .. }) {
                        tracing::error!(%error, offset, "a part of a segment cannot be read");
                    }
                    let is_in_part = matches!(error, ReadError::Log(LogError::Io { .. }));
                    let next = if is_in_part { end.min(offset + STEP_BYTES) } else { end };
                    ranges.add(offset..next);
                    Some(next).filter(|next| *next < end)
                }
            };
            let bytes = u64::from(from.unwrap_or(end) - offset);
            sleep_until(began + Duration::from_millis(bytes * 1000 / self.bytes_per_second)).await;
        }
        Ok(Some(ranges))
    }

    /// Finds the entries that are hit, and tells of them.
    async fn report(&self, number: SegmentNumber, ranges: Ranges) -> Result<(), Refusal> {
        // One that was dropped, and is another now, has no records of its own any more.
        let known = self.store.segments().await?;
        if known.is_none_or(|(segments, _)| !is_needed(&segments, number)) {
            return Ok(());
        }
        let room = self.store.decayed.room(number);
        let hits = self.find_hits(number, ranges.clone(), room).await?;
        for Range { start, end } in &ranges.0 {
            let bytes = end - start;
            tracing::error!(file = %number, offset = start, bytes, "a part of the log is damaged");
        }
        tracing::error!(file = %number, %hits, "entries are damaged; other bookies may have copies");
        self.store.decayed.segments().insert(number, hits);
        Ok(())
    }

    /// Finds the entries that the index has in damaged parts of a segment.
    async fn find_hits(
        &self,
        number: SegmentNumber,
        ranges: Ranges,
        room: usize,
    ) -> Result<Hits, Refusal> {
        let (mut hits, mut after) = (Hits::default(), None);
        loop {
            let (index, ranges) = (self.store.index()?, ranges.clone());
            let find = move |index: &Index| {
                let last =
                    index.each_place(after, LEDGERS_AT_ONCE, &mut |ledger, entry, place| {
                        if place.segment == number && ranges.hit(place) {
                            hits.add((ledger, entry), room);
                        }
                    })?;
                Ok((last, hits))
            };
            (after, hits) = self.store.indexed(index, find).await?;
            if after.is_none() {
                return Ok(hits);
            }
        }
    }

    fn is_unsound(&self) -> bool {
        *self.store.read_only.borrow()
    }

    /// Tells when a segment was last read, here or in an earlier life; none if never.
    fn last_look(&self, number: SegmentNumber, info: &SegmentInfo) -> Option<u64> {
        // A time that is yet to come says nothing.
        let verified = info.verified_at_ms.filter(|at| *at <= self.now_ms());
        verified.max(self.looked_at.get(&number).copied())
    }

    fn is_due(&self, last_look: Option<u64>) -> bool {
        last_look.is_none_or(|at| self.now_ms().saturating_sub(at) >= millis(ROUND))
    }

    fn now_ms(&self) -> u64 {
        self.began_ms + millis(self.began.elapsed())
    }
}

impl Damaged {
    /// Returns what was found, by the segments that are not whole.
    pub(super) fn segments(&self) -> MutexGuard<'_, BTreeMap<SegmentNumber, Hits>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how many entries of a segment may be remembered.
    fn room(&self, number: SegmentNumber) -> usize {
        let segments = self.segments();
        let others = segments.iter().filter(|(other, _)| **other != number);
        HITS_MAX.saturating_sub(others.map(|(_, hits)| hits.entries.len()).sum())
    }
}

impl Hits {
    fn add(&mut self, entry: (LedgerId, EntryId), room: usize) {
        if self.entries.len() < room {
            self.entries.push(entry);
        } else {
            self.beyond += 1;
        }
    }
}

/// Displays how many there are, and names some.
impl fmt::Display for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.entries.len() as u64 + self.beyond)?;
        for (number, (ledger, entry)) in self.entries.iter().take(NAMED_MAX).enumerate() {
            let before = if number == 0 { ':' } else { ',' };
            write!(f, "{before} {ledger}/{entry}")?;
        }
        let named = self.entries.len().min(NAMED_MAX);
        if (named as u64) < self.entries.len() as u64 + self.beyond {
            f.write_str(", ...")
        } else {
            Ok(())
        }
    }
}

/// Damaged parts of a segment, ascending.
#[derive(Clone, Default)]
struct Ranges(Vec<Range<u32>>);

impl Ranges {
    fn look_at(&mut self, found: Found<'_>) {
        match found {
            Found::Damage { offset, bytes } => self.add(offset..offset + bytes),
            // Its own checksums may be wrong although the log's is right: it was so when it came.
            Found::Record(place, kind, payload)
                if kind != log::KIND_DROPPED && record::decode(kind, payload).is_err() =>
            {
                self.add(place.offset..place.offset + place.stored_bytes());
            }
            Found::Record(..) => {}
        }
    }

    /// Adds one that is behind all others.
    fn add(&mut self, range: Range<u32>) {
        let full = self.0.len() >= RANGES_MAX;
        match self.0.last_mut().filter(|last| full || last.end >= range.start) {
            Some(last) => last.end = range.end,
            None => self.0.push(range),
        }
    }

    fn hit(&self, place: Place) -> bool {
        let (start, end) = (place.offset, place.offset + place.stored_bytes());
        let behind = self.0.partition_point(|range| range.end <= start);
        self.0.get(behind).is_some_and(|range| range.start < end)
    }
}

fn is_needed(segments: &BTreeMap<SegmentNumber, SegmentInfo>, number: SegmentNumber) -> bool {
    segments.get(&number).is_some_and(|info| !info.is_dead())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
