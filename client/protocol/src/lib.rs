//! The ledger protocol of Inkfast: everything that decides, and nothing that does I/O.
//!
//! # The promise
//! A *ledger* is an append-only sequence of *entries*, numbered from 0 without gaps, with one
//! writer. An entry that was acknowledged to the writer is in the ledger forever, with the same
//! bytes, for every reader; once a ledger is closed its end never changes. There is no leader
//! among the *bookies* that store the entries and no consensus on the path of an append: a
//! versioned compare-and-set (CAS) on the ledger's metadata decides who may end it and who holds
//! it, and that is needed only when a ledger is created, taken over or closed, or a bookie fails.
//!
//! # Words
//! | word | meaning |
//! |---|---|
//! | ensemble (E) | the bookies that the entries of a fragment are striped over; a *place* is an index into it |
//! | write quorum (Qw) | each entry goes to Qw bookies: its *write set* is the places (e + i) mod E, i in 0..Qw |
//! | ack quorum (Qa) | an entry is acknowledged once Qa of its write set have it on disk and every lower entry is acknowledged |
//! | fragment | a run of entries with one ensemble; a ledger is a list of fragments |
//! | last add confirmed (LAC) | the highest acknowledged entry; "none yet" is a value of its own |
//! | tenure | counts the bookies that a place has had; an acknowledgement counts only in its own |
//! | fence | the durable mark on a bookie that refuses the old writer from then on |
//! | recovery | what another client does to close a ledger whose writer is gone |
//!
//! # Append
//! The [`writer`] numbers entries and sends each, with the LAC of that moment, to its write set.
//! A bookie's [`gate`] lets it in, the bookie puts it on disk, and answers. The writer confirms
//! strictly in order. When one append has failed it can only close: an entry id is never used
//! for other bytes.
//!
//! # Ensemble change
//! A bookie that fails, hangs or refuses is replaced at its place, from the first entry on that is
//! not confirmed: that is a new fragment, and a CAS makes it so. Until the CAS is known to have
//! won, either ensemble may be the one that others find. So an entry counts only on places that are
//! the same in both: what the replaced bookie has acknowledged is taken back, and its replacement
//! is sent nothing. When the CAS has won, a new tenure begins at the place, which tells its answers
//! from older ones, and the replacement is sent all that is not confirmed. A CAS without an answer
//! settles nothing: it is asked again until a newer version, or one that won, shows what happened.
//! A bookie that comes back to its own place needs no CAS, since the metadata names it all the
//! time. Where there is no replacement the writer goes on while an ack quorum answers, and waits
//! below that.
//!
//! # One writer
//! The writer's UUID goes with its adds, and a bookie takes the adds of a ledger from the first
//! writer it saw, and from recovery. A bookie that refuses because of a *fence* makes the writer
//! read the metadata again, and so do too few bookies that answer: if somebody has begun to recover
//! the ledger, the writer is fenced and stops.
//!
//! # Recovery
//! A [`recovery`] takes the ledger over by a CAS from open to in recovery, fences the last
//! ensemble until in every write set fewer than Qa bookies are left unfenced, and reads forward
//! from the highest LAC it was told, fencing with each read. One verified copy makes an entry
//! recoverable, and it is written back, the very bytes, until Qa of its write set have it. An
//! entry is *absent* only when so many of its write set say that they never stored it that no ack
//! quorum can have it. There the ledger ends; a CAS to closed says so, and decides between any
//! number of recoveries and the writer.
//!
//! A bookie that does not take what is written back is replaced, from the first entry on that is
//! not safe. Only the CAS to closed makes that known: until then every recovery fences and reads
//! the ensemble that the writer had, and so they all find the same end.
//!
//! "I don't know" is not "I don't have it": a bookie says [`Refusal::Absent`] only when it is
//! certain, and every other refusal, silence included, decides nothing.
//!
//! # Reads
//! The [`reader`] asks one bookie of an entry's write set, and the next when that one refuses. It
//! reads only what is known to be confirmed. Every copy is verified where it arrives.
//!
//! The [`tail`] follows a ledger that is written: bookies push to it what is confirmed, and how far
//! that is.
//!
//! # How the machines work
//! `Writer`, `Reader`, `Tail`, `Recovery` and the bookie's `Gate` have one shape: inputs are `on_*`,
//! and outputs are taken from `next_action` until there is none. They are plain values: `Clone`,
//! `Eq`, `Hash`, with ordered maps, so that a model checker can drive the code that ships. Every
//! rule that counts bookies is a method of [`Replication`].
//!
//! # Not here
//! No sockets, files, clocks, randomness, threads, logs or metrics: whoever drives a machine
//! brings them. Nothing fills the copies that a failed bookie has missed: an entry that was
//! confirmed on Qa bookies before the change stays on those.

pub use entry::{
    ENTRY_BYTES_MAX, ENTRY_HEADER_BYTES, Entry, EntryError, EntryHeader, PAYLOAD_BYTES_MAX, Run,
};
pub use ids::{BookieId, EntryId, LedgerId, MetadataVersion, Tenure, WriterId};
pub use messages::Refusal;
pub use metadata::{Fragment, LedgerMetadata, MetadataError, State};
pub use quorum::{ENSEMBLE_MAX, Places, Replication};

mod entry;
pub mod gate;
mod ids;
pub mod messages;
pub mod metadata;
mod quorum;
pub mod reader;
pub mod recovery;
pub mod tail;
pub mod writer;
