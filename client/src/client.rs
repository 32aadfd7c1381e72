//! The client: creates, opens, recovers, lists and deletes ledgers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use inkfast_metastore::{Metastore, RemoteMetastore};
use inkfast_protocol::{
    EntryId, Fragment, LedgerId, LedgerMetadata, MetadataVersion, Replication, State, WriterId,
    metadata,
};
use inkfast_wire::Endpoint;
use uuid::Uuid;

use crate::append::now_ms;
use crate::bookies::Bookies;
use crate::catalog::{Catalog, Versioned};
use crate::{Config, Error, LedgerReader, LedgerWriter, placement, recover};

/// How many creations whose outcome is unknown a client remembers.
const UNSETTLED_CREATIONS_MAX: usize = 1024;

/// A client of one cluster. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    bookies: Bookies,
    catalog: Catalog,
    /// The name in our certificate.
    name: String,
    /// The writers of ledgers whose creation, under this request id, gave out no writer yet.
    unsettled: Arc<Mutex<BTreeMap<Uuid, WriterId>>>,
}

/// What a new ledger is to be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// How its entries are spread. Three bookies, three copies, two acknowledgements.
    pub replication: Replication,
    /// Whether every entry must go to bookies of two racks, or the creation fails. Otherwise two
    /// racks are only preferred. No.
    pub strict_racks: bool,
    /// The namespace that it is listed under. `default`.
    pub namespace: String,
    /// What is kept with it: at most 64 KiB, keys included.
    pub custom_metadata: BTreeMap<String, Bytes>,
    /// Makes the creation idempotent: a call that failed may be repeated by the same client with
    /// the same id, and there will be one ledger.
    pub request: Option<Uuid>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            replication: Replication::DEFAULT,
            strict_racks: false,
            namespace: "default".to_owned(),
            custom_metadata: BTreeMap::new(),
            request: None,
        }
    }
}

