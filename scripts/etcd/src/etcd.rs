//! etcd as its clients reach it.

use std::time::Duration;

use http::uri::PathAndQuery;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::Error;
use crate::proto::{
    Compare, DeleteRangeRequest, Ignored, PutRequest, RangeRequest, RangeResponse, RequestOp,
    StatusRequest, StatusResponse, TARGET_MOD, TxnRequest, TxnResponse,
};

/// How long anything is waited for.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a member, which any number of clients may share.
#[derive(Clone)]
pub(crate) struct Etcd(Channel);

impl Etcd {
    pub(crate) async fn connect(address: &str) -> Result<Self, Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        Ok(Self(endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect().await?))
    }

    pub(crate) async fn is_leader(&self) -> Result<bool, Error> {
        let path = "/etcdserverpb.Maintenance/Status";
        let status: StatusResponse = self.call(path, StatusRequest {}).await?;
        Ok(status.header.is_some_and(|header| header.member == status.leader))
    }

    /// Writes the key if this was its last revision, and returns the new one; 0 is that of a key
    /// that is absent.
    pub(crate) async fn replace(
        &self,
        key: &str,
        revision: i64,
        value: &[u8],
    ) -> Result<i64, Error> {
        let key = key.as_bytes().to_vec();
        let compare =
            Compare { target: TARGET_MOD, key: key.clone(), mod_revision: Some(revision) };
        let put = PutRequest { key, value: value.to_vec() };
        let transaction =
            TxnRequest { compare: vec![compare], success: vec![RequestOp { put: Some(put) }] };
        let answer: TxnResponse = self.call("/etcdserverpb.KV/Txn", transaction).await?;
        let header = answer.header.filter(|_| answer.succeeded);
        Ok(header.ok_or("a key was not as it was expected")?.revision)
    }

    /// Reads the key, linearizably.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let range = RangeRequest { key: key.as_bytes().to_vec() };
        let answer: RangeResponse = self.call("/etcdserverpb.KV/Range", range).await?;
        Ok(answer.found.into_iter().next().map(|found| found.value))
    }

    /// Removes all keys that begin with a prefix, which ends with a slash.
    pub(crate) async fn remove(&self, prefix: &str) -> Result<(), Error> {
        let key = prefix.as_bytes().to_vec();
        // The character after the slash.
        let range_end = prefix.replace('/', "0").into_bytes();
        let delete = DeleteRangeRequest { key, range_end };
        let Ignored {} = self.call("/etcdserverpb.KV/DeleteRange", delete).await?;
        Ok(())
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Error>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await?;
        let (path, codec) = (PathAndQuery::from_static(path), ProstCodec::<Q, A>::default());
        Ok(grpc.unary(Request::new(request), path, codec).await?.into_inner())
    }
}
