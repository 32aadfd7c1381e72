//! Certificates, a service that does what it is told, and peers made of QUIC alone.

use std::{net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use inkfast_wire::{
    Authority, Endpoint, Error, Frame, Identity, Net, Peer, Remote, Role, Server, Service, Stream,
    Target, serve,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

pub(crate) const CLUSTER: Uuid = Uuid::from_u128(1);
pub(crate) const SERVER: Uuid = Uuid::from_u128(2);
pub(crate) const CALLER: Uuid = Uuid::from_u128(3);
pub(crate) const STRANGER: Uuid = Uuid::from_u128(99);

/// More than anything here takes, on a machine that is busy.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A directory with the authority of a cluster and one identity of each role.
pub(crate) struct Certs {
    pub(crate) dir: TempDir,
}

impl Certs {
    pub(crate) fn new(cluster: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let authority = Authority::open_or_create(dir.path(), cluster).unwrap();
        for role in Role::ALL {
            authority.issue(role, None).unwrap();
        }
        Self { dir }
    }

    pub(crate) fn identity(&self, role: Role) -> Identity {
        Identity::load(self.dir.path(), role, None).unwrap()
    }

    pub(crate) fn client(&self) -> Endpoint {
        Endpoint::client(&Net::Os, &self.identity(Role::Client), CALLER, Some(CLUSTER)).unwrap()
    }
}

pub(crate) fn server(listen: &str) -> Server {
    Server {
        listen: listen.into(),
        instance: SERVER,
        cluster: CLUSTER,
        reset_key: [5; 64],
        roles: &[Role::Client, Role::Admin],
    }
}

/// Echoes frames, except those of its own kinds.
#[derive(Clone, Default)]
pub(crate) struct Echo {
    /// Where it tells how its streams ended.
    pub(crate) ends: Option<mpsc::UnboundedSender<Result<(), Error>>>,
    /// Lets it go on with what it holds.
    pub(crate) go: Arc<Notify>,
}

/// Answered with as many frames as the body has bytes, then the end.
pub(crate) const COUNT: u8 = 100;
/// Not answered.
pub(crate) const IGNORE: u8 = 101;
/// Not answered until told to; then answered until the caller has had enough.
pub(crate) const HOLD: u8 = 105;
/// Panics.
pub(crate) const PANIC: u8 = 102;
/// Answered with half a frame, then the end.
pub(crate) const HALF: u8 = 103;
/// Answered with the caller's name, by its certificate, and instance.
pub(crate) const WHO: u8 = 104;

impl Service for Echo {
    async fn serve(&self, peer: Arc<Peer>, mut stream: Stream) {
        let end = self.run(&peer, &mut stream).await;
        if let Some(ends) = &self.ends {
            let _ = ends.send(end);
        }
    }
}

impl Echo {
    async fn run(&self, peer: &Peer, stream: &mut Stream) -> Result<(), Error> {
        let Stream { sender, receiver } = stream;
        while let Some(frame) = receiver.next().await? {
            match frame.kind {
                COUNT => {
                    for index in 0..frame.body.len() {
                        let body = frame.body.slice(index..);
                        sender.send(&Frame { kind: COUNT, body }).await?;
                    }
                    break;
                }
                IGNORE => {}
                HOLD => {
                    self.go.notified().await;
                    loop {
                        sender.send(&frame).await?;
                    }
                }
                PANIC => panic!("as the caller wishes"),
                HALF => {
                    sender.send_encoded(&mut [frame.encode().slice(..7)]).await?;
                    break;
                }
                WHO => {
                    let body = format!("{} {}", peer.name, peer.instance).into();
                    sender.send(&Frame { kind: WHO, body }).await?;
                }
                _ => sender.send(&frame).await?,
            }
        }
        sender.finish();
        Ok(())
    }
}

/// Starts a metastore that echoes; gives its endpoint and address.
pub(crate) async fn start(certs: &Certs) -> (Endpoint, String) {
    start_as(certs, server("127.0.0.1:0"), Echo::default()).await
}

pub(crate) async fn start_as(certs: &Certs, server: Server, echo: Echo) -> (Endpoint, String) {
    let identity = certs.identity(Role::Metastore);
    let endpoint = Endpoint::server(&Net::Os, &identity, server).await.unwrap();
    let address = endpoint.local_addr().to_string();
    tokio::spawn(serve(endpoint.clone(), echo));
    (endpoint, address)
}

/// The metastore at an address.
pub(crate) fn target(address: &str) -> Target {
    Target { role: Role::Metastore, instance: None, addresses: vec![address.into()] }
}

pub(crate) fn remote(endpoint: &Endpoint, address: &str) -> Remote {
    Remote::new(endpoint, target(address))
}

pub(crate) fn frame(kind: u8, body: &str) -> Frame {
    Frame { kind, body: body.to_string().into() }
}

/// Sees that a remote's peer answers.
pub(crate) async fn assert_answers(remote: &Remote) {
    let sent = frame(1, "are you there");
    assert_eq!(remote.request(sent.clone(), LONG).await, Ok(sent));
}

/// The caller's first message, as the documentation has it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(crate) versions_min: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) versions_max: u32,
    #[prost(bytes = "vec", optional, tag = "3")]
    pub(crate) cluster: Option<Vec<u8>>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) instance: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "5")]
    pub(crate) wanted: Option<Vec<u8>>,
}

