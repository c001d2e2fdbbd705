//! libtorch's CUDA half. The binary links the CPU library only; this one is loaded at run time when it is asked for, so
//! that one binary serves machines with and without a GPU.

use std::sync::OnceLock;

use tch::Cuda;

/// Loads libtorch's CUDA library, once.
///
/// # Errors
/// If it is not found, or finds no usable GPU; says which.
pub fn load() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(load_once).clone()
}

fn load_once() -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: libtorch_cuda registers its kernels when it is loaded, as libtorch means it to; it is of the same build as
    // the CPU library beside it and is never unloaded.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| {
        format!(
            "libtorch's CUDA library cannot be loaded ({error}); set LD_LIBRARY_PATH to the `lib` folder of a PyTorch \
             2.11.0 with CUDA and to the `nvidia/*/lib` folders beside it"
        )
    })?;
    std::mem::forget(library);
    if Cuda::is_available() {
        return Ok(());
    }
    Err("libtorch's CUDA library is there, but it finds no usable GPU; `nvidia-smi` tells whether the driver does"
        .into())
}
