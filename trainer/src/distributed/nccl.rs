//! Ranks on GPUs, over NCCL. Unmeasured: it has compiled, and has not run on GPUs yet.
//!
//! NCCL works on a stream of its own, behind what the compute stream has been given so far; the communication thread
//! waits for it, so a result is there for every stream when it is handed on, and a rank that is lost shows as an
//! operation that does not end: cudarc does not let us ask the communicator for errors that come while it works.
//!
//! cudarc's communicator can only be aborted, not finalized. So a rank that leaves does not wait for the others; its own
//! operations have all ended by then.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DeviceRepr, ValidAsZeroBits,
};
use candle_core::cuda_backend::cudarc::nccl::result::NcclError;
use candle_core::cuda_backend::cudarc::nccl::safe::{Comm, Id, NcclType, ReduceOp};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Shape, Storage, Tensor};

use super::World;
use super::engine::Engine;
use super::rendezvous::{self, ID_BYTES, Meeting};
use crate::error::{Error, Result};

/// How long an operation may take, and the ranks to meet: NCCL's time-out in PyTorch.
const PATIENCE: Duration = Duration::from_secs(600);

/// Between two looks at an operation that is under way.
const NAP: Duration = Duration::from_micros(20);

/// NCCL's communicator over all ranks.
pub(super) struct Nccl {
    world: World,
    device: CudaDevice,
    compute: Arc<CudaStream>,
    stream: Arc<CudaStream>,
    /// `None` once it was aborted. Dropping it aborts, too.
    comm: Option<Comm>,
}

impl Nccl {
    /// Meets the other ranks, each on its own GPU.
    ///
    /// # Errors
    /// [`Error::Ranks`] if the others do not come, there is no place to meet, or NCCL fails.
    pub fn join(world: World, device: &Device) -> Result<Nccl> {
        let device = device.as_cuda_device()?.clone();
        let compute = device.cuda_stream();
        let stream = compute.context().new_stream().w()?;
        let id = match world.rank {
            0 => Some(Id::new().map_err(|error| failed("ncclGetUniqueId", error))?),
            _ => None,
        };
        let bytes = id.map(|id| id.internal().map(|byte| byte as u8));
        let id = Id::uninit(share_id(world, bytes)?.map(|byte| byte as _));
        let comm = Comm::from_rank(Arc::clone(&stream), world.rank, world.size, id)
            .map_err(|error| failed("ncclCommInitRank", error))?;
        Ok(Nccl {
            world,
            device,
            compute,
            stream,
            comm: Some(comm),
        })
    }

    /// Runs one operation on `values` with room for `n_out` values, and waits for it.
    fn run<T: NcclType + CudaDType + DeviceRepr + ValidAsZeroBits>(
        &self,
        what: &'static str,
        values: &Tensor,
        shape: Shape,
        call: impl FnOnce(&Comm, &CudaView<'_, T>, &mut CudaSlice<T>) -> Result<(), NcclError>,
    ) -> Result<Tensor> {
        let aborted = || Error::Ranks(format!("{what} after the communicator was aborted"));
        let comm = self.comm.as_ref().ok_or_else(aborted)?;
        let mut out = self.device.alloc_zeros::<T>(shape.elem_count())?;
        self.stream.join(&self.compute).w()?; // values and room are ready behind this
        let (storage, layout) = values.storage_and_layout();
        let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            return Err(Error::Ranks(format!(
                "{what} was given {:?} on {:?}, expected contiguous values on a GPU",
                values.dims(),
                values.device().location()
            )));
        };
        let values = storage.as_cuda_slice::<T>()?.slice(start..end);
        call(comm, &values, &mut out).map_err(|error| failed(what, error))?;
        self.wait(what)?;
        let storage = CudaStorage::wrap_cuda_slice(out, self.device.clone());
        let storage = Storage::Cuda(storage);
        Ok(Tensor::from_storage(
            storage,
            shape,
            BackpropOp::none(),
            false,
        ))
    }

    fn wait(&self, what: &str) -> Result<()> {
        let done = self.stream.record_event(None).w()?;
        let began = Instant::now();
        while !done.is_complete() {
            if began.elapsed() > PATIENCE {
                return Err(Error::Ranks(format!(
                    "rank {} of {} waited {} s for the others in {what}: a rank is lost or stuck",
                    self.world.rank,
                    self.world.size,
                    PATIENCE.as_secs()
                )));
            }
            sleep(NAP);
        }
        Ok(())
    }
}

impl Engine for Nccl {
    fn all_reduce_sum(&mut self, values: &Tensor) -> Result<Tensor> {
        let shape = values.shape().clone();
        self.run::<f32>("ncclAllReduce", values, shape, |comm, values, sum| {
            comm.all_reduce(values, sum, &ReduceOp::Sum).map(drop)
        })
    }

    fn all_gather(&mut self, rows: &Tensor) -> Result<Tensor> {
        let mut dims = rows.dims().to_vec();
        dims[0] *= self.world.size;
        let (what, shape) = ("ncclAllGather", Shape::from(dims));
        match rows.dtype() {
            DType::U8 => self.run::<u8>(what, rows, shape, |comm, rows, all| {
                comm.all_gather(rows, all).map(drop)
            }),
            _ => self.run::<f32>(what, rows, shape, |comm, rows, all| {
                comm.all_gather(rows, all).map(drop)
            }),
        }
    }

    fn broadcast(&mut self, values: &Tensor) -> Result<Tensor> {
        let shape = values.shape().clone();
        self.run::<u8>("ncclBroadcast", values, shape, |comm, values, said| {
            comm.broadcast(Some(values), said, 0).map(drop)
        })
    }

    /// Ends this rank's communicator: the others' operations fail or run into their time-out.
    fn abort(&mut self) {
        self.comm = None;
    }
}

/// Rank 0's id for all, over TCP where the environment names a place, else over MPI.
fn share_id(world: World, id: Option<[u8; ID_BYTES]>) -> Result<[u8; ID_BYTES]> {
    match Meeting::from_env()? {
        Some(at) => rendezvous::share(world, &at, id, PATIENCE),
        None => share_id_over_mpi(world, id),
    }
}

#[cfg(feature = "mpi")]
fn share_id_over_mpi(world: World, id: Option<[u8; ID_BYTES]>) -> Result<[u8; ID_BYTES]> {
    let mut mpi = super::mpi::Mpi::join(world)?;
    let id = Tensor::from_slice(&id.unwrap_or([0; ID_BYTES]), ID_BYTES, &Device::Cpu)?;
    let id = mpi.broadcast(&id)?.to_vec1::<u8>()?;
    id.try_into()
        .map_err(|_| Error::Ranks("NCCL's id changed its length on the way".to_owned()))
}

#[cfg(not(feature = "mpi"))]
fn share_id_over_mpi(world: World, _: Option<[u8; ID_BYTES]>) -> Result<[u8; ID_BYTES]> {
    Err(Error::Ranks(format!(
        "rank {} of {} on GPUs: MASTER_ADDR and MASTER_PORT are not set, expected rank 0's address and a free port there",
        world.rank, world.size
    )))
}

fn failed(what: &str, error: NcclError) -> Error {
    Error::Ranks(format!("{what} failed: {:?}", error.0)) // the error itself prints as its type's name alone
}