impl Hello {
    /// One that is let in.
    pub(crate) fn good() -> Self {
        Self {
            versions_min: 1,
            versions_max: 1,
            cluster: Some(CLUSTER.into_bytes().to_vec()),
            instance: CALLER.into_bytes().to_vec(),
            wanted: None,
        }
    }
}

/// The callee's answer, as the documentation has it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Welcome {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) cluster: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) instance: Vec<u8>,
}

/// The files that somebody made of QUIC alone uses.
pub(crate) struct RawFiles<'a> {
    pub(crate) ca: &'a Path,
    pub(crate) certificate: &'a Path,
    pub(crate) key: &'a Path,
}

fn raw_parts(
    files: &RawFiles<'_>,
) -> (rustls::RootCertStore, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files.ca).unwrap()).unwrap();
    let certificate = CertificateDer::from_pem_file(files.certificate).unwrap();
    (roots, vec![certificate], PrivateKeyDer::from_pem_file(files.key).unwrap())
}

/// A caller made of QUIC alone, called `client` by its certificate.
pub(crate) fn raw_client(files: &RawFiles<'_>, alpn: &str) -> quinn::Endpoint {
    let (roots, chain, key) = raw_parts(files);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let config = Arc::new(QuicClientConfig::try_from(config).unwrap());
    let mut endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(config));
    endpoint
}

/// A callee made of QUIC alone.
pub(crate) fn raw_server(certs: &Certs) -> quinn::Endpoint {
    let dir = certs.dir.path();
    let files = RawFiles {
        ca: &dir.join("ca.pem"),
        certificate: &dir.join("metastore.pem"),
        key: &dir.join("metastore.key"),
    };
    let (roots, chain, key) = raw_parts(&files);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    );
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"inkfast".to_vec()];
    let config = Arc::new(QuicServerConfig::try_from(config).unwrap());
    let config = quinn::ServerConfig::with_crypto(config);
    quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

/// Connects somebody made of QUIC alone, with a good certificate, up to the end of TLS. The
/// endpoint must be kept for as long as the connection.
pub(crate) async fn raw_connect(
    certs: &Certs,
    address: &str,
) -> (quinn::Endpoint, quinn::Connection) {
    let dir = certs.dir.path();
    let files = RawFiles {
        ca: &dir.join("ca.pem"),
        certificate: &dir.join("client.pem"),
        key: &dir.join("client.key"),
    };
    let endpoint = raw_client(&files, "inkfast");
    let connecting = endpoint.connect(address.parse().unwrap(), "metastore.main.inkfast").unwrap();
    let connection = connecting.await.unwrap();
    (endpoint, connection)
}

/// Sends bytes on a new stream and finishes it; gives all that comes back.
pub(crate) async fn raw_exchange(
    connection: &quinn::Connection,
    bytes: &[u8],
) -> Result<Vec<u8>, quinn::ReadToEndError> {
    let (mut sender, mut receiver) = connection.open_bi().await.unwrap();
    sender.write_all(bytes).await.unwrap();
    sender.finish().unwrap();
    receiver.read_to_end(1 << 20).await
}

/// Waits until the peer closes the connection; gives its code and words.
pub(crate) async fn raw_closed(connection: &quinn::Connection) -> (u64, String) {
    match connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8(close.reason.to_vec()).unwrap())
        }
        other => panic!("the peer did not close the connection: {other:?}"),
    }
}
