//! How the members of a metastore are shown.

use std::fmt;

use inkfast_metastore::{MemberInfo, MemberStatus};
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// The members as they are printed: as JSON by their fields, otherwise as a table.
#[derive(Debug, Serialize)]
pub(super) struct View {
    cluster: Id,
    /// Null unless one was reached and says that it leads.
    leader: Option<Id>,
    term: u64,
    /// The leader's, or the highest that is known.
    revision: Option<u64>,
    members: Vec<MemberView>,
}

#[derive(Debug, Serialize)]
struct MemberView {
    id: Id,
    address: String,
    role: &'static str,
    reachable: bool,
    term: Option<u64>,
    log: Option<u64>,
    applied: Option<u64>,
}

/// An id as it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id(Uuid);

impl View {
    /// Puts together what the members said that answered.
    pub(super) fn new(cluster: Uuid, answers: Vec<MemberStatus>) -> Self {
        // Of two that disagree, who has heard of the later election knows better.
        let term = answers.iter().map(|status| status.term).max().unwrap_or_default();
        let leads = |it: &&MemberStatus| it.term == term && it.leader == Some(it.id);
        let leader = answers.iter().find(leads);
        let latest = answers.iter().max_by_key(|it| (it.term, it.leader.is_some(), it.applied));
        let members = leader.or(latest).map_or(&[][..], |status| &status.members);
        let view = |MemberInfo { id, address, voter }: &MemberInfo| {
            let status = answers.iter().find(|status| status.id == *id);
            MemberView {
                id: Id(*id),
                // Where it is, it knows before the others.
                address: status.map_or(address, |status| &status.address).clone(),
                role: match voter {
                    true if leader.is_some_and(|leader| leader.id == *id) => "leader",
                    true => "follower",
                    false => "learner",
                },
                reachable: status.is_some(),
                term: status.map(|status| status.term),
                log: status.and_then(|status| status.log),
                applied: status.and_then(|status| status.applied),
            }
        };
        let mut members = members.iter().map(view).collect::<Vec<_>>();
        members.sort_by(|one, other| one.address.cmp(&other.address));
        let revision = match leader {
            Some(leader) => Some(leader.revision),
            None => answers.iter().map(|status| status.revision).max(),
        };
        Self {
            cluster: Id(cluster),
            leader: leader.map(|leader| Id(leader.id)),
            term,
            revision: revision.map(|revision| revision.get()),
            members,
        }
    }

    pub(super) const fn has_leader(&self) -> bool {
        self.leader.is_some()
    }

    /// Returns the member at an address, or says why it is none or not known which.
    pub(super) fn member_at(&self, address: &str) -> Result<Uuid, String> {
        let there = self.members.iter().filter(|member| member.address == address);
        match there.collect::<Vec<_>>().as_slice() {
            [] => Err(format!(
                "no member is at {address}; `inkfast metastore status` shows those that there are"
            )),
            [member] => Ok(member.id.0),
            several => {
                let word = |member: &&MemberView| {
                    let answers = if member.reachable { "answers" } else { "does not answer" };
                    format!("{}, which {answers}", member.id.0)
                };
                let words = several.iter().map(word).collect::<Vec<_>>().join("; ");
                Err(format!("several members are at {address}: {words}; give the id of one"))
            }
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cluster   {}", self.cluster.0)?;
        match self.leader {
            Some(Id(leader)) => writeln!(f, "leader    {leader}")?,
            None => writeln!(f, "leader    none")?,
        }
        writeln!(f, "term      {}", self.term)?;
        writeln!(f, "revision  {}\n", text(self.revision))?;
        write!(f, "ROLE      REACHABLE    TERM           LOG       APPLIED  ADDRESS, ID")?;
        for member in &self.members {
            let MemberView { id, address, role, reachable, term, log, applied } = member;
            let reachable = if *reachable { "yes" } else { "no" };
            let (term, log, applied) = (text(*term), text(*log), text(*applied));
            let row =
                format_args!("{role:<8}  {reachable:<9}  {term:>6}  {log:>12}  {applied:>12}");
            write!(f, "\n{row}  {address}  {}", id.0)?;
        }
        Ok(())
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

fn text(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use inkfast_metastore::Version;

    use super::*;

    fn id(number: u64) -> Uuid {
        Uuid::from_u128(number.into())
    }

    /// A member of three, of which the third only learns.
    fn says(number: u64, term: u64, leader: Option<u64>) -> MemberStatus {
        let member = |number| MemberInfo {
            id: id(number),
            address: format!("m:{number}"),
            voter: number < 3,
        };
        MemberStatus {
            id: id(number),
            address: format!("m:{number}"),
            term,
            leader: leader.map(id),
            log: Some(9),
            applied: Some(8),
            revision: Version::new(number),
            members: [1, 2, 3].map(member).into(),
        }
    }

    #[test]
    fn the_leader_of_the_latest_term_is_shown() {
        let view = View::new(id(9), vec![says(1, 4, Some(1)), says(2, 5, Some(2))]);
        assert_eq!((view.leader, view.term, view.revision), (Some(Id(id(2))), 5, Some(2)));
        let roles = view.members.iter().map(|it| (it.role, it.reachable)).collect::<Vec<_>>();
        assert_eq!(roles, [("follower", true), ("leader", true), ("learner", false)]);
        assert_eq!((view.members[2].term, view.members[0].log), (None, Some(9)));
        assert_eq!(view.member_at("m:3"), Ok(id(3)));
        assert!(view.member_at("m:4").is_err());
    }

    #[test]
    fn a_member_is_not_guessed_where_two_have_been() {
        let mut status = says(2, 5, Some(2));
        status.members[0].address = "m:2".into();
        let words = View::new(id(9), vec![status]).member_at("m:2").unwrap_err();
        let word = |id, answers| format!("{id}, which {answers}");
        assert!(words.contains(&word(id(1), "does not answer")), "{words}");
        assert!(words.contains(&word(id(2), "answers")), "{words}");
    }

    #[test]
    fn a_leader_that_is_not_reached_is_none() {
        let view = View::new(id(9), vec![says(2, 5, Some(1)), says(3, 5, None)]);
        assert_eq!((view.leader, view.revision), (None, Some(3)));
        assert!(view.to_string().contains("leader    none"), "{view}");
    }

    #[test]
    fn json_has_what_is_unknown_as_null() {
        let json = serde_json::to_value(View::new(id(9), vec![says(2, 5, None)])).unwrap();
        assert!(json["leader"].is_null() && json["members"][0]["log"].is_null(), "{json}");
        assert_eq!(json["cluster"], id(9).to_string());
        assert_eq!(json["members"][1]["role"], "follower");
    }
}
