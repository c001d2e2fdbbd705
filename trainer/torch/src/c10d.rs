//! torch's c10d: what processes need that train together.

use std::ffi::{CString, c_char, c_int, c_void};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::IntoRawFd;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{TorchError, check};

/// Makes the backend for tensors on a GPU.
type MakeBackend = unsafe extern "C" fn(*mut c_void, c_int, c_int, i64, *mut *mut c_void) -> *mut c_char;

unsafe extern "C" {
    fn simclr_store_open(
        host: *const c_char,
        port: *mut u16,
        keep: bool,
        listening: c_int,
        prefix: *const c_char,
        timeout_ms: i64,
        store: *mut *mut c_void,
    ) -> *mut c_char;
    fn simclr_store_close(store: *mut c_void);
    fn simclr_store_set(store: *mut c_void, key: *const c_char, value: *const c_char, length: usize) -> *mut c_char;
    fn simclr_store_get(
        store: *mut c_void,
        key: *const c_char,
        timeout_ms: i64,
        found: *mut bool,
        value: *mut *mut c_char,
        length: *mut usize,
    ) -> *mut c_char;
    fn simclr_group_open(
        store: *mut c_void,
        host: *const c_char,
        rank: c_int,
        world: c_int,
        timeout_ms: i64,
        nccl: Option<MakeBackend>,
        group: *mut *mut c_void,
    ) -> *mut c_char;
    fn simclr_group_close(group: *mut c_void);
    fn simclr_all_reduce(group: *mut c_void, tensor: *mut C_tensor) -> *mut c_char;
    fn simclr_all_gather(group: *mut c_void, own: *mut C_tensor, all: *mut C_tensor) -> *mut c_char;
    fn simclr_broadcast(group: *mut c_void, tensor: *mut C_tensor, from: c_int) -> *mut c_char;
    fn simclr_sync_batch_norm(
        group: *mut c_void,
        x: *const C_tensor,
        scale: *const C_tensor,
        shift: *const C_tensor,
        running_mean: *const C_tensor,
        running_var: *const C_tensor,
        momentum: f64,
        epsilon: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn simclr_reducer_open(
        group: *mut c_void,
        parameters: *const *const C_tensor,
        count: usize,
        reducer: *mut *mut c_void,
    ) -> *mut c_char;
    fn simclr_reducer_close(reducer: *mut c_void);
    fn simclr_reducer_prepare(reducer: *mut c_void) -> *mut c_char;
    fn simclr_reducer_clear(reducer: *mut c_void) -> *mut c_char;
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("no zero in keys and host names")
}

fn milliseconds(time: Duration) -> i64 {
    time.as_millis().min(i64::MAX as u128) as i64
}

/// The loopback address that a host is written as. A name that this machine only happens to resolve to one, as its own
/// often does, may be another address for others.
fn loopback(host: &str) -> Option<IpAddr> {
    if host.eq_ignore_ascii_case("localhost") {
        let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
        return Some(if TcpListener::bind((v4, 0)).is_ok() { v4 } else { Ipv6Addr::LOCALHOST.into() });
    }
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    address.filter(|address| address.to_canonical().is_loopback())
}

/// Words that ranks leave for each other, kept by one of them or by whoever launched them.
pub struct Store(*mut c_void);

impl Store {
    /// Connects to the store at `host:port`, or opens it there if it is this one's to keep, at a port of the system's
    /// choice if that is 0. All keys get a prefix. Returned is the port too. Whoever reaches a store may write to it, so
    /// one that is kept at a loopback address is open to this machine only.
    pub fn open(
        (host, mut port): (&str, u16),
        keep: bool,
        prefix: &str,
        timeout: Duration,
    ) -> Result<(Self, u16), TorchError> {
        let own = loopback(host).filter(|_| keep);
        let own = own.map(|address| TcpListener::bind((address, port))).transpose();
        let own = own.map_err(|error| format!("cannot listen at {host}:{port}: {error}"))?;
        if let Some(own) = &own {
            port = own.local_addr().map_err(|error| error.to_string())?.port();
        }
        // From here on it is the store's, which closes it.
        let listening = own.map_or(-1, IntoRawFd::into_raw_fd);
        let (host, prefix, mut store) = (c_string(host), c_string(prefix), null_mut());
        let timeout = milliseconds(timeout);
        // SAFETY: both texts outlive the call, `listening` is nobody else's, and `store` is written when it succeeds.
        check(unsafe {
            simclr_store_open(host.as_ptr(), &mut port, keep, listening, prefix.as_ptr(), timeout, &mut store)
        })?;
        Ok((Self(store), port))
    }

    /// Leaves a word.
    pub fn set(&self, key: &str, value: &str) -> Result<(), TorchError> {
        let key = c_string(key);
        // SAFETY: the store is open until it is dropped; key and value outlive the call.
        check(unsafe { simclr_store_set(self.0, key.as_ptr(), value.as_ptr().cast(), value.len()) })
    }

    /// The word at `key`, waited for as long as said; `None` if it does not come.
    pub fn get(&self, key: &str, wait: Duration) -> Result<Option<String>, TorchError> {
        let (key, mut found, mut value, mut length) = (c_string(key), false, null_mut(), 0);
        // SAFETY: the store is open until it is dropped; the shim fills what it is pointed at, and hands out `length`
        // bytes, to be freed once, if it found them.
        unsafe {
            check(simclr_store_get(self.0, key.as_ptr(), milliseconds(wait), &mut found, &mut value, &mut length))?;
            if !found {
                return Ok(None);
            }
            let bytes = std::slice::from_raw_parts(value.cast::<u8>(), length).to_vec();
            crate::simclr_free_text(value);
            Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: it was opened once and is closed once.
        unsafe { simclr_store_close(self.0) }
    }
}

/// The collectives of all ranks. Every rank calls them in the same order.
pub struct Group(*mut c_void);

impl Group {
    /// Meets the other ranks at the store on `host`: by Gloo for tensors on the CPU, and by NCCL for those on a GPU if
    /// `nccl` is given, which [`load_nccl`] finds.
    pub fn open(
        (store, host): (&Store, &str),
        rank: u32,
        world: u32,
        timeout: Duration,
        nccl: Option<Nccl>,
    ) -> Result<Self, TorchError> {
        let (mut group, host) = (null_mut(), c_string(host));
        let (rank, world, nccl) = (rank as c_int, world as c_int, nccl.map(|nccl| nccl.0));
        // SAFETY: the store is open; what the group needs of it, it holds itself.
        check(unsafe {
            simclr_group_open(store.0, host.as_ptr(), rank, world, milliseconds(timeout), nccl, &mut group)
        })?;
        Ok(Self(group))
    }

    /// Makes `tensor` the sum of all ranks'.
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<(), TorchError> {
        // SAFETY: group and tensor are alive; the tensor is written as any in-place operation writes it.
        check(unsafe { simclr_all_reduce(self.0, tensor.as_ptr().cast_mut()) })
    }

    /// Fills `all`, `[world, ...]`, with everyone's `own`, `[...]`, both contiguous.
    pub fn all_gather(&self, own: &Tensor, all: &Tensor) -> Result<(), TorchError> {
        // SAFETY: as above.
        check(unsafe { simclr_all_gather(self.0, own.as_ptr().cast_mut(), all.as_ptr().cast_mut()) })
    }

    /// Makes `tensor` that of rank 0.
    pub fn broadcast(&self, tensor: &Tensor) -> Result<(), TorchError> {
        // SAFETY: as above.
        check(unsafe { simclr_broadcast(self.0, tensor.as_ptr().cast_mut(), 0) })
    }

    /// Batch norm of `x`, `[N, C, ...]`, by the statistics of all ranks' `x`, which have one shape; `running` are its
    /// running mean and variance, if they shall follow.
    pub fn batch_norm(
        &self,
        x: &Tensor,
        (scale, shift): (&Tensor, Option<&Tensor>),
        running: Option<(&Tensor, &Tensor)>,
        momentum: f64,
        epsilon: f64,
    ) -> Result<Tensor, TorchError> {
        let pointer = |tensor: Option<&Tensor>| tensor.map_or(null(), Tensor::as_ptr);
        let (mean, var) = running.unzip();
        let mut out = null_mut();
        // SAFETY: group and tensors are alive; what is handed out is a new tensor that is ours. The backward pass that
        // it belongs to uses the group, which lives as long as the model whose ranks it joins.
        unsafe {
            check(simclr_sync_batch_norm(
                self.0,
                x.as_ptr(),
                scale.as_ptr(),
                pointer(shift),
                pointer(mean),
                pointer(var),
                momentum,
                epsilon,
                &mut out,
            ))?;
            Ok(Tensor::from_ptr(out))
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: it was opened once and is closed once.
        unsafe { simclr_group_close(self.0) }
    }
}

/// torch's Reducer over a model's tensors that learn.
pub struct Reducer(*mut c_void);

impl Reducer {
    /// Each of `parameters` takes part in every backward pass.
    pub fn open(group: &Group, parameters: &[&Tensor]) -> Result<Self, TorchError> {
        let pointers: Vec<*const C_tensor> = parameters.iter().map(|tensor| tensor.as_ptr()).collect();
        let mut reducer = null_mut();
        // SAFETY: the pointers are those of living tensors, of which the shim keeps handles of its own, as it does of the
        // group.
        check(unsafe { simclr_reducer_open(group.0, pointers.as_ptr(), pointers.len(), &mut reducer) })?;
        Ok(Self(reducer))
    }

    /// The next backward pass makes gradients the mean over all ranks.
    pub fn prepare(&self) -> Result<(), TorchError> {
        // SAFETY: it is open until it is dropped.
        check(unsafe { simclr_reducer_prepare(self.0) })
    }

    /// Forgets all gradients.
    pub fn clear(&self) -> Result<(), TorchError> {
        // SAFETY: as above.
        check(unsafe { simclr_reducer_clear(self.0) })
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: it was opened once and is closed once.
        unsafe { simclr_reducer_close(self.0) }
    }
}

/// The function that makes NCCL's backend.
#[derive(Clone, Copy)]
pub struct Nccl(MakeBackend);

/// Finds NCCL's backend in the library `path`, which is of the same libtorch as this program.
pub fn load_nccl(path: &Path) -> Result<Nccl, TorchError> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the library is built from this crate's `shim/nccl`, whose only function has this type; it is never
    // unloaded.
    unsafe {
        let library = Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL).map_err(|error| error.to_string())?;
        let make = *library.get::<MakeBackend>(b"simclr_make_nccl").map_err(|error| error.to_string())?;
        std::mem::forget(library);
        Ok(Nccl(make))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    /// Linux gives every machine all of 127.0.0.0/8, so another address of it stands for another machine.
    #[test]
    fn a_store_kept_at_loopback_is_open_to_nobody_else() {
        let second = Duration::from_secs(1);
        for host in ["127.0.0.1", "localhost"] {
            let (kept, port) = Store::open((host, 0), true, "p", second).unwrap();
            let (other, _) = Store::open((host, port), false, "p", second).unwrap();
            kept.set("a", "word").unwrap();
            assert_eq!(other.get("a", second).unwrap().as_deref(), Some("word"));
            assert!(TcpStream::connect(("127.0.0.2", port)).is_err(), "{host}");
        }
        // At an address that others reach it is open to them.
        let (_kept, port) = Store::open(("0.0.0.0", 0), true, "p", second).unwrap();
        assert!(TcpStream::connect(("127.0.0.2", port)).is_ok());
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let said = Store::open(("127.0.0.1", port), true, "p", second).err().unwrap();
        assert!(said.contains(&format!("cannot listen at 127.0.0.1:{port}")), "{said}");
    }

    #[test]
    fn only_what_is_written_as_loopback_is_kept_there() {
        for (host, is) in
            [("127.0.0.1", true), ("LOCALHOST", true), ("::1", true), ("10.0.0.1", false), ("gpu03", false)]
        {
            assert_eq!(loopback(host).is_some(), is, "{host}");
        }
    }
}
