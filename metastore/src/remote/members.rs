//! The members that are known: those that were configured, and some that they named.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use inkfast_wire::{Connection, Endpoint, Error as WireError, Frame, Remote, Role, Target};

use crate::error::Error;
use crate::limits::check_address;
use crate::members::MemberStatus;
use crate::messages::{Request, answer_from_frame, encode_request};
use crate::state::Answer;

/// The most members that are known beside the configured ones.
const LEARNED_MAX: usize = 16;

/// The members that are known.
pub(super) struct Members {
    endpoint: Endpoint,
    configured: Vec<Arc<Member>>,
    /// In the order in which they were named last.
    learned: Mutex<Vec<Arc<Member>>>,
    /// The last one that told what any can tell.
    near: Mutex<Option<Arc<Member>>>,
}

/// A member, or what is said to be one.
pub(super) struct Member {
    address: String,
    remote: Remote,
    /// The last connection that there was.
    connection: Mutex<Option<Connection>>,
    /// What became of the last attempt to have something from it.
    word: Mutex<Cow<'static, str>>,
}

impl Members {
    pub(super) fn new(endpoint: &Endpoint, addresses: Vec<String>) -> Self {
        let configured = addresses.into_iter().map(|address| Member::new(endpoint, address));
        Self {
            endpoint: endpoint.clone(),
            configured: configured.collect(),
            learned: Mutex::default(),
            near: Mutex::default(),
        }
    }

    /// Returns all members, the configured ones first.
    pub(super) fn all(&self) -> Vec<Arc<Member>> {
        self.configured.iter().chain(self.learned().iter()).cloned().collect()
    }

    /// Returns the member at an address, which is learned if it was not known; none if that is no
    /// address.
    ///
    /// A learned member is forgotten only for others that are named after it, however long it does
    /// not answer: it may be the only way back to the cluster.
    pub(super) fn at(&self, address: &str) -> Option<Arc<Member>> {
        let is_it = |member: &Arc<Member>| member.address == address;
        if let Some(member) = self.configured.iter().find(|member| is_it(member)) {
            return Some(member.clone());
        }
        let mut learned = self.learned();
        let member = match learned.iter().position(is_it) {
            Some(known) => learned.remove(known),
            None => {
                check_address(address).ok()?;
                if learned.len() >= LEARNED_MAX {
                    learned.remove(0);
                }
                Member::new(&self.endpoint, address.into())
            }
        };
        learned.push(member.clone());
        Some(member)
    }

    /// Returns the member that was last [remembered](Self::set_near).
    pub(super) fn near(&self) -> Option<Arc<Member>> {
        self.near.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers a member as the first to ask for what any can tell.
    pub(super) fn set_near(&self, member: &Arc<Member>) {
        *self.near.lock().unwrap_or_else(PoisonError::into_inner) = Some(member.clone());
    }

    /// Says what every member said last.
    pub(super) fn words(&self) -> String {
        let words = self.all().into_iter().map(|it| format!("{}: {}", it.address, it.word()));
        let words = words.collect::<Vec<_>>().join("; ");
        if words.is_empty() { "no address is known".into() } else { words }
    }

    fn learned(&self) -> MutexGuard<'_, Vec<Arc<Member>>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    fn new(endpoint: &Endpoint, address: String) -> Arc<Self> {
        let addresses = vec![address.clone()];
        let target = Target { role: Role::Metastore, instance: None, addresses };
        Arc::new(Self {
            address,
            remote: Remote::new(endpoint, target),
            connection: Mutex::default(),
            word: Mutex::new("not asked yet".into()),
        })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Gives the connection, and makes it if there is none.
    pub(super) async fn connection(&self) -> Result<Connection, WireError> {
        let connection = self.remote.connection().await?;
        *self.last_connection() = Some(connection.clone());
        Ok(connection)
    }

    /// Whether there was a connection, and it is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.last_connection().as_ref().is_some_and(Connection::is_closed)
    }

    /// Sends it a request, and gives its answer.
    pub(super) async fn request(
        &self,
        frame: Frame,
        deadline: Duration,
    ) -> Result<Result<Answer, Error>, WireError> {
        let answer = self.remote.request(frame, deadline).await?;
        answer_from_frame(answer).map_err(|why| WireError::Malformed { why })
    }

    /// Asks what it knows of the cluster.
    pub(super) async fn status(&self, deadline: Duration) -> Result<MemberStatus, WireError> {
        let answer = self.request(encode_request(Request::Status), deadline).await?;
        let status = answer.and_then(Answer::status);
        status.map_err(|error| WireError::Malformed { why: error.to_string() })
    }

    /// Remembers what became of an attempt, for the words of an error.
    pub(super) fn note(&self, word: impl Into<Cow<'static, str>>) {
        let word = word.into();
        tracing::debug!(address = self.address, %word, "a member of the metastore");
        *self.word.lock().unwrap_or_else(PoisonError::into_inner) = word;
    }

    fn last_connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn word(&self) -> Cow<'static, str> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use inkfast_wire::{Authority, Identity, Net};
    use tempfile::TempDir;
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn few_members_are_learned_and_those_are_kept_that_were_named_last() {
        let certs = TempDir::new().unwrap();
        let authority = Authority::open_or_create(certs.path(), "test").unwrap();
        authority.issue(Role::Client, None).unwrap();
        let identity = Identity::load(certs.path(), Role::Client, None).unwrap();
        let endpoint = Endpoint::client(&Net::Os, &identity, Uuid::new_v4(), None).unwrap();
        let members = Members::new(&endpoint, vec!["m:1".into()]);

        assert!(members.at("nowhere").is_none());
        let learned = members.at("m:2").unwrap();
        assert!(Arc::ptr_eq(&learned, &members.at("m:2").unwrap()), "it is learned once");
        for port in 1..100 {
            members.at(&format!("m:{port}")).unwrap();
            assert!(Arc::ptr_eq(&learned, &members.at("m:2").unwrap()), "it is still named");
        }
        let all = members.all();
        assert_eq!((all.len(), all[0].address()), (1 + LEARNED_MAX, "m:1"));
        let latest = all[LEARNED_MAX - 1..].iter().map(|member| member.address());
        assert_eq!(latest.collect::<Vec<_>>(), ["m:99", "m:2"]);
    }
}
