//! Where a run stands in its data, and which samples a batch holds.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The next batch to come; all that resuming needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Batch of the epoch, from 0.
    pub batch: u64,
}

/// Which part of each global batch this process loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    /// This process, from 0.
    pub rank: u64,
    /// Number of processes.
    pub world: u64,
}

impl Rank {
    /// A run of one process.
    pub const SINGLE: Rank = Rank { rank: 0, world: 1 };
}

/// How an epoch falls into batches and a batch into ranks.
///
/// Batch `b` is positions `[bB, (b+1)B)` of the epoch and rank `r` loads its `r`-th contiguous slice, so the stream of
/// global batches is the same for any number of ranks. The last, partial batch is dropped, as in the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    batch_size: u64,
    rank: Rank,
    batches_per_epoch: u64,
}

impl Batching {
    /// For an epoch of `n_positions` visits in global batches of `batch_size`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the ranks do not share a batch evenly or an epoch does not fill one batch.
    pub fn new(n_positions: u64, batch_size: u64, rank: Rank) -> Result<Self> {
        let invalid = |name, value: u64, expected: String| Error::Invalid {
            name,
            value: value.to_string(),
            expected,
        };
        if rank.rank >= rank.world {
            return Err(invalid(
                "rank",
                rank.rank,
                format!("less than the number of ranks, {}", rank.world),
            ));
        }
        if batch_size == 0 || !batch_size.is_multiple_of(rank.world) {
            return Err(invalid(
                "data.batch_size",
                batch_size,
                format!("a multiple of the {} ranks", rank.world),
            ));
        }
        let batches_per_epoch = n_positions / batch_size;
        if batches_per_epoch == 0 {
            return Err(invalid(
                "data.batch_size",
                batch_size,
                format!("at most the {n_positions} samples of an epoch"),
            ));
        }
        Ok(Self {
            batch_size,
            rank,
            batches_per_epoch,
        })
    }

    /// Batches in an epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.batches_per_epoch
    }

    /// Samples of a batch over all ranks.
    pub fn batch_size(&self) -> u64 {
        self.batch_size
    }

    /// Samples of a batch that this rank loads.
    pub fn local_batch_size(&self) -> usize {
        (self.batch_size / self.rank.world) as usize
    }

    /// Position in the epoch of this rank's `row`-th sample of `batch`.
    pub fn position(&self, batch: u64, row: usize) -> u64 {
        batch * self.batch_size + self.rank.rank * (self.batch_size / self.rank.world) + row as u64
    }

    /// The state after `state`.
    pub fn next(&self, state: LoaderState) -> LoaderState {
        if state.batch + 1 < self.batches_per_epoch {
            LoaderState {
                epoch: state.epoch,
                batch: state.batch + 1,
            }
        } else {
            LoaderState {
                epoch: state.epoch + 1,
                batch: 0,
            }
        }
    }

    /// A state to start from; one right behind an epoch's last batch is the next epoch's first.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the epoch has no such batch, as after a change of data or batch size.
    pub fn start(&self, state: LoaderState) -> Result<LoaderState> {
        match state.batch.cmp(&self.batches_per_epoch) {
            std::cmp::Ordering::Less => Ok(state),
            std::cmp::Ordering::Equal => Ok(LoaderState {
                epoch: state.epoch + 1,
                batch: 0,
            }),
            std::cmp::Ordering::Greater => Err(Error::Invalid {
                name: "batch to start from",
                value: state.batch.to_string(),
                expected: format!("at most the {} batches of an epoch", self.batches_per_epoch),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranks_tile_the_epoch_but_for_its_tail(local in 1u64..9, world in 1u64..5, batches in 1u64..6, tail in 0u64..8) {
            let batch_size = local * world;
            let n_ids = batches * batch_size + tail.min(batch_size - 1);
            let mut positions = Vec::new();
            for rank in 0..world {
                let batching = Batching::new(n_ids, batch_size, Rank { rank, world }).unwrap();
                prop_assert_eq!(batching.batches_per_epoch(), batches);
                for batch in 0..batches {
                    positions.extend((0..batching.local_batch_size()).map(|row| batching.position(batch, row)));
                }
            }
            positions.sort_unstable();
            prop_assert!(positions.into_iter().eq(0..batches * batch_size));
        }
    }

    #[test]
    fn states_run_over_epochs() {
        let batching = Batching::new(25, 10, Rank::SINGLE).unwrap();
        let at = |epoch, batch| LoaderState { epoch, batch };
        assert_eq!(batching.next(at(0, 0)), at(0, 1));
        assert_eq!(batching.next(at(0, 1)), at(1, 0));
        assert_eq!(batching.start(at(3, 2)).unwrap(), at(4, 0));
        assert!(batching.start(at(3, 3)).is_err());
    }

    #[test]
    fn uneven_and_oversized_batches_are_refused() {
        let message = |n, batch, rank, world| {
            Batching::new(n, batch, Rank { rank, world })
                .unwrap_err()
                .to_string()
        };
        assert!(message(100, 10, 0, 3).contains("multiple of the 3 ranks"));
        assert!(message(100, 10, 2, 2).contains("less than the number of ranks, 2"));
        assert!(message(9, 10, 0, 1).contains("at most the 9 samples"));
        assert!(message(9, 0, 0, 1).contains("data.batch_size"));
    }
}
