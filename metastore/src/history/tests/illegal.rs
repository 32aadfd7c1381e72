//! Histories with one violation each.

use super::{
    create, delete, failed, put, read, read_absent, refused, refuses, remove, replace, scanned,
    took, unanswered, wrote,
};
use crate::types::Transaction;

#[test]
fn a_stale_read() {
    let events = [
        wrote(1..2, put("k", "old"), 1),
        wrote(3..4, put("k", "new"), 2),
        read(5..6, "k", "old", 1),
    ];
    refuses(events, "overwritten before", &[3, 5]);
}

#[test]
fn a_read_that_forgets_a_write() {
    let events = [wrote(1..2, put("k", "v"), 1), read_absent(3..4, "k")];
    refuses(events, "not so from its call", &[1, 3]);
}

#[test]
fn reads_that_go_back() {
    // The second put is under way all the time, but once it was seen it is there.
    let events = [
        wrote(1..2, put("k", "old"), 1),
        wrote(3..20, put("k", "new"), 2),
        read(5..6, "k", "new", 2),
        read(7..8, "k", "old", 1),
    ];
    refuses(events, "overwritten before", &[5, 7]);
}

#[test]
fn reads_of_two_keys_that_go_back() {
    // Each key alone is right: only together they say that the first read was later.
    let events = [
        wrote(1..2, put("a", "a1"), 1),
        wrote(3..40, put("a", "a2"), 2),
        wrote(4..41, put("b", "b1"), 3),
        read(5..6, "b", "b1", 3),
        read(7..8, "a", "a1", 1),
    ];
    refuses(events, "overwritten before", &[3, 5, 7]);
}

#[test]
fn a_read_of_the_future() {
    let events = [
        wrote(1..2, put("k", "one"), 1),
        read(3..4, "k", "two", 2),
        wrote(5..6, put("k", "two"), 2),
    ];
    refuses(events, "not so from its call", &[3, 5]);
}

#[test]
fn a_lost_update() {
    let events = [
        wrote(1..2, put("counter", "0"), 1),
        wrote(3..6, replace("counter", 1, "1"), 2),
        wrote(4..7, replace("counter", 1, "also 1"), 3),
    ];
    refuses(events, "overwritten before", &[3, 4]);
}

#[test]
fn two_creates_of_one_key() {
    let events = [wrote(1..5, create("k", "mine"), 1), wrote(2..6, create("k", "no, mine"), 2)];
    refuses(events, "condition on \"k\" did not hold", &[1, 2]);
}

#[test]
fn a_value_from_nowhere() {
    let events = [wrote(1..2, put("k", "v"), 1), read(3..4, "k", "other", 1)];
    refuses(events, "never written", &[3]);
}

#[test]
fn a_value_of_another_key() {
    let events = [wrote(1..2, put("a", "v"), 1), read(3..4, "b", "v", 1)];
    refuses(events, "never written", &[3]);
}

#[test]
fn a_value_at_another_version() {
    let events = [wrote(1..2, put("k", "v"), 1), read(3..4, "k", "v", 2)];
    refuses(events, "versions 1 and 2", &[1, 3]);
}

#[test]
fn one_write_at_two_versions() {
    let events = [unanswered(1, put("k", "v")), read(3..4, "k", "v", 1), read(5..6, "k", "v", 2)];
    refuses(events, "versions 1 and 2", &[1, 3, 5]);
}

#[test]
fn a_failed_write_is_seen() {
    let events = [failed(1..2, put("k", "v")), read(3..4, "k", "v", 1)];
    refuses(events, "failed was seen", &[1, 3]);
}

#[test]
fn a_refused_write_is_seen() {
    let events = [
        wrote(1..2, put("k", "one"), 1),
        refused(3..4, create("k", "two"), "k", Some(1)),
        read(5..6, "k", "two", 2),
    ];
    refuses(events, "failed was seen", &[3, 5]);
}

#[test]
fn a_revision_given_twice() {
    let events = [wrote(1..3, put("a", "v"), 7), wrote(2..4, put("b", "w"), 7)];
    refuses(events, "revision 7 was given to two", &[1, 2]);
}

#[test]
fn revisions_against_time() {
    let events = [wrote(1..2, put("a", "v"), 2), wrote(3..4, put("b", "w"), 1)];
    refuses(events, "has a lower revision", &[1, 3]);
}

#[test]
fn a_conflict_that_never_was() {
    let events = [
        wrote(1..2, put("k", "one"), 1),
        refused(3..4, replace("k", 1, "two"), "k", None),
        read(5..6, "k", "one", 1),
    ];
    refuses(events, "not so from its call", &[1, 3]);
}

