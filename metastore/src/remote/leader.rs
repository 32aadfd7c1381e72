//! Who leads: one belief for all requests of the process, and one search when it is in doubt.
//!
//! The belief changes when the member that it is about says that it does not lead, or is lost, or
//! when another says in its status who leads in a later term. The search asks all members for
//! their status, as long as somebody doubts; those who do wait for the belief to change and ask
//! nobody themselves, so ten thousand of them make no more noise than one.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use inkfast_wire::{Connection, Error as WireError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::members::{Member, Members};
use super::{Held, REFUSALS_MAX, jittered};
use crate::members::MemberStatus;

/// How long a member is waited for before it is doubted that it leads.
const PROBE_AFTER: Duration = Duration::from_millis(400);
/// How long a member has to say who leads.
const PROBE_DEADLINE: Duration = Duration::from_millis(400);
/// The pause between two questions to the same member; up to twice as long by chance.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// What is known of the leader.
pub(super) struct Leader {
    members: Members,
    belief: watch::Sender<Belief>,
    search: Mutex<Search>,
}

/// Who is believed to lead.
enum Belief {
    Leads {
        member: Arc<Member>,
        /// The term in which it was said to lead, or one before; none if it is a guess.
        term: Option<u64>,
    },
    /// Nobody is known to lead.
    Nobody,
    /// Nobody is, and every member refuses to speak with us.
    Refused,
}

/// The search for the leader.
struct Search {
    /// The task that asks, as long as somebody doubts.
    running: Weak<Held>,
    /// When the members may be asked again.
    next: Instant,
}

