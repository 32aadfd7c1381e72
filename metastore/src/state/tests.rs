use super::*;
use crate::memory::MemoryRows;

const LEASE_TTL: Duration = Duration::from_secs(1);

#[test]
fn a_retry_gets_the_first_answer_and_changes_nothing() {
    let mut rows = MemoryRows::default();
    let create = command(1, 0, Operation::Commit(Transaction::new().create("key", "1")));
    let grant = command(2, 0, Operation::GrantLease { ttl: Duration::from_secs(1) });
    let refused = command(3, 0, Operation::Commit(Transaction::new().create("key", "2")));
    let delete = command(4, 0, Operation::Commit(Transaction::new().delete("key")));
    let commands = [create, grant, refused, delete];
    let answers = commands.clone().map(|command| answer(&mut rows, command));
    assert_eq!(answers[0], Ok(Answer::Committed(Version::new(1))));
    assert_eq!(answers[1], Ok(Answer::Granted(LeaseId::new(1))));
    assert!(matches!(answers[2], Err(Error::Conflict { .. })));
    let before = rows.clone();
    assert_eq!(commands.map(|command| answer(&mut rows, command)), answers);
    assert_eq!(rows, before);
}

#[test]
fn answers_are_forgotten_after_their_time() {
    let mut rows = MemoryRows::default();
    let next = |request, time_ms| command(request, time_ms, next_number());
    for request in 0..20 {
        assert_eq!(answer(&mut rows, next(request, 0)), number(request));
    }
    assert_eq!(answer(&mut rows, next(0, REMEMBERED_MS)), number(0), "a retry forgets nothing");
    assert_eq!(answer(&mut rows, next(20, REMEMBERED_MS - 1)), number(20));
    assert_eq!(answer(&mut rows, next(1, REMEMBERED_MS - 1)), number(1));
    // A few at a time: the first command makes four forget, not all that are due.
    assert_eq!(answer(&mut rows, next(21, REMEMBERED_MS)), number(21));
    assert_eq!(answer(&mut rows, next(4, REMEMBERED_MS)), number(4));
    assert_eq!(answer(&mut rows, next(3, REMEMBERED_MS)), number(22));
    for request in 23..30 {
        assert_eq!(answer(&mut rows, next(request, REMEMBERED_MS)), number(request));
    }
    assert_eq!(count(&rows, b"r"), 10, "the late one, 20, 21, and seven");
    assert_eq!(count(&rows, b"o"), 10);
}

#[test]
fn nothing_is_left_of_keys_and_leases() {
    let mut rows = MemoryRows::default();
    let leases = [LeaseId::new(1), LeaseId::new(2)];
    let write = Transaction::new()
        .put_leased("a", "1", leases[0])
        .put_leased("b", "1", leases[0])
        .put_leased("c", "1", leases[1]);
    let rewrite = Transaction::new().put_leased("a", "2", leases[1]).put("b", "2").delete("c");
    let operations = [
        Operation::GrantLease { ttl: Duration::from_secs(1) },
        Operation::GrantLease { ttl: Duration::from_secs(1) },
        Operation::Commit(write),
        Operation::Commit(rewrite),
        Operation::EndLease(leases[0]),
        Operation::EndLease(leases[1]),
        Operation::Commit(Transaction::new().delete("b")),
    ];
    for (request, operation) in (0..).zip(operations) {
        answer(&mut rows, command(request, 0, operation)).expect("success");
    }
    for left in [b"k", b"l", b"m"] {
        assert_eq!(count(&rows, left), 0, "{}", left.escape_ascii());
    }
}

