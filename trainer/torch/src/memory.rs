//! Host memory: tensors that are read and written as bytes, and what the allocator does with memory that is freed.

use std::ffi::c_char;
use std::ptr::null_mut;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::check;

unsafe extern "C" {
    fn simclr_pinned_zeros(bytes: i64, pinned: *mut *mut C_tensor) -> *mut c_char;
}

/// A vector of bytes in host memory that is a tensor as well.
pub struct HostBytes {
    tensor: Tensor,
    bytes: usize,
}

impl HostBytes {
    /// `bytes` zeros; page-locked, if they are for a GPU to copy.
    ///
    /// # Errors
    /// If the memory can't be had.
    pub fn zeros(bytes: usize, pinned: bool) -> Result<Self, TchError> {
        if !pinned {
            return Ok(Self { tensor: Tensor::f_zeros([bytes as i64], (Kind::Uint8, Device::Cpu))?, bytes });
        }
        let mut handed = null_mut();
        // SAFETY: `handed` is written when it succeeds, and is ours then.
        let tensor = unsafe {
            check(simclr_pinned_zeros(bytes as i64, &mut handed)).map_err(TchError::Torch)?;
            Tensor::from_ptr(handed)
        };
        Ok(Self { tensor, bytes })
    }

    /// The tensor, `[bytes]` u8.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the tensor is a contiguous u8 vector of this many bytes in host memory, made here; who is given the
        // tensor reads it only, and it is written only through `as_mut_slice`, which borrows exclusively.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<u8>(), self.bytes) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast::<u8>(), self.bytes) }
    }
}

/// Makes the allocator keep what is freed. By default large tensors are given back to the system one by one, which maps
/// and clears their pages anew in every step: a fifth of its time and more (README, Speed).
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers of the allocator, which it reads at its next calls.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1); // never
    }
}
