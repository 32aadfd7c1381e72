//! Shows what is in a log, record by record.

use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use inkfast_protocol::gate::Record;
use inkfast_protocol::{EntryId, LedgerId, Run};

use super::Patient;
use crate::Error;
use crate::executor::Executor;
use crate::log::{self, Extent, Found, Place, Reader, SegmentNumber};
use crate::record;

/// How much is looked through until it is asked whether to go on.
const STEP_BYTES: u32 = 1 << 20;

/// Something in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where it is.
    pub segment: SegmentNumber,
    /// At which offset it begins.
    pub offset: u32,
    /// How long it is; of a record, its payload.
    pub bytes: u32,
    /// What it is.
    pub what: What,
}

/// What is in a place of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An entry.
    Entry(LedgerId, EntryId),
    /// A ledger was fenced.
    Fence(LedgerId),
    /// A ledger has its writer.
    Writer(LedgerId),
    /// A ledger was deleted.
    Tombstone(LedgerId),
    /// A segment was dropped.
    Dropped,
    /// A record of a kind that this program does not know, or with contents that are wrong.
    Unknown(u8),
    /// Bytes of which no record can be made.
    Damage,
}

impl What {
    /// Returns the ledger that it is about.
    pub const fn ledger(&self) -> Option<LedgerId> {
        match self {
            Self::Entry(ledger, _)
            | Self::Fence(ledger)
            | Self::Writer(ledger)
            | Self::Tombstone(ledger) => Some(*ledger),
            Self::Dropped | Self::Unknown(_) | Self::Damage => None,
        }
    }
}

/// Shows what is in a directory's log, in its order, until it is told to break off: of all
/// segments or of one, of all ledgers or of one. Blocks.
///
/// What follows the last record of the last segment is not shown. Fails if the directory is in use,
/// or the segment is not there.
pub fn records(
    dir: &Path,
    segment: Option<u32>,
    ledger: Option<LedgerId>,
    visit: &mut dyn FnMut(Listed) -> ControlFlow<()>,
) -> Result<(), Error> {
    let patient = Patient::open(dir)?;
    patient.scan(dir, segment.map(SegmentNumber), &mut |number, found| {
        let listed = Listed::new(number, &found);
        match ledger.is_none_or(|ledger| listed.what.ledger() == Some(ledger)) {
            true => visit(listed),
            false => ControlFlow::Continue(()),
        }
    })
}

/// Returns the payload of an entry as the directory has it, also one of a deleted ledger; none if
/// it does not have it whole. Blocks.
///
/// If the index does not find it, all of the log is read. Fails if the directory is in use.
pub fn dump(dir: &Path, ledger: LedgerId, entry: EntryId) -> Result<Option<Bytes>, Error> {
    let patient = Patient::open(dir)?;
    let index = patient.index().and_then(Result::ok);
    let place = index.and_then(|index| index.find(ledger, &[entry]).ok()?.pop().flatten());
    let wanted = |found: &Found<'_>| {
        let run = entry_of(found)?;
        let header = run.first().header();
        let is_it = (header.ledger, header.entry) == (ledger, entry);
        is_it.then(|| run.first().payload())
    };
    let mut payload = None;
    if let Some(place) = place {
        let reader = Reader::new(patient.disk(), patient.label.log, Executor::Inline, 0);
        let part = (place.offset, place.offset + place.stored_bytes());
        let mut visit = |found: Found<'_>| payload = wanted(&found);
        // If it cannot be read there it may be somewhere else.
        let _ = reader.scan(place.segment, part, 1, &mut visit);
    }
    if payload.is_none() {
        patient.scan(dir, None, &mut |_, found| {
            payload = wanted(&found);
            if payload.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
    }
    Ok(payload)
}

fn entry_of(found: &Found<'_>) -> Option<Run> {
    let Found::Record(_, kind, payload) = *found else { return None };
    match record::decode(kind, payload) {
        Ok((_, Record::Entries(run))) => Some(run),
        _ => None,
    }
}

impl Listed {
    fn new(segment: SegmentNumber, found: &Found<'_>) -> Self {
        match *found {
            Found::Damage { offset, bytes } => Self { segment, offset, bytes, what: What::Damage },
            Found::Record(Place { offset, payload_bytes, .. }, kind, payload) => {
                let what = match record::decode(kind, payload) {
                    Ok((ledger, Record::Entries(run))) => What::Entry(ledger, run.first().id()),
                    Ok((ledger, Record::Fence)) => What::Fence(ledger),
                    Ok((ledger, Record::Writer { .. })) => What::Writer(ledger),
                    Ok((ledger, Record::Tombstone)) => What::Tombstone(ledger),
                    Err(_) if kind == log::KIND_DROPPED => What::Dropped,
                    Err(_) => What::Unknown(kind),
                };
                Self { segment, offset, bytes: payload_bytes, what }
            }
        }
    }
}

impl Patient {
    /// Looks through the log, or through one segment, until it is told to break off.
    fn scan(
        &self,
        dir: &Path,
        only: Option<SegmentNumber>,
        visit: &mut dyn FnMut(SegmentNumber, Found<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let refused = |error: String| Error::directory(dir, error);
        let log = self.label.log;
        let mut ends = log::ends(&*self.disk, log).map_err(|error| refused(error.to_string()))?;
        if let Some(only) = only {
            ends.retain(|number, _| *number == only);
            if ends.is_empty() {
                return Err(refused(format!("it has no {only}")));
            }
        }
        let reader = Reader::new(self.disk(), log, Executor::Inline, 0);
        for (number, Extent { bytes: end, is_known }) in ends {
            let (mut from, mut flow) = (Some(0), ControlFlow::Continue(()));
            while let Some(offset) = from {
                let mut look = |found: Found<'_>| {
                    let is_rest = matches!(found, Found::Damage { offset, bytes }
                        if !is_known && offset + bytes >= end);
                    if flow.is_continue() && !is_rest {
                        flow = visit(number, found);
                    }
                };
                let next = reader.scan(number, (offset, end), STEP_BYTES, &mut look);
                from = next.map_err(|error| refused(error.to_string()))?;
                if flow.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
