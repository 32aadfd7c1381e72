//! Reads all of a log and of its index, and compares them.
//!
//! Each entry that the log has is looked up in the index, and the bytes of those that are found
//! where they are are added up for each segment. What the index finds in a segment has the same sum
//! unless some of it is not there: only then it is looked for which. So neither is ever in memory.

use std::collections::{BTreeMap, BTreeSet};

use inkfast_protocol::gate::Record;
use inkfast_protocol::{EntryId, LedgerId};

use super::{IndexReport, Patient, Report, SegmentReport, Trouble};
use crate::Error;
use crate::executor::Executor;
use crate::index::{Index, IndexError, SegmentInfo};
use crate::log::{
    self, Damage, Found, Known, Mark, Place, Reader, Replayed, SEGMENT_BYTES_MAX, SegmentNumber,
    Settings, Shown,
};
use crate::record;

/// How many records are compared with the index at once.
const TOGETHER_MAX: usize = if cfg!(test) { 10 } else { 10_000 };
/// Of how many segments it is known at once where their records are.
const SEGMENTS_AT_ONCE: usize = 16;
/// How many ledgers of the index are looked through at once.
const LEDGERS_AT_ONCE: usize = 256;
const SCAN_BYTES: u32 = 4 << 20;
/// The most troubles of one kind that are told apart.
const TROUBLES_MAX: usize = 1000;

pub(super) fn examine(patient: &Patient) -> Result<Report, Error> {
    let mut examination = Examination {
        report: Report::new(&patient.label),
        index: None,
        mark: Mark::BEGINNING,
        known: BTreeMap::new(),
        recent: Vec::new(),
        matched: BTreeMap::new(),
        lost: Trouble::new(false, "the log has entries that the index does not find"),
    };
    examination.open_index(patient);
    let replayed = examination.read_log(patient);
    if let Some(Replayed { cut, damages }) = replayed {
        examination.report.cut = cut;
        examination.note_damages(damages);
    }
    examination.compare(patient);
    let unreadable = patient.disk.unreadable();
    examination.trouble(unreadable.into_iter().map(|what| Trouble::new(true, what)));
    let names = crate::disk::Disk::list(&*patient.disk).unwrap_or_default();
    let mut report = examination.report;
    report.spares = names.iter().filter(|name| name.starts_with("spare-")).count();
    Ok(report)
}

struct Examination {
    report: Report,
    /// None if it is of no use.
    index: Option<Index>,
    /// Up to where the index knows the log.
    mark: Mark,
    /// What the index knows of segments.
    known: BTreeMap<SegmentNumber, SegmentInfo>,
    /// Entries of the log that were not looked up yet.
    recent: Vec<(LedgerId, EntryId, Place)>,
    /// The bytes of entries that the index finds where they are.
    matched: BTreeMap<SegmentNumber, u64>,
    /// Entries that the index does not find.
    lost: Trouble,
}

impl Examination {
    fn open_index(&mut self, patient: &Patient) {
        let Some(opened) = patient.index() else {
            let what = "the index is missing; it can be made anew of the log";
            return self.trouble([Trouble::new(false, what)]);
        };
        let read = opened
            .and_then(|index| Ok((index.known()?, index.segments()?, index.is_damaged()?, index)));
        let (known, segments, damaged, index) = match read {
            Ok(read) => read,
            Err(error) => return self.on_index_failed(&error),
        };
        self.report.index = IndexReport::Sound(known.as_ref().map(|known| known.mark));
        if let Some(Known { mark, .. }) = known {
            self.mark = mark;
        }
        if damaged {
            let what = "the index says that the log has lost something before";
            self.trouble([Trouble::new(true, what)]);
        }
        self.known = segments;
        self.index = Some(index);
    }

