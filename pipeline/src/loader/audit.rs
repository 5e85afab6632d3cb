//! What can be said of an order without reading a picture: a fingerprint to compare runs by, and how well it shuffles.

use serde::Serialize;
use sha2::{Digest, Sha256};
use shards::hex;

use crate::error::Result;
use crate::loader::order::Order;
use crate::loader::state::{Batching, LoaderState, Rank};

/// Most neighbours that the correlation is taken over.
const MAX_NEIGHBOURS: u64 = 1_000_000;

/// The samples of all batches from `start` on, as `world` ranks load them and put together in the order of the ranks.
///
/// * `batch_size`: over all ranks.
///
/// # Errors
/// [`crate::Error::Invalid`] if the ranks do not share a batch evenly, an epoch fills no batch, or has no batch `start`.
pub fn batches(
    order: &Order,
    batch_size: u64,
    world: u64,
    start: LoaderState,
) -> Result<impl Iterator<Item = (LoaderState, Vec<u64>)>> {
    let ranks: Vec<Batching> = (0..world.max(1))
        .map(|rank| Batching::new(order.n_positions(), batch_size, Rank { rank, world }))
        .collect::<Result<_>>()?;
    let mut next = ranks[0].start(start)?;
    let mut epoch = order.epoch(next.epoch);
    Ok(std::iter::from_fn(move || {
        let at = next;
        if at.batch == 0 {
            epoch = order.epoch(at.epoch);
        }
        let mut ids = Vec::with_capacity(batch_size as usize);
        for batching in &ranks {
            let rows = 0..batching.local_batch_size();
            ids.extend(rows.map(|row| epoch.sample(batching.position(at.batch, row))));
        }
        next = ranks[0].next(at);
        Some((at, ids))
    }))
}

/// SHA-256 of batches in lower-case hexadecimal digits: of each its epoch, its number and its sample ids, as 64-bit
/// little-endian numbers.
pub fn hash(batches: impl IntoIterator<Item = (LoaderState, Vec<u64>)>) -> String {
    let mut hasher = Sha256::new();
    for (at, ids) in batches {
        for number in [at.epoch, at.batch].into_iter().chain(ids) {
            hasher.update(number.to_le_bytes());
        }
    }
    hex(&hasher.finalize())
}

/// How well an order mixes what is stored side by side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ShuffleQuality {
    /// Distinct row groups that the samples of a batch come from, on average.
    pub groups_per_batch: f64,
    /// The same if the whole split were shuffled.
    pub groups_per_batch_full: f64,
    /// Correlation of the places where two samples are stored that follow each other: 0 for a full shuffle, near 1 for
    /// none.
    pub neighbour_correlation: f64,
}

/// Measures the first batches of an epoch, at most an epoch of them.
pub fn quality(order: &Order, batch_size: u64, epoch: u64) -> ShuffleQuality {
    let n = order.n_positions().min(MAX_NEIGHBOURS.max(batch_size));
    let epoch = order.epoch(epoch);
    let places: Vec<u64> = (0..n).map(|at| order.index(epoch.sample(at))).collect();
    let distinct: Vec<f64> = places
        .chunks_exact(batch_size.max(1) as usize)
        .map(|batch| {
            let mut groups: Vec<usize> = batch.iter().map(|&at| order.group_of(at)).collect();
            groups.sort_unstable();
            groups.dedup();
            groups.len() as f64
        })
        .collect();
    // A group with a share p of the samples is missed by a batch of B with probability (1 - p)^B.
    let n_samples: u64 = order.groups().iter().map(|group| group.n_samples).sum();
    let is_met = |n: u64| 1.0 - (1.0 - n as f64 / n_samples as f64).powf(batch_size as f64);
    ShuffleQuality {
        groups_per_batch: mean(&distinct),
        groups_per_batch_full: order.groups().iter().map(|g| is_met(g.n_samples)).sum(),
        neighbour_correlation: correlation(&places),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / (values.len() as f64).max(1.0)
}

/// Correlation of each place with the next one.
fn correlation(places: &[u64]) -> f64 {
    let places: Vec<f64> = places.iter().map(|&place| place as f64).collect();
    let middle = mean(&places);
    let spread: f64 = places.iter().map(|place| (place - middle).powi(2)).sum();
    let together: f64 = places
        .windows(2)
        .map(|pair| (pair[0] - middle) * (pair[1] - middle))
        .sum();
    if spread > 0.0 { together / spread } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OrderKind;
    use crate::loader::order::{Group, Part};

    fn order(kind: OrderKind) -> Order {
        let group = |number: u64| Group {
            first_sample: number * 50,
            n_samples: 50,
            n_pictures: 50,
            bytes: 1,
        };
        let part = Part {
            n_samples: 5000,
            visits: 1.0,
        };
        Order::new(3, kind, &[part], (0..100).map(group).collect(), 8).unwrap()
    }

    fn at(epoch: u64, batch: u64) -> LoaderState {
        LoaderState { epoch, batch }
    }

    #[test]
    fn ranks_and_resumes_do_not_change_the_hash() {
        for kind in [OrderKind::Full, OrderKind::Blocks] {
            let order = order(kind);
            let some = |world, start, n| batches(&order, 64, world, start).unwrap().take(n);
            let all: Vec<_> = some(1, at(0, 0), 100).collect();
            assert_eq!((all[77].0, all[78].0), (at(0, 77), at(1, 0)));
            for world in [2, 4, 8] {
                assert_eq!(hash(some(world, at(0, 0), 100)), hash(all.clone()));
            }
            let resumed = hash(some(2, at(0, 70), 30));
            assert_eq!(resumed, hash(all[70..].to_vec()));
            assert_ne!(resumed, hash(all[..30].to_vec()));
            assert!(batches(&order, 64, 3, at(0, 0)).is_err());
            assert!(batches(&order, 6400, 1, at(0, 0)).is_err());
            assert!(batches(&order, 64, 1, at(0, 99)).is_err());
        }
    }

    #[test]
    fn quality_tells_orders_apart() {
        let of = |kind| quality(&order(kind), 64, 0);
        let (full, blocks, stored) = (
            of(OrderKind::Full),
            of(OrderKind::Blocks),
            of(OrderKind::Sequential),
        );
        assert!(
            (full.groups_per_batch - full.groups_per_batch_full).abs() < 1.0,
            "{full:?}"
        );
        assert!(full.neighbour_correlation.abs() < 0.05, "{full:?}");
        assert!((7.0..10.0).contains(&blocks.groups_per_batch), "{blocks:?}");
        assert!(
            blocks.neighbour_correlation > full.neighbour_correlation,
            "{blocks:?}"
        );
        assert!(
            stored.groups_per_batch < 3.0 && stored.neighbour_correlation > 0.99,
            "{stored:?}"
        );
    }
}
