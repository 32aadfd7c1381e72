//! The metastore, which holds one ledger's metadata and looks at each change of it.

use inkfast_protocol::writer::CasOutcome;
use inkfast_protocol::{BookieId, LedgerMetadata, MetadataVersion, State};

pub(crate) struct Metastore {
    pub(crate) version: MetadataVersion,
    pub(crate) metadata: LedgerMetadata,
    /// How the ledger was closed, once it was.
    pub(crate) end: Option<State>,
}

impl Metastore {
    pub(crate) const fn new(metadata: LedgerMetadata) -> Self {
        Self { version: MetadataVersion(1), metadata, end: None }
    }

    pub(crate) fn compare_and_set(
        &mut self,
        version: MetadataVersion,
        metadata: &LedgerMetadata,
        is_by_writer: bool,
    ) -> CasOutcome {
        if version != self.version {
            return CasOutcome::Lost;
        }
        self.check_change(metadata, is_by_writer);
        self.put(metadata.clone());
        CasOutcome::Won(self.version)
    }

    /// Changes what does not matter.
    pub(crate) fn note(&mut self) {
        let mut metadata = self.metadata.clone();
        metadata.custom.insert("note".to_owned(), self.version.0.to_string().into());
        self.put(metadata);
    }

    /// Gives a fragment another bookie, which has the entries already.
    pub(crate) fn swap(&mut self, fragment: usize, place: usize, bookie: BookieId) {
        let mut metadata = self.metadata.clone();
        metadata.fragments[fragment].ensemble[place] = bookie;
        self.put(metadata);
    }

    fn put(&mut self, metadata: LedgerMetadata) {
        // This checks its rules as well.
        let bytes = metadata.encode().expect("what can be stored");
        assert_eq!(LedgerMetadata::decode(&bytes), Ok(metadata.clone()));
        (self.version.0, self.metadata) = (self.version.0 + 1, metadata);
        if self.end.is_none() && matches!(self.metadata.state, State::Closed { .. }) {
            self.end = Some(self.metadata.state);
        }
    }

    /// The writer changes the ensemble or closes; a recovery takes the ledger over, and may then
    /// change the ensemble as it closes. Fragments before the last stay, and that keeps its
    /// beginning.
    fn check_change(&self, to: &LedgerMetadata, is_by_writer: bool) {
        let is_right = match (self.metadata.state, to.state) {
            (State::Open, State::Open) => is_by_writer,
            (State::Open, State::InRecovery) => {
                !is_by_writer && to.fragments == self.metadata.fragments
            }
            (State::Open, State::Closed { .. }) => {
                is_by_writer && to.fragments == self.metadata.fragments
            }
            (State::InRecovery, State::Closed { .. }) => !is_by_writer,
            (State::InRecovery | State::Closed { .. }, _) => false,
        };
        assert!(is_right, "{:?} became {to:?}, by the writer: {is_by_writer}", self.metadata);
        let LedgerMetadata { state, fragments, .. } = to.clone();
        assert_eq!(LedgerMetadata { state, fragments, ..self.metadata.clone() }, *to);
        let (last, before) = self.metadata.fragments.split_last().expect("a fragment");
        assert!(to.fragments.starts_with(before), "earlier fragments were changed");
        let same = to.fragments.get(before.len());
        assert_eq!(
            same.map(|fragment| (fragment.first, fragment.length_before)),
            Some((last.first, last.length_before)),
            "the last fragment was lost"
        );
    }
}