    /// Reads all records as a start without an index does.
    fn read_log(&mut self, patient: &Patient) -> Option<Replayed> {
        let settings = Settings { log: patient.label.log, segment_bytes_max: SEGMENT_BYTES_MAX };
        let mut visit = |shown: Shown<'_>| {
            if let Shown::Record(place, kind, payload) = shown {
                self.record(place, kind, payload);
            }
            Ok(())
        };
        let opened = log::open(patient.disk(), settings, None, &mut visit);
        self.look_up();
        let (tail, replayed) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.trouble([Trouble::new(true, error.to_string())]);
                return None;
            }
        };
        for (&number, &bytes) in tail.segments() {
            let known = self.known.get(&number);
            let report = SegmentReport {
                bytes,
                live_bytes: known.map(|info| info.live_bytes),
                verified_at_ms: known.and_then(|info| info.verified_at_ms),
                is_whole: true,
            };
            self.report.segments.insert(number, report);
        }
        self.note_lost_end(tail.mark());
        Some(replayed)
    }

    fn record(&mut self, place: Place, kind: u8, payload: &[u8]) {
        let is_new = (place.segment, place.offset) >= (self.mark.segment, self.mark.offset);
        self.report.unindexed += u64::from(is_new);
        match record::decode(kind, payload) {
            Ok((ledger, Record::Entries(run))) => {
                self.report.entries += 1;
                if !is_new {
                    self.recent.push((ledger, run.first().id(), place));
                }
                if self.recent.len() >= TOGETHER_MAX {
                    self.look_up();
                }
            }
            Ok((ledger, state)) if !is_new => self.look_up_state(ledger, &state),
            Ok(_) => {}
            Err(why) => {
                let what = format!("{} at offset {}: {why}", place.segment, place.offset);
                self.trouble([Trouble::new(true, what)]);
            }
        }
    }

    /// Looks up the entries that have come together.
    fn look_up(&mut self) {
        self.recent.sort_unstable();
        let recent = std::mem::take(&mut self.recent);
        for of_ledger in recent.chunk_by(|a, b| a.0 == b.0) {
            let Some(index) = self.index.clone() else { return };
            let ledger = of_ledger[0].0;
            let ids: Vec<EntryId> = of_ledger.iter().map(|(_, entry, _)| *entry).collect();
            let found = index.find(ledger, &ids).and_then(|found| {
                let deleted =
                    found.contains(&None) && index.ledger(ledger)?.is_some_and(|it| it.deleted);
                Ok((found, deleted))
            });
            let (found, deleted) = match found {
                Ok(found) => found,
                Err(error) => return self.on_index_failed(&error),
            };
            for ((_, entry, place), found) in of_ledger.iter().zip(found) {
                match found {
                    Some(found) if found == *place => {
                        *self.matched.entry(place.segment).or_default() +=
                            u64::from(place.stored_bytes());
                    }
                    // It was written again since.
                    Some(_) => {}
                    None if deleted => {}
                    None => self.lost.hits(ledger, *entry),
                }
            }
        }
    }

    fn look_up_state(&mut self, ledger: LedgerId, state: &Record) {
        let Some(index) = &self.index else { return };
        let stored = match index.ledger(ledger) {
            Ok(stored) => stored.unwrap_or_default(),
            Err(error) => return self.on_index_failed(&error),
        };
        let (what, is_known) = match state {
            Record::Fence => ("is fenced", stored.fenced),
            Record::Tombstone => ("was deleted", stored.deleted),
            _ => ("has a writer", stored.writer.is_some()),
        };
        if !is_known && !stored.deleted {
            let what = format!("the index does not know that ledger {ledger} {what}");
            self.trouble([Trouble::new(false, what)]);
        }
    }

    /// Notes that the log ends before what the index knows.
    fn note_lost_end(&mut self, end: Mark) {
        let segments = &self.report.segments;
        let last = segments.last_key_value().map(|(number, _)| *number);
        let missing = self.known.iter().filter(|(number, _)| Some(**number) > last);
        let missing: Vec<_> = missing.map(|(number, info)| (*number, *info)).collect();
        for (number, info) in missing {
            let report = SegmentReport {
                bytes: info.bytes,
                live_bytes: Some(info.live_bytes),
                verified_at_ms: info.verified_at_ms,
                is_whole: false,
            };
            self.report.segments.insert(number, report);
            let what = format!("{number} is missing, which the index knows");
            self.trouble([Trouble::new(true, what)]);
        }
        if self.mark.segment == end.segment && self.mark.offset > end.offset {
            let (segment, offset) = (end.segment, end.offset);
            let what = format!(
                "{segment} ends at offset {offset}, and the index knows it up to {}: what was \
                 there is lost",
                self.mark.offset
            );
            self.damaged(segment);
            self.trouble([Trouble::new(true, what)]);
        }
    }

    fn note_damages(&mut self, damages: Vec<Damage>) {
        for damage in damages {
            let mut what = damage.to_string();
            match damage {
                Damage::Range { segment, offset, .. } => {
                    self.damaged(segment);
                    if (segment, offset) >= (self.mark.segment, self.mark.offset) {
                        what.push_str("; the index did not know yet what is there");
                    }
                }
                Damage::Missing { first, last } => {
                    let missing = self.report.segments.range_mut(first..=last);
                    missing.for_each(|(_, segment)| segment.is_whole = false);
                }
            }
            self.trouble([Trouble::new(true, what)]);
        }
    }

    fn damaged(&mut self, segment: SegmentNumber) {
        self.report.segments.entry(segment).or_default().is_whole = false;
    }

    /// Looks for what the index finds and the log does not have.
    fn compare(&mut self, patient: &Patient) {
        if !self.lost.entries.is_empty() {
            let lost = self.lost.clone();
            self.trouble([lost]);
        }
        let Some(index) = self.index.clone() else { return };
        let mut found = BTreeMap::<SegmentNumber, u64>::new();
        let sum = each_place(&index, &mut |_, _, place| {
            *found.entry(place.segment).or_default() += u64::from(place.stored_bytes());
        });
        if let Err(error) = sum {
            return self.on_index_failed(&error);
        }
        let differs =
            |(number, bytes): &(SegmentNumber, u64)| self.matched.get(number) != Some(bytes);
        let wrong: Vec<_> = found.into_iter().filter(differs).map(|(number, _)| number).collect();
        for some in wrong.chunks(SEGMENTS_AT_ONCE) {
            match not_there(patient, &index, some) {
                Ok(missing) => self.trouble(missing),
                Err(error) => return self.on_index_failed(&error),
            }
        }
    }

    fn on_index_failed(&mut self, error: &IndexError) {
        let why = error.to_string();
        if !matches!(self.report.index, IndexReport::Damaged(_)) {
            let what = format!("{why}; it can be made anew of the log");
            self.trouble([Trouble::new(false, what)]);
        }
        self.report.index = IndexReport::Damaged(why);
        self.index = None;
    }

    fn trouble(&mut self, troubles: impl IntoIterator<Item = Trouble>) {
        let room = TROUBLES_MAX.saturating_sub(self.report.troubles.len());
        self.report.troubles.extend(troubles.into_iter().take(room));
    }
}

