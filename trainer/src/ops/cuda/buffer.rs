//! Addresses of tensors' elements, results that kernels write, and launches.

use std::ffi::{c_int, c_void};

use candle_core::backend::BackendDevice;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor, bail};

use super::abi::Kernels;

/// What a kernel writes: fresh memory on the device that nothing else sees yet.
pub(super) struct Output {
    pub storage: Storage,
    pub shape: Shape,
}

impl Output {
    /// Not written yet.
    pub fn new(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Output> {
        let shape = shape.into();
        let storage = match device {
            // SAFETY: every element is written by the kernel that this is made for, before anything reads it.
            Device::Cuda(device) => Storage::Cuda(unsafe { device.alloc_uninit(&shape, dtype)? }),
            _ => unwritten(&shape, dtype)?,
        };
        Ok(Output { storage, shape })
    }

    /// As [`Output::new`], of the shape, type and device of a tensor.
    pub fn like(tensor: &Tensor) -> Result<Output> {
        Output::new(tensor.shape(), tensor.dtype(), tensor.device())
    }

    /// The address of its first element.
    pub fn address<T>(&mut self) -> Result<*mut T> {
        Ok(address_of(&self.storage)?.cast_mut().cast())
    }

    /// A constant of what has been written.
    pub fn into_tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }
}

/// Main memory full of NaN, as only the tests of the kernels use it.
fn unwritten(shape: &Shape, dtype: DType) -> Result<Storage> {
    let nan = Tensor::full(f32::NAN, shape, &Device::Cpu)?.to_dtype(dtype)?;
    let (storage, _) = nan.storage_and_layout();
    match &*storage {
        Storage::Cpu(values) => Ok(Storage::Cpu(values.clone())),
        _ => bail!("a tensor in main memory is not in main memory"),
    }
}

/// The address of the first element of a contiguous tensor, which must outlive the launch: the memory of a dropped one is
/// only used again by what comes later on the same stream.
pub(super) fn address<T>(tensor: &Tensor) -> Result<*const T> {
    let (storage, layout) = tensor.storage_and_layout();
    if !layout.is_contiguous() {
        bail!(
            "a kernel was given a tensor of strides {:?}",
            layout.stride()
        );
    }
    let offset = layout.start_offset() * tensor.dtype().size_in_bytes();
    // An address in a GPU's memory is a number here; nothing on this side follows it.
    Ok(address_of(&storage)?
        .cast::<u8>()
        .wrapping_add(offset)
        .cast())
}

/// As [`address`], of a tensor that a kernel changes in place.
pub(super) fn address_mut<T>(tensor: &Tensor) -> Result<*mut T> {
    Ok(address::<T>(tensor)?.cast_mut())
}

/// The address that stands for something left out.
pub(super) fn none<T>() -> *const T {
    std::ptr::null()
}

fn address_of(storage: &Storage) -> Result<*const c_void> {
    match storage {
        Storage::Cpu(values) => Ok(match values {
            CpuStorage::U8(values) => values.as_ptr().cast(),
            CpuStorage::U32(values) => values.as_ptr().cast(),
            CpuStorage::I64(values) => values.as_ptr().cast(),
            CpuStorage::BF16(values) => values.as_ptr().cast(),
            CpuStorage::F32(values) => values.as_ptr().cast(),
            CpuStorage::F64(values) => values.as_ptr().cast(),
            _ => bail!("kernels do not take {:?}", storage.dtype()),
        }),
        #[cfg(feature = "cuda")]
        Storage::Cuda(values) => {
            use candle_core::cuda_backend::CudaStorageSlice as Slice;
            use candle_core::cuda_backend::cudarc::driver::DevicePtr;
            let stream = values.device.cuda_stream();
            let address = match &values.slice {
                Slice::U8(values) => values.device_ptr(&stream).0,
                Slice::U32(values) => values.device_ptr(&stream).0,
                Slice::I64(values) => values.device_ptr(&stream).0,
                Slice::BF16(values) => values.device_ptr(&stream).0,
                Slice::F32(values) => values.device_ptr(&stream).0,
                Slice::F64(values) => values.device_ptr(&stream).0,
                _ => bail!("kernels do not take {:?}", storage.dtype()),
            };
            Ok(address as *const c_void)
        }
        _ => bail!("no kernels for tensors of this device"),
    }
}

/// How kernels name an element type.
pub(super) fn type_code(tensor: &Tensor) -> Result<c_int> {
    match tensor.dtype() {
        DType::F32 => Ok(0),
        DType::BF16 => Ok(1),
        other => bail!("kernels take f32 or bf16, not {other:?}"),
    }
}

/// Where kernels come from and run.
pub(super) struct Launch {
    pub kernels: &'static Kernels,
    pub stream: *mut c_void,
}

impl Launch {
    /// On the stream on which candle does everything on this device, so that kernels and candle's operations run in the
    /// order of their calls.
    pub fn on(device: &Device) -> Result<Launch> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Launch {
                kernels: &super::abi::LINKED,
                stream: device.cuda_stream().cu_stream().cast(),
            }),
            #[cfg(test)]
            Device::Cpu => Ok(Launch {
                kernels: super::emulation::kernels(),
                stream: std::ptr::null_mut(),
            }),
            _ => bail!("no kernels for {:?}", device.location()),
        }
    }

    /// Calls an entry point and turns its error number into an error.
    pub fn run(&self, name: &str, call: impl FnOnce(&Kernels, *mut c_void) -> c_int) -> Result<()> {
        match call(self.kernels, self.stream) {
            0 => Ok(()),
            code => bail!("the kernel of {name} was not launched: CUDA error {code}"),
        }
    }

    /// How many chunks sums over this many rows have.
    pub fn chunks(&self, rows: usize) -> usize {
        // SAFETY: plain arithmetic.
        unsafe { (self.kernels.pairquet_chunks)(rows as i64) as usize }
    }
}
