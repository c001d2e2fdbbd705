//! What simclr-pipeline asks of libtorch beyond what tch offers: C functions over its C++, in `cpp/`, whose header says
//! what each does. All of the trainer's `unsafe` code is here.
#![allow(unsafe_code)]

pub mod c10d;
pub mod foreach;
pub mod streams;
pub mod cuda;
pub mod memory;

use std::ffi::{CStr, c_char};

/// What libtorch said went wrong.
pub type TorchError = String;

unsafe extern "C" {
    fn simclr_free_text(text: *mut c_char);
}

/// What a function of the shim returned, as a result.
fn check(text: *mut c_char) -> Result<(), TorchError> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: the shim hands out text of its own that ends in a zero, to be freed once.
    let what = unsafe {
        let what = CStr::from_ptr(text).to_string_lossy().trim().to_owned();
        simclr_free_text(text);
        what
    };
    Err(what)
}
