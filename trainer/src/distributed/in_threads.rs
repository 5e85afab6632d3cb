//! Ranks that are threads of one test, so that what is done over ranks is tested without a communication library.

use std::sync::{Arc, Barrier, Mutex};

use candle_core::{Device, Tensor};

use super::engine::Engine;
use super::{Ranks, World};
use crate::error::{Error, Result};

/// Where the ranks lay down what they bring.
struct Table {
    places: Mutex<Vec<Option<Tensor>>>,
    all_here: Barrier,
}

struct Seat {
    rank: usize,
    table: Arc<Table>,
}

impl Seat {
    fn together(&self, mine: &Tensor) -> Vec<Tensor> {
        let table = &self.table;
        table.places.lock().unwrap()[self.rank] = Some(mine.copy().unwrap());
        table.all_here.wait();
        let all = table.places.lock().unwrap().clone();
        table.all_here.wait(); // nobody overwrites what another has not yet read
        all.into_iter().map(Option::unwrap).collect()
    }
}

impl Engine for Seat {
    fn all_reduce_sum(&mut self, values: &Tensor) -> Result<Tensor> {
        let all = self.together(values);
        let sum = all.into_iter().reduce(|sum, one| (sum + one).unwrap());
        sum.ok_or_else(|| Error::Ranks("nobody there".to_owned()))
    }

    fn all_gather(&mut self, rows: &Tensor) -> Result<Tensor> {
        Ok(Tensor::cat(&self.together(rows), 0)?)
    }

    fn broadcast(&mut self, values: &Tensor) -> Result<Tensor> {
        Ok(self.together(values).swap_remove(0))
    }

    fn abort(&mut self) {}
}

/// Runs `work` on `size` ranks and returns what each came to, in their order.
pub(crate) fn on_ranks<T: Send>(size: usize, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    let table = Arc::new(Table {
        places: Mutex::new(vec![None; size]),
        all_here: Barrier::new(size),
    });
    let ranks = (0..size).map(|rank| {
        let world = World {
            rank,
            size,
            local_rank: rank,
            local_size: size,
        };
        let table = Arc::clone(&table);
        Ranks::start(world, Device::Cpu, move || {
            Ok(Box::new(Seat { rank, table }))
        })
        .unwrap()
    });
    let (ranks, work): (Vec<Ranks>, _) = (ranks.collect(), &work);
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .into_iter()
            .map(|ranks| scope.spawn(move || work(ranks)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}
