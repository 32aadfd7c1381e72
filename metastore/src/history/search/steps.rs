//! Which steps are possible at a place, and what is in the way where none is.

use super::{Search, Step};
use crate::history::model::{Moment, Role, State, Unit};
use crate::history::{Event, Violation};
use crate::types::Write;

impl<'a> Search<'a> {
    /// Lists the steps that are possible, of which the last is to be tried first: a loose unit is
    /// used as late as can be.
    pub(super) fn steps(&mut self) -> Vec<Step> {
        let moment = self.model.moments.get(self.here.next);
        let mut steps = Vec::new();
        if moment.is_none_or(|moment| self.here.revision + 1 < moment.revision) {
            let useful = self.usable().filter(|unit| self.is_useful(*unit));
            steps.extend(useful.map(Step::Insert));
        }
        match moment {
            Some(moment) => match moment.writer {
                Some(writer) => steps.extend(self.write(writer)),
                None => self.fill(moment, &mut steps),
            },
            None => self.note_blocked(None),
        }
        steps
    }

    /// Whether all that was answered before the unit's call is done.
    pub(super) fn may_be_next(&self, unit: usize) -> bool {
        let called = self.model.units[unit].event.called;
        self.blocker().is_none_or(|blocker| called < blocker.returned)
    }

    /// Finds a key that is not as the unit needs it.
    pub(super) fn wrong_fact(&self, unit: &Unit<'a>) -> Option<&'a str> {
        let mut facts = unit.facts.iter();
        facts.find(|(key, state)| self.state(key) != *state).map(|(key, _)| *key)
    }

    pub(super) fn is_at_its_revision(&self, unit: &Unit<'_>) -> bool {
        match unit.role {
            Role::Read(Some(revision)) => revision == self.here.revision,
            _ => true,
        }
    }

    fn write(&mut self, writer: usize) -> Option<Step> {
        let unit = &self.model.units[writer];
        if !self.may_be_next(writer) {
            self.note_blocked(Some(unit));
        } else if let Some(key) = self.wrong_fact(unit) {
            let what = format!("a commit was made though a condition on {key:?} did not hold");
            self.note(what, [self.last_writer(key), Some(unit.event)]);
        } else if let Some(reader) = self.spoilt(writer) {
            let reader = &self.model.units[reader];
            let between = self.blocker().filter(|unit| unit.returned < reader.event.called);
            let events = [Some(unit.event), between.map(|unit| unit.event), Some(reader.event)];
            self.note("a version was found that must have been overwritten before", events);
        } else {
            return Some(Step::Write(writer));
        }
        None
    }

    /// Adds the steps to a moment whose writer is not known.
    fn fill(&mut self, moment: &Moment<'a>, steps: &mut Vec<Step>) {
        let fills = |unit: &usize| {
            let puts = |key: &&str| {
                let mut writes = self.model.units[*unit].writes.iter();
                writes.any(|write| matches!(write, Write::Put { key: put, .. } if put == key))
            };
            let is_of_use =
                !moment.seen.is_empty() || moment.named.iter().any(puts) || self.is_useful(*unit);
            // Revision 0 is that of the empty store.
            is_of_use && moment.seen.iter().all(puts) && moment.revision > 0
        };
        let before = steps.len();
        steps.extend(self.usable().filter(fills).map(Step::Fill));
        let Some(key) = moment.seen.first() else {
            steps.push(Step::Skip);
            return;
        };
        if steps.len() == before {
            let what = format!("nobody can have written {key:?} at {}", moment.revision);
            let reader = self.needed.get(&(*key, moment.revision)).and_then(|units| units.first());
            self.note(what, [reader.map(|reader| self.model.units[*reader].event)]);
        }
    }

    /// Returns the loose units that can write here, one of those that do the same.
    fn usable(&self) -> impl Iterator<Item = usize> {
        let first = |group: &Vec<usize>| group.iter().copied().find(|unit| !self.done[*unit]);
        let units = self.loose.iter().filter_map(first);
        units.filter(|unit| {
            self.may_be_next(*unit)
                && self.wrong_fact(&self.model.units[*unit]).is_none()
                && self.spoilt(*unit).is_none()
        })
    }

    /// Whether a loose unit removes a key which is there, and which may have to be absent before
    /// it is written again.
    fn is_useful(&self, unit: usize) -> bool {
        self.model.units[unit].writes.iter().any(|write| {
            let Write::Delete { key } = write else { return false };
            let absent = self.absences.get(key.as_str()).and_then(|units| units.first());
            self.state(key) != State::Absent
                && absent.is_some_and(|(since, _)| *since < self.written_next(key))
        })
    }

    /// Returns the revision at which the next write to a key is known.
    fn written_next(&self, key: &str) -> u64 {
        let moments = self.writes.get(key).map_or(&[][..], Vec::as_slice);
        let next = moments.partition_point(|moment| *moment < self.here.next);
        moments.get(next).map_or(u64::MAX, |moment| self.model.moments[*moment].revision)
    }

    /// Finds another unit that needs a version which this one overwrites.
    fn spoilt(&self, writer: usize) -> Option<usize> {
        self.model.units[writer].writes.iter().find_map(|write| {
            let State::At(version) = self.state(write.key()) else { return None };
            let units = self.needed.get(&(write.key(), version))?;
            units.iter().copied().find(|unit| *unit != writer)
        })
    }

    fn state(&self, key: &str) -> State {
        self.store.get(key).copied().unwrap_or(State::Absent)
    }

    /// Returns what was answered first of all that is not done.
    fn blocker(&self) -> Option<&'a Unit<'a>> {
        self.by_return.get(self.here.returns).map(|unit| &self.model.units[*unit])
    }

    /// Notes that something that is not done was answered before all that could be next was called.
    fn note_blocked(&mut self, next: Option<&'a Unit<'a>>) {
        let Some(blocker) = self.blocker() else { return };
        let found = self.wrong_fact(blocker).and_then(|key| self.last_writer(key));
        let what = match blocker.role {
            Role::Read(_) => "what an operation found was not so from its call to its answer",
            _ => "a commit was called after another was answered, but has a lower revision",
        };
        self.note(what, [found, Some(blocker.event), next.map(|unit| unit.event)]);
    }

    /// Keeps what is in the way here, if no walk has come further.
    fn note(
        &mut self,
        what: impl Into<String>,
        events: impl IntoIterator<Item = Option<&'a Event>>,
    ) {
        if self.furthest.as_ref().is_none_or(|(next, _)| *next < self.here.next) {
            let violation = Violation::new(what, events.into_iter().flatten());
            self.furthest = Some((self.here.next, violation));
        }
    }

    /// Returns the last write to a key that is known to have been.
    fn last_writer(&self, key: &str) -> Option<&'a Event> {
        let moments = self.writes.get(key)?;
        let next = moments.partition_point(|moment| *moment < self.here.next);
        let moment = moments.get(next.checked_sub(1)?)?;
        let writer = self.model.moments[*moment].writer?;
        Some(self.model.units[writer].event)
    }
}
