//! Ranks on CPUs, over MPI.
//!
//! Calls are the non-blocking ones, waited for asleep: MPI's own waiting spins, and would take the processor from the
//! backward pass that runs meanwhile. A rank that dies is noticed by `mpirun` or `srun`, which end the others; MPI's own
//! errors end all ranks at once, with the library's message.

use std::thread::sleep;
use std::time::Duration;

use candle_core::{CpuStorage, Device, Storage, Tensor};
use mpi::Threading;
use mpi::collective::{CommunicatorCollectives, Root, SystemOperation};
use mpi::environment::Universe;
use mpi::request::{LocalScope, Request, scope};
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::Equivalence;

use super::World;
use super::engine::Engine;
use crate::error::{Error, Result};

/// Between two looks at an operation that is under way.
const NAP: Duration = Duration::from_micros(20);

/// MPI's world communicator.
pub(super) struct Mpi {
    /// Before `universe`, which must outlive it.
    all: SimpleCommunicator,
    _universe: Universe,
}

impl Mpi {
    /// Initialises MPI on this thread, which alone may use it from then on.
    ///
    /// # Errors
    /// [`Error::Ranks`] if MPI's ranks are not those of `world`: the program was not started by a launcher of the MPI
    /// that it is linked with.
    pub fn join(world: World) -> Result<Mpi> {
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
            let problem = "MPI was initialised before, expected once in a process";
            return Err(Error::Ranks(problem.to_owned()));
        };
        let all = universe.world();
        let (rank, size) = (all.rank() as usize, all.size() as usize);
        if (rank, size) != (world.rank, world.size) {
            return Err(Error::Ranks(format!(
                "the environment says rank {} of {}, MPI says rank {rank} of {size}; on CPUs start the ranks with mpirun, \
                 or with srun --mpi=pmix where MPI was built for it (inside of a batch script too)",
                world.rank, world.size
            )));
        }
        Ok(Mpi {
            all,
            _universe: universe,
        })
    }

    fn gathered<T: Equivalence + Copy + Default + candle_core::WithDType>(
        &self,
        rows: &[T],
        shape: Vec<usize>,
    ) -> Result<Tensor> {
        let mut all = vec![T::default(); rows.len() * self.all.size() as usize];
        scope(|scope| {
            asleep(
                self.all
                    .immediate_all_gather_into(scope, rows, &mut all[..]),
            )
        });
        Ok(Tensor::from_vec(all, shape, &Device::Cpu)?)
    }
}

impl Engine for Mpi {
    fn all_reduce_sum(&mut self, values: &Tensor) -> Result<Tensor> {
        with_storage(values, |storage, start, end| {
            let CpuStorage::F32(values_in) = storage else {
                return Err(unsupported(values));
            };
            let values_in = &values_in[start..end];
            let mut sum = vec![0f32; values_in.len()];
            scope(|scope| {
                let sum = &mut sum[..];
                let operation = SystemOperation::sum();
                asleep(
                    self.all
                        .immediate_all_reduce_into(scope, values_in, sum, operation),
                );
            });
            Ok(Tensor::from_vec(sum, values.shape(), &Device::Cpu)?)
        })
    }

    fn all_gather(&mut self, rows: &Tensor) -> Result<Tensor> {
        let mut shape = rows.dims().to_vec();
        shape[0] *= self.all.size() as usize;
        with_storage(rows, |storage, start, end| match storage {
            CpuStorage::F32(values) => self.gathered(&values[start..end], shape),
            CpuStorage::U8(values) => self.gathered(&values[start..end], shape),
            _ => Err(unsupported(rows)),
        })
    }

    fn broadcast(&mut self, values: &Tensor) -> Result<Tensor> {
        let mut bytes = values.flatten_all()?.to_vec1::<u8>()?;
        scope(|scope| {
            let root = self.all.process_at_rank(0);
            asleep(root.immediate_broadcast_into(scope, &mut bytes[..]));
        });
        Ok(Tensor::from_vec(bytes, values.shape(), &Device::Cpu)?)
    }

    fn abort(&mut self) {
        self.all.abort(1);
    }
}

/// Waits until an operation is done.
fn asleep<'a, D: ?Sized>(mut request: Request<'a, D, &LocalScope<'a>>) {
    while let Err(under_way) = request.test() {
        request = under_way;
        sleep(NAP);
    }
}

fn with_storage<R>(
    tensor: &Tensor,
    work: impl FnOnce(&CpuStorage, usize, usize) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => work(storage, start, end),
        _ => Err(unsupported(tensor)),
    }
}

fn unsupported(tensor: &Tensor) -> Error {
    Error::Ranks(format!(
        "MPI was given {:?} of {:?} on {:?}, expected contiguous f32 or bytes in main memory",
        tensor.dtype(),
        tensor.dims(),
        tensor.device().location()
    ))
}
