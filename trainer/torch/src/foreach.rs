//! One operation on many tensors, as torch's own optimisers do it: a GPU needs few launches for all of them.

use std::ffi::c_char;
use std::ptr::null_mut;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{TorchError, check};

unsafe extern "C" {
    fn simclr_lists_add(x: *const Pointer, y: *const Pointer, count: usize, factor: f64) -> *mut c_char;
    fn simclr_lists_scale(x: *const Pointer, count: usize, factor: f64) -> *mut c_char;
    fn simclr_lists_scale_each(x: *const Pointer, count: usize, factors: Pointer) -> *mut c_char;
    fn simclr_lists_sum(
        x: *const Pointer,
        y: *const Pointer,
        count: usize,
        factor: f64,
        sums: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn simclr_lists_add_squares(x: *const Pointer, y: *const Pointer, count: usize, factor: f64) -> *mut c_char;
    fn simclr_lists_add_ratio(
        x: *const Pointer,
        y: *const Pointer,
        z: *const Pointer,
        count: usize,
        factor: f64,
        root: f64,
        epsilon: f64,
    ) -> *mut c_char;
    fn simclr_lists_norms(x: *const Pointer, count: usize, norms: *mut *mut C_tensor) -> *mut c_char;
}

type Pointer = *const C_tensor;

/// Tensors that are changed or read together, each the partner of the one at its place in another list.
pub struct List<'a>(Vec<&'a Tensor>);

impl<'a> FromIterator<&'a Tensor> for List<'a> {
    fn from_iter<I: IntoIterator<Item = &'a Tensor>>(tensors: I) -> Self {
        Self(tensors.into_iter().collect())
    }
}

impl List<'_> {
    /// Whether there are none, which no operation takes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn pointers(&self) -> Vec<Pointer> {
        self.0.iter().map(|tensor| tensor.as_ptr()).collect()
    }

    /// Pointers to this list's tensors and to the other's.
    fn with(&self, other: &List<'_>) -> (Vec<Pointer>, Vec<Pointer>) {
        assert_eq!(self.0.len(), other.0.len(), "lists of one length");
        (self.pointers(), other.pointers())
    }

    /// `x += factor · y`
    pub fn add(&self, y: &List<'_>, factor: f64) -> Result<(), TorchError> {
        let (x, y) = self.with(y);
        // SAFETY: here and below, each pointer is that of a tensor that the lists borrow, there are as many as said, and
        // what is handed out is written once and ours.
        check(unsafe { simclr_lists_add(x.as_ptr(), y.as_ptr(), x.len(), factor) })
    }

    /// `x *= factor`
    pub fn scale(&self, factor: f64) -> Result<(), TorchError> {
        let x = self.pointers();
        // SAFETY: see `add`.
        check(unsafe { simclr_lists_scale(x.as_ptr(), x.len(), factor) })
    }

    /// `x *= factors[i]`, `factors` a row of as many values.
    pub fn scale_each(&self, factors: &Tensor) -> Result<(), TorchError> {
        assert_eq!(factors.size(), [self.0.len() as i64], "a factor for each tensor");
        let x = self.pointers();
        // SAFETY: see `add`.
        check(unsafe { simclr_lists_scale_each(x.as_ptr(), x.len(), factors.as_ptr()) })
    }

    /// `x + factor · y`, as new tensors.
    pub fn sum(&self, y: &List<'_>, factor: f64) -> Result<Vec<Tensor>, TorchError> {
        let (x, y) = self.with(y);
        let mut sums = vec![null_mut(); x.len()];
        // SAFETY: see `add`.
        unsafe {
            check(simclr_lists_sum(x.as_ptr(), y.as_ptr(), x.len(), factor, sums.as_mut_ptr()))?;
            Ok(sums.into_iter().map(|sum| Tensor::from_ptr(sum)).collect())
        }
    }

    /// `x += factor · y²`
    pub fn add_squares(&self, y: &List<'_>, factor: f64) -> Result<(), TorchError> {
        let (x, y) = self.with(y);
        // SAFETY: see `add`.
        check(unsafe { simclr_lists_add_squares(x.as_ptr(), y.as_ptr(), x.len(), factor) })
    }

    /// `x += factor · y / (√z / root + epsilon)`
    pub fn add_ratio(
        &self,
        (y, z): (&List<'_>, &List<'_>),
        factor: f64,
        root: f64,
        epsilon: f64,
    ) -> Result<(), TorchError> {
        let ((x, y), (_, z)) = (self.with(y), self.with(z));
        // SAFETY: see `add`.
        check(unsafe { simclr_lists_add_ratio(x.as_ptr(), y.as_ptr(), z.as_ptr(), x.len(), factor, root, epsilon) })
    }

    /// The norm of each tensor, `[n]`.
    pub fn norms(&self) -> Result<Tensor, TorchError> {
        let (x, mut norms) = (self.pointers(), null_mut());
        // SAFETY: see `add`.
        unsafe {
            check(simclr_lists_norms(x.as_ptr(), x.len(), &mut norms))?;
            Ok(Tensor::from_ptr(norms))
        }
    }
}