impl Client {
    /// Connects to a cluster: reaches its metastore, and learns which cluster it is.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        if config.metastore.is_empty() {
            return Err(Error::Invalid("no metastore address is configured".to_owned()));
        }
        let endpoint = Endpoint::client(&config.net, &config.identity, Uuid::new_v4(), None)?;
        let store = RemoteMetastore::new(&endpoint, config.metastore, config.deadlines.metastore);
        store.cluster().await?;
        let catalog = Catalog::new(Arc::new(store));
        let bookies = Bookies::new(endpoint, catalog.clone(), config.deadlines);
        let name = config.identity.name().name.clone();
        Ok(Self { bookies, catalog, name, unsettled: Arc::default() })
    }

    /// Creates a ledger and returns its writer.
    ///
    /// Fails with [`Error::NotEnoughBookies`] if fewer bookies than the ensemble has are running,
    /// or if racks are strict and too few. A failure may have created the ledger all the same,
    /// unless a request id was given and the call is repeated with it.
    pub async fn create_ledger(&self, options: CreateOptions) -> Result<LedgerWriter, Error> {
        let request = options.request;
        let writer = request.map_or_else(new_writer, |request| self.writer_for(request));
        let registered = self.catalog.registrations().await?;
        let candidates = self.bookies.registry().judge(&registered);
        let ensemble = placement::ensemble(&candidates, options.replication, options.strict_racks)?;
        let metadata = LedgerMetadata {
            ledger: self.catalog.next_ledger_id().await?,
            namespace: options.namespace,
            owner: self.name.clone(),
            writer,
            replication: options.replication,
            state: State::Open,
            fragments: vec![Fragment { first: EntryId::FIRST, length_before: 0, ensemble }],
            created_at_ms: now_ms(),
            request,
            custom: options.custom_metadata,
            modifiable_from: metadata::FORMAT_VERSION,
        };
        let created = match (self.catalog.create(&metadata).await?, request) {
            (Some(version), _) => (version, metadata),
            (None, Some(request)) => self.created_before(request, writer).await?,
            (None, None) => return Err(Error::Invalid("a ledger id was used twice".to_owned())),
        };
        if let Some(request) = request
            && self.unsettled().remove(&request) != Some(writer)
        {
            // Another call of this request was quicker, and has the one writer.
            return Err(Error::AlreadyCreated { request, ledger: created.1.ledger });
        }
        let catalog = self.catalog.clone();
        Ok(LedgerWriter::start(&self.bookies, catalog, created, options.strict_racks))
    }

    /// Opens a ledger for reading, also while it is written. Never fences it.
    pub async fn open_ledger(&self, ledger: LedgerId) -> Result<LedgerReader, Error> {
        Ok(self.reader(self.catalog.ledger(ledger).await?))
    }

    /// Closes the ledger of a writer that is gone, and opens it for reading. If the writer is
    /// alive after all, it is fenced. A ledger that is closed already is just opened.
    ///
    /// Everything that was confirmed to the writer is in the ledger then; what was not confirmed
    /// is there or is not, once and for all. Any number of clients may do this at once, and all
    /// find the same end. Fails with [`Error::NotRecovered`] when too few bookies answer, and may
    /// then be called again.
    pub async fn recover_ledger(&self, ledger: LedgerId) -> Result<LedgerReader, Error> {
        let metadata = recover::recover(&self.bookies, &self.catalog, ledger).await?;
        // Whatever is read later is not older.
        Ok(self.reader((MetadataVersion(0), metadata)))
    }

    /// Lists the ledgers of one namespace, or of all, by ascending id, as they are found: pages
    /// are read one after another while the stream is taken.
    pub fn list_ledgers(
        &self,
        namespace: Option<&str>,
    ) -> impl Stream<Item = Result<LedgerMetadata, Error>> + Send + use<> {
        let (catalog, namespace) = (self.catalog.clone(), namespace.map(str::to_owned));
        let pages = stream::try_unfold(Some(None), move |after| {
            let (catalog, namespace) = (catalog.clone(), namespace.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                let page = catalog.ledgers(namespace.as_deref(), after).await?;
                let next = page.last().map(|metadata| Some(metadata.ledger));
                let page = stream::iter(page).map(Ok::<_, Error>);
                Ok::<_, Error>(Some((page, next)))
            }
        });
        pages.try_flatten()
    }

    /// Returns what the metastore knows of a ledger.
    pub async fn ledger_metadata(&self, ledger: LedgerId) -> Result<LedgerMetadata, Error> {
        Ok(self.catalog.ledger(ledger).await?.1)
    }

    /// Deletes a ledger, whatever its state. Its id is never used again.
    pub async fn delete_ledger(&self, ledger: LedgerId) -> Result<(), Error> {
        self.catalog.delete(ledger).await
    }

    fn reader(&self, metadata: Versioned) -> LedgerReader {
        LedgerReader::new(self.bookies.clone(), self.catalog.clone(), metadata)
    }

    /// Returns the ledger that an earlier try of this request created, if it is ours.
    async fn created_before(&self, request: Uuid, writer: WriterId) -> Result<Versioned, Error> {
        let Some(ledger) = self.catalog.created_by(request).await? else {
            let what = format!("the ledger of request {request} was deleted meanwhile");
            return Err(Error::Invalid(what));
        };
        let created = self.catalog.ledger(ledger).await?;
        if created.1.writer == writer {
            return Ok(created);
        }
        self.unsettled().remove(&request);
        Err(Error::AlreadyCreated { request, ledger })
    }

    /// Returns the writer that the tries of a request have in common until one gives it out: a
    /// ledger never has two writers of one name.
    fn writer_for(&self, request: Uuid) -> WriterId {
        let mut unsettled = self.unsettled();
        if unsettled.len() >= UNSETTLED_CREATIONS_MAX {
            unsettled.pop_first();
        }
        *unsettled.entry(request).or_insert_with(new_writer)
    }

    fn unsettled(&self) -> std::sync::MutexGuard<'_, BTreeMap<Uuid, WriterId>> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_writer() -> WriterId {
    WriterId(Uuid::new_v4())
}
