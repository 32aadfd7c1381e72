//! When leases run out: deadlines in memory, moved by each heartbeat.
//!
//! The state knows that a lease is and how long it lasts, and only it decides whether one is
//! there. When it was last heard of is known here, where it costs nothing, and forgotten with the
//! process: after a restart every lease has its whole TTL again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::rows::{Rows, StateError};
use crate::state::{self, lease_ttl};
use crate::types::LeaseId;

/// The deadlines of all leases.
#[derive(Debug, Default)]
pub struct Leases {
    by_lease: BTreeMap<LeaseId, (Duration, Instant)>,
    by_deadline: BTreeSet<(Instant, LeaseId)>,
}

impl Leases {
    /// Takes over all leases of a state; each gets its whole TTL.
    pub fn all(rows: &impl Rows, now: Instant) -> Result<Self, StateError> {
        let mut leases = Self::default();
        for lease in state::leases(rows)? {
            leases.follow(rows, lease, now)?;
        }
        Ok(leases)
    }

    /// Takes over whether the lease is there from the state; one that is gets its whole TTL.
    pub fn follow(
        &mut self,
        rows: &impl Rows,
        lease: LeaseId,
        now: Instant,
    ) -> Result<(), StateError> {
        self.end(lease);
        if let Some(ttl) = lease_ttl(rows, lease)? {
            self.begin(lease, ttl, now);
        }
        Ok(())
    }

    /// Gives a lease its whole TTL from now; false if there is no such lease.
    pub fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> bool {
        let Some((ttl, _)) = self.end(lease) else {
            return false;
        };
        self.begin(lease, ttl, now);
        true
    }

    /// Gives every lease its whole TTL from now.
    pub fn restart(&mut self, now: Instant) {
        self.by_deadline.clear();
        for (lease, (ttl, _)) in std::mem::take(&mut self.by_lease) {
            self.begin(lease, ttl, now);
        }
    }

    /// Takes out the leases that have run out. Whoever calls ends them in the state.
    pub fn take_expired(&mut self, now: Instant) -> Vec<LeaseId> {
        let mut expired = Vec::new();
        while let Some((deadline, lease)) = self.by_deadline.first().copied()
            && deadline <= now
        {
            self.end(lease);
            expired.push(lease);
        }
        expired
    }

    fn begin(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        let deadline = now + ttl;
        self.by_lease.insert(lease, (ttl, deadline));
        self.by_deadline.insert((deadline, lease));
    }

    fn end(&mut self, lease: LeaseId) -> Option<(Duration, Instant)> {
        let (ttl, deadline) = self.by_lease.remove(&lease)?;
        self.by_deadline.remove(&(deadline, lease));
        Some((ttl, deadline))
    }
}

#[cfg(test)]
mod tests;
