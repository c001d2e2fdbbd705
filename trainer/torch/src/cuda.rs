//! libtorch's CUDA half. The binary links the CPU library only; this one is loaded at run time when it is asked for, so
//! that one binary serves machines with and without a GPU.

use std::ffi::{OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::Cuda;

use crate::{TorchError, check};

unsafe extern "C" {
    fn simclr_gpu_use(device: c_int) -> *mut c_char;
    fn simclr_gpu_memory(device: c_int, available: *mut u64, total: *mut u64, peak: *mut u64) -> *mut c_char;
    fn simclr_gpu_arithmetic(tf32: bool, benchmark: bool) -> *mut c_char;
}

/// The file of the CUDA half.
const LIBRARY: &str = "libtorch_cuda.so";

/// The environment variable that names the folder of `libtorch_cuda.so` where it is found in no other way.
pub const FOLDER_VARIABLE: &str = "SIMCLR_TORCH_LIB";

/// Loads libtorch's CUDA library, once.
///
/// # Errors
/// If it is not found, or finds no usable GPU; says which, where it was looked for, and what to set.
pub fn load() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(load_once).clone()
}

/// How many GPUs the NVIDIA driver of this machine offers; `None` where there is no working driver. Asked of the driver
/// itself, with none of libtorch.
pub fn gpus_of_driver() -> Option<usize> {
    // SAFETY: the driver's library may be loaded anywhere; both functions have these types in all of its versions, and
    // write no more than the number they are pointed at.
    unsafe {
        let driver = Library::new("libcuda.so.1").ok()?;
        let init = driver.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit\0").ok()?;
        let count = driver.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount\0").ok()?;
        let mut gpus = 0;
        let works = init(0) == 0 && count(&mut gpus) == 0;
        // It stays: libtorch loads it too, and it does not bear being unloaded.
        std::mem::forget(driver);
        (works && gpus > 0).then_some(gpus as usize)
    }
}

fn load_once() -> Result<(), String> {
    let mut tried = Vec::new();
    // The loader's own search comes first: the folder of the libtorch in use, then LD_LIBRARY_PATH.
    let folders = std::iter::once(None).chain(folders().into_iter().map(Some));
    let loaded = folders.into_iter().any(|folder| {
        let path = folder.as_ref().map_or(PathBuf::from(LIBRARY), |folder: &PathBuf| folder.join(LIBRARY));
        if folder.is_some() && !path.is_file() {
            tried.push(format!("{}: not there", path.display()));
            return false;
        }
        // SAFETY: libtorch_cuda registers its kernels when it is loaded, as libtorch means it to; it is of the same
        // version as the CPU library, which is what it is linked to, and is never unloaded.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                std::mem::forget(library);
                true
            }
            Err(error) => {
                tried.push(error.to_string());
                false
            }
        }
    });
    if !loaded {
        return Err(format!(
            "libtorch's CUDA library was not found ({}); set {FOLDER_VARIABLE}, or LD_LIBRARY_PATH, to the `torch/lib` \
             folder of a PyTorch 2.11.0 with CUDA",
            tried.join("; ")
        ));
    }
    if Cuda::is_available() {
        return Ok(());
    }
    Err("libtorch's CUDA library is there, but it finds no usable GPU; `nvidia-smi` tells whether the driver does"
        .into())
}

/// Where the CUDA half may be, the likeliest first: where the user says, beside the libtorch in use, in the PyTorch that
/// Python finds.
fn folders() -> Vec<PathBuf> {
    let named = std::env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    [named, beside_libtorch(), pytorch()].into_iter().flatten().collect()
}

/// The folder of the libtorch that this process runs with, links resolved.
fn beside_libtorch() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    // A line is an address range, four words, and the file.
    let mut files = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    Some(files.find(|file| file.ends_with("libtorch_cpu.so"))?.parent()?.to_owned())
}

/// The libraries of the PyTorch that `python3` finds, if that is of the version this program is built for.
fn pytorch() -> Option<PathBuf> {
    // Finds the package without importing it, which would take seconds.
    const ASK: &str =
        "import importlib.util as u, os; print(os.path.join(os.path.dirname(u.find_spec('torch').origin), ''))";
    let asked = Command::new("python3").args(["-c", ASK]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let folder = PathBuf::from(OsStr::from_bytes(asked.stdout.trim_ascii_end()));
    let version = std::fs::read_to_string(folder.join("version.py")).ok()?;
    version.contains("'2.11.0").then(|| folder.join("lib"))
}

/// Makes a GPU the one that this thread's kernels without a tensor of their own go to.
pub fn use_gpu(gpu: usize) -> Result<(), TorchError> {
    // SAFETY: sets a number of the thread's.
    check(unsafe { simclr_gpu_use(gpu as c_int) })
}

/// Memory of a GPU, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// What nobody has taken.
    pub available: u64,
    /// What there is.
    pub total: u64,
    /// The most that this process's tensors took at a time.
    pub peak: u64,
}

/// The memory of a GPU.
pub fn memory(gpu: usize) -> Result<GpuMemory, TorchError> {
    let mut memory = GpuMemory { available: 0, total: 0, peak: 0 };
    let GpuMemory { available, total, peak } = &mut memory;
    // SAFETY: three numbers are written when it succeeds.
    check(unsafe { simclr_gpu_memory(gpu as c_int, available, total, peak) })?;
    Ok(memory)
}

/// Whether f32 products and convolutions on GPUs may drop to TF32, and whether the fastest algorithm is tried out for each
/// shape of convolution.
pub fn arithmetic(tf32: bool, benchmark: bool) -> Result<(), TorchError> {
    // SAFETY: sets flags of libtorch's.
    check(unsafe { simclr_gpu_arithmetic(tf32, benchmark) })
}
