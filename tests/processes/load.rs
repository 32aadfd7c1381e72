//! Writers that always have more to write, and readers that follow them.

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{Client, Writer, lines};
use crate::process::{Heard, Outcome, Process, Signal};

/// A writer of numbered lines.
pub(crate) struct Load {
    writer: Writer,
    sent: u64,
    /// The longest that was waited for a confirmation while there was more to write.
    pub(crate) longest_stall: Duration,
}

/// An `inkfast ledger tail` of numbered lines, each of which is checked as it comes.
pub(crate) struct Tail {
    process: Process,
    next: u64,
}

/// So many lines are there to be written beyond what is known to be confirmed: enough that the
/// writer goes on while the test looks away.
const AHEAD: u64 = 20_000;

/// How long a test waits for what is to come by itself while it does something else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The pause between two looks at what is to come.
const PAUSE: Duration = Duration::from_millis(50);

impl Load {
    pub(crate) fn start(client: &Client, sizes: &[&str]) -> Self {
        Self { writer: client.writer(sizes), sent: 0, longest_stall: Duration::ZERO }
    }

    pub(crate) fn ledger(&self) -> &str {
        &self.writer.ledger
    }

    /// How many entries are confirmed, as far as that was waited for.
    pub(crate) fn confirmed(&self) -> u64 {
        self.writer.confirmed.map_or(0, |entry| entry + 1)
    }

    /// Writes at full rate until so many more entries are confirmed.
    pub(crate) fn go_on(&mut self, entries: u64) {
        let end = self.confirmed() + entries;
        while self.confirmed() < end {
            if self.sent < self.confirmed() + AHEAD {
                self.send(AHEAD);
            }
            let since = Instant::now();
            self.writer.wait_confirmed(self.confirmed());
            self.longest_stall = self.longest_stall.max(since.elapsed());
        }
    }

    /// Writes at full rate for this long.
    pub(crate) fn go_on_for(&mut self, time: Duration) {
        let since = Instant::now();
        while since.elapsed() < time {
            self.go_on(1);
        }
    }

    /// Writes so many more lines, and waits until all that were sent are confirmed.
    pub(crate) fn step(&mut self, entries: u64) {
        self.send(entries);
        self.writer.wait_confirmed(self.sent - 1);
    }

    /// Sends more lines, and waits until nothing has been confirmed for so long.
    pub(crate) fn wait_silent(&mut self, time: Duration) {
        self.send(100);
        self.writer.wait_silent(time);
        assert!(self.confirmed() < self.sent, "all is confirmed, so that it has no need to wait");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.writer.signal(signal);
    }

    /// Lets it close its ledger. Gives the ledger and its bytes.
    pub(crate) fn close(mut self) -> (String, Vec<u8>) {
        self.writer.end_input();
        let ledger = self.writer.ledger.clone();
        let (outcome, confirmed) = self.writer.outcome();
        outcome.succeeded();
        assert_eq!(confirmed.map_or(0, |entry| entry + 1), self.sent);
        (ledger, lines(0..self.sent))
    }

    /// Kills it. Gives the ledger and the last entry that was confirmed.
    pub(crate) fn kill(self) -> (String, Option<u64>) {
        (self.writer.ledger.clone(), self.writer.kill())
    }

    /// Gives it more lines and waits until it fails by itself; gives the ledger, how it ended and
    /// the last entry that was confirmed.
    pub(crate) fn failure(mut self) -> (String, Outcome, Option<u64>) {
        self.send(AHEAD);
        let ledger = self.writer.ledger.clone();
        let (outcome, confirmed) = self.writer.outcome();
        (ledger, outcome, confirmed)
    }

    fn send(&mut self, entries: u64) {
        self.writer.send(lines(self.sent..self.sent + entries));
        self.sent += entries;
    }
}

impl Tail {
    /// Begins to print a ledger of numbered lines from this entry.
    pub(crate) fn start(client: &Client, ledger: &str, from: u64) -> Self {
        let number = from.to_string();
        // The first entry is where it begins by itself.
        let range = if from == 0 { &[][..] } else { &["--from", &number] };
        let mut process = client.start(&[&["ledger", "tail", ledger], range].concat());
        process.end_input();
        Self { process, next: from }
    }

    /// Waits until it has printed every entry to this one.
    pub(crate) fn wait_for(&mut self, entry: u64) {
        while self.next <= entry {
            let line = self.process.next_line();
            let line = line.unwrap_or_else(|| panic!("the tail ended before entry {entry}"));
            self.check(&line);
        }
    }

    /// Waits until it has printed nothing for so long. It runs still.
    pub(crate) fn wait_silent(&mut self, time: Duration) {
        loop {
            match self.process.hear(time) {
                Heard::Line(line) => self.check(&line),
                Heard::Silence => return,
                Heard::End => panic!("the tail ended before entry {}", self.next),
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until it ends by itself and well, and panics unless the last line that it has
    /// printed is the last one of these bytes.
    pub(crate) fn assert_ends_with(mut self, bytes: &[u8]) {
        while let Some(line) = self.process.next_line() {
            self.check(&line);
        }
        self.process.outcome().succeeded();
        let written = bytes.iter().filter(|&&b| b == b'\n').count() as u64;
        assert_eq!(self.next, written, "entries that were tailed, and that were written");
    }

    /// Waits until it ends by itself; gives how.
    pub(crate) fn outcome(self) -> Outcome {
        self.process.outcome()
    }

    fn check(&mut self, line: &[u8]) {
        let expected = lines(self.next..self.next + 1);
        assert!(line == expected, "`{}` as entry {}", String::from_utf8_lossy(line), self.next);
        self.next += 1;
    }
}

/// Whether outages last as long as real ones, and stalls that are too long count.
pub(crate) fn is_long() -> bool {
    env::var_os("INKFAST_LONG").is_some()
}

/// How often something is done again: once by default.
pub(crate) fn rounds(long: usize) -> usize {
    if is_long() { long } else { 1 }
}

/// Looks until it is so, and panics if that takes too long.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "still not {what}");
        thread::sleep(PAUSE);
    }
}