#[test]
fn there_is_an_end_to_leases_and_sequences() {
    let mut rows = MemoryRows::default();
    write(&mut rows, &sequence_row("numbers"), &StoredSequence { next: u64::MAX - 1 })
        .expect("memory");
    assert!(answer(&mut rows, command(1, 0, next_number())).is_ok());
    let used_up = answer(&mut rows, command(2, 0, next_number()));
    assert!(matches!(used_up, Err(Error::BadRequest { .. })), "{used_up:?}");

    let counters = Counters { leases: LEASES_MAX - 1, ..Counters::default() };
    write(&mut rows, COUNTERS, &counters).expect("memory");
    let grant = || Operation::GrantLease { ttl: Duration::from_secs(1) };
    let lease = answer(&mut rows, command(3, 0, grant())).and_then(Answer::granted);
    let refused = answer(&mut rows, command(4, 0, grant()));
    assert!(matches!(refused, Err(Error::BadRequest { .. })), "{refused:?}");
    let end = Operation::EndLease(lease.expect("the last lease"));
    assert!(answer(&mut rows, command(5, 0, end)).is_ok());
    assert!(answer(&mut rows, command(6, 0, grant())).is_ok());
}

#[test]
fn time_never_goes_back() {
    let mut rows = MemoryRows::default();
    assert_eq!(time_ms(&rows), Ok(0));
    for (request, (at, expected)) in (0..).zip([(50, 50), (30, 50), (50, 50), (51, 51)]) {
        assert_eq!(answer(&mut rows, command(request, at, next_number())), number(request));
        assert_eq!(time_ms(&rows), Ok(expected));
    }
    // Remembered as long as the others, though its own time was earlier.
    assert_eq!(answer(&mut rows, command(9, 49 + REMEMBERED_MS, next_number())), number(4));
    assert_eq!(answer(&mut rows, command(1, 49 + REMEMBERED_MS, next_number())), number(1));
    assert_eq!(answer(&mut rows, command(10, 50 + REMEMBERED_MS, next_number())), number(5));
    assert_eq!(answer(&mut rows, command(1, 50 + REMEMBERED_MS, next_number())), number(6));
}

#[test]
fn a_leap_passes_all_numbers_that_were_given_out() {
    let mut rows = MemoryRows::default();
    let lease = LeaseId::new(1);
    let operations = [
        next_number(),
        Operation::GrantLease { ttl: Duration::from_secs(1) },
        Operation::Commit(Transaction::new().put_leased("key", "1", lease)),
    ];
    for (request, operation) in (0..).zip(operations) {
        answer(&mut rows, command(request, 0, operation)).expect("success");
    }
    let (before, keys) = (rows.clone(), get(&rows, "key"));
    leap(&mut rows).expect("far from the end");
    assert_eq!(get(&rows, "key"), keys);
    assert_eq!(leases(&rows), leases(&before));
    let later = answer(&mut rows, command(10, 0, next_number())).and_then(Answer::sequence);
    assert_eq!(later, Ok(LEAP + 1..LEAP + 2));
    let granted = answer(&mut rows, command(11, 0, Operation::GrantLease { ttl: LEASE_TTL }));
    assert_eq!(granted, Ok(Answer::Granted(LeaseId::new(LEAP + 2))));
    let put = Operation::Commit(Transaction::new().put("key", "2"));
    let committed = answer(&mut rows, command(12, 0, put));
    assert_eq!(committed, Ok(Answer::Committed(Version::new(LEAP + 2))));
    assert_eq!(answer(&mut rows, command(0, 0, next_number())), number(0), "it is remembered");

    write(&mut rows, &sequence_row("long"), &StoredSequence { next: u64::MAX }).expect("memory");
    let refused = leap(&mut rows).expect_err("there is no room");
    assert!(refused.to_string().contains("long"), "{refused}");
}

fn command(request: u64, time_ms: u64, operation: Operation) -> Command {
    Command { request: Uuid::from_u128(u128::from(request)), time_ms, operation }
}

fn answer(rows: &mut MemoryRows, command: Command) -> Result<Answer, Error> {
    apply(rows, command, &mut Vec::new()).expect("memory")
}

fn next_number() -> Operation {
    Operation::NextSequence { name: "numbers".into(), count: 1 }
}

fn number(number: u64) -> Result<Answer, Error> {
    Ok(Answer::Sequence(number..number + 1))
}

fn count(rows: &MemoryRows, prefix: &[u8]) -> u64 {
    rows_with_prefix(rows, prefix.to_vec()).expect("memory").len() as u64
}
