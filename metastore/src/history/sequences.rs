//! Checks the blocks that sequences gave out: with a start each, their order is told.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Event, Request, Violation};
use crate::state::Answer;

pub(super) fn check(events: &[Event]) -> Result<(), Violation> {
    let mut sequences = BTreeMap::<&str, Vec<(&Range<u64>, &Event)>>::new();
    for event in events {
        let (Request::NextSequence { name, count }, Some(Ok(Answer::Sequence(block)))) =
            (&event.request, &event.outcome)
        else {
            continue;
        };
        if block.start.checked_add(*count) != Some(block.end) {
            return Err(Violation::new("a block is not as long as was asked for", [event]));
        }
        sequences.entry(name).or_default().push((block, event));
    }
    sequences.into_values().try_for_each(|mut blocks| {
        blocks.sort_by_key(|(block, _)| block.start);
        check_sequence(&blocks)
    })
}

/// Checks blocks in the order of their numbers, which must be one in which they can have happened.
fn check_sequence(blocks: &[(&Range<u64>, &Event)]) -> Result<(), Violation> {
    for pair in blocks.windows(2) {
        let [(block, event), (after, other)] = pair else { continue };
        if after.start < block.end {
            return Err(Violation::new("a number was given out twice", [*event, *other]));
        }
    }
    // From the end: no block was called after one of higher numbers had been answered.
    let mut first_answered: Option<&Event> = None;
    for (_, event) in blocks.iter().rev() {
        if let Some(other) = first_answered.filter(|other| other.returned < Some(event.called)) {
            let what = "a block was given out after one of higher numbers";
            return Err(Violation::new(what, [other, *event]));
        }
        first_answered = match first_answered {
            Some(other) if other.returned < event.returned => Some(other),
            _ => Some(event),
        };
    }
    Ok(())
}
