//! A GPU: opening it, keeping its memory, and bringing batches to it while it computes.
#![allow(unsafe_code)] // The driver's functions; each block says why its use is right.

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DevicePtr, PinnedHostSlice, result, sys,
};
use candle_core::{CudaDevice, DType, Device, Result, Storage, Tensor, bail};

use super::{IMAGENET_MEAN, IMAGENET_STD};
use crate::ops::cuda::tokens;

/// Opens a GPU with a stream of its own for everything that is computed.
pub fn open(index: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(index)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: all work on tensors is on the one stream of the device; what other streams do is ordered by events of
    // their own, below.
    unsafe { cuda.disable_event_tracking() };
    keep_freed_memory(cuda)?;
    Ok(device)
}

/// How many GPUs this process sees.
pub fn count() -> Result<i32> {
    CudaContext::device_count().w()
}

/// Whether products of f32 may round their factors to TF32.
pub fn set_tf32(may_round: bool) {
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(may_round);
}

/// Has the driver keep freed memory for the next allocation; it would give it back at every synchronisation.
fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let pool = memory_pool(device)?;
    let mut keep = u64::MAX;
    // SAFETY: the attribute is a 64-bit number, which the driver reads before it returns.
    let set = unsafe {
        sys::cuMemPoolSetAttribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut keep).cast::<c_void>(),
        )
    };
    set.result().w()
}

fn memory_pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    let mut pool = std::ptr::null_mut();
    // SAFETY: the driver writes a handle to the place it is given.
    unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device()) }
        .result()
        .w()?;
    Ok(pool)
}

/// The most memory that tensors took at one time since the device was opened, in bytes.
pub fn peak_memory_bytes(device: &Device) -> Result<u64> {
    let pool = memory_pool(device.as_cuda_device()?)?;
    let mut bytes = 0u64;
    // SAFETY: the attribute is a 64-bit number, which the driver writes.
    let got = unsafe {
        sys::cuMemPoolGetAttribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
            (&raw mut bytes).cast::<c_void>(),
        )
    };
    got.result().w()?;
    Ok(bytes)
}

/// Batches on their way: page-locked buffers, and a stream that copies from them while the other one computes.
///
/// There are two of everything, so that a batch is copied while the one before it is trained on. The host is ahead of the
/// GPU as long as nobody reads a result, which is what makes the two overlap.
pub struct Lane {
    device: CudaDevice,
    copies: Arc<CudaStream>,
    slots: [Option<Slot>; 2],
    next: usize,
}

struct Slot {
    host: PinnedHostSlice<u8>,
    /// The same bytes on the device, `[n]`.
    bytes: Tensor,
    /// After the copy: the host's buffer is free, and the device's may be read.
    copied: CudaEvent,
    /// After the pictures were made from them: the device's buffer is free.
    read: CudaEvent,
}

impl Lane {
    /// To a device that [`open`] opened.
    pub fn new(device: &Device) -> Result<Lane> {
        let device = device.as_cuda_device()?.clone();
        let copies = device.cuda_stream().context().new_stream().w()?;
        Ok(Lane {
            device,
            copies,
            slots: [None, None],
            next: 0,
        })
    }

    /// Pictures `[.., H, W, 3]` of bytes as normalised planes `[.., 3, H, W]` of `dtype` on the device. Returns before
    /// they are there; what is computed from them waits.
    pub fn upload(&mut self, pixels: &[u8], shape: &[usize], dtype: DType) -> Result<Tensor> {
        let computing = self.device.cuda_stream();
        let fits = |slot: &&mut Slot| slot.bytes.elem_count() == pixels.len();
        let slot = &mut self.slots[self.next];
        self.next = (self.next + 1) % 2;
        if slot.as_mut().filter(fits).is_none() {
            *slot = Some(Slot::new(&self.device, pixels.len())?);
        }
        let Some(slot) = slot else {
            bail!("a batch has no buffer")
        };
        slot.copied.synchronize().w()?;
        let host = slot.host.as_mut_slice().w()?;
        host.copy_from_slice(pixels);

        self.copies.wait(&slot.read).w()?;
        {
            let (storage, _) = slot.bytes.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else {
                bail!("a batch's buffer is not on the GPU")
            };
            let (address, _) = storage.as_cuda_slice::<u8>()?.device_ptr(&computing);
            // SAFETY: both buffers have the batch's size; the host's is not written again before `copied`, and nothing
            // on the device reads the other one before `copied` or after `read`.
            unsafe { result::memcpy_htod_async(address, host, self.copies.cu_stream()) }.w()?;
        }
        slot.copied.record(&self.copies).w()?;
        computing.wait(&slot.copied).w()?;
        let bytes = slot.bytes.reshape(shape)?;
        let planes = tokens::normalise(&bytes, IMAGENET_MEAN, IMAGENET_STD, dtype)?;
        slot.read.record(&computing).w()?;
        Ok(planes)
    }
}

impl Slot {
    fn new(device: &CudaDevice, n: usize) -> Result<Slot> {
        let computing = device.cuda_stream();
        let context = computing.context();
        // SAFETY: bytes may have any value, and all are written before the first copy.
        let host = unsafe { context.alloc_pinned_with_flags(n, 0) }.w()?;
        let slot = Slot {
            host,
            bytes: Tensor::zeros(n, DType::U8, &Device::Cuda(device.clone()))?,
            copied: context.new_event(None).w()?,
            read: context.new_event(None).w()?,
        };
        slot.read.record(&computing).w()?; // the buffer is there once its zeros are
        Ok(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The page-locked buffer must outlive the copy. A failure here means that the device is gone, and with it the copy.
        let _ = self.copied.synchronize();
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
