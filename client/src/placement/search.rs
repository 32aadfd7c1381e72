//! The search for an ensemble: place after place, the most promising bookie first, and back where
//! that led to a worse end than another choice might.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use inkfast_protocol::{BookieId, ENSEMBLE_MAX, Places, Replication};

use super::Candidate;

/// How many steps a search may take, each to one more filled place. What it has found by then is
/// taken: all there is where ensembles are small, and hardly ever a worse end where they are not.
const STEPS_MAX: usize = 10_000;
/// How many bookies are tried for a place, each of another kind. At most two racks are wrong
/// ones, those of the neighbours, so that further kinds have little more to offer.
const KINDS_TRIED_MAX: usize = 8;

// The first way to fill all places is always gone to its end.
const _: () = assert!(STEPS_MAX > ENSEMBLE_MAX);

/// What is searched for.
pub(super) struct Task<'a> {
    pub(super) replication: Replication,
    /// The rack of each place, as it is until another bookie gets the place.
    pub(super) racks: Vec<Option<&'a str>>,
    /// The places that are to be filled.
    pub(super) vacant: Places,
    /// Whether some of them may stay as they are.
    pub(super) may_stay_vacant: bool,
    /// Who may fill them, the preferred first where all else is equal; and the only place that
    /// one may have, if it may not have every.
    pub(super) candidates: Vec<(&'a Candidate, Option<usize>)>,
    /// Whether every write set must stand in two racks.
    pub(super) strict_racks: bool,
}

/// Returns the bookies that fill places best; none if they cannot be filled as they must be.
pub(super) fn search(task: &Task<'_>) -> Option<BTreeMap<usize, BookieId>> {
    let mut search = Search::new(task);
    if task.strict_racks && search.ideal.in_one_rack > 0 {
        return None;
    }
    let begin = Cost { in_one_rack: search.ideal.in_one_rack, ..Cost::default() };
    // By preference first. Where that misses the ideal because a rack has run out on the way, the
    // racks that have most are taken first.
    for largest_first in [false, true] {
        search.largest_first = largest_first;
        search.steps_left = STEPS_MAX;
        search.fill(begin);
        if search.steps_left > 0 {
            break;
        }
    }
    let (_, chosen) = search.best?;
    let filled = search.vacancies.iter().zip(chosen);
    Some(filled.filter_map(|(vacancy, chosen)| Some((vacancy.place, chosen?.bookie))).collect())
}

/// What is bad about an ensemble, the worst first.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    vacant: usize,
    failed_lately: usize,
    /// Write sets.
    in_one_rack: usize,
}

struct Search<'a> {
    vacancies: Vec<Vacancy<'a>>,
    kinds: Vec<Kind<'a>>,
    may_stay_vacant: bool,
    strict_racks: bool,
    largest_first: bool,
    /// The racks of the places, as far as they are decided.
    racks: Vec<Option<&'a str>>,
    /// Who fills the first vacancies, as far as they are decided.
    chosen: Vec<Option<&'a Candidate>>,
    /// The best that was found.
    best: Option<(Cost, Vec<Option<&'a Candidate>>)>,
    /// What cannot be done better.
    ideal: Cost,
    steps_left: usize,
}

/// A place that is to be filled.
struct Vacancy<'a> {
    place: usize,
    /// The rack in which it stands until then.
    rack: Option<&'a str>,
    /// The bookie that may have this place only.
    own: Option<Preferred<'a>>,
    /// The write sets whose last vacancy it is.
    completes: Vec<Vec<usize>>,
}

/// Candidates that differ in their preference only.
#[derive(Default)]
struct Kind<'a> {
    bookies: Vec<Preferred<'a>>,
    taken: usize,
}

#[derive(Clone, Copy)]
struct Preferred<'a> {
    candidate: &'a Candidate,
    /// The lower, the sooner.
    rank: usize,
}

/// What may be done with a vacancy.
struct Choice<'a> {
    candidate: Option<&'a Candidate>,
    /// The kind that it is taken from.
    kind: Option<usize>,
    /// What all is like then.
    cost: Cost,
}

