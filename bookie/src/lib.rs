//! The bookie of Inkfast: stores the entries of ledgers.
//!
//! # One append, followed
//! A client's stream arrives in `service`, which verifies each entry and hands what has arrived
//! to the `store` of the ledger's directory. The one task there asks the ledger's gate (the
//! protocol's rules) and pushes what it lets in to the [`log`]. The log writes and syncs a batch;
//! what was queued meanwhile is the next. The store notes where each entry is, tells the gate that
//! it is durable, and the gate's answers go back through `service`. What came together stays
//! together all the way: a run of entries is let in, written and acknowledged at once. An entry is
//! written once.
//!
//! # What is in memory
//! The store has in memory what happened lately: the gates of ledgers in use, and where their last
//! entries are. Now and then a *checkpoint* brings that to the `index` on disk, with the moment of
//! the log up to which it is complete; what is older is found there. A start reads the log from
//! that moment on. The index can be lost or damaged, also while the bookie runs: then it is made
//! from the whole log. `memory` shares out how much all of that may take.
//!
//! The log's last batches are in memory too, as they were written, so that who follows a ledger
//! waits for no disk.
//!
//! # Several directories
//! Each directory has a store of its own, with its log and its index, so that a disk fails alone.
//! All of a ledger is in one of them, which `stores` finds, or decides on when the ledger begins.
//! The directories name each other's logs: if one of them is not there, the ledgers of the others
//! are served in full, and of all else nothing is certain, so that no ledger begins here.
//!
//! # Deletion
//! `collection` asks the metastore which ledgers were deleted, and the store of such a ledger writes
//! a *tombstone* to its log: nothing of the ledger is taken or given out from then on. The index
//! counts what it needs of each segment of the log. A segment of which less than half is needed is
//! *compacted*: what is needed of it is written again, by ledger, at a limited rate. One of which
//! nothing is needed is dropped, once a checkpoint says so, and its file becomes another segment.
//! Tombstones stay: a writer may come late.
//!
//! # What a bookie promises
//! * What it has acknowledged is on its disk, and survives a power loss.
//! * A fence is on disk before it is answered, and so is every add that was let in before it.
//! * It says "never stored" only when it is certain. A damaged log makes every such answer
//!   "unknown", and refuses writers, since a fence may be among what was lost.
//! * When its disks are nearly full it refuses writers, then recoveries, and lets them in again when
//!   there is room. On a disk that is full for all that, writes wait.
//! * Of a ledger that the metastore says was deleted it keeps only that, and of any other everything.
//! * After a failed write or sync it takes no more writes until it is started again, and still
//!   serves what it has.
//! * All of the log but its end is read again about once a week, so that what decays is noticed.
//! * A client that is slow, or does not read what it asked for, delays itself only.
//! * Empty directories are a new bookie, whatever address it is started on.
//!
//! # Layers
//! [`disk`] is the seam to the files, with one implementation that loses what was not synced;
//! [`log`] knows records and nothing of ledgers; `index` knows where entries are; `store` knows
//! ledgers and nothing of the network; `stores` knows all directories; `service` and `registration`
//! face the cluster. [`doctor`] looks at the directory of a bookie that does not run.
//!
//! # Not here
//! A log that has lost something is not compacted, and stays as it is: nothing is fetched from other
//! bookies. The metastore's records of deletions stay too, also when all bookies have collected the
//! ledger. No ledger moves from one directory to another, and a directory that is lost cannot be
//! given up: the bookie's ledgers are to be copied to others, and it begins anew.

pub use daemon::{Bookie, Config};
pub use error::Error;
pub use space::MinFree;

mod collection;
mod daemon;
mod directories;
pub mod disk;
pub mod doctor;
mod error;
pub mod executor;
#[cfg(test)]
mod fuzz;
mod identity;
mod index;
pub mod log;
mod memory;
mod record;
mod registration;
mod service;
mod space;
mod store;
mod stores;