#[test]
fn a_conflict_with_what_was_wanted() {
    let events =
        [wrote(1..2, put("k", "one"), 1), refused(3..4, replace("k", 1, "two"), "k", Some(1))];
    refuses(events, "where every condition holds", &[3]);
}

#[test]
fn a_conflict_that_names_a_later_condition() {
    let both = Transaction::new().create("a", "v").create("b", "v");
    let events = [
        wrote(1..2, put("a", "one"), 1),
        wrote(3..4, put("b", "two"), 2),
        refused(5..6, both, "b", Some(2)),
    ];
    refuses(events, "not so from its call", &[1, 5]);
}

#[test]
fn a_version_from_nowhere() {
    let events = [
        wrote(1..2, put("k", "one"), 1),
        wrote(3..4, put("other", "two"), 2),
        refused(5..6, create("k", "three"), "k", Some(2)),
    ];
    refuses(events, "not so from its call", &[1, 5]);
    let events =
        [wrote(1..2, put("k", "one"), 1), refused(5..6, create("k", "three"), "k", Some(2))];
    refuses(events, "nobody can have written \"k\" at 2", &[5]);
}

#[test]
fn half_a_transaction() {
    let both = Transaction::new().put("a", "v").put("b", "v");
    let events = [wrote(1..2, both, 1), read(3..4, "a", "v", 1), read_absent(5..6, "b")];
    refuses(events, "not so from its call", &[1, 5]);
}

#[test]
fn half_a_transaction_in_a_page() {
    let both = Transaction::new().put("a", "v").put("b", "v");
    let events = [wrote(1..9, both, 1), scanned(3..4, 1, &[("a", "v", 1)])];
    refuses(events, "not so from its call", &[1, 3]);
}

#[test]
fn a_page_of_another_revision() {
    let events = [
        wrote(1..2, put("a", "v"), 1),
        wrote(3..4, put("b", "w"), 2),
        scanned(5..6, 1, &[("a", "v", 1), ("b", "w", 2)]),
    ];
    refuses(events, "not so from its call", &[5]);
}

#[test]
fn a_write_is_lost_after_an_unanswered_one() {
    // The put has no answer, but it was seen: it cannot vanish again.
    let events = [unanswered(1, put("k", "v")), read(3..4, "k", "v", 1), read_absent(5..6, "k")];
    refuses(events, "not so from its call", &[1, 5]);
}

#[test]
fn an_unanswered_write_before_its_call() {
    let events = [read(1..2, "k", "v", 1), unanswered(3, put("k", "v"))];
    refuses(events, "not so from its call", &[1]);
}

#[test]
fn an_unanswered_delete_happens_once() {
    let events = [
        wrote(1..2, put("k", "one"), 1),
        unanswered(3, delete("k")),
        read_absent(5..6, "k"),
        wrote(7..8, put("k", "two"), 11),
        read_absent(9..10, "k"),
    ];
    refuses(events, "not so from its call", &[7, 9]);
}

#[test]
fn an_unanswered_delete_has_a_revision_of_its_own() {
    // No revision is left between the two puts.
    let events = [
        wrote(1..2, put("k", "one"), 1),
        unanswered(3, delete("k")),
        read_absent(4..5, "k"),
        wrote(7..8, put("other", "two"), 2),
    ];
    refuses(events, "not so from its call", &[1, 4]);
}

#[test]
fn an_unanswered_remove_wants_its_version() {
    let events = [
        wrote(1..2, put("k", "one"), 1),
        wrote(3..4, put("k", "two"), 2),
        unanswered(5, remove("k", 1)),
        read_absent(7..8, "k"),
    ];
    refuses(events, "not so from its call", &[3, 7]);
}

#[test]
fn an_unanswered_delete_after_a_later_read() {
    let events = [
        wrote(1..2, put("k", "one"), 1),
        unanswered(3, delete("k")),
        read_absent(4..5, "k"),
        read(6..7, "k", "one", 1),
    ];
    refuses(events, "not so from its call", &[4]);
}

#[test]
fn a_number_given_twice() {
    refuses([took(1..3, 0..5), took(2..4, 4..6)], "given out twice", &[1, 2]);
}

#[test]
fn numbers_that_fall() {
    refuses([took(1..2, 10..15), took(3..4, 0..5)], "higher numbers", &[1, 3]);
    let others_between = [took(1..2, 30..35), took(3..20, 20..25), took(4..21, 10..15)];
    refuses(others_between, "higher numbers", &[1, 3]);
}

#[test]
fn a_short_block() {
    let mut block = took(1..2, 0..5);
    block.request = super::Request::NextSequence { name: "numbers".into(), count: 6 };
    refuses([block], "not as long", &[1]);
}
