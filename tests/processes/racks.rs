//! Ledgers that are to be spread over racks or not to be at all.

use crate::cluster::{Cluster, lines};

#[test]
fn a_strict_ledger_spans_two_racks_or_is_refused() {
    let mut cluster = Cluster::start_in_racks(&[Some("r1"); 3]);
    let words = cluster.client.run(&["ledger", "write", "--strict-racks"]).failed(1);
    assert!(words.contains("3 in rack r1;"), "{words}");

    // By chance alone, the one bookie would not be in all of these.
    let other = cluster.add_bookie_in(Some("r2"));
    for _ in 0..6 {
        let ledger = cluster.client.write(&["--strict-racks"], lines(0..5));
        assert!(cluster.ensemble(&ledger).contains(&other));
    }
}
