//! Copies to a GPU beside its computing, and moments of its time. The host waits for nothing that it does not ask for.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{TorchError, check};

unsafe extern "C" {
    fn simclr_side_stream_open(device: c_int, side: *mut *mut c_void) -> *mut c_char;
    fn simclr_side_stream_close(side: *mut c_void);
    fn simclr_side_stream_copy(
        side: *mut c_void,
        pinned: *const C_tensor,
        copy: *mut *mut C_tensor,
        done: *mut *mut c_void,
    ) -> *mut c_char;
    fn simclr_moment_now(device: c_int, now: *mut *mut c_void) -> *mut c_char;
    fn simclr_moment_drop(moment: *mut c_void);
    fn simclr_moment_hold(moment: *mut c_void) -> *mut c_char;
    fn simclr_moments_apart(earlier: *mut c_void, later: *mut c_void, milliseconds: *mut f64) -> *mut c_char;
}

/// A stream of a GPU beside the one that it computes on.
pub struct CopyStream(*mut c_void);

impl CopyStream {
    /// One of the GPU with this number.
    pub fn open(gpu: usize) -> Result<Self, TorchError> {
        let mut side = null_mut();
        // SAFETY: `side` is written when it succeeds; so are all that are pointed at below.
        check(unsafe { simclr_side_stream_open(gpu as c_int, &mut side) })?;
        Ok(Self(side))
    }

    /// Begins to copy `pinned` to the GPU. The copy may be computed with after [`Event::hold`], and `pinned` be written to
    /// once something that was asked for after that is done.
    pub fn copy(&self, pinned: &Tensor) -> Result<(Tensor, Event), TorchError> {
        let (mut copy, mut done) = (null_mut(), null_mut());
        // SAFETY: the stream is open, the tensor alive; both that are handed out are ours.
        unsafe {
            check(simclr_side_stream_copy(self.0, pinned.as_ptr(), &mut copy, &mut done))?;
            Ok((Tensor::from_ptr(copy), Event(done)))
        }
    }
}

impl Drop for CopyStream {
    fn drop(&mut self) {
        // SAFETY: it was opened once and is closed once.
        unsafe { simclr_side_stream_close(self.0) }
    }
}

/// When all that was asked of a stream is done.
pub struct Event(*mut c_void);

impl Event {
    /// When all that was asked of the GPU's computing stream up to now is done.
    pub fn now(gpu: usize) -> Result<Self, TorchError> {
        let mut now = null_mut();
        // SAFETY: see above.
        check(unsafe { simclr_moment_now(gpu as c_int, &mut now) })?;
        Ok(Self(now))
    }

    /// Lets what is asked of the computing stream from now on begin after this moment.
    pub fn hold(&self) -> Result<(), TorchError> {
        // SAFETY: the moment is ours until it is dropped.
        check(unsafe { simclr_moment_hold(self.0) })
    }

    /// Waits for both, and says how long after this one the later one was.
    pub fn until(&self, later: &Self) -> Result<Duration, TorchError> {
        let mut milliseconds = 0.0;
        // SAFETY: both are ours until they are dropped.
        check(unsafe { simclr_moments_apart(self.0, later.0, &mut milliseconds) })?;
        Ok(Duration::from_secs_f64(milliseconds.max(0.0) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it was handed out once and is dropped once.
        unsafe { simclr_moment_drop(self.0) }
    }
}
