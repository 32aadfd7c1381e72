//! Histories that are right, though not at first sight.

use super::{
    accepts, create, delete, put, read, read_absent, refused, remove, replace, scanned, took,
    unanswered, wrote,
};
use crate::types::{Transaction, Version};

#[test]
fn nothing_at_all() {
    assert_eq!(accepts([]).operations, 0);
}

#[test]
fn reads_of_either_side_of_a_write_that_is_under_way() {
    accepts([
        wrote(1..2, put("k", "old"), 1),
        wrote(3..20, put("k", "new"), 5),
        read(4..10, "k", "new", 5),
        read(5..11, "k", "old", 1),
        read(12..13, "k", "new", 5),
    ]);
}

#[test]
fn a_write_that_is_answered_late() {
    // Revisions follow the order in which writes happened, not that of the answers.
    accepts([
        wrote(1..9, put("k", "first"), 1),
        wrote(2..4, put("k", "second"), 2),
        read(5..6, "k", "second", 2),
    ]);
}

#[test]
fn conflicts_that_were_true_for_a_moment() {
    accepts([
        wrote(1..2, put("k", "one"), 1),
        refused(3..20, create("k", "x"), "k", Some(4)),
        refused(4..21, replace("k", 1, "y"), "k", None),
        wrote(5..6, delete("k"), 3),
        wrote(7..8, put("k", "two"), 4),
        wrote(9..10, put("k", "three"), 5),
    ]);
}

#[test]
fn a_conflict_on_the_second_condition() {
    let both = Transaction::new().create("a", "v").create("b", "v");
    accepts([wrote(1..2, put("b", "two"), 1), refused(3..4, both, "b", Some(1))]);
}

#[test]
fn pages_between_writes() {
    accepts([
        scanned(1..2, 0, &[]),
        wrote(3..30, put("a", "one"), 4),
        scanned(5..6, 3, &[]),
        scanned(7..8, 4, &[("a", "one", 4)]),
        wrote(9..31, put("b", "two"), 6),
        scanned(10..11, 5, &[("a", "one", 4)]),
        scanned(12..13, 6, &[("a", "one", 4), ("b", "two", 6)]),
        scanned(14..15, 9, &[("a", "one", 4), ("b", "two", 6)]),
    ]);
}

#[test]
fn an_unanswered_write_happens_or_not_or_late() {
    let first = || wrote(1..2, put("k", "one"), 1);
    let lost = || unanswered(3, put("k", "two"));
    let old = |at: u64| read(at..at + 1, "k", "one", 1);
    let new = |at: u64| read(at..at + 1, "k", "two", 2);
    assert_eq!(accepts([first(), lost(), old(5), old(7)]).happened, 0);
    assert_eq!(accepts([first(), lost(), new(5), new(7)]).happened, 1);
    assert_eq!(accepts([first(), lost(), old(5), new(7)]).happened, 1);
}

#[test]
fn an_unanswered_write_of_which_only_the_version_was_seen() {
    let events = [
        wrote(1..2, put("k", "one"), 1),
        unanswered(3, replace("k", 7, "not this one")),
        unanswered(4, put("k", "two")),
        unanswered(5, put("other", "nor this one")),
        refused(6..7, replace("k", 1, "three"), "k", Some(3)),
        wrote(8..9, replace("k", 3, "four"), 5),
    ];
    assert_eq!(accepts(events).happened, 1);
}

#[test]
fn an_unanswered_delete_that_shows_later() {
    // It took revision 2, and no other would have been left.
    let events = [
        wrote(1..2, put("k", "one"), 1),
        unanswered(3, delete("k")),
        wrote(5..6, put("other", "two"), 3),
        read_absent(7..8, "k"),
        wrote(9..10, create("k", "three"), 4),
    ];
    assert_eq!(accepts(events).happened, 1);
}

#[test]
fn an_unanswered_delete_after_the_last_read() {
    // There is room for it before the read, but it must come after.
    let events = [
        wrote(1..2, put("k", "one"), 1),
        unanswered(3, delete("k")),
        wrote(5..6, put("other", "two"), 10),
        read(7..8, "k", "one", 1),
        wrote(9..10, put("other", "three"), 20),
        read_absent(11..12, "k"),
    ];
    assert_eq!(accepts(events).happened, 1);
}

#[test]
fn unanswered_deletes_where_each_is_needed() {
    // The remove can only do the first, so it must not be the delete that does it.
    let events = [
        wrote(1..2, put("k", "one"), 1),
        unanswered(3, delete("k")),
        unanswered(4, remove("k", 1)),
        read_absent(5..6, "k"),
        wrote(7..8, put("k", "two"), 11),
        read_absent(9..10, "k"),
    ];
    assert_eq!(accepts(events).happened, 2);
}

#[test]
fn an_unanswered_transaction_that_another_needs() {
    // Only the first can have made way for the second, and only the second can have removed b.
    let first = Transaction::new().delete("a");
    let second = Transaction::new().create("a", "two").delete("b");
    let events = [
        wrote(1..2, Transaction::new().put("a", "one").put("b", "one"), 1),
        unanswered(3, first),
        unanswered(4, second),
        read_absent(5..6, "b"),
    ];
    assert_eq!(accepts(events).happened, 2);
}

#[test]
fn an_unanswered_write_that_only_another_one_names() {
    // Whoever asked for the removal has learnt the version elsewhere.
    let events = [
        wrote(1..2, put("k", "one"), 1),
        unanswered(3, put("k", "two")),
        unanswered(4, remove("k", 5)),
        read_absent(6..7, "k"),
    ];
    assert_eq!(accepts(events).happened, 2);
}

#[test]
fn an_unanswered_transaction_that_names_two_others() {
    let both = Transaction::new().replace("a", Version::new(4), "5").remove("b", Version::new(3));
    let events = [
        wrote(1..3, create("a", "1"), 1),
        unanswered(2, both),
        wrote(4..6, Transaction::new().put("a", "2").put("b", "2"), 2),
        unanswered(5, Transaction::new().delete("a").put("b", "3")),
        unanswered(7, put("a", "4")),
        wrote(8..9, create("b", "6"), 6),
    ];
    assert_eq!(accepts(events).happened, 3);
}

#[test]
fn blocks_with_gaps() {
    accepts([took(1..9, 10..15), took(2..3, 0..5), took(4..5, 5..7), took(10..11, 20..21)]);
}
