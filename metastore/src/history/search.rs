//! The walk along the revisions, which goes back where it had a choice.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use super::model::{Model, Role, State, Unit};
use super::{Failure, SEARCH_STEPS_MAX, Violation};
use crate::types::Write;

mod steps;

/// A walk through a model. What is behind it is in an order that is right.
pub(super) struct Search<'a> {
    model: &'a Model<'a>,
    /// Writes with an answer and reads, in the order of their answers.
    by_return: Vec<usize>,
    /// Reads, in the order of their calls.
    reads: Vec<usize>,
    /// Loose units by what they do: of those that do the same the first comes first, since the
    /// others can do no more.
    loose: Vec<Vec<usize>>,
    /// The moments at which a key was written for sure.
    writes: BTreeMap<&'a str, Vec<usize>>,

    here: Place<'a>,
    done: Vec<bool>,
    /// The keys that were written.
    store: BTreeMap<&'a str, State>,
    /// Who is not done and needs a key at a version.
    needed: BTreeMap<(&'a str, u64), BTreeSet<usize>>,
    /// Who is not done and needs a key to be absent, by the revision from which on it does.
    absences: BTreeMap<&'a str, BTreeSet<(u64, usize)>>,

    /// How to get back, from the last step to the first.
    trail: Vec<Undo<'a>>,
    choices: Vec<Choice<'a>>,
    /// Places from which there is no way, by their next moment.
    failed: BTreeMap<usize, Vec<Place<'a>>>,
    steps: usize,
    /// What was in the way at the moment that is furthest.
    furthest: Option<(usize, Violation)>,
}

/// How far the walk is. Together with what is done it says all, so two walks in the same place
/// differ only in the loose units that are left.
#[derive(Clone, Default)]
struct Place<'a> {
    /// The moment that is next.
    next: usize,
    /// The last revision that was used.
    revision: u64,
    /// Before it, everything by return is done.
    returns: usize,
    /// Before it, every read was called before all that is not done was answered.
    calls: usize,
    /// Reads before it that are not done.
    waiting: Vec<usize>,
    /// The keys that loose units wrote last.
    hidden: Arc<BTreeMap<&'a str, State>>,
    /// The loose units that were used.
    used: Arc<BTreeSet<usize>>,
}

#[derive(Clone, Copy)]
enum Step {
    /// To the next moment, at which this unit writes.
    Write(usize),
    /// To the next moment, at which nothing has to happen.
    Skip,
    /// To the next moment, at which this loose unit writes.
    Fill(usize),
    /// This loose unit writes before the next moment.
    Insert(usize),
}

struct Choice<'a> {
    place: Place<'a>,
    trail: usize,
    /// What is still to be tried, from the end.
    steps: Vec<Step>,
}

enum Undo<'a> {
    Done(usize),
    Stored(&'a str, Option<State>),
}

impl<'a> Search<'a> {
    pub(super) fn new(model: &'a Model<'a>) -> Self {
        let units = || model.units.iter().enumerate();
        let is_read = |unit: &Unit<'_>| matches!(unit.role, Role::Read(_));
        let reads = units().filter(|(_, unit)| is_read(unit)).map(|(number, _)| number);
        let returned = units().filter(|(_, unit)| unit.returned != u64::MAX);
        let mut by_return = returned.map(|(number, _)| number).collect::<Vec<_>>();
        by_return.sort_unstable_by_key(|number| model.units[*number].returned);
        let mut search = Self {
            model,
            by_return,
            reads: reads.collect(),
            loose: alike(model),
            writes: BTreeMap::new(),
            here: Place::default(),
            done: vec![false; model.units.len()],
            store: BTreeMap::new(),
            needed: BTreeMap::new(),
            absences: BTreeMap::new(),
            trail: Vec::new(),
            choices: Vec::new(),
            failed: BTreeMap::new(),
            steps: 0,
            furthest: None,
        };
        for (number, moment) in model.moments.iter().enumerate() {
            let writer = moment.writer.map(|writer| &model.units[writer]);
            let written = writer.into_iter().flat_map(|unit| unit.writes).map(Write::key);
            for key in written.chain(moment.seen.iter().copied()) {
                search.writes.entry(key).or_default().push(number);
            }
        }
        let required = units().filter(|(_, unit)| unit.role != Role::Loose);
        required.for_each(|(number, _)| search.demand(number));
        model.loose.iter().for_each(|number| search.demand(*number));
        search
    }

    /// Walks to the end, and returns how many commits without an answer have happened on the way.
    pub(super) fn run(mut self) -> Result<usize, Failure> {
        let limit = self.model.units.len() + self.model.moments.len() + SEARCH_STEPS_MAX;
        loop {
            self.steps += 1;
            if self.steps > limit {
                return Err(Failure::Inconclusive);
            }
            self.settle();
            if self.is_at_end() {
                return Ok(self.happened());
            }
            let mut steps = if self.is_known_to_fail() { Vec::new() } else { self.steps() };
            match steps.pop() {
                Some(step) => {
                    if !steps.is_empty() {
                        let (place, trail) = (self.here.clone(), self.trail.len());
                        self.choices.push(Choice { place, trail, steps });
                    }
                    self.take(step);
                }
                None => self.go_back()?,
            }
        }
    }

    /// Does all reads that are right here, which can only help.
    fn settle(&mut self) {
        loop {
            while self.by_return.get(self.here.returns).is_some_and(|unit| self.done[*unit]) {
                self.here.returns += 1;
            }
            while let Some(read) = self.reads.get(self.here.calls).copied()
                && self.may_be_next(read)
            {
                self.here.calls += 1;
                self.here.waiting.push(read);
            }
            let waiting = mem::take(&mut self.here.waiting);
            let (right, waiting) = waiting.into_iter().partition::<Vec<_>, _>(|read| {
                let unit = &self.model.units[*read];
                self.wrong_fact(unit).is_none() && self.is_at_its_revision(unit)
            });
            self.here.waiting = waiting;
            if right.is_empty() {
                return;
            }
            right.into_iter().for_each(|read| self.finish(read));
        }
    }

