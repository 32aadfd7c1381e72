//! Every rule about quorums, each counted by going through the write sets and by no formula.

use std::fmt;

/// The most bookies that an ensemble may have.
pub const ENSEMBLE_MAX: usize = 64;

/// How a ledger's entries are spread: ensemble, write quorum and ack quorum, with
/// 1 <= Qa <= Qw <= E <= [`ENSEMBLE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replication {
    ensemble: usize,
    write_quorum: usize,
    ack_quorum: usize,
}

impl Replication {
    /// Three copies, of which two must be on disk before an entry is acknowledged.
    pub const DEFAULT: Self = Self { ensemble: 3, write_quorum: 3, ack_quorum: 2 };

    /// Makes a replication of three numbers, or says which relation they break.
    pub fn new(ensemble: usize, write_quorum: usize, ack_quorum: usize) -> Result<Self, String> {
        if 1 <= ack_quorum
            && ack_quorum <= write_quorum
            && write_quorum <= ensemble
            && ensemble <= ENSEMBLE_MAX
        {
            return Ok(Self { ensemble, write_quorum, ack_quorum });
        }
        Err(format!(
            "ensemble {ensemble}, write quorum {write_quorum}, ack quorum {ack_quorum}: choose \
             1 <= ack quorum <= write quorum <= ensemble <= {ENSEMBLE_MAX}"
        ))
    }

    /// Returns E, the number of bookies in the ensemble.
    pub const fn ensemble(&self) -> usize {
        self.ensemble
    }

    /// Returns Qw, the number of bookies that each entry is sent to.
    pub const fn write_quorum(&self) -> usize {
        self.write_quorum
    }

    /// Returns Qa, the number of bookies that must have an entry on disk.
    pub const fn ack_quorum(&self) -> usize {
        self.ack_quorum
    }

    /// Returns the places that hold an entry, in the order in which they are asked for it.
    pub fn write_set(&self, entry: u64) -> impl Iterator<Item = usize> + use<> {
        let ensemble = self.ensemble;
        // The remainder is below the ensemble's size, so it fits.
        let first = usize::try_from(entry % ensemble as u64).unwrap_or(0);
        let around = move |place| if place < ensemble { place } else { place - ensemble };
        (first..first + self.write_quorum).map(around)
    }

    /// Says whether an entry is written: Qa of its write set are among `acknowledged`.
    pub fn is_written(&self, entry: u64, acknowledged: Places) -> bool {
        self.count(entry, acknowledged) >= self.ack_quorum
    }

    /// Says whether an entry is certainly not written: so many of its write set are in `without`
    /// (they said that they never stored it) that the others are fewer than Qa.
    pub fn is_unwritten(&self, entry: u64, without: Places) -> bool {
        self.count(entry, without.complement()) < self.ack_quorum
    }

    /// Says whether no entry can become written any more once the places in `fenced` refuse
    /// adds: in every write set fewer than Qa others are left.
    pub fn is_fenced_by(&self, fenced: Places) -> bool {
        self.write_sets().all(|entry| self.count(entry, fenced.complement()) < self.ack_quorum)
    }

    /// Says whether every entry can still be written when only the places in `live` take adds.
    pub fn is_writable_on(&self, live: Places) -> bool {
        self.write_sets().all(|entry| self.count(entry, live) >= self.ack_quorum)
    }

    /// Returns one entry of each write set that there is: they repeat with the ensemble's size.
    fn write_sets(&self) -> impl Iterator<Item = u64> + use<> {
        0..self.ensemble as u64
    }

    fn count(&self, entry: u64, places: Places) -> usize {
        self.write_set(entry).filter(|&place| places.contains(place)).count()
    }
}

impl fmt::Display for Replication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E={} Qw={} Qa={}", self.ensemble, self.write_quorum, self.ack_quorum)
    }
}

/// A set of places of an ensemble.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Places(u64);

impl Places {
    /// Adds a place.
    pub fn insert(&mut self, place: usize) {
        assert!(place < ENSEMBLE_MAX, "place {place} is in no ensemble");
        self.0 |= 1 << place;
    }