impl<'a> Search<'a> {
    fn new(task: &Task<'a>) -> Self {
        let mut kinds = BTreeMap::<_, Kind<'a>>::new();
        let mut own = BTreeMap::new();
        for (rank, &(candidate, place)) in task.candidates.iter().enumerate() {
            let preferred = Preferred { candidate, rank };
            if let Some(place) = place {
                own.insert(place, preferred);
            } else {
                let kind = (candidate.failed_lately, candidate.rack.as_deref());
                kinds.entry(kind).or_default().bookies.push(preferred);
            }
        }
        let vacant = task.vacant.iter().map(|place| Vacancy {
            place,
            rack: task.racks[place],
            own: own.get(&place).copied(),
            completes: Vec::new(),
        });
        let mut search = Self {
            vacancies: vacant.collect(),
            kinds: kinds.into_values().collect(),
            may_stay_vacant: task.may_stay_vacant,
            strict_racks: task.strict_racks,
            largest_first: false,
            racks: task.racks.clone(),
            chosen: Vec::new(),
            best: None,
            ideal: Cost::default(),
            steps_left: 0,
        };
        let filled = search.vacancies.len().min(task.candidates.len());
        let sound = task.candidates.iter().filter(|(candidate, _)| !candidate.failed_lately);
        search.ideal.vacant = search.vacancies.len() - filled;
        search.ideal.failed_lately = filled.saturating_sub(sound.count());
        search.add_write_sets(task.replication);
        search
    }

    /// Hands the write sets to the vacancies that complete them.
    fn add_write_sets(&mut self, replication: Replication) {
        if replication.write_quorum() == 1 {
            return;
        }
        for entry in 0..replication.ensemble() as u64 {
            let write_set: Vec<_> = replication.write_set(entry).collect();
            let last = self.vacancies.iter_mut().rfind(|v| write_set.contains(&v.place));
            if let Some(vacancy) = last {
                vacancy.completes.push(write_set);
            } else if is_in_one_rack(&write_set, &self.racks) {
                self.ideal.in_one_rack += 1;
            }
        }
    }

    /// Fills the next vacancy in every way that may lead to something better than the best that
    /// was found, and those after it.
    fn fill(&mut self, cost: Cost) {
        // All that can follow costs at least as much, and at least as much as the ideal.
        let in_vain = self.best.as_ref().is_some_and(|(best, _)| *best <= cost.max(self.ideal));
        if in_vain || self.steps_left == 0 {
            return;
        }
        self.steps_left -= 1;
        let Some(&Vacancy { place, rack, .. }) = self.vacancies.get(self.chosen.len()) else {
            self.best = Some((cost, self.chosen.clone()));
            return;
        };
        for Choice { candidate, kind, cost } in self.choices(cost) {
            self.racks[place] = candidate.map_or(rack, |candidate| candidate.rack.as_deref());
            self.chosen.push(candidate);
            if let Some(kind) = kind {
                self.kinds[kind].taken += 1;
            }
            self.fill(cost);
            if let Some(kind) = kind {
                self.kinds[kind].taken -= 1;
            }
            self.chosen.pop();
        }
    }

    /// Returns what may be done with the next vacancy, the most promising first.
    fn choices(&self, cost: Cost) -> Vec<Choice<'a>> {
        let vacancy = &self.vacancies[self.chosen.len()];
        let next = self.kinds.iter().enumerate().filter_map(|(index, kind)| {
            let left = kind.bookies.len() - kind.taken;
            kind.bookies.get(kind.taken).map(|next| (next, left, Some(index)))
        });
        let own = vacancy.own.iter().map(|own| (own, 1, None));
        let mut bookies: Vec<_> = next.chain(own).collect();
        bookies.sort_unstable_by_key(|(next, left, _)| {
            let left = if self.largest_first { *left } else { 0 };
            (next.candidate.failed_lately, Reverse(left), next.rank)
        });
        bookies.truncate(KINDS_TRIED_MAX);

        let bookies = bookies.into_iter().map(|(next, _, kind)| (Some(next.candidate), kind));
        let choices = bookies.chain(self.may_stay_vacant.then_some((None, None)));
        let mut racks = self.racks.clone();
        let choices = choices.map(|(candidate, kind)| {
            racks[vacancy.place] = candidate.map_or(vacancy.rack, |c| c.rack.as_deref());
            let in_one_rack = vacancy.completes.iter().filter(|set| is_in_one_rack(set, &racks));
            let cost = Cost {
                vacant: cost.vacant + usize::from(candidate.is_none()),
                failed_lately: cost.failed_lately
                    + usize::from(candidate.is_some_and(|candidate| candidate.failed_lately)),
                in_one_rack: cost.in_one_rack + in_one_rack.count(),
            };
            Choice { candidate, kind, cost }
        });
        let mut choices: Vec<_> =
            choices.filter(|c| !self.strict_racks || c.cost.in_one_rack == 0).collect();
        choices.sort_by_key(|choice| choice.cost);
        choices
    }
}

fn is_in_one_rack(write_set: &[usize], racks: &[Option<&str>]) -> bool {
    write_set.iter().all(|&place| racks[place] == racks[write_set[0]])
}
