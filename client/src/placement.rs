//! Placement: which bookies make an ensemble.
//!
//! No bookie has two places. Beyond that counts, in this order: that every place is filled; that
//! bookies which failed lately are chosen only where no other would do; that every write set
//! stands in two racks; and then chance, by which a bookie with twice the free space is chosen
//! twice as often. With strict racks no ensemble is chosen at all in which a write set stands in
//! one rack.
//!
//! Bookies without a rack label count as standing in one more rack, all together. With a write
//! quorum of one there is nothing to spread.

use std::collections::BTreeMap;

use inkfast_protocol::{BookieId, Places, Replication};

use crate::Error;
use crate::placement::search::{Task, search};

mod search;
#[cfg(test)]
mod tests;

/// A bookie that may be chosen.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) bookie: BookieId,
    pub(crate) rack: Option<String>,
    pub(crate) free_bytes: u64,
    pub(crate) failed_lately: bool,
}

/// An ensemble with places whose bookies have failed.
pub(crate) struct Lacking<'a> {
    pub(crate) ensemble: &'a [BookieId],
    /// The rack of each of its bookies. One that is not known counts as none.
    pub(crate) racks: &'a [Option<String>],
    /// The places.
    pub(crate) places: Places,
}

/// Chooses the ensemble of a new ledger.
///
/// Fails with [`Error::NotEnoughBookies`] if there are fewer candidates than places or, with
/// strict racks, if they cannot be spread.
pub(crate) fn ensemble(
    candidates: &[Candidate],
    replication: Replication,
    strict_racks: bool,
) -> Result<Vec<BookieId>, Error> {
    if candidates.len() < replication.ensemble() {
        return Err(Error::NotEnoughBookies(format!(
            "not enough bookies: the ensemble needs {}, and {} are running and take writes",
            replication.ensemble(),
            candidates.len()
        )));
    }
    let found = search(&Task {
        replication,
        racks: vec![None; replication.ensemble()],
        vacant: (0..replication.ensemble()).collect(),
        may_stay_vacant: false,
        candidates: in_random_order(candidates).into_iter().map(|c| (c, None)).collect(),
        strict_racks,
    });
    let found = found.ok_or_else(|| not_enough_racks(candidates, replication))?;
    Ok(found.into_values().collect())
}

/// Chooses bookies for places of an ensemble whose bookies have failed: as many as can be had,
/// perhaps none.
///
/// A place that gets none keeps its bookie, so nobody else gets that one; if it is among the
/// candidates, it may come back to its own place. With strict racks there are replacements only
/// if with them every write set stands in two racks.
pub(crate) fn replacements(
    candidates: &[Candidate],
    replication: Replication,
    lacking: &Lacking<'_>,
    strict_racks: bool,
) -> BTreeMap<usize, BookieId> {
    let may_have = |candidate: &Candidate| {
        let own = lacking.ensemble.iter().position(|bookie| *bookie == candidate.bookie);
        own.is_none_or(|place| lacking.places.contains(place)).then_some(own)
    };
    let candidates = in_random_order(candidates).into_iter();
    let found = search(&Task {
        replication,
        racks: lacking.racks.iter().map(Option::as_deref).collect(),
        vacant: lacking.places,
        may_stay_vacant: true,
        candidates: candidates.filter_map(|c| may_have(c).map(|own| (c, own))).collect(),
        strict_racks,
    });
    found.unwrap_or_default()
}

/// Returns candidates in a random order in which those with more free space tend to be earlier.
fn in_random_order(candidates: &[Candidate]) -> Vec<&Candidate> {
    let due = candidates.iter().map(|candidate| {
        // Whoever waits for events that come at these rates meets each first as often as is
        // wanted. A full bookie has the least rate, which makes them equal where all are full.
        let rate = candidate.free_bytes.max(1) as f64;
        (-(1.0 - fastrand::f64()).ln() / rate, candidate)
    });
    let mut due: Vec<_> = due.collect();
    due.sort_by(|a, b| a.0.total_cmp(&b.0));
    due.into_iter().map(|(_, candidate)| candidate).collect()
}

fn not_enough_racks(candidates: &[Candidate], replication: Replication) -> Error {
    let mut racks = BTreeMap::<_, usize>::new();
    for candidate in candidates {
        *racks.entry(candidate.rack.as_deref()).or_default() += 1;
    }
    let found = if racks.keys().all(Option::is_none) {
        "no bookie has a rack label (`--rack`)".to_owned()
    } else {
        let racks = racks.into_iter().map(|(rack, bookies)| match rack {
            Some(rack) => format!("{bookies} in rack {rack}"),
            None => format!("{bookies} without a label"),
        });
        let racks: Vec<_> = racks.collect();
        format!("the bookies that are running and take writes are {}", racks.join(", "))
    };
    Error::NotEnoughBookies(format!(
        "not enough racks: every write set of {replication} must stand in two, and {found}"
    ))
}