    /// Removes a place.
    pub fn remove(&mut self, place: usize) {
        assert!(place < ENSEMBLE_MAX, "place {place} is in no ensemble");
        self.0 &= !(1 << place);
    }

    /// Says whether a place is in the set.
    pub const fn contains(self, place: usize) -> bool {
        place < ENSEMBLE_MAX && self.0 & (1 << place) != 0
    }

    /// Returns all places that are not in the set.
    #[must_use]
    pub const fn complement(self) -> Self {
        Self(!self.0)
    }

    /// Returns the places in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..ENSEMBLE_MAX).filter(move |&place| self.contains(place))
    }
}

impl FromIterator<usize> for Places {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        let mut set = Self::default();
        places.into_iter().for_each(|place| set.insert(place));
        set
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn replications() -> impl Iterator<Item = Replication> {
        (1..=6).flat_map(|e| {
            (1..=e).flat_map(move |w| (1..=w).map(move |a| Replication::new(e, w, a).unwrap()))
        })
    }

    fn subsets(of: usize) -> impl Iterator<Item = Places> {
        (0..1_u64 << of).map(Places)
    }

    /// Every way in which an ack quorum can hold an entry, by brute force.
    fn ack_quorums(r: Replication, entry: u64) -> Vec<Places> {
        let write_set: Places = r.write_set(entry).collect();
        subsets(r.ensemble())
            .filter(|s| s.0 & !write_set.0 == 0 && s.0.count_ones() as usize == r.ack_quorum())
            .collect()
    }

    #[test]
    fn an_entry_is_written_when_some_ack_quorum_has_it() {
        for r in replications() {
            for (entry, acked) in (0..7).flat_map(|e| subsets(r.ensemble()).map(move |s| (e, s))) {
                let brute = ack_quorums(r, entry).iter().any(|q| q.0 & !acked.0 == 0);
                assert_eq!(r.is_written(entry, acked), brute, "{r} entry {entry} {acked:?}");
            }
        }
    }

    #[test]
    fn an_entry_is_unwritten_when_every_ack_quorum_has_a_bookie_without_it() {
        for r in replications() {
            for (entry, without) in (0..7).flat_map(|e| subsets(r.ensemble()).map(move |s| (e, s)))
            {
                let brute = ack_quorums(r, entry).iter().all(|q| q.0 & without.0 != 0);
                assert_eq!(r.is_unwritten(entry, without), brute, "{r} entry {entry} {without:?}");
            }
        }
    }

    #[test]
    fn a_ledger_is_fenced_when_every_ack_quorum_of_every_entry_has_a_fenced_bookie() {
        for r in replications() {
            for fenced in subsets(r.ensemble()) {
                let brute =
                    (0..12).all(|entry| ack_quorums(r, entry).iter().all(|q| q.0 & fenced.0 != 0));
                assert_eq!(r.is_fenced_by(fenced), brute, "{r} {fenced:?}");
            }
        }
    }

    #[test]
    fn a_ledger_is_writable_when_every_entry_has_an_ack_quorum_that_lives() {
        for r in replications() {
            for live in subsets(r.ensemble()) {
                let brute =
                    (0..12).all(|entry| ack_quorums(r, entry).iter().any(|q| q.0 & !live.0 == 0));
                assert_eq!(r.is_writable_on(live), brute, "{r} {live:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_never_taken_for_unwritten(
            e in 1_usize..=ENSEMBLE_MAX, w in 1_usize..=ENSEMBLE_MAX, a in 1_usize..=ENSEMBLE_MAX,
            entry: u64, places: u64,
        ) {
            if let Ok(r) = Replication::new(e, w, a) {
                let acked = Places(places);
                prop_assert!(!(r.is_written(entry, acked) && r.is_unwritten(entry, acked.complement())));
                prop_assert_eq!(r.write_set(entry).collect::<std::collections::BTreeSet<_>>().len(), w);
            } else {
                prop_assert!(a > w || w > e);
            }
        }
    }
}
