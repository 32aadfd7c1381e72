use std::collections::BTreeSet;

use uuid::Uuid;

use super::*;

/// What is bad about an ensemble, the worst first: places that were not filled, bookies that
/// failed lately, write sets in one rack.
type Badness = (usize, usize, usize);

fn candidate(number: usize, rack: Option<&str>) -> Candidate {
    Candidate {
        bookie: bookie(number),
        rack: rack.map(str::to_owned),
        free_bytes: 1 << 30,
        failed_lately: false,
    }
}

fn bookie(number: usize) -> BookieId {
    BookieId(Uuid::from_u128(number as u128))
}

/// Makes candidates with as many bookies in each rack as it says.
fn in_racks(racks: &[usize]) -> Vec<Candidate> {
    let racks = racks.iter().enumerate();
    let racks = racks.flat_map(|(rack, &count)| std::iter::repeat_n(format!("r{rack}"), count));
    racks.enumerate().map(|(number, rack)| candidate(number, Some(&rack))).collect()
}

fn sizes(ensemble: usize, write_quorum: usize) -> Replication {
    Replication::new(ensemble, write_quorum, 1).unwrap()
}

fn some<T: Copy>(of: &[T]) -> T {
    of[fastrand::usize(..of.len())]
}

/// A small cluster in which places of an ensemble lack a bookie.
struct Case {
    replication: Replication,
    candidates: Vec<Candidate>,
    ensemble: Vec<BookieId>,
    racks: Vec<Option<String>>,
    places: Places,
}

impl Case {
    fn random() -> Self {
        let size = fastrand::usize(1..=5);
        let replication = sizes(size, fastrand::usize(1..=size));
        let labels = [None, Some("r1"), Some("r2"), Some("r3")];
        let labels = &labels[fastrand::usize(0..2)..fastrand::usize(2..=4)];
        let any = |number| Candidate {
            failed_lately: fastrand::usize(..4) == 0,
            free_bytes: some(&[0, 1, 1000, u64::MAX]),
            ..candidate(number, some(labels))
        };
        let before: Vec<_> = (0..size).map(any).collect();
        let mut candidates: Vec<_> = (size..size + fastrand::usize(0..=8)).map(any).collect();
        // Some of the ensemble are candidates: they stay, or have come back.
        candidates.extend(before.iter().filter(|_| fastrand::bool()).cloned());
        candidates.truncate(8);
        Self {
            replication,
            candidates,
            ensemble: before.iter().map(|before| before.bookie).collect(),
            racks: before.into_iter().map(|before| before.rack).collect(),
            places: (0..size).filter(|_| fastrand::bool()).collect(),
        }
    }

    fn replacements(&self, strict_racks: bool) -> BTreeMap<usize, BookieId> {
        let Self { replication, candidates, ensemble, racks, places } = self;
        let lacking = Lacking { ensemble, racks, places: *places };
        replacements(candidates, *replication, &lacking, strict_racks)
    }

    /// Says how bad it is to replace bookies; none if that must not be.
    fn badness(&self, replaced: &BTreeMap<usize, BookieId>) -> Option<Badness> {
        let (mut ensemble, mut racks) = (self.ensemble.clone(), self.racks.clone());
        let mut failed = 0;
        for (&place, &bookie) in replaced {
            let candidate = self.candidates.iter().find(|c| c.bookie == bookie)?;
            let own = self.ensemble.iter().position(|before| *before == bookie);
            if !self.places.contains(place) || own.is_some_and(|own| own != place) {
                return None;
            }
            ensemble[place] = bookie;
            racks[place].clone_from(&candidate.rack);
            failed += usize::from(candidate.failed_lately);
        }
        if ensemble.iter().collect::<BTreeSet<_>>().len() < ensemble.len() {
            return None;
        }
        let vacant = self.places.iter().count() - replaced.len();
        Some((vacant, failed, in_one_rack(self.replication, &racks)))
    }

    /// Finds the least badness by going through everything that could be done.
    fn least_badness(&self, strict_racks: bool) -> Option<Badness> {
        let mut all = vec![BTreeMap::new()];
        for place in self.places.iter() {
            for before in all.clone() {
                let candidates = self.candidates.iter().map(|candidate| candidate.bookie);
                for bookie in candidates.filter(|b| !before.values().any(|taken| taken == b)) {
                    let mut with = before.clone();
                    with.insert(place, bookie);
                    all.push(with);
                }
            }
        }
        let badness = all.iter().filter_map(|replaced| self.badness(replaced));
        badness.filter(|badness| !strict_racks || badness.2 == 0).min()
    }
}

/// Counts the write sets that stand in one rack.
fn in_one_rack(replication: Replication, racks: &[Option<String>]) -> usize {
    let write_sets = (0..racks.len() as u64).filter(|&entry| {
        let racks: BTreeSet<_> = replication.write_set(entry).map(|place| &racks[place]).collect();
        replication.write_quorum() > 1 && racks.len() == 1
    });
    write_sets.count()
}

fn racks_of(ensemble: &[BookieId], candidates: &[Candidate]) -> Vec<Option<String>> {
    let of = |bookie| candidates.iter().find(|c| c.bookie == bookie).unwrap().rack.clone();
    ensemble.iter().map(|&bookie| of(bookie)).collect()
}

#[test]
fn no_replacements_are_better() {
    for seed in 0..200 {
        fastrand::seed(seed);
        let case = Case::random();
        for strict_racks in [false, true] {
            let chosen = case.replacements(strict_racks);
            let badness = case.badness(&chosen).unwrap_or_else(|| panic!("{seed}: {chosen:?}"));
            match case.least_badness(strict_racks) {
                Some(least) => assert_eq!(badness, least, "{seed}, strict {strict_racks}"),
                None => assert!(chosen.is_empty(), "{seed}: in one rack"),
            }
        }
    }
}

