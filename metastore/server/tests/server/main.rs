//! The metastore daemon over real QUIC and real files.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use inkfast_metastore::messages::{Request, answer_from_frame, encode_request};
use inkfast_metastore::state::{Answer, Operation};
use inkfast_metastore::{Error, Metastore, RemoteMetastore, Scan, Transaction, conformance};
use inkfast_metastore_server::{Config, Error as ServerError, MetastoreServer};
use inkfast_wire::{
    Authority, Connection, Endpoint, Frame, Identity, Net, Peer, Remote, Role, Server, Service,
    Stream, Target, serve,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

mod members;
mod watches;

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn conforms() {
    let place = Place::new();
    let server = place.start().await;
    conformance::run(&place.client(&server)).await;
    server.stop().await;
}

#[tokio::test]
async fn a_restart_loses_nothing_and_goes_on_with_the_revision() {
    let place = Place::new();
    let server = place.start().await;
    let store = place.client(&server);
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let mut version =
        store.commit(Transaction::new().put_leased("leased", "1", lease)).await.unwrap();
    assert_eq!(store.next_sequence("numbers", 7).await, Ok(0..7));
    let cluster = store.cluster().await.unwrap();
    assert_eq!(cluster, server.cluster());
    let mut server = server;
    for round in 0..3 {
        server.stop().await;
        server = place.start().await;
        let store = place.client(&server);
        assert_eq!(store.cluster().await, Ok(cluster));
        let next = store.commit(Transaction::new().put(format!("key/{round}"), "2")).await.unwrap();
        assert_eq!(next.get(), version.get() + 1, "no revision is lost or used again");
        version = next;
    }
    let store = place.client(&server);
    assert_eq!(store.scan(Scan::new("key/")).await.unwrap().entries.len(), 3);
    assert_eq!(store.next_sequence("numbers", 1).await, Ok(7..8));
    assert_eq!(store.get("leased").await.unwrap().unwrap().lease, Some(lease));
    assert_eq!(store.keep_alive(lease).await, Ok(()));
    assert_eq!(store.end_lease(lease).await, Ok(()));
    assert_eq!(store.get("leased").await, Ok(None));
    assert_ne!(store.grant_lease(Duration::from_secs(60)).await, Ok(lease));
    server.stop().await;
}

#[tokio::test]
async fn a_lease_has_its_whole_ttl_after_a_restart_and_then_expires() {
    const TTL: Duration = Duration::from_secs(1);
    let place = Place::new();
    let server = place.start().await;
    let store = place.client(&server);
    let lease = store.grant_lease(TTL).await.unwrap();
    store.commit(Transaction::new().put_leased("leased", "1", lease)).await.unwrap();
    server.stop().await;
    let restarted = Instant::now();
    let server = place.start().await;
    let store = place.client(&server);
    let vanished = async {
        while store.get("leased").await.unwrap().is_some() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, vanished).await.unwrap();
    assert!(restarted.elapsed() >= TTL, "after {:?}", restarted.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn what_was_answered_is_in_a_copy_of_the_file() {
    let place = Place::new();
    let server = place.start().await;
    let store = place.client(&server);
    for number in 0..5 {
        let version =
            store.commit(Transaction::new().put(format!("key/{number}"), "1")).await.unwrap();
        let copy = place.copied(&server);
        let copied = copy.start().await;
        let entry = copy.client(&copied).get(&format!("key/{number}")).await.unwrap().unwrap();
        assert_eq!(entry.version, version);
        copied.stop().await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_was_dropped_lost_nothing() {
    let place = Place::new();
    let server = place.start().await;
    let store = place.client(&server);
    let version = store.commit(Transaction::new().put("key", "1")).await.unwrap();
    drop(server);
    let server = timeout(DEADLINE, async {
        loop {
            match place.try_start().await {
                Ok(server) => return server,
                Err(ServerError::InUse { .. }) => sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(place.client(&server).get("key").await.unwrap().unwrap().version, version);
    server.stop().await;
}

#[tokio::test]
async fn a_retry_gets_the_first_answer() {
    let place = Place::new();
    let mut server = place.start().await;
    let create = change(Operation::Commit(Transaction::new().create("once", "1")));
    let numbers = change(Operation::NextSequence { name: "numbers".into(), count: 3 });
    let grant = change(Operation::GrantLease { ttl: Duration::from_secs(60) });
    place.client(&server).get("once").await.unwrap();
    let connection = place.connection(&server).await;
    let created = ask(&connection, &create).await;
    assert!(matches!(created, Ok(Answer::Committed(_))), "{created:?}");
    let lost = change(Operation::Commit(Transaction::new().create("once", "2")));
    let conflict = ask(&connection, &lost).await;
    assert!(matches!(conflict, Err(Error::Conflict { .. })), "{conflict:?}");
    assert_eq!(ask(&connection, &numbers).await, Ok(Answer::Sequence(0..3)));
    let granted = ask(&connection, &grant).await;

    // The second lives after the key is gone, so only memory can give these answers.
    let delete = change(Operation::Commit(Transaction::new().delete("once")));
    assert!(ask(&connection, &delete).await.is_ok());
    for _ in 0..2 {
        // It leads from then on, and answers without being asked again.
        place.client(&server).get("once").await.unwrap();
        let connection = place.connection(&server).await;
        assert_eq!(ask(&connection, &create).await, created);
        assert_eq!(ask(&connection, &lost).await, conflict);
        assert_eq!(ask(&connection, &numbers).await, Ok(Answer::Sequence(0..3)));
        assert_eq!(ask(&connection, &grant).await, granted);
        server.stop().await;
        server = place.start().await;
    }
    let store = place.client(&server);
    assert_eq!(store.get("once").await, Ok(None));
    assert_eq!(store.next_sequence("numbers", 1).await, Ok(3..4));
    server.stop().await;
}

#[tokio::test]
async fn a_request_waits_for_a_restart() {
    let mut place = Place::new();
    let server = place.start().await;
    place.listen = server.address().to_string();
    let store = place.client(&server);
    store.commit(Transaction::new().put("key", "1")).await.unwrap();
    server.stop().await;
    let (outcome, server) =
        tokio::join!(store.commit(Transaction::new().create("late", "1")), place.start());
    let version = outcome.unwrap();
    assert_eq!(store.get("late").await.unwrap().unwrap().version, version);
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_answered_with_words() {
    let place = Place::new();
    let server = place.start().await;
    let connection = place.connection(&server).await;
    for (kind, body) in [(1, &b""[..]), (1, b"\xff\xff"), (1, b"\x0a\x00"), (77, b"x")] {
        let frame = Frame { kind, body: body.into() };
        let answer = connection.request(frame, DEADLINE).await.unwrap();
        let answer = answer_from_frame(answer).unwrap();
        assert!(matches!(answer, Err(Error::BadRequest { .. })), "{kind} {body:?}: {answer:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_error_names_the_addresses() {
    let place = Place::new();
    let endpoint = place.endpoint();
    let nobody = ["127.0.0.1:1".to_string(), "127.0.0.1:2".to_string()];
    let store = RemoteMetastore::new(&endpoint, nobody.to_vec(), Duration::from_secs(5));
    let error = store.commit(Transaction::new().put("key", "1")).await.unwrap_err();
    let Error::Unavailable { why } = &error else { panic!("nothing was sent: {error}") };
    assert!(nobody.iter().all(|address| why.contains(address)), "{why}");

    let store = RemoteMetastore::new(&endpoint, Vec::new(), DEADLINE);
    let error = store.get("key").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_client_of_another_authority_is_told_soon() {
    let (place, other) = (Place::new(), Place::new());
    let server = place.start().await;
    let asked = Instant::now();
    let error = other.client(&server).get("key").await.unwrap_err();
    assert!(asked.elapsed() < DEADLINE / 2, "after {:?}", asked.elapsed());
    let Error::Unavailable { why } = &error else { panic!("{error}") };
    assert!(why.contains("certificate"), "{why}");
    server.stop().await;
}

#[tokio::test]
async fn the_outcome_is_unknown_when_nobody_answers() {
    let place = Place::new();
    let silent = place.start_silent(Uuid::new_v4()).await;
    let address = silent.local_addr().to_string();
    let timeout = Duration::from_secs(1);
    let store = RemoteMetastore::new(&place.endpoint(), vec![address.clone()], timeout);
    let error = store.commit(Transaction::new().put("key", "1")).await.unwrap_err();
    let Error::TimedOut { why, .. } = &error else { panic!("it was sent: {error}") };
    assert!(why.contains(&address), "{why}");
    silent.close("the test is over").await;
}

#[tokio::test]
async fn another_member_is_asked_when_one_does_not_answer() {
    let place = Place::new();
    let server = place.start().await;
    let silent = place.start_silent(server.cluster()).await;
    let addresses = [silent.local_addr(), server.address()].map(|it| it.to_string());
    let store = RemoteMetastore::new(&place.endpoint(), addresses.to_vec(), DEADLINE);
    let version = store.commit(Transaction::new().create("key", "1")).await.unwrap();
    let asked = Instant::now();
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    assert!(asked.elapsed() < Duration::from_secs(2), "the one that answered is asked first");
    silent.close("the test is over").await;
    server.stop().await;
}

#[tokio::test]
async fn a_directory_is_used_once() {
    let place = Place::new();
    let server = place.start().await;
    let refused = place.try_start().await.err().unwrap();
    assert!(matches!(refused, ServerError::InUse { .. }), "{refused}");
    server.stop().await;
    place.start().await.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_refused() {
    let place = Place::new();
    let server = place.start().await;
    let mut other = place.copied(&server);
    other.listen = server.address().to_string();
    let refused = other.try_start().await.err().unwrap();
    let words = refused.to_string();
    assert!(matches!(refused, ServerError::Wire(_)), "{words}");
    assert!(words.contains(&other.listen), "{words}");
    server.stop().await;
}

#[tokio::test]
async fn an_address_that_nobody_can_reach_is_refused() {
    let place = Place::new();
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let config = Config { listen: listen.into(), ..place.config() };
        let refused = MetastoreServer::start(config).await.err().unwrap().to_string();
        assert!(refused.contains(listen) && refused.contains("--advertise"), "{refused}");
    }
    assert!(!place.dir().exists(), "nothing was made");
    let advertise = Some("127.0.0.1:7000".into());
    let config = Config { listen: "0.0.0.0:0".into(), advertise, ..place.config() };
    MetastoreServer::start(config).await.unwrap().stop().await;
}

#[tokio::test]
async fn a_directory_of_something_else_is_refused() {
    let place = Place::new();
    fs::create_dir_all(place.dir()).unwrap();
    fs::write(place.dir().join("bookie"), "").unwrap();
    let refused = place.try_start().await.err().unwrap();
    assert!(
        matches!(&refused, ServerError::Directory { why, .. } if why.contains("bookie")),
        "{refused}"
    );
    assert_eq!(fs::read_dir(place.dir()).unwrap().count(), 1, "nothing is left there");

    fs::write(place.dir().join("log.redb"), "not a database").unwrap();
    let refused = place.try_start().await.err().unwrap();
    assert!(matches!(refused, ServerError::NotAMetastore { .. }), "{refused}");
    assert_eq!(fs::read(place.dir().join("log.redb")).unwrap(), b"not a database");
}

/// Where a server lives: its directory and certificates.
struct Place {
    root: TempDir,
    certs: PathBuf,
    listen: String,
}

impl Place {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        let certs = root.path().join("certs");
        let authority = Authority::open_or_create(&certs, "test").unwrap();
        authority.issue(Role::Metastore, None).unwrap();
        authority.issue(Role::Client, None).unwrap();
        Self { root, certs, listen: "127.0.0.1:0".into() }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("metastore")
    }

    fn identity(&self, role: Role) -> Identity {
        Identity::load(&self.certs, role, None).unwrap()
    }

    async fn start(&self) -> MetastoreServer {
        self.try_start().await.unwrap()
    }

    async fn try_start(&self) -> Result<MetastoreServer, ServerError> {
        MetastoreServer::start(self.config()).await
    }

    /// Starts a member that joins the cluster of another.
    async fn join(&self, other: &MetastoreServer) -> MetastoreServer {
        let join = vec![other.address().to_string()];
        MetastoreServer::start(Config { join, ..self.config() }).await.unwrap()
    }

    fn config(&self) -> Config {
        Config {
            dir: self.dir(),
            listen: self.listen.clone(),
            advertise: None,
            join: Vec::new(),
            identity: self.identity(Role::Metastore),
            net: Net::Os,
        }
    }

    /// Makes a place with a copy of the file as it is now, while the server runs.
    fn copied(&self, _running: &MetastoreServer) -> Self {
        let root = TempDir::new().unwrap();
        let copy = Self { root, certs: self.certs.clone(), listen: "127.0.0.1:0".into() };
        fs::create_dir_all(copy.dir()).unwrap();
        for file in ["log.redb", "state.redb"] {
            fs::copy(self.dir().join(file), copy.dir().join(file)).unwrap();
        }
        copy
    }

    /// Starts what lets callers in and never answers them.
    async fn start_silent(&self, cluster: Uuid) -> Endpoint {
        let server = Server {
            listen: self.listen.clone(),
            instance: Uuid::new_v4(),
            cluster,
            reset_key: [0; 64],
            roles: &[Role::Client],
        };
        let endpoint =
            Endpoint::server(&Net::Os, &self.identity(Role::Metastore), server).await.unwrap();
        tokio::spawn(serve(endpoint.clone(), Silent));
        endpoint
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::client(&Net::Os, &self.identity(Role::Client), Uuid::new_v4(), None).unwrap()
    }

    fn client(&self, server: &MetastoreServer) -> RemoteMetastore {
        RemoteMetastore::new(&self.endpoint(), vec![server.address().to_string()], DEADLINE)
    }

    async fn connection(&self, server: &MetastoreServer) -> Connection {
        let addresses = vec![server.address().to_string()];
        let target = Target { role: Role::Metastore, instance: None, addresses };
        Remote::new(&self.endpoint(), target).connection().await.unwrap()
    }
}

#[derive(Clone)]
struct Silent;

impl Service for Silent {
    async fn serve(&self, _: Arc<Peer>, _stream: Stream) {
        pending().await
    }
}

fn change(operation: Operation) -> Frame {
    encode_request(Request::Change { request: Uuid::new_v4(), operation })
}

async fn ask(connection: &Connection, request: &Frame) -> Result<Answer, Error> {
    let answer = connection.request(request.clone(), DEADLINE).await.unwrap();
    answer_from_frame(answer).unwrap()
}
