//! The walk along the revisions, which goes back where it had a choice.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use super::model::{Model, Role, State, Unit};
use super::{Failure, SEARCH_STEPS_MAX, Violation};
use crate::types::Write;

mod steps;

/// A walk through a model. What is behind it is in an order that is right.
struct Search<'a> {
    model: &'a Model<'a>,
    /// Writes with an answer and reads, in the order of their answers.
    by_return: Vec<usize>,
    /// Reads, in the order of their calls.
    reads: Vec<usize>,
    /// Loose units by what they do. Of those that do the same the first is used first: the others
    /// can do no more.
    groups: Vec<Vec<usize>>,
    /// The groups that can write whatever the versions are.
    unconditional: Vec<usize>,
    /// The others, by the first key of which they want a version, and that version.
    conditional: BTreeMap<&'a str, BTreeMap<u64, Vec<usize>>>,
    /// All keys and versions that groups want.
    wanted: BTreeSet<(&'a str, u64)>,
    /// The moments at which a key was or may have been written, and nobody knows by whom.
    mentioned: BTreeMap<&'a str, Vec<usize>>,
    /// The moments at which a key was written for sure.
    writes: BTreeMap<&'a str, Vec<usize>>,

    /// Whether there are as many units of each group as one likes.
    unlimited: bool,
    here: Place<'a>,
    done: Vec<bool>,
    /// The keys that were written.
    store: BTreeMap<&'a str, State>,
    /// Who is not done and needs a key at a version.
    needed: BTreeMap<(&'a str, u64), BTreeSet<usize>>,
    /// Who is not done and needs a key to be absent, by the revision from which on it does.
    absences: BTreeMap<&'a str, BTreeSet<(u64, usize)>>,
    /// The moments to which a loose unit may write that needs a key to be absent.
    absent_before: BTreeMap<&'a str, BTreeSet<usize>>,

    /// How to get back, from the last step to the first.
    trail: Vec<Undo<'a>>,
    choices: Vec<Choice<'a>>,
    /// Views from which there is no way, and each time the groups that were missed on the way,
    /// with how many of their units had been used: with as many or more there is none either.
    failed: BTreeMap<View<'a>, Vec<Vec<(usize, usize)>>>,
    steps: usize,
    /// What was in the way at the moment that is furthest.
    furthest: Option<(usize, Violation)>,
}

/// How far the walk is.
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
    hidden: Arc<BTreeSet<&'a str>>,
    /// How many units of each group were used.
    used: Arc<BTreeMap<usize, usize>>,
}

/// All that the way on depends on, but for the loose units that are left.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct View<'a> {
    next: usize,
    revision: u64,
    waiting: Vec<usize>,
    /// The keys that are not as they would be without loose units, as far as it matters.
    other: Vec<(&'a str, Matter)>,
}

/// What matters of the state of a key until it is written again.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Matter {
    Nothing,
    /// That it is absent, or present, for somebody may need it to be absent.
    Absent,
    Present,
    /// The version, which somebody needs.
    At(u64),
}

#[derive(Clone, Copy)]
enum Step {
    /// To the next moment, at which this unit writes.
    Write(usize),
    /// To the next moment, at which nothing has to happen.
    Skip,
    /// To the next moment, at which a unit of this group writes.
    Fill(usize),
    /// A unit of this group writes before the next moment.
    Insert(usize),
}

struct Choice<'a> {
    place: Place<'a>,
    view: View<'a>,
    trail: usize,
    /// What is still to be tried, from the end.
    steps: Vec<Step>,
    /// The groups of which one more unit would have been of use, here or on a way from here.
    missed: BTreeSet<usize>,
}

enum Undo<'a> {
    Done(usize),
    Stored(&'a str, Option<State>),
}

/// Looks for an order of all units, and returns how many commits without an answer are in it.
pub(super) fn search(model: &Model<'_>) -> Result<usize, Failure> {
    // What can take long is to try which of many has done what. Mostly a violation is one even if
    // each of them could have done it any number of times, which is quickly found.
    if !model.loose.is_empty()
        && let Err(Failure::Violation(violation)) = Search::new(model, true).run()
    {
        return Err(violation.into());
    }
    Search::new(model, false).run()
}

