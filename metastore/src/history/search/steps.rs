//! Which steps are possible at a place, and what is in the way where none is.

use std::collections::BTreeSet;

use super::{Search, Step};
use crate::history::model::{Moment, Role, State, Unit};
use crate::history::{Event, Violation};
use crate::types::Write;

impl<'a> Search<'a> {
    /// Lists the steps that are possible, of which the last is to be tried first: a loose unit is
    /// used as late as can be. Lists the groups, too, of which a step is missed because their units
    /// are used up.
    pub(super) fn steps(&mut self) -> (Vec<Step>, BTreeSet<usize>) {
        let moment = self.model.moments.get(self.here.next);
        let mut steps = Vec::new();
        let mut missed = BTreeSet::new();
        if moment.is_none_or(|moment| self.here.revision + 1 < moment.revision) {
            let useful = self.usable(|unit| self.is_useful(unit), &mut missed);
            steps.extend(useful.into_iter().map(Step::Insert));
        }
        match moment {
            Some(moment) => match moment.writer {
                Some(writer) => steps.extend(self.write(writer)),
                None => steps.extend(self.fill(moment, &mut missed)),
            },
            None => self.note_blocked(None),
        }
        (steps, missed)
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

    /// Lists the steps to a moment whose writer is not known.
    fn fill(&mut self, moment: &Moment<'a>, missed: &mut BTreeSet<usize>) -> Vec<Step> {
        let fits = |unit: &Unit<'a>| {
            let puts = |key: &&str| {
                let mut writes = unit.writes.iter();
                writes.any(|write| matches!(write, Write::Put { key: put, .. } if put == key))
            };
            let is_of_use =
                !moment.seen.is_empty() || moment.named.iter().any(puts) || self.is_useful(unit);
            is_of_use && moment.seen.iter().all(puts)
        };
        // Revision 0 is that of the empty store.
        let groups = if moment.revision > 0 { self.usable(fits, missed) } else { Vec::new() };
        let mut steps = groups.into_iter().map(Step::Fill).collect::<Vec<_>>();
        let Some(key) = moment.seen.first() else {
            steps.push(Step::Skip);
            return steps;
        };
        if steps.is_empty() {
            let what = format!("nobody can have written {key:?} at {}", moment.revision);
            let reader = self.needed.get(&(*key, moment.revision)).and_then(|units| units.first());
            self.note(what, [reader.map(|reader| self.model.units[*reader].event)]);
        }
        steps
    }

    /// Returns the groups of which a unit can write here, if it fits.
    fn usable(&self, fits: impl Fn(&Unit<'a>) -> bool, missed: &mut BTreeSet<usize>) -> Vec<usize> {
        let conditional = self.conditional.iter().filter_map(|(key, groups)| {
            let State::At(version) = self.state(key) else { return None };
            groups.get(&version)
        });
        let mut usable = Vec::new();
        for group in conditional.flatten().chain(&self.unconditional) {
            let units = &self.groups[*group];
            let first = &self.model.units[units[0]];
            if !self.may_be_next(units[0])
                || self.wrong_fact(first).is_some()
                || !fits(first)
                || self.spoilt(units[0]).is_some()
            {
                continue;
            }
            if units.get(self.used(*group)).is_some_and(|unit| self.may_be_next(*unit)) {
                usable.push(*group);
            } else {
                missed.insert(*group);
            }
        }
        usable
    }

    /// Whether a loose unit removes a key which is there, and which may have to be absent before
    /// it is written again.
    fn is_useful(&self, unit: &Unit<'_>) -> bool {
        unit.writes.iter().any(|write| match write {
            Write::Delete { key } => self.state(key) != State::Absent && self.may_be_absent(key),
            Write::Put { .. } => false,
        })
    }

    /// Whether somebody may need a key to be absent before it is written again.
    pub(super) fn may_be_absent(&self, key: &str) -> bool {
        let next = self.written_next(key);
        let absent = self.absences.get(key).and_then(|units| units.first());
        let moments = self.absent_before.get(key);
        let moment = moments.and_then(|moments| moments.range(self.here.next..).next());
        absent.is_some_and(|(since, _)| *since < next)
            || moment.is_some_and(|moment| self.model.moments[*moment].revision <= next)
    }

    /// Whether somebody may need a key at a version.
    pub(super) fn matters_at(&self, key: &'a str, version: u64) -> bool {
        self.needed.get(&(key, version)).is_some_and(|units| !units.is_empty())
            || self.wanted.contains(&(key, version))
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

    pub(super) fn state(&self, key: &str) -> State {
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
        Some(self.model.units[self.last_written(key)?.writer?].event)
    }

    /// Returns the state of a key if no loose unit has written it since the last known write.
    pub(super) fn known_state(&self, key: &str) -> State {
        let Some(moment) = self.last_written(key) else { return State::Absent };
        let writer = moment.writer.map(|writer| &self.model.units[writer]);
        let is_removal =
            |write: &Write| matches!(write, Write::Delete { key: other } if other == key);
        match writer {
            Some(unit) if unit.writes.iter().any(is_removal) => State::Absent,
            _ => State::At(moment.revision),
        }
    }

    fn last_written(&self, key: &str) -> Option<&'a Moment<'a>> {
        let moments = self.writes.get(key)?;
        let next = moments.partition_point(|moment| *moment < self.here.next);
        self.model.moments.get(*moments.get(next.checked_sub(1)?)?)
    }
}