impl Leader {
    /// Believes at first that the first configured member leads.
    pub(super) fn new(members: Members) -> Self {
        let belief = match members.all().into_iter().next() {
            Some(member) => Belief::Leads { member, term: None },
            None => Belief::Nobody,
        };
        let search = Search { running: Weak::new(), next: Instant::now() };
        Self { members, belief: watch::Sender::new(belief), search: Mutex::new(search) }
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Returns the member that is believed to lead, if any is.
    pub(super) fn believed(&self) -> Option<Arc<Member>> {
        self.belief.borrow().member().cloned()
    }

    /// Waits until a member is believed to lead; none if there is no sense in that, because every
    /// member refuses us.
    pub(super) async fn find(self: &Arc<Self>) -> Option<Arc<Member>> {
        if let Some(member) = self.believed() {
            return Some(member);
        }
        if self.members.all().is_empty() {
            return None;
        }
        let _doubt = self.doubt();
        let mut belief = self.belief.subscribe();
        let found = belief.wait_for(|belief| !matches!(belief, Belief::Nobody)).await.ok()?;
        found.member().cloned()
    }

    /// Does what needs an answer of a member, unless another is found to lead before that.
    pub(super) async fn unless_moved<T>(
        self: &Arc<Self>,
        member: &Arc<Member>,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        // Who was lost may come back, but rather another leads by then.
        let patience = if member.is_lost() { Duration::ZERO } else { PROBE_AFTER };
        if let Ok(done) = timeout(patience, &mut work).await {
            return Some(done);
        }
        member.note("no answer yet");
        let _doubt = self.doubt();
        tokio::select! {
            biased;
            done = &mut work => Some(done),
            () = self.moved(member) => None,
        }
    }

    /// Waits until another member is believed to lead.
    pub(super) async fn moved(&self, member: &Arc<Member>) {
        let other =
            |belief: &Belief| belief.member().is_some_and(|leads| !Arc::ptr_eq(leads, member));
        // The sender is ours.
        let _ = self.belief.subscribe().wait_for(other).await;
    }

    /// Takes a member at its word that it does not lead, but perhaps another.
    pub(super) fn redirect(&self, from: &Arc<Member>, to: Option<&str>) {
        from.note(match to {
            Some(address) => format!("it says that {address} leads").into(),
            None => std::borrow::Cow::from("it knows of no leader"),
        });
        let to = to.and_then(|address| self.members.at(address));
        let to = to.filter(|to| !Arc::ptr_eq(to, from));
        self.belief.send_if_modified(|belief| {
            let term = match &*belief {
                Belief::Leads { member, term } if Arc::ptr_eq(member, from) => *term,
                Belief::Leads { .. } => return false,
                Belief::Nobody | Belief::Refused => None,
            };
            *belief = match to {
                Some(member) => Belief::Leads { member, term },
                None => Belief::Nobody,
            };
            true
        });
    }

    /// Takes note that a member gave no answer, and believes no longer that it leads, unless only
    /// a stream was lost.
    pub(super) fn fail(
        &self,
        from: &Arc<Member>,
        connection: Option<&Connection>,
        error: &WireError,
    ) {
        from.note(error.to_string());
        let lives = connection.is_some_and(|connection| !connection.is_closed());
        if lives && matches!(error, WireError::Lost { .. }) {
            return;
        }
        self.belief.send_if_modified(|belief| {
            let lost = belief.member().is_some_and(|member| Arc::ptr_eq(member, from));
            if lost {
                *belief = Belief::Nobody;
            }
            lost
        });
    }

    /// Learns from what a member said of the cluster.
    pub(super) fn hear(&self, status: &MemberStatus) {
        for member in &status.members {
            self.members.at(&member.address);
        }
        let named = status.leader_address().and_then(|address| self.members.at(address));
        let Some(named) = named else { return };
        self.belief.send_if_modified(|belief| {
            if let Belief::Leads { member, term } = belief {
                if term.is_some_and(|term| status.term <= term) {
                    return false;
                }
                *term = Some(status.term);
                let moved = !Arc::ptr_eq(member, &named);
                *member = named;
                return moved;
            }
            *belief = Belief::Leads { member: named, term: Some(status.term) };
            true
        });
    }

    /// Searches for the leader, at least as long as what is returned is held.
    fn doubt(self: &Arc<Self>) -> Arc<Held> {
        let mut search = self.lock();
        if let Some(running) = search.running.upgrade()
            && !running.0.is_finished()
        {
            return running;
        }
        self.belief.send_if_modified(|belief| {
            let refused = matches!(belief, Belief::Refused);
            if refused {
                *belief = Belief::Nobody;
            }
            refused
        });
        let running = Arc::new(Held(tokio::spawn(self.clone().search())));
        search.running = Arc::downgrade(&running);
        running
    }

    /// Asks all members who leads, again and again.
    async fn search(self: Arc<Self>) {
        let mut next = self.lock().next;
        let mut asked = JoinSet::new();
        let mut unanswered = BTreeSet::new();
        let mut refusing = BTreeMap::new();
        loop {
            tokio::select! {
                () = sleep_until(next) => {
                    next = Instant::now() + jittered(PROBE_INTERVAL);
                    self.lock().next = next;
                    for member in self.members.all() {
                        if unanswered.insert(member.address().to_owned()) {
                            asked.spawn(async move {
                                let answer = member.status(PROBE_DEADLINE).await;
                                (member, answer)
                            });
                        }
                    }
                }
                Some(Ok((member, answer))) = asked.join_next() => {
                    unanswered.remove(member.address());
                    let refused = answer.as_ref().is_err_and(is_refusal);
                    match answer {
                        Ok(status) => self.note_status(&member, &status),
                        Err(error) => member.note(error.to_string()),
                    }
                    if refused {
                        refusing.entry(member.address().to_owned()).or_insert_with(Instant::now);
                    } else {
                        refusing.remove(member.address());
                    }
                    self.give_up_if_refused(&refusing);
                }
            }
        }
    }

    fn note_status(&self, member: &Member, status: &MemberStatus) {
        member.note(match status.leader_address() {
            Some(address) => format!("it says that {address} leads in term {}", status.term),
            None => format!("it knows of no leader in term {}", status.term),
        });
        self.hear(status);
    }

    /// Lets go who waits for a leader, if every member refuses us for some time now.
    fn give_up_if_refused(&self, refusing: &BTreeMap<String, Instant>) {
        let refuses = |member: &Arc<Member>| {
            refusing.get(member.address()).is_some_and(|since| since.elapsed() >= REFUSALS_MAX)
        };
        if self.members.all().iter().all(refuses) {
            self.belief.send_if_modified(|belief| {
                let nobody = matches!(belief, Belief::Nobody);
                if nobody {
                    *belief = Belief::Refused;
                }
                nobody
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Search> {
        self.search.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Belief {
    fn member(&self) -> Option<&Arc<Member>> {
        match self {
            Self::Leads { member, .. } => Some(member),
            Self::Nobody | Self::Refused => None,
        }
    }
}

/// Whether the peer was reached and will not have us.
pub(super) fn is_refusal(error: &WireError) -> bool {
    matches!(error, WireError::Refused { .. } | WireError::WrongPeer { .. })
}
