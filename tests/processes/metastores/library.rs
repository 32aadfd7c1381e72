//! The client library in the test's own process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use inkfast::{Client, Config, LedgerId};
use inkfast_metastore::{DEFAULT_TIMEOUT, Metastore, RemoteMetastore};
use inkfast_wire::{Endpoint, Identity, Net, Role};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// A runtime for what the library does, and what it has to know.
pub(crate) struct Library {
    runtime: Runtime,
    certs: PathBuf,
    members: Vec<SocketAddr>,
}

impl Library {
    pub(crate) fn new(certs: PathBuf, members: Vec<SocketAddr>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { runtime, certs, members }
    }

    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn(future)
    }

    pub(crate) fn client(&self) -> Client {
        let members = self.members.iter().map(SocketAddr::to_string).collect();
        self.run(Client::connect(Config::new(members, self.identity()))).unwrap()
    }

    /// The metastore as all members together make it.
    pub(crate) fn store(&self) -> Arc<dyn Metastore> {
        self.store_of(&self.members, DEFAULT_TIMEOUT)
    }

    /// The metastore as these members make it, with other patience than usual.
    pub(crate) fn store_of(
        &self,
        members: &[SocketAddr],
        patience: Duration,
    ) -> Arc<dyn Metastore> {
        let _entered = self.runtime.enter();
        let endpoint = Endpoint::client(&Net::Os, &self.identity(), Uuid::new_v4(), None).unwrap();
        let members = members.iter().map(SocketAddr::to_string).collect();
        Arc::new(RemoteMetastore::new(&endpoint, members, patience))
    }

    /// The ids of all ledgers, ascending.
    pub(crate) fn ledgers(&self) -> Vec<LedgerId> {
        let client = self.client();
        let ids = client.list_ledgers(None).map_ok(|metadata| metadata.ledger);
        self.run(ids.try_collect()).unwrap()
    }

    fn identity(&self) -> Identity {
        Identity::load(&self.certs, Role::Client, None).unwrap()
    }
}
