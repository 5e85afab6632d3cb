//! Many processes that train one model, each on its share of every batch.
//!
//! Reading order: [`World`] (who this process is), [`Ranks`] (what it can do together with the others), `engine` (the
//! thread and the operations that a communication library gives), `mpi` and `nccl` (the libraries; `rendezvous` is how
//! NCCL's ranks find each other), `gradients` (operations that gradients pass through), `buckets` (the gradients of all
//! parameters, summed while the backward pass runs).
//!
//! The engine follows the device: MPI on CPUs (feature `mpi`), NCCL on GPUs (feature `nccl`). Every rank runs the same
//! program, so it asks for the same operations in the same order; an error on one rank ends all of them.

mod buckets;
mod engine;
mod gradients;
#[cfg(test)]
pub(crate) mod in_threads;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(any(feature = "nccl", test))]
mod rendezvous;
#[cfg(test)]
mod tests;
mod world;

pub use world::World;

pub(crate) use buckets::Buckets;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use pipeline::loader::Rank;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::device;
use crate::error::{Error, Result};
use engine::{Engine, Pending, Queue};

/// This process and its connection to the others. Clones share it.
#[derive(Debug, Clone)]
pub struct Ranks {
    world: World,
    /// `None` for a process alone, which asks nobody.
    link: Option<Arc<Link>>,
}

#[derive(Debug)]
struct Link {
    device: Device,
    queue: Queue,
}

impl Ranks {
    /// A run of one process.
    pub fn single() -> Ranks {
        Ranks {
            world: World::SINGLE,
            link: None,
        }
    }

    /// Joins the other ranks of `world`; waits until they join too.
    ///
    /// * `device`: as in a configuration; a GPU without a number is that of the local rank.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot be opened; [`Error::Ranks`] if this program has no communication library
    /// for it, or the others do not come.
    pub fn join(world: World, device: &str) -> Result<Ranks> {
        if world.size == 1 {
            return Ok(Ranks::single());
        }
        let device = device::open(&device::of_local_rank(device, world.local_rank))?;
        match &device {
            Device::Cpu => join_mpi(world),
            Device::Cuda(_) => join_nccl(world, device),
            Device::Metal(_) => Err(Error::Ranks(format!(
                "{} ranks on Metal, expected GPUs of NVIDIA or CPUs",
                world.size
            ))),
        }
    }

    /// Connects a rank through the engine that `engine` makes, on the thread that it will live on.
    // A program without a communication library has nothing to call it with.
    #[cfg_attr(not(any(feature = "mpi", feature = "nccl", test)), allow(dead_code))]
    fn start(
        world: World,
        device: Device,
        engine: impl FnOnce() -> Result<Box<dyn Engine>> + Send + 'static,
    ) -> Result<Ranks> {
        let queue = Queue::start(engine)?;
        Ok(Ranks {
            world,
            link: Some(Arc::new(Link { device, queue })),
        })
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.world.rank
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.world.size
    }

    /// Whether this process speaks and writes for all.
    pub fn is_first(&self) -> bool {
        self.world.rank == 0
    }

    /// Which part of each batch this process loads.
    pub fn share(&self) -> Rank {
        Rank {
            rank: self.world.rank as u64,
            world: self.world.size as u64,
        }
    }

    /// The device that this rank computes on: the one that it joined with, or alone the one of that name.
    ///
    /// # Errors
    /// As [`device::open`].
    pub fn device(&self, name: &str) -> Result<Device> {
        match &self.link {
            Some(link) => Ok(link.device.clone()),
            None => device::open(name),
        }
    }

