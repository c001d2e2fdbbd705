//! Host memory: tensors that are read and written as bytes, and what the allocator does with memory that is freed.

use tch::{Device, Kind, TchError, Tensor};

/// A vector of bytes in host memory that is a tensor as well.
pub struct HostBytes {
    tensor: Tensor,
    bytes: usize,
}

impl HostBytes {
    /// `bytes` zeros; pinned, if a device is given that copies from it.
    ///
    /// # Errors
    /// If the memory can't be had.
    pub fn zeros(bytes: usize, pinned_for: Option<Device>) -> Result<Self, TchError> {
        let tensor = Tensor::f_zeros([bytes as i64], (Kind::Uint8, Device::Cpu))?;
        let tensor = match pinned_for {
            Some(device) => tensor.f_pin_memory(device)?,
            None => tensor,
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
