//! This process's place on the network.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, OnceLock, PoisonError, RwLock, Weak},
    time::Duration,
};

use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::{
    Connection, Error, Identity, Net, PeerName, Role,
    error::CLOSE_DONE,
    handshake,
    identity::role_name,
    transport::{client_config, endpoint_config, server_config},
};

/// How long closing an endpoint waits for its peers to hear of it, and then for its socket.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// How often it is looked whether the last task has let go of a closed endpoint's socket.
const CLOSE_INTERVAL: Duration = Duration::from_millis(1);

/// Calls other processes, and takes calls if it was made by [`server`](Self::server). One is
/// enough for a process: all its connections share one socket.
///
/// Clones are the same endpoint.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    /// None once it is closed.
    quinn: RwLock<Option<quinn::Endpoint>>,
    socket: Weak<dyn quinn::AsyncUdpSocket>,
    address: SocketAddr,
    client: quinn::ClientConfig,
    net: Net,
    name: PeerName,
    instance: Uuid,
    /// Learned from the first peer where it was not known before.
    cluster: OnceLock<Uuid>,
    roles: &'static [Role],
}

/// Says where to listen, as whom, and for whom.
#[derive(Clone, Debug)]
pub struct Server {
    /// `host:port`; port 0 takes any that is free. The process calls others from here too, so
    /// an address of one network reaches only that.
    pub listen: String,
    /// Names this process's data: callers that mean another instance are refused.
    pub instance: Uuid,
    /// Names the cluster: peers of another are refused.
    pub cluster: Uuid,
    /// Lets the process tell its peers after a restart that their connections are gone. Keep it
    /// secret, and the same for as long as the address is.
    pub reset_key: [u8; 64],
    /// The roles that are let in.
    pub roles: &'static [Role],
}

/// Refuses an address to listen on that is every one of the machine's (as `0.0.0.0:7000`), unless
/// it is said elsewhere where the server is reached.
pub fn check_reachable(listen: &str, advertised: bool) -> Result<(), Error> {
    match listen.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() && !advertised => {
            Err(Error::NoAddress { address: listen.to_string() })
        }
        _ => Ok(()),
    }
}

impl Endpoint {
    /// Makes an endpoint that only calls others. Must be called within the runtime.
    ///
    /// Where the cluster's id is not known, it is learned from the first peer that lets us in;
    /// from then on, peers of other clusters are refused.
    pub fn client(
        net: &Net,
        identity: &Identity,
        instance: Uuid,
        cluster: Option<Uuid>,
    ) -> Result<Self, Error> {
        let bind = |error| bind_error("any port", &error);
        let socket = net.bind_any().map_err(bind)?;
        let (config, name) = (endpoint_config(None), (identity, instance));
        let endpoint = Self::new(socket, (config, None), net, name, &[]).map_err(bind)?;
        if let Some(cluster) = cluster {
            endpoint.agrees_on_cluster(cluster);
        }
        Ok(endpoint)
    }

    /// Makes an endpoint that others can call; [`serve`](crate::serve) answers them.
    ///
    /// Fails where the address cannot be resolved or is in use.
    pub async fn server(net: &Net, identity: &Identity, server: Server) -> Result<Self, Error> {
        let address = net.resolve(&server.listen).await?[0];
        let bind = |error| bind_error(&server.listen, &error);
        let config = (endpoint_config(Some(&server.reset_key)), Some(server_config(identity)));
        let (socket, name) = (net.bind(address).map_err(bind)?, (identity, server.instance));
        let endpoint = Self::new(socket, config, net, name, server.roles).map_err(bind)?;
        endpoint.agrees_on_cluster(server.cluster);
        Ok(endpoint)
    }

    fn new(
        socket: Arc<dyn quinn::AsyncUdpSocket>,
        (config, server): (quinn::EndpointConfig, Option<quinn::ServerConfig>),
        net: &Net,
        (identity, instance): (&Identity, Uuid),
        roles: &'static [Role],
    ) -> io::Result<Self> {
        let (kept, address) = (Arc::downgrade(&socket), socket.local_addr()?);
        let runtime = net.runtime();
        let quinn = quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime)?;
        Ok(Self(Arc::new(Inner {
            quinn: RwLock::new(Some(quinn)),
            socket: kept,
            address,
            client: client_config(identity),
            net: net.clone(),
            name: identity.name().clone(),
            instance,
            cluster: OnceLock::new(),
            roles,
        })))
    }

    /// Gives the address of the socket, with the port that was taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.address
    }

    /// Gives the cluster's id, once it is known.
    pub fn cluster(&self) -> Option<Uuid> {
        self.0.cluster.get().copied()
    }

    /// Closes all connections, in both directions, refuses new ones, and waits a moment until
    /// the peers have been told why. Then the address is free, unless somebody keeps a
    /// [`Connection`] or a stream of this endpoint.
    pub async fn close(&self, why: &str) {
        let quinn = self.0.quinn.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(quinn) = quinn else { return };
        quinn.close(CLOSE_DONE, why.as_bytes());
        if timeout(CLOSE_DEADLINE, quinn.wait_idle()).await.is_err() {
            tracing::debug!("not every peer may have been told that this endpoint is closed");
        }
        drop(quinn);
        // Its tasks end by themselves now, the last one with the socket; nobody says when.
        let freed = async {
            while self.0.socket.strong_count() > 0 {
                sleep(CLOSE_INTERVAL).await;
            }
        };
        if timeout(CLOSE_DEADLINE, freed).await.is_err() {
            tracing::debug!(address = %self.0.address, "a closed endpoint's socket is still in use");
        }
    }

    /// Connects to a process of a role in our cluster. The caller sets the deadline.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        role: Role,
        wanted: Option<Uuid>,
    ) -> Result<Connection, Error> {
        let server_name = role_name(&self.0.name.cluster, role);
        let unreachable = |why| Error::Unreachable { address: address.to_string(), why };
        let quinn = self.quinn().ok_or_else(|| unreachable("this process has stopped".into()))?;
        let connecting = quinn
            .connect_with(self.0.client.clone(), address, &server_name)
            .map_err(|error| unreachable(error.to_string()))?;
        drop(quinn);
        handshake::call(self, connecting, wanted).await
    }

    pub(crate) async fn accept(&self) -> Option<quinn::Incoming> {
        self.quinn()?.accept().await
    }

    /// Gives the endpoint unless it is closed. Whoever keeps it keeps the socket.
    fn quinn(&self) -> Option<quinn::Endpoint> {
        self.0.quinn.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) async fn resolve(&self, host_port: &str) -> Result<Vec<SocketAddr>, Error> {
        self.0.net.resolve(host_port).await
    }

    pub(crate) fn name(&self) -> &PeerName {
        &self.0.name
    }

    pub(crate) fn instance(&self) -> Uuid {
        self.0.instance
    }

    pub(crate) fn roles(&self) -> &'static [Role] {
        self.0.roles
    }

    /// Compares a cluster's id with ours, which it becomes if we had none.
    pub(crate) fn agrees_on_cluster(&self, cluster: Uuid) -> bool {
        *self.0.cluster.get_or_init(|| cluster) == cluster
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Endpoint({} {})", self.0.name, self.0.instance)
    }
}

fn bind_error(address: &str, error: &io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there; stop it or choose another port".into()
        }
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address".into(),
        _ => error.to_string(),
    };
    Error::Bind { address: address.to_string(), why }
}
