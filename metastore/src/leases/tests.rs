use super::*;
use crate::memory::MemoryRows;
use crate::state::{Command, Operation, apply};
use uuid::Uuid;

#[test]
fn a_restart_gives_every_lease_its_whole_ttl() {
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let mut rows = MemoryRows::default();
    for ttl in [second, 3 * second] {
        let operation = Operation::GrantLease { ttl };
        let command = Command { request: Uuid::new_v4(), time_ms: 0, operation };
        apply(&mut rows, command, &mut Vec::new()).unwrap().unwrap();
    }
    let mut leases = Leases::all(&rows, now).unwrap();
    leases.restart(now + second);
    assert_eq!(leases.take_expired(now + second), []);
    assert_eq!(leases.take_expired(now + 2 * second), [LeaseId::new(1)]);
    leases.restart(now + 2 * second);
    assert_eq!(leases.take_expired(now + 4 * second), []);
    assert_eq!(leases.take_expired(now + 5 * second), [LeaseId::new(2)]);
    leases.restart(now + 5 * second);
    assert_eq!(leases.take_expired(now + 60 * second), []);
}
