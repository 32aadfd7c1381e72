//! Placement: which bookies make an ensemble.

use inkfast_protocol::{BookieId, Replication};

use crate::Error;
use crate::catalog::Registration;

/// Chooses the ensemble of a new ledger at random among the bookies that take writes.
pub(crate) fn choose(
    registered: &[(BookieId, Registration)],
    replication: Replication,
) -> Result<Vec<BookieId>, Error> {
    let writable = registered.iter().filter(|(_, registration)| !registration.read_only);
    let mut bookies: Vec<_> = writable.map(|(bookie, _)| *bookie).collect();
    if bookies.len() < replication.ensemble() {
        return Err(Error::NotEnoughBookies(format!(
            "not enough bookies: the ensemble needs {}, and {} are running and take writes",
            replication.ensemble(),
            bookies.len()
        )));
    }
    fastrand::shuffle(&mut bookies);
    bookies.truncate(replication.ensemble());
    Ok(bookies)
}