impl<'a> Search<'a> {
    fn new(model: &'a Model<'a>, unlimited: bool) -> Self {
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
            groups: alike(model),
            unconditional: Vec::new(),
            conditional: BTreeMap::new(),
            wanted: BTreeSet::new(),
            mentioned: BTreeMap::new(),
            writes: BTreeMap::new(),
            unlimited,
            here: Place::default(),
            done: vec![false; model.units.len()],
            store: BTreeMap::new(),
            needed: BTreeMap::new(),
            absences: BTreeMap::new(),
            absent_before: BTreeMap::new(),
            trail: Vec::new(),
            choices: Vec::new(),
            failed: BTreeMap::new(),
            steps: 0,
            furthest: None,
        };
        search.index_moments();
        search.index_groups();
        let required = units().filter(|(_, unit)| unit.role != Role::Loose);
        required.for_each(|(number, _)| search.demand(number));
        search
    }

    fn index_moments(&mut self) {
        for (number, moment) in self.model.moments.iter().enumerate() {
            let writer = moment.writer.map(|writer| &self.model.units[writer]);
            let written = writer.into_iter().flat_map(|unit| unit.writes).map(Write::key);
            for key in written.chain(moment.seen.iter().copied()) {
                self.writes.entry(key).or_default().push(number);
            }
            for key in moment.seen.union(&moment.named) {
                self.mentioned.entry(key).or_default().push(number);
            }
        }
    }

    fn index_groups(&mut self) {
        for group in 0..self.groups.len() {
            let first = self.groups[group][0];
            let versions = self.model.units[first].facts.iter().filter_map(|fact| match fact {
                (key, State::At(version)) => Some((*key, *version)),
                _ => None,
            });
            self.wanted.extend(versions.clone());
            let groups = match versions.clone().next() {
                Some((key, version)) => {
                    self.conditional.entry(key).or_default().entry(version).or_default()
                }
                None => &mut self.unconditional,
            };
            groups.push(group);
            self.demand_absences(first);
        }
    }

    /// Writes down which keys a loose unit may need to be absent. It stays, whether the unit is
    /// used or not: what has failed must not depend on that.
    fn demand_absences(&mut self, number: usize) {
        let unit = &self.model.units[number];
        if unit.writes.iter().any(|write| matches!(write, Write::Delete { .. })) {
            self.demand(number);
            return;
        }
        let absent = || unit.facts.iter().filter(|(_, state)| *state == State::Absent);
        for write in unit.writes {
            let moments = self.mentioned.get(write.key()).map_or(&[][..], Vec::as_slice);
            for (key, _) in absent() {
                self.absent_before.entry(key).or_default().extend(moments);
            }
        }
    }

    /// Walks to the end, and returns how many commits without an answer have happened on the way.
    fn run(mut self) -> Result<usize, Failure> {
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
            let (mut steps, missed) = match self.missed_before() {
                Some(missed) => (Vec::new(), missed),
                None => self.steps(),
            };
            let step = steps.pop();
            if !steps.is_empty() {
                let (place, view, trail) = (self.here.clone(), self.view(), self.trail.len());
                self.choices.push(Choice { place, view, trail, steps, missed });
            } else if let Some(choice) = self.choices.last_mut() {
                choice.missed.extend(missed);
            }
            match step {
                Some(step) => self.take(step),
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
        let seen = written.filter(|unit| unit.returned == u64::MAX);
        seen.count() + self.here.used.values().sum::<usize>()
    }

    /// If a walk from here has failed that had at least what this one has left: what it missed.
    fn missed_before(&self) -> Option<BTreeSet<usize>> {
        if self.failed.is_empty() {
            return None;
        }
        let failed = self.failed.get(&self.view())?;
        let missed = failed
            .iter()
            .find(|missed| missed.iter().all(|(group, used)| *used <= self.used(*group)))?;
        Some(missed.iter().map(|(group, _)| *group).collect())
    }

    fn view(&self) -> View<'a> {
        let Place { next, revision, waiting, hidden, .. } = &self.here;
        let other = hidden.iter().filter_map(|key| {
            let matter = self.matter(key, self.state(key));
            (matter != self.matter(key, self.known_state(key))).then_some((*key, matter))
        });
        let (other, waiting) = (other.collect(), waiting.clone());
        View { next: *next, revision: *revision, waiting, other }
    }

    fn matter(&self, key: &'a str, state: State) -> Matter {
        match state {
            State::At(version) if self.matters_at(key, version) => Matter::At(version),
            _ if !self.may_be_absent(key) => Matter::Nothing,
            State::Absent => Matter::Absent,
            State::At(_) | State::Unseen => Matter::Present,
        }
    }

    fn used(&self, group: usize) -> usize {
        self.here.used.get(&group).copied().unwrap_or(0)
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
                    if self.here.hidden.contains(write.key()) {
                        Arc::make_mut(&mut self.here.hidden).remove(write.key());
                    }
                }
                self.finish(unit);
            }
            Step::Skip => {}
            Step::Fill(group) => self.take_loose(group, State::At(self.here.revision)),
            Step::Insert(group) => {
                self.here.revision += 1;
                self.take_loose(group, State::Unseen);
            }
        }
    }

    fn take_loose(&mut self, group: usize, put: State) {
        let unit = self.groups[group][self.used(group)];
        if !self.unlimited {
            *Arc::make_mut(&mut self.here.used).entry(group).or_default() += 1;
        }
        self.store_writes(unit, put);
        let written = self.model.units[unit].writes.iter().map(Write::key);
        Arc::make_mut(&mut self.here.hidden).extend(written);
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
            self.here.clone_from(&choice.place);
            if let Some(step) = choice.steps.pop() {
                self.choices.push(choice);
                self.take(step);
                return Ok(());
            }
            let used = |group: &usize| (*group, self.used(*group));
            let missed = choice.missed.iter().map(used).collect();
            self.failed.entry(choice.view).or_default().push(missed);
            if let Some(outer) = self.choices.last_mut() {
                outer.missed.extend(choice.missed);
            }
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
