//! Files and objects as bytes, from a disk or a server; compressed ones are unpacked on the way.
//!
//! [`remote`] asks servers, at the [`pace`] that they bear. Nothing here knows what the bytes mean.

mod credentials;
mod failure;
pub mod pace;
mod redirect;
pub mod remote;

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes};
use simclr_ground::location::Location;
use tokio::sync::mpsc;
use url::Url;

use crate::metrics::PipelineMetrics;
use remote::{FetchError, Remote, RemoteOptions};

/// Pieces of an object that wait to be read.
const PIECES_AHEAD: usize = 4;

/// Why a stream from a server ended early.
pub(crate) type Failed = Arc<Mutex<Option<FetchError>>>;

/// An object's bytes, fetched while they are read. To be used in an asynchronous context, and read outside of it.
pub(crate) fn fetched(remote: Arc<Remote>, url: Url, size: u64) -> (FetchedReader, Failed) {
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    tokio::spawn(async move { remote.pieces(&url, size, sender).await });
    let failed = Failed::default();
    (FetchedReader { pieces, piece: Bytes::new(), failed: failed.clone() }, failed)
}

/// Reads the pieces of an object one after the other.
pub(crate) struct FetchedReader {
    pieces: mpsc::Receiver<Result<Bytes, FetchError>>,
    piece: Bytes,
    failed: Failed,
}

impl Read for FetchedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => {
                    let message = error.to_string();
                    *self.failed.lock().expect("no panic while held") = Some(error);
                    return Err(io::Error::other(message));
                }
            }
        }
        let n = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

/// A failed fetch as an I/O error of the kind that a failed file would have.
fn io_error(error: FetchError) -> io::Error {
    let kind = match &error {
        FetchError::NotFound(_) | FetchError::Unreachable { .. } => io::ErrorKind::NotFound,
        FetchError::Denied(_) | FetchError::Setup(_) => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// How long a server that fails is asked again for manifests and shards that are read as a whole: seconds, or 0 for the
/// usual time.
static PATIENCE_SECONDS: AtomicU64 = AtomicU64::new(0);

/// Sets how long a server that fails is asked again for manifests, and for shards that are read as a whole.
pub fn set_patience(seconds: u64) {
    PATIENCE_SECONDS.store(seconds, Ordering::Relaxed);
}

/// A server connection for a command that reads objects one after the other.
struct Connection {
    runtime: tokio::runtime::Runtime,
    remote: Arc<Remote>,
}

impl Connection {
    fn open() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut options = RemoteOptions::default();
        if let seconds @ 1.. = PATIENCE_SECONDS.load(Ordering::Relaxed) {
            options.give_up_after = Duration::from_secs(seconds);
        }
        Ok(Self { runtime, remote: Arc::new(Remote::new(options, PipelineMetrics::register())) })
    }
}

/// The bytes of the file or object at `place`, to be read by a plain thread.
///
/// # Errors
/// If it can't be opened.
pub fn reader(place: &Location) -> io::Result<Box<dyn Read + Send>> {
    match place {
        Location::File(path) => Ok(Box::new(File::open(path)?)),
        Location::Url(url) => {
            let connection = Connection::open()?;
            let size = connection.runtime.block_on(connection.remote.size(url)).map_err(io_error)?;
            let entered = connection.runtime.enter();
            let (reader, _) = fetched(connection.remote.clone(), url.clone(), size);
            drop(entered);
            Ok(Box::new(Owning { reader, _connection: connection }))
        }
    }
}

/// Keeps a connection as long as its reader.
struct Owning {
    reader: FetchedReader,
    _connection: Connection,
}

impl Read for Owning {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// All bytes of a small file or object.
///
/// # Errors
/// If it can't be read.
pub fn read_whole(place: &Location) -> io::Result<Vec<u8>> {
    match place {
        Location::File(path) => simclr_ground::files::read_named(path),
        Location::Url(url) => {
            let connection = Connection::open()?;
            let bytes = connection.runtime.block_on(connection.remote.read(url)).map_err(io_error)?;
            Ok(bytes.to_vec())
        }
    }
}

/// The objects in the folder of `url` and below.
///
/// # Errors
/// If the server can't be asked, or lists nothing.
pub fn list(url: &Url) -> io::Result<Vec<Url>> {
    let connection = Connection::open()?;
    connection.runtime.block_on(connection.remote.list(url)).map_err(io_error)
}
