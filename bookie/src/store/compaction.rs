//! Makes room: what is needed of segments of which little is needed is written again, by ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use inkfast_protocol::gate::Record;
use inkfast_protocol::{EntryId, LedgerId, Refusal};
use tokio::time::{Instant, sleep, sleep_until};

use super::Store;
use crate::index::{Index, IndexError, SegmentInfo};
use crate::log::{self, Found, Place, ReadError, SegmentNumber};
use crate::record;

/// How often it is looked for segments of which little is needed.
const PAUSE: Duration = Duration::from_secs(10);
/// After so many looks what could not be freed is tried again.
const LOOKS_STUCK: u32 = 360;
/// How fast entries are written again, in bytes a second.
const BYTES_PER_SECOND: u64 = 32 << 20;
/// How much of a segment is looked through in one turn of the executor.
const SCAN_BYTES: u32 = 4 << 20;
/// The most entries that are sorted at once.
const SORTED_MAX: usize = if cfg!(test) { 50 } else { 500_000 };
/// How many bytes of entries are written again at once: so many that the log has little to fill up.
const MOVE_BYTES: u64 = 1 << 20;
/// The most entries, or other records, that are written again at once.
const TOGETHER_MAX: usize = 1024;
/// What the records of a ledger that are no entries count for.
const STATE_BYTES: u64 = 128;

/// Makes room for as long as the store is there.
pub(crate) async fn run(store: Store) {
    // Those of which something cannot be moved.
    let mut stuck = BTreeSet::new();
    for look in 1_u32.. {
        sleep(PAUSE).await;
        if look.is_multiple_of(LOOKS_STUCK) {
            stuck.clear();
        }
        if let Err(refusal) = free_all(&store, &mut stuck).await {
            tracing::warn!(%refusal, "cannot make room");
        }
    }
}

/// Frees one segment after the other: in a pause more may be filled than one.
async fn free_all(store: &Store, stuck: &mut BTreeSet<SegmentNumber>) -> Result<(), Refusal> {
    while step(store, stuck).await? {}
    Ok(())
}

/// Frees the segment of which the least is needed, if that is little; says whether there was one.
pub(super) async fn step(
    store: &Store,
    stuck: &mut BTreeSet<SegmentNumber>,
) -> Result<bool, Refusal> {
    let Some((segments, growing)) = store.segments().await? else { return Ok(false) };
    let ended = segments.into_iter().filter(|(number, _)| *number < growing);
    let worth = ended.filter(|(number, info)| is_worth(info) && !stuck.contains(number));
    let least = worth.min_by_key(|(_, info)| info.live_bytes);
    let Some((number, info)) = least else { return Ok(false) };
    tracing::debug!(segment = %number, ?info, "what is needed of it is written again");
    let compaction = Compaction { store, number, end: info.bytes, began: Instant::now(), moved: 0 };
    let ran = compaction.run().await;
    // What was moved was read by ledger, back and forth, through the system's cache.
    let reader = store.reader.clone();
    store.executor.run(move || reader.uncache(number, info.bytes)).await;
    if let Err(refusal) = ran {
        tracing::warn!(segment = %number, %refusal, "what is needed of it cannot be written again");
        stuck.insert(number);
        return Ok(true);
    }
    store.checkpoint().await?;
    if let Some((segments, _)) = store.segments().await?
        && segments.get(&number).is_some_and(|info| !info.is_dead())
    {
        tracing::warn!(segment = %number, "some of it cannot be written again; it stays");
        stuck.insert(number);
    }
    Ok(true)
}

/// Says whether less than half of a segment is needed.
fn is_worth(info: &SegmentInfo) -> bool {
    let needed = u64::from(info.live_bytes) + u64::from(info.states) * STATE_BYTES;
    needed * 2 < u64::from(info.bytes) && !info.is_dead()
}

struct Compaction<'a> {
    store: &'a Store,
    number: SegmentNumber,
    end: u32,
    began: Instant,
    /// The bytes that were written again.
    moved: u64,
}

/// An entry that the index finds where it is.
type Needed = (LedgerId, EntryId, Place);

/// What is in a part of a segment.
#[derive(Default)]
struct Part {
    entries: Vec<Needed>,
    /// The ledgers of which there are other records.
    states: BTreeSet<LedgerId>,
    /// Why a record cannot be understood.
    unknown: Option<String>,
}