#[test]
fn no_ensemble_is_better() {
    for seed in 0..200 {
        fastrand::seed(seed);
        let mut case = Case::random();
        // The ensemble of before is nobody's.
        let size = case.ensemble.len();
        case.ensemble = (100..100 + size).map(bookie).collect();
        case.places = (0..size).collect();
        for strict_racks in [false, true] {
            let chosen = ensemble(&case.candidates, case.replication, strict_racks);
            let least = case.least_badness(strict_racks).filter(|least| least.0 == 0);
            match (chosen, least) {
                (Ok(chosen), Some(least)) => {
                    assert_eq!(chosen.len(), size, "{seed}");
                    let chosen = chosen.into_iter().enumerate().collect();
                    assert_eq!(case.badness(&chosen), Some(least), "{seed}, {strict_racks}");
                }
                (Err(Error::NotEnoughBookies(_)), None) => {}
                (chosen, least) => panic!("{seed}: {chosen:?} instead of {least:?}"),
            }
        }
    }
}

#[test]
fn large_ensembles_are_spread_and_stay_so() {
    for (racks, ensemble_size, write_quorum) in [
        (&[400, 300, 300][..], 64, 2),
        (&[1; 200], 64, 3),
        (&[2, 1000], 30, 16),
        // With just enough of the smaller racks:
        (&[32, 32], 64, 2),
        (&[31, 16, 16], 63, 2),
        (&[42, 22], 64, 3),
        (&[48, 16], 64, 4),
        (&[63, 1], 64, 64),
    ] {
        fastrand::seed(ensemble_size as u64);
        let candidates = in_racks(racks);
        let replication = sizes(ensemble_size, write_quorum);
        for strict_racks in [false, true] {
            let chosen = ensemble(&candidates, replication, strict_racks).unwrap();
            let racks = racks_of(&chosen, &candidates);
            assert_eq!(in_one_rack(replication, &racks), 0, "{replication} {racks:?}");

            let places: Places = (0..ensemble_size).filter(|_| fastrand::bool()).collect();
            let (replication, ensemble) = (replication, chosen);
            let case =
                Case { replication, candidates: candidates.clone(), ensemble, racks, places };
            assert_eq!(case.badness(&case.replacements(strict_racks)), Some((0, 0, 0)));
        }
    }
}

#[test]
fn bookies_that_failed_lately_come_last() {
    fastrand::seed(0);
    let mut candidates = in_racks(&[4, 3]);
    candidates[4..].iter_mut().for_each(|candidate| {
        candidate.failed_lately = true;
        candidate.free_bytes = u64::MAX;
    });
    for _ in 0..100 {
        let chosen = ensemble(&candidates, sizes(3, 3), false).unwrap();
        assert!(racks_of(&chosen, &candidates).iter().all(|rack| rack.as_deref() == Some("r0")));
        // Here no other would do.
        let chosen = ensemble(&candidates, sizes(3, 3), true).unwrap();
        let racks = racks_of(&chosen, &candidates);
        assert_eq!(racks.iter().filter(|rack| rack.as_deref() == Some("r1")).count(), 1);
    }
}

#[test]
fn a_bookie_with_twice_the_free_space_is_chosen_twice_as_often() {
    fastrand::seed(0);
    let mut candidates = in_racks(&[6]);
    let count = |candidates: &[Candidate]| {
        let mut count = [0; 6];
        for _ in 0..6000 {
            let chosen = ensemble(candidates, sizes(1, 1), false).unwrap()[0];
            count[candidates.iter().position(|c| c.bookie == chosen).unwrap()] += 1;
        }
        count
    };
    for (candidate, gib) in candidates.iter_mut().zip([1, 1, 2, 2, 4, 0]) {
        candidate.free_bytes = gib << 30;
    }
    for (chosen, expected) in count(&candidates).into_iter().zip([600, 600, 1200, 1200, 2400, 0]) {
        assert!(i32::abs_diff(chosen, expected) <= 120 && (chosen > 0) == (expected > 0));
    }
    candidates.iter_mut().for_each(|candidate| candidate.free_bytes = 0);
    assert!(count(&candidates).into_iter().all(|chosen| (880..1120).contains(&chosen)));
}

#[test]
fn words_say_which_racks_there_are() {
    let words =
        |candidates: &[Candidate], replication| match ensemble(candidates, replication, true) {
            Err(error @ Error::NotEnoughBookies(_)) => error.to_string(),
            other => panic!("{other:?}"),
        };
    let unlabelled: Vec<_> = (0..3).map(|number| candidate(number, None)).collect();
    assert!(words(&unlabelled, sizes(3, 3)).contains("no bookie has a rack label (`--rack`)"));
    assert!(words(&in_racks(&[3]), sizes(3, 2)).contains("two, and the bookies"));
    assert!(words(&in_racks(&[3]), sizes(3, 2)).contains("3 in rack r0;"));
    let mut three_to_one = in_racks(&[3]);
    three_to_one.push(candidate(3, None));
    assert!(words(&three_to_one, sizes(4, 2)).contains("1 without a label, 3 in rack r0"));
    assert!(words(&in_racks(&[2, 1]), sizes(4, 2)).contains("needs 4, and 3 are running"));
    assert!(ensemble(&unlabelled, sizes(3, 1), true).is_ok(), "nothing to spread");
}
