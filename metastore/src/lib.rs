//! The metastore of Inkfast as its users see it: ordered keys, transactions, leases, sequences,
//! watches.
//!
//! A metastore keeps the little that a whole cluster has to agree on. It knows nothing about
//! ledgers: whoever uses it maps what it has to keep to keys. [`Metastore`] is the contract;
//! [`RemoteMetastore`] reaches the real one, [`MemoryMetastore`] is one for tests, and
//! [`conformance`] is the suite that both pass. [`history`] checks that what many clients did and saw
//! at the same time is linearizable.
//!
//! # What is promised
//!
//! *Keys and values.* Keys are text in byte order, values are bytes. Every store has one
//! *revision*, a number that grows with each transaction; the revision at which a key was last
//! written is the key's [`Version`]. **A version is never used twice**, not even when a key was
//! deleted in between, so "it still has the version that I read" means "nobody has written it".
//!
//! *Transactions.* All conditions of a [`Transaction`] hold and all of its writes happen at one
//! revision, or nothing happens and the answer is [`Error::Conflict`]. This one operation is
//! also put, create, and compare-and-set of one key.
//!
//! *Linearizable.* Each request takes effect at one moment between its call and its answer, and a
//! read sees every write that was answered before it began. What was answered is on disk, of a
//! majority where there are several members: no crash takes it back.
//!
//! *Stale reads* ([`Metastore::get_stale`], [`Metastore::scan_stale`]) are answered by any member,
//! also one that is cut off, and may be from the past.
//!
//! *A lost answer.* A change without an answer is sent again under the same request id, and the
//! metastore gives it its first answer instead of doing it twice (it remembers answers for
//! [a minute](state::REMEMBERED_MS), twice as long as anyone tries). When time runs out the error is [`Error::TimedOut`],
//! and then **the outcome is unknown**: the change may have been made, and may even be made a
//! little later. To read the old version is no proof; a newer one is.
//!
//! *Leases.* A key written under a lease vanishes when the lease ends: on request, or when its
//! holder has not been heard of for the lease's TTL. Leases are **for liveness only**. They end by
//! the metastore's clock, they live longer when it restarts or another member leads, and a holder
//! learns late that its lease has ended. So what must be exclusive is guarded by versions, never by
//! a lease.
//!
//! *Sequences.* [`Metastore::next_sequence`] gives out blocks of numbers, each number once.
//! Numbers may be lost (a block that was given out and never used), never repeated.
//!
//! *Watches.* A [`Watch`] tells what becomes of the keys of a prefix, from a revision on: each
//! change once, in order of revision, and all changes of a revision together, so never half a
//! transaction. **It loses nothing or says so:** only the recent changes are remembered (the last
//! [100,000](watches::RECENT_MAX) or [64 MiB](watches::RECENT_BYTES_MAX) of the whole store, in
//! memory, so none from before a restart), and a watch that wants an older one ends with
//! [`Error::Compacted`]. Its caller scans again and watches from the [page's
//! revision](Page::revision). A watch outlives connections and members: it goes on at another after
//! the last revision that it knows of, and learns every [few seconds](watches::PROGRESS_INTERVAL)
//! of those that did nothing to its prefix. So a restart costs a watch nothing if what was changed
//! in the seconds before was its own, and otherwise a scan. A watch that is not read is asked for
//! nothing, and costs the metastore no memory; but where a wait was broken off, its one answer (64
//! KiB, or a large transaction) stays in the process's connection until it is read. Some dozens of
//! large ones fill that, and then hold up the other requests of the process: drop a watch that is
//! not read any more. What is told is on disk. It is told soon, but a watch may be behind a read.
//!
//! # How it is made
//!
//! A change is a [`Command`](state::Command): an operation, with the request's id and time.
//! [`state::apply`] is the only code that changes anything. It decides by the command and the
//! [`rows`] alone, so every store that applies the same commands in the same order is the same: the
//! one in memory, the one on disk, and each of several copies. [`messages`] says what goes over the
//! wire, [`limits`] what is accepted. What a command changed, [`watches`] remembers for a while,
//! for those who watch; a revision means the same in every copy, so a watch can go on at any.
//!
//! Of several members one leads and answers everything but stale reads. [`RemoteMetastore`] finds
//! it, and the next one when it is lost; that is all that a caller notices of the others. It also
//! carries what only an operator asks for: [who is there](MemberStatus), changes of the members,
//! and a [`Backup`].
//!
//! # What is not here
//!
//! No history: only the last value of a key is kept, and recent changes for a while. A watch does
//! not tell what a key was before a change. No transaction reads a value: it compares versions.
//! Nothing about who may do what: every process of the cluster may do everything.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

