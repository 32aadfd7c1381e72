//! Ledgers are spread over racks.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cluster::{Cluster, Daemon, lines};

impl Cluster {
    fn add_bookies(&mut self, count: usize, rack: &str) {
        let metastore = self.metastore.address.to_string();
        for number in self.bookies.len()..self.bookies.len() + count {
            let dir = format!("bookie-{number}");
            let args = ["bookie", "--dir", &dir, "--metastore", &metastore, "--certs", "certs"];
            let args = [&args[..], &["--rack", rack]].concat();
            self.bookies.push(Daemon::spawn(self.home(), &args).ready());
        }
    }

    /// Writes a ledger and gives the ids of its bookies.
    fn bookies_of_new_ledger(&self, args: &[&str]) -> BTreeSet<String> {
        let ledger = self.client.write(args, lines(0..5));
        let shown = self.client.run(&["ledger", "show", &ledger, "-o", "json"]).succeeded();
        let shown: Value = serde_json::from_slice(&shown).unwrap();
        let bookies = shown["fragments"][0]["bookies"].as_array().unwrap();
        bookies.iter().map(|bookie| bookie.as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn every_ledger_spans_two_racks_if_there_are_two() {
    let strict = ["ledger", "write", "--strict-racks"];
    let mut cluster = Cluster::start(0);
    cluster.add_bookies(3, "r1");
    let words = cluster.client.run(&strict).failed(1);
    assert!(words.contains("3 in rack r1;"), "{words}");
    let in_r1 = cluster.bookies_of_new_ledger(&[]);

    // By chance alone, the one bookie would not be in all of these.
    cluster.add_bookies(1, "r2");
    for _ in 0..6 {
        for args in [&[][..], &["--strict-racks"]] {
            let bookies = cluster.bookies_of_new_ledger(args);
            assert_eq!(bookies.difference(&in_r1).count(), 1, "{bookies:?}");
        }
    }
}