/// Finds the entries that the index has in some segments, and the log does not have there.
fn not_there(
    patient: &Patient,
    index: &Index,
    segments: &[SegmentNumber],
) -> Result<Vec<Trouble>, IndexError> {
    let reader = Reader::new(patient.disk(), patient.label.log, Executor::Inline, 0);
    let known = index.segments()?;
    let mut there = BTreeSet::new();
    for number in segments {
        let end = known.get(number).map_or(0, |info| info.bytes);
        let mut visit = |found: Found<'_>| {
            if let Found::Record(place, kind, payload) = found
                && let Ok((ledger, Record::Entries(run))) = record::decode(kind, payload)
            {
                there.insert((place, ledger, run.first().id()));
            }
        };
        let mut from = Some(0).filter(|_| end > 0);
        while let Some(offset) = from {
            // One that cannot be read has nothing.
            from = reader.scan(*number, (offset, end), SCAN_BYTES, &mut visit).unwrap_or(None);
        }
    }
    let mut missing = BTreeMap::new();
    each_place(index, &mut |ledger, entry, place| {
        if segments.contains(&place.segment) && !there.contains(&(place, ledger, entry)) {
            let new = || {
                let what = format!("entries are lost that were in {}", place.segment);
                Trouble::new(true, what)
            };
            missing.entry(place.segment).or_insert_with(new).hits(ledger, entry);
        }
    })?;
    Ok(missing.into_values().collect())
}

fn each_place(
    index: &Index,
    visit: &mut dyn FnMut(LedgerId, EntryId, Place),
) -> Result<(), IndexError> {
    let mut after = None;
    loop {
        after = index.each_place(after, LEDGERS_AT_ONCE, visit)?;
        if after.is_none() {
            return Ok(());
        }
    }
}