impl Compaction<'_> {
    async fn run(mut self) -> Result<(), Refusal> {
        let mut from = Some(0);
        while from.is_some() {
            let (mut entries, mut states) = (Vec::new(), BTreeSet::new());
            while let Some(offset) = from
                && entries.len() < SORTED_MAX
            {
                let part;
                (part, from) = self.read_part(offset).await?;
                entries.extend(part.entries);
                states.extend(part.states);
            }
            entries.sort_unstable_by_key(|(ledger, entry, _)| (*ledger, *entry));
            let mut rest = &entries[..];
            while !rest.is_empty() {
                rest = self.move_some(rest).await?;
            }
            let states: Vec<_> = states.into_iter().collect();
            for some in states.chunks(TOGETHER_MAX) {
                self.store.restate(some.to_vec(), self.number).await?;
            }
        }
        Ok(())
    }

    /// Looks through a part of the segment, and says where the next begins.
    async fn read_part(&self, from: u32) -> Result<(Part, Option<u32>), Refusal> {
        let (reader, number, end) = (self.store.reader.clone(), self.number, self.end);
        let read = move |index: &Index| {
            let mut part = Part::default();
            let next = reader.scan(number, (from, end), SCAN_BYTES, &mut |found| part.add(found));
            part.retain_needed(index)?;
            Ok((part, next))
        };
        let (part, next) = self.store.indexed(self.store.index()?, read).await?;
        match part.unknown {
            Some(why) => Err(Refusal::Unknown(why)),
            None => Ok((part, next.map_err(|error| Refusal::Unknown(error.to_string()))?)),
        }
    }

    /// Writes the first of some entries again, together, and returns the rest.
    async fn move_some<'e>(&mut self, entries: &'e [Needed]) -> Result<&'e [Needed], Refusal> {
        let mut bytes = 0;
        let fits = entries.iter().take(TOGETHER_MAX).take_while(|(.., place)| {
            let has_room = bytes == 0 || bytes + u64::from(place.stored_bytes()) <= MOVE_BYTES;
            bytes += u64::from(place.stored_bytes());
            has_room
        });
        let (some, rest) = entries.split_at(fits.count());
        let places = some.iter().map(|(.., place)| *place).collect();
        let read = self.store.reader.read_many(places, 0).await;
        let read = some.iter().zip(read);
        let mut by_ledger = BTreeMap::<LedgerId, Vec<(EntryId, Bytes)>>::new();
        for (ledger, entry, bytes) in
            read.filter_map(|((ledger, entry, _), read)| Some((ledger, entry, sound(read)?)))
        {
            by_ledger.entry(*ledger).or_default().push((*entry, bytes));
        }
        self.store.move_entries(by_ledger.into_iter().collect()).await?;
        self.moved += bytes;
        sleep_until(self.began + Duration::from_millis(self.moved * 1000 / BYTES_PER_SECOND)).await;
        Ok(rest)
    }
}

/// An entry that cannot be read stays where it is: it is not absent.
fn sound(read: Result<BytesMut, ReadError>) -> Option<Bytes> {
    let read = read.map(BytesMut::freeze);
    read.inspect_err(|error| tracing::error!(%error, "an entry is not written again")).ok()
}

impl Part {
    fn add(&mut self, found: Found<'_>) {
        let Found::Record(place, kind, payload) = found else { return };
        match record::decode(kind, payload) {
            Ok((ledger, Record::Entries(run))) => {
                self.entries.push((ledger, run.first().id(), place));
            }
            Ok((ledger, _)) => drop(self.states.insert(ledger)),
            Err(_) if kind == log::KIND_DROPPED => {}
            Err(why) => self.unknown = Some(why),
        }
    }

    /// Keeps those entries that the index finds where they are.
    fn retain_needed(&mut self, index: &Index) -> Result<(), IndexError> {
        self.entries.sort_unstable();
        let mut needed = Vec::with_capacity(self.entries.len());
        for of_ledger in self.entries.chunk_by(|a, b| a.0 == b.0) {
            let ids: Vec<EntryId> = of_ledger.iter().map(|(_, entry, _)| *entry).collect();
            let found = index.find(of_ledger[0].0, &ids)?;
            let found = of_ledger.iter().zip(found);
            let found = found.filter(|((.., place), found)| *found == Some(*place));
            needed.extend(found.map(|(entry, _)| *entry));
        }
        self.entries = needed;
        Ok(())
    }
}
