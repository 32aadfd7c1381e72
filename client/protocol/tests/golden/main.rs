//! Golden scripts: what each machine does, told in its own few words. The name of a script is
//! the claim that it shows.
//!
//! A script is input, `---`, output. Run with `UPDATE_GOLDENFILES=1` to record the output anew,
//! and review the difference like code.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use test_each_file::test_each_path;

mod gate;
#[path = "../ledgers/mod.rs"]
mod ledgers;
mod metastore;
mod reader;
mod recovery;
mod tail;
mod words;
mod writer;

test_each_path! { in "./client/protocol/testscripts/gate" as gate_does => run_gate }
test_each_path! { in "./client/protocol/testscripts/writer" as writer_does => run_writer }
test_each_path! { in "./client/protocol/testscripts/reader" as reader_does => run_reader }
test_each_path! { in "./client/protocol/testscripts/tail" as tail_does => run_tail }
test_each_path! { in "./client/protocol/testscripts/recovery" as recovery_does => run_recovery }

fn run_gate(script: &Path) {
    goldenscript::run(&mut gate::Bookie::default(), script).unwrap();
}

fn run_writer(script: &Path) {
    goldenscript::run(&mut writer::Runner::default(), script).unwrap();
}

fn run_reader(script: &Path) {
    goldenscript::run(&mut reader::Runner::default(), script).unwrap();
}

fn run_tail(script: &Path) {
    goldenscript::run(&mut tail::Runner::default(), script).unwrap();
}

fn run_recovery(script: &Path) {
    goldenscript::run(&mut recovery::Runner::default(), script).unwrap();
}