    fn is_at_end(&self) -> bool {
        self.here.next == self.model.moments.len()
            && self.here.waiting.is_empty()
            && self.here.calls == self.reads.len()
    }

    fn happened(&self) -> usize {
        let written = self.model.units.iter().filter(|unit| matches!(unit.role, Role::Written(_)));
        written.filter(|unit| unit.returned == u64::MAX).count() + self.here.used.len()
    }

    /// Whether a walk that had at least what this one has left failed from here.
    fn is_known_to_fail(&self) -> bool {
        let here = &self.here;
        let failed = self.failed.get(&here.next);
        failed.into_iter().flatten().any(|place| {
            place.revision == here.revision
                && place.waiting == here.waiting
                && place.hidden == here.hidden
                && place.used.is_subset(&here.used)
        })
    }

    fn take(&mut self, step: Step) {
        let moment = self.model.moments.get(self.here.next);
        if let (Some(moment), Step::Write(_) | Step::Skip | Step::Fill(_)) = (moment, step) {
            self.here.next += 1;
            self.here.revision = moment.revision;
        }
        match step {
            Step::Write(unit) => {
                self.store_writes(unit, State::At(self.here.revision));
                for write in self.model.units[unit].writes {
                    if self.here.hidden.contains_key(write.key()) {
                        Arc::make_mut(&mut self.here.hidden).remove(write.key());
                    }
                }
                self.finish(unit);
            }
            Step::Skip => {}
            Step::Fill(unit) => self.take_loose(unit, State::At(self.here.revision)),
            Step::Insert(unit) => {
                self.here.revision += 1;
                self.take_loose(unit, State::Unseen);
            }
        }
    }

    fn take_loose(&mut self, unit: usize, put: State) {
        self.store_writes(unit, put);
        let hidden = Arc::make_mut(&mut self.here.hidden);
        for write in self.model.units[unit].writes {
            hidden.insert(write.key(), self.store[write.key()]);
        }
        Arc::make_mut(&mut self.here.used).insert(unit);
        self.finish(unit);
    }

    fn store_writes(&mut self, unit: usize, put: State) {
        for write in self.model.units[unit].writes {
            let state = match write {
                Write::Put { .. } => put,
                Write::Delete { .. } => State::Absent,
            };
            let before = self.store.insert(write.key(), state);
            self.trail.push(Undo::Stored(write.key(), before));
        }
    }

    /// Goes back to the last choice that has something left to try.
    fn go_back(&mut self) -> Result<(), Violation> {
        while let Some(mut choice) = self.choices.pop() {
            while self.trail.len() > choice.trail
                && let Some(undo) = self.trail.pop()
            {
                match undo {
                    Undo::Done(unit) => {
                        self.done[unit] = false;
                        self.demand(unit);
                    }
                    Undo::Stored(key, Some(state)) => drop(self.store.insert(key, state)),
                    Undo::Stored(key, None) => drop(self.store.remove(key)),
                }
            }
            self.here = choice.place.clone();
            if let Some(step) = choice.steps.pop() {
                self.choices.push(choice);
                self.take(step);
                return Ok(());
            }
            self.failed.entry(choice.place.next).or_default().push(choice.place);
        }
        let nothing = || Violation::new("no order of the operations is right", []);
        Err(self.furthest.take().map_or_else(nothing, |(_, violation)| violation))
    }

    fn finish(&mut self, number: usize) {
        let unit = &self.model.units[number];
        for (key, state) in &unit.facts {
            match state {
                State::At(version) => {
                    if let Some(units) = self.needed.get_mut(&(*key, *version)) {
                        units.remove(&number);
                    }
                }
                State::Absent => {
                    if let Some(units) = self.absences.get_mut(key) {
                        units.remove(&(since(unit), number));
                    }
                }
                State::Unseen => {}
            }
        }
        self.done[number] = true;
        self.trail.push(Undo::Done(number));
    }

    /// Writes down what a unit needs that is not done. What a loose one finds is of no account:
    /// it need not happen.
    fn demand(&mut self, number: usize) {
        let unit = &self.model.units[number];
        for (key, state) in &unit.facts {
            match state {
                State::At(version) if unit.role != Role::Loose => {
                    self.needed.entry((key, *version)).or_default().insert(number);
                }
                State::Absent => {
                    self.absences.entry(key).or_default().insert((since(unit), number));
                }
                State::At(_) | State::Unseen => {}
            }
        }
    }
}

/// Groups the loose units that have the same conditions and write and remove the same keys.
fn alike(model: &Model<'_>) -> Vec<Vec<usize>> {
    let mut groups = BTreeMap::<_, Vec<_>>::new();
    for number in &model.loose {
        let unit = &model.units[*number];
        let is_put = |write| matches!(write, &Write::Put { .. });
        let writes = unit.writes.iter().map(|write| (write.key(), is_put(write)));
        let writes = writes.collect::<BTreeSet<_>>();
        groups.entry((&unit.facts, writes)).or_default().push(*number);
    }
    groups.into_values().collect()
}

/// Returns the revision from which on a unit needs its facts.
fn since(unit: &Unit<'_>) -> u64 {
    match unit.role {
        Role::Written(revision) => revision.saturating_sub(1),
        Role::Read(_) | Role::Loose => unit.floor,
    }
}
