//! The device: finding it, the memory that batches arrive in, and the way onto it.
//!
//! The binary links libtorch's CPU library only. CUDA's is loaded at run time when it is asked for, so that one
//! binary serves machines with and without a GPU.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use simclr_ground::batch::{Batch, Slab};
use simclr_torch::cuda;
use simclr_torch::memory::{self, HostBytes};
use tch::{Cuda, Device, Kind, Tensor};

use crate::error::{TrainError, of_torch};
use simclr_torch::streams::CopyStream;
pub use simclr_torch::streams::Event;

/// The precision of convolutions and matrix products; everything else is f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits, on GPUs too.
    Fp32,
    /// 32 bits of which GPUs multiply with 10 bits of mantissa (TF32), several times as fast; on the CPU as `fp32`.
    Tf32,
    /// bfloat16: twice as fast and more where the processor has instructions for it; weights stay f32.
    Bf16,
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// A GPU if there is one, else the processor.
    Auto,
    /// A GPU: with several processes on a machine, one each.
    Cuda,
    /// The GPU of this number.
    CudaNth(usize),
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let nth = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match (name.as_str(), nth) {
            ("cpu", _) => Ok(Self::Cpu),
            ("auto", _) => Ok(Self::Auto),
            ("cuda", _) => Ok(Self::Cuda),
            (_, Some(nth)) => Ok(Self::CudaNth(nth)),
            _ => Err(format!("invalid device {name:?}: expected cpu, cuda, cuda:N or auto")),
        }
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        match name {
            DeviceName::Cpu => "cpu".into(),
            DeviceName::Auto => "auto".into(),
            DeviceName::Cuda => "cuda".into(),
            DeviceName::CudaNth(nth) => format!("cuda:{nth}"),
        }
    }
}

/// The device that `name` asks for.
///
/// # Errors
/// If CUDA is asked for and something is missing; the message says what.
pub fn open(name: DeviceName) -> Result<Device, TrainError> {
    open_for(name, Local::ALONE)
}

/// As [`open`], for the process `local.rank` of `local.size` on this machine: `cuda` and `auto` mean a GPU each, unless
/// each process is shown one alone.
///
/// # Errors
/// As [`open`]; also if several processes are to share one GPU.
pub fn open_for(name: DeviceName, local: Local) -> Result<Device, TrainError> {
    let missing = |why: String| TrainError::Device { asked: name.into(), why };
    match name {
        DeviceName::Cpu => return Ok(Device::Cpu),
        DeviceName::CudaNth(_) if local.size > 1 => {
            let why = format!(
                "{} processes on this machine would share it; expected cuda, which gives each its own",
                local.size
            );
            return Err(missing(why));
        }
        // A GPU that is there and can't be used is not passed over in silence.
        DeviceName::Auto if cuda::load().is_err() && cuda::gpus_of_driver().is_none() => return Ok(Device::Cpu),
        _ => {}
    }
    cuda::load().map_err(|why| match name {
        DeviceName::Auto => missing(format!("the driver reports a GPU, but {why}; or set machine.device = cpu")),
        _ => missing(why),
    })?;
    let count = Cuda::device_count() as usize;
    let index = match name {
        DeviceName::CudaNth(number) => number,
        // Launchers that show each process its own GPU alone number that one 0.
        _ if count == 1 && std::env::var_os("CUDA_VISIBLE_DEVICES").is_some() => 0,
        _ => local.rank,
    };
    if index >= count {
        return Err(missing(format!("GPU {index} does not exist; the driver reports {count} GPUs, numbered from 0")));
    }
    cuda::use_gpu(index).map_err(of_torch)?;
    Ok(Device::Cuda(index))
}

/// Which of the processes on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
}

impl Local {
    /// The only one.
    pub const ALONE: Self = Self { rank: 0, size: 1 };
}

/// How GPUs compute from now on in this process; to be called before a model is made.
///
/// # Errors
/// If libtorch fails.
pub fn set_precision(precision: Precision) -> Result<(), TrainError> {
    cuda::arithmetic(precision == Precision::Tf32, true).map_err(of_torch)
}

/// What the memory of a GPU holds, as text for people: `12.3 of 79.1 GiB`; `None` on the CPU.
pub fn peak_memory(device: Device) -> Option<String> {
    let Device::Cuda(gpu) = device else { return None };
    let memory = cuda::memory(gpu).ok()?;
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    Some(format!("{:.1} of {:.1} GiB", gib(memory.peak), gib(memory.total)))
}

/// How many GPUs the machine's NVIDIA driver offers; `None` if there is no driver that works.
pub fn gpus_of_driver() -> Option<usize> {
    cuda::gpus_of_driver()
}

/// How many GPUs there are, once CUDA was opened.
pub fn gpus() -> i64 {
    Cuda::device_count()
}

/// Makes libtorch compute on the CPU with so many threads, and memory that a step frees stay for the next one.
pub fn compute_on_cpu(threads: usize) {
    tch::set_num_threads(threads as i32);
    memory::keep_freed_memory();
}