pub mod conformance;
mod error;
pub mod history;
pub mod leases;
pub mod limits;
mod members;
pub mod memory;
pub mod messages;
mod remote;
pub mod rows;
pub mod state;
mod types;
mod watch;
pub mod watches;

pub use error::Error;
pub use limits::{
    KEY_BYTES_MAX, PAGE_ENTRIES_MAX, TRANSACTION_BYTES_MAX, TRANSACTION_OPERATIONS_MAX,
    VALUE_BYTES_MAX,
};
pub use members::{MemberInfo, MemberStatus};
pub use memory::MemoryMetastore;
pub use remote::{Backup, RemoteMetastore};
pub use types::{Change, Condition, KeyValue, LeaseId, Page, Scan, Transaction, Version, Write};
pub use watch::Watch;

/// How long a request is tried, if nothing else is wanted.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// A store of keys that a whole cluster shares. What all of it promises is said
/// [above](crate#what-is-promised).
///
/// Any request may fail with [`Error::BadRequest`] (a rule is broken), [`Error::Unavailable`]
/// (nothing was done) or [`Error::TimedOut`] (the outcome of a change is unknown). Dropping a
/// request's future takes nothing back.
#[async_trait]
pub trait Metastore: Send + Sync {
    /// Reads a key; none if it is absent.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error>;

    /// Reads a page of the keys that begin with a prefix.
    async fn scan(&self, scan: Scan) -> Result<Page, Error>;

    /// Reads a key as it is now or was at some time: what was answered may be newer.
    ///
    /// Any member answers this, also one that is cut off from the others, so it works as long as
    /// one is reached. Two such reads may even go back in time. Use it for what is only shown, or
    /// is checked by its version when it is used.
    async fn get_stale(&self, key: &str) -> Result<Option<KeyValue>, Error>;

    /// Reads a page, as [`get_stale`](Self::get_stale) reads a key. The page itself is of one
    /// moment, the one that its revision names.
    async fn scan_stale(&self, scan: Scan) -> Result<Page, Error>;

    /// Makes all writes if all conditions hold, and returns the version of what was written.
    ///
    /// Fails with [`Error::Conflict`] if a condition does not hold and with
    /// [`Error::LeaseNotFound`] if a lease that is named has ended; nothing is written then.
    async fn commit(&self, transaction: Transaction) -> Result<Version, Error>;

    /// Takes `count` numbers that were never given out before under this name, beginning with 0.
    async fn next_sequence(&self, name: &str, count: u64) -> Result<Range<u64>, Error>;

    /// Begins a lease that ends when nothing has kept it alive for `ttl`.
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error>;

    /// Gives a lease its whole TTL from now, or fails with [`Error::LeaseNotFound`].
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error>;

    /// Ends a lease and removes its keys, or fails with [`Error::LeaseNotFound`].
    async fn end_lease(&self, lease: LeaseId) -> Result<(), Error>;

    /// Tells the changes of the keys that begin with a prefix, made after a revision that the
    /// caller has seen: the revision of a page (of several, the first one's), or of the last
    /// change that another watch has told. After revision 0 come all changes there ever were.
    ///
    /// Fails with [`Error::Compacted`] if they are no longer all remembered, and with
    /// [`Error::BadRequest`] if the store has not reached the revision.
    async fn watch(&self, prefix: &str, after: Version) -> Result<Watch, Error>;

    /// Returns the id of the cluster, made when its first metastore was started.
    async fn cluster(&self) -> Result<Uuid, Error>;
}
