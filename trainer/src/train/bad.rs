//! The bad samples of a run over all ranks.

use std::collections::BTreeMap;

use pipeline::loader::{BadSample, Loader};

use crate::distributed::Ranks;
use crate::error::Result;

/// What any rank had to replace since the program started, each sample once.
#[derive(Debug, Default)]
pub(super) struct BadSamples {
    n_own: usize,
    all: BTreeMap<u64, BadSample>,
}

impl BadSamples {
    /// Takes in what the ranks' loaders have met. The ranks talk of more than a bit only if there is something new.
    ///
    /// # Errors
    /// [`pipeline::Error::TooManyBad`] if together they met more than `data.max_bad` allows.
    pub fn update(&mut self, ranks: &Ranks, loader: &Loader) -> Result<()> {
        let own = loader.bad();
        if !ranks.any(own.len() != self.n_own)? {
            return Ok(());
        }
        self.n_own = own.len();
        let own: Vec<BadSample> = own.values().cloned().collect();
        let found = ranks.exchange(&own)?.into_iter().flatten();
        self.all.extend(found.map(|bad| (bad.index, bad)));
        Ok(loader.check_bad(&self.all)?)
    }

    /// Their number.
    pub fn count(&self) -> u64 {
        self.all.len() as u64
    }

    /// Each with its reason.
    pub fn named(&self) -> Vec<String> {
        let named = |bad: &BadSample| format!("{}: {}", bad.key, bad.reason);
        self.all.values().map(named).collect()
    }
}