/// Memory for a batch's pixels that the device can read: pinned for a GPU.
pub struct DeviceSlab(HostBytes);

impl DeviceSlab {
    /// Slabs of `bytes` bytes, for batches bound for `device`.
    ///
    /// # Errors
    /// If the memory can't be had.
    pub fn allocate(count: usize, bytes: usize, device: Device) -> Result<Vec<Self>, TrainError> {
        (0..count).map(|_| Ok(Self(HostBytes::zeros(bytes, device.is_cuda())?))).collect()
    }
}

impl Slab for DeviceSlab {
    fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

/// The batch's views on `device`: `[views × N, 3, size, size]` f32 in [0, 1], channels last in memory. The first
/// views of all images come first, then the second ones. No mean is taken off, as in the official code.
///
/// # Errors
/// If the device's memory is full.
///
/// # Panics
/// If the views are of several sizes.
pub fn upload(batch: &Batch<DeviceSlab>, device: Device) -> Result<Tensor, TrainError> {
    views(&pixels(batch)?.f_to_device(device)?, 0..batch.num_images as i64)
}

/// The batch's pixels where they are, `[views, N, size, size, 3]` u8.
fn pixels(batch: &Batch<DeviceSlab>) -> Result<Tensor, TrainError> {
    let layout = &batch.layout;
    let view_bytes = layout.view_bytes[0];
    assert!(layout.view_bytes.iter().all(|&bytes| bytes == view_bytes), "views of one size, not {layout:?}");
    let side = ((view_bytes / 3) as f64).sqrt() as i64;
    let all = batch.slab().0.tensor().f_narrow(0, 0, layout.bytes() as i64)?;
    let all = all.f_view([layout.views() as i64, layout.images as i64, side, side, 3])?;
    Ok(all.f_narrow(1, 0, batch.num_images as i64)?)
}

/// Some images of `pixels`, as [`upload`] gives them.
fn views(pixels: &Tensor, images: Range<i64>) -> Result<Tensor, TrainError> {
    let (views, n, side) = (pixels.size()[0], images.end - images.start, pixels.size()[2]);
    let some = pixels.f_narrow(1, images.start, n)?.f_reshape([views * n, side, side, 3])?;
    Ok(some.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?)
}

/// The way onto the device, beside what it computes.
pub struct Uploader {
    gpu: Option<(usize, CopyStream)>,
}

impl Uploader {
    /// The way onto `device`; onto a GPU, a stream of its own.
    ///
    /// # Errors
    /// If the GPU gives none.
    pub fn new(device: Device) -> Result<Self, TrainError> {
        let Device::Cuda(gpu) = device else { return Ok(Self { gpu: None }) };
        Ok(Self { gpu: Some((gpu, CopyStream::open(gpu).map_err(of_torch)?)) })
    }

    /// Begins to bring a batch's pixels onto the device, and does not wait for them. The batch must be kept until a step
    /// that used them is done.
    ///
    /// # Errors
    /// If the device's memory is full.
    pub fn begin(&self, batch: &Batch<DeviceSlab>) -> Result<Uploaded, TrainError> {
        let pixels = pixels(batch)?;
        let Some((_, side)) = &self.gpu else { return Ok(Uploaded { pixels, arrival: None }) };
        let (pixels, arrival) = side.copy(&pixels).map_err(of_torch)?;
        Ok(Uploaded { pixels, arrival: Some(arrival) })
    }

    /// A moment of the GPU's computing; `None` on the CPU, where what was asked for is done.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn now(&self) -> Result<Option<Event>, TrainError> {
        self.gpu.as_ref().map(|(gpu, _)| Event::now(*gpu)).transpose().map_err(of_torch)
    }
}

/// Pixels on the device, or on their way to it.
pub struct Uploaded {
    pixels: Tensor,
    arrival: Option<Event>,
}

impl Uploaded {
    /// Lets what the device is asked from now on wait until the pixels are there.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn hold(&self) -> Result<(), TrainError> {
        self.arrival.as_ref().map_or(Ok(()), |arrival| arrival.hold().map_err(of_torch))
    }

    /// The views of some images, as [`upload`] gives them, once they are held for.
    ///
    /// # Errors
    /// If the device's memory is full.
    pub fn views(&self, images: Range<i64>) -> Result<Tensor, TrainError> {
        views(&self.pixels, images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_what_is_missing() {
        assert_eq!(open(DeviceName::Cpu).unwrap(), Device::Cpu);
        let message = DeviceName::try_from("gpu".to_owned()).unwrap_err();
        assert!(message.contains("cpu, cuda, cuda:N or auto"), "{message}");
        match open(DeviceName::CudaNth(99)) {
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains("LD_LIBRARY_PATH") || message.contains("GPU"), "{message}");
            }
            Ok(device) => panic!("a hundredth GPU: {device:?}"),
        }
    }
}