    /// What every rank has to say, in the order of the ranks.
    ///
    /// # Errors
    /// What the communication library reports.
    pub fn exchange<T: Serialize + DeserializeOwned + Clone>(&self, mine: &T) -> Result<Vec<T>> {
        let Some(link) = &self.link else {
            return Ok(vec![mine.clone()]);
        };
        let mut bytes = to_bytes(mine)?;
        let length = (bytes.len() as u64).to_le_bytes();
        let lengths: Vec<usize> = self
            .gather_bytes(link, &length)?
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&length| u64::from_le_bytes(length) as usize)
            .collect();
        let longest = lengths.iter().copied().max().unwrap_or_default();
        bytes.resize(longest, 0);
        let all = self.gather_bytes(link, &bytes)?;
        let texts = all.chunks(longest).zip(&lengths);
        texts
            .map(|(text, &length)| from_bytes(&text[..length]))
            .collect()
    }

    /// Whether any rank says yes.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn any(&self, mine: bool) -> Result<bool> {
        match &self.link {
            Some(link) => Ok(self.gather_bytes(link, &[u8::from(mine)])?.contains(&1)),
            None => Ok(mine),
        }
    }

    /// What rank 0 says; the others bring nothing.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn from_first<T: Serialize + DeserializeOwned>(
        &self,
        said: Option<T>,
    ) -> Result<Option<T>> {
        let Some(link) = &self.link else {
            return Ok(said);
        };
        let mut bytes = to_bytes(&said)?;
        let length = broadcast(link, &(bytes.len() as u64).to_le_bytes())?;
        let length = length
            .first_chunk::<8>()
            .map_or(0, |&n| u64::from_le_bytes(n));
        bytes.resize(length as usize, 0);
        from_bytes(&broadcast(link, &bytes)?)
    }

    /// Checks that all ranks hold the same: weights that have drifted apart would train on without a word.
    ///
    /// # Errors
    /// [`Error::Ranks`] naming a rank whose `value` is another than rank 0's.
    pub fn agree(&self, what: &str, value: u64) -> Result<()> {
        let all = self.exchange(&value)?;
        match all.iter().position(|other| *other != all[0]) {
            Some(rank) => Err(Error::Ranks(format!(
                "{what} of rank {rank} is {:x}, expected that of rank 0, {:x}",
                all[rank], all[0]
            ))),
            None => Ok(()),
        }
    }

    /// Leaves in peace, after the last step. A process that ends without is taken for lost.
    ///
    /// # Errors
    /// [`Error::Ranks`] if the communication thread is gone.
    pub fn leave(self) -> Result<()> {
        self.link.map_or(Ok(()), |link| link.queue.leave())
    }

    /// Ends all ranks after an error on this one, which the others would wait for. Over MPI this does not return; where it
    /// does, the process has to end with a failure, and its launcher ends the others.
    pub fn abort(&self) {
        if let Some(link) = &self.link {
            link.queue.abort();
        }
    }

    /// Starts to sum a tensor (f32) over the ranks, of which there must be several.
    fn start_sum(&self, values: &Tensor) -> Result<Pending<Tensor>> {
        let values = values.detach().contiguous()?;
        self.ask("a sum over the ranks", move |engine| {
            engine.all_reduce_sum(&values)
        })
    }

    fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut dyn Engine) -> Result<T> + Send + 'static,
    ) -> Result<Pending<T>> {
        let link = self.link.as_ref();
        let link = link.ok_or_else(|| Error::Ranks("asked of a single process".to_owned()))?;
        Ok(link.queue.ask(what, work))
    }

    fn gather_bytes(&self, link: &Link, bytes: &[u8]) -> Result<Vec<u8>> {
        let bytes = Tensor::from_slice(bytes, bytes.len(), &link.device)?;
        let gather = "what every rank says";
        let all = link
            .queue
            .ask(gather, move |engine| engine.all_gather(&bytes));
        Ok(all.wait()?.to_vec1()?)
    }
}

fn broadcast(link: &Link, bytes: &[u8]) -> Result<Vec<u8>> {
    let bytes = Tensor::from_slice(bytes, bytes.len(), &link.device)?;
    let broadcast = "what rank 0 says";
    let said = link
        .queue
        .ask(broadcast, move |engine| engine.broadcast(&bytes));
    Ok(said.wait()?.to_vec1()?)
}

fn to_bytes(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(garbled)
}

fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(garbled)
}

fn garbled(error: serde_json::Error) -> Error {
    Error::Ranks(format!(
        "a message between ranks is not what was expected: {error}; all must run the same program"
    ))
}

#[cfg(feature = "mpi")]
fn join_mpi(world: World) -> Result<Ranks> {
    Ranks::start(world, Device::Cpu, move || {
        Ok(Box::new(mpi::Mpi::join(world)?))
    })
}

#[cfg(not(feature = "mpi"))]
fn join_mpi(world: World) -> Result<Ranks> {
    Err(Error::Ranks(format!(
        "rank {} of {} on CPUs: this program was built without MPI, expected one built with `--features mpi`",
        world.rank, world.size
    )))
}

#[cfg(feature = "nccl")]
fn join_nccl(world: World, device: Device) -> Result<Ranks> {
    let of_engine = device.clone();
    Ranks::start(world, device, move || {
        Ok(Box::new(nccl::Nccl::join(world, &of_engine)?))
    })
}

#[cfg(not(feature = "nccl"))]
fn join_nccl(world: World, _: Device) -> Result<Ranks> {
    Err(Error::Ranks(format!(
        "rank {} of {} on GPUs: this program was built without NCCL, expected one built with `--features nccl`",
        world.rank, world.size
    )))
}
