//! A folder of whole, verified shards on a local disk, bounded, shared by all processes that use it.
//!
//! The cache lives in a folder of its own below the one it is given, so that nothing else there is its to remove, and
//! looks only at names that it could have written. A file's name is the BLAKE3 of the tar stream it holds. It is written
//! under another name and renamed when its digest has been found right, so whatever has the right name is right. A file in
//! use is locked; what a killed process left half-written is not, and goes at the next start.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use simclr_ground::digest::{Digest, is_digest};

use crate::metrics::PipelineMetrics;

/// The folder of the cache in the one that it is given.
const FOLDER: &str = "simclr-pipeline-shards";
/// Tells backups and other tools that the folder can be made again (https://bford.info/cachedir).
const TAG: (&str, &str) = (
    "CACHEDIR.TAG",
    "Signature: 8a477f597d28d172789f06886806bc55\n# Shards that simclr-pipeline fetched and can fetch again.\n",
);

/// The end of a complete file's name.
const WHOLE: &str = ".tar";
/// The beginning of the name of a file that is being written; the digest and its final size follow.
const PARTIAL: &str = ".partial-";

/// The cache in one folder.
#[derive(Clone)]
pub struct DiskCache {
    folder: PathBuf,
    capacity: u64,
    metrics: PipelineMetrics,
}

/// What came of asking for room.
pub enum Reserved {
    /// Room; write here.
    Room(Writing),
    /// The file is there by now.
    There,
    /// Another process is writing it.
    Busy,
    /// All of the cache is in use.
    Full,
}

/// A file being written; dropped before [`Writing::finish`], it leaves nothing.
pub struct Writing {
    file: Option<File>,
    partial: PathBuf,
    whole: PathBuf,
}

impl DiskCache {
    /// Opens the cache in `folder`, which is created, and removes what does not fit or was left half-written.
    ///
    /// # Errors
    /// If the folder can't be created, read or written.
    pub fn open(folder: &Path, capacity: u64, metrics: PipelineMetrics) -> io::Result<Self> {
        let folder = folder_in(folder);
        std::fs::create_dir_all(&folder)?;
        let tag = folder.join(TAG.0);
        if !tag.exists() {
            simclr_ground::files::write_whole(&tag, TAG.1.as_bytes())?;
        }
        let cache = Self { folder, capacity, metrics };
        let _alone = cache.lock()?;
        cache.make_room(0)?;
        Ok(cache)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The bytes that the cache may take.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The complete file of this digest, kept from being removed while it is open.
    ///
    /// # Errors
    /// If it is there but can't be opened.
    pub fn get(&self, digest: &Digest) -> io::Result<Option<File>> {
        let file = match File::open(self.whole(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match file.try_lock_shared() {
            Ok(()) => {}
            // It is being removed this very moment.
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The time of last use decides what is removed first; a file of another user keeps its own.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(file))
    }

    /// Room for a file of this digest and size, made by removing the files that were not used for longest.
    ///
    /// # Errors
    /// If the folder can't be read or written.
    pub fn reserve(&self, digest: &Digest, bytes: u64) -> io::Result<Reserved> {
        let _alone = self.lock()?;
        if self.whole(digest).exists() {
            return Ok(Reserved::There);
        }
        let partial = self.folder.join(format!("{PARTIAL}{digest}-{bytes}"));
        let room = self.make_room(bytes)?;
        if partial.exists() {
            return Ok(Reserved::Busy);
        }
        if !room {
            return Ok(Reserved::Full);
        }
        let file = File::options().create_new(true).read(true).write(true).open(&partial)?;
        file.lock()?;
        Ok(Reserved::Room(Writing { file: Some(file), partial, whole: self.whole(digest) }))
    }

    /// Removes a file whose bytes turned out wrong.
    pub fn discard(&self, digest: &Digest) {
        let _ = std::fs::remove_file(self.whole(digest));
    }

    /// Removes dead partial files, and the longest unused whole ones until `bytes` more fit; whether they do.
    fn make_room(&self, bytes: u64) -> io::Result<bool> {
        let (mut used, mut whole) = (0u64, Vec::new());
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(size) = partial_size(&name) {
                if is_unused(&entry.path()) {
                    let _ = std::fs::remove_file(entry.path());
                } else {
                    used = used.saturating_add(size);
                }
            } else if name.strip_suffix(WHOLE).is_some_and(is_digest)
                && let Ok(known) = entry.metadata()
            {
                used = used.saturating_add(known.len());
                whole.push((known.modified().unwrap_or(SystemTime::UNIX_EPOCH), known.len(), entry.path()));
            }
        }
        whole.sort_unstable();
        for (_, size, path) in whole {
            if used.saturating_add(bytes) <= self.capacity {
                break;
            }
            if is_unused(&path) && std::fs::remove_file(&path).is_ok() {
                used -= size;
            }
        }
        self.metrics.cache_bytes.set(used.saturating_add(bytes) as f64);
        Ok(used.saturating_add(bytes) <= self.capacity)
    }

    fn whole(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}{WHOLE}"))
    }

    /// Keeps other processes from changing the folder's list of files while this is held.
    fn lock(&self) -> io::Result<File> {
        let file = File::options().create(true).truncate(false).write(true).open(self.folder.join(".lock"))?;
        file.lock()?;
        Ok(file)
    }
}

/// The cache's own folder in the one that it is given.
pub fn folder_in(folder: &Path) -> PathBuf {
    folder.join(FOLDER)
}

/// The final size of a file that is being written, by its name; `None` if the cache writes no such name.
fn partial_size(name: &str) -> Option<u64> {
    let (digest, size) = name.strip_prefix(PARTIAL)?.split_once('-')?;
    is_digest(digest).then(|| size.parse().ok()).flatten()
}

/// Whether no process has the file open and locked.
fn is_unused(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

impl Writing {
    /// Appends the first `bytes` bytes written so far to `out`, for a caller that goes on elsewhere.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn read_back(&self, bytes: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let start = out.len();
        out.resize(start + bytes as usize, 0);
        self.file.as_ref().expect("not finished").read_exact_at(&mut out[start..], 0)
    }

    /// Puts the file, whose digest the caller has found right, in its place; it stays open and in use.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn finish(mut self) -> io::Result<File> {
        let file = self.file.take().expect("finished once");
        file.sync_data()?;
        std::fs::rename(&self.partial, &self.whole)?;
        file.lock_shared()?;
        Ok(file)
    }
}

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().expect("not finished").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // Renamed away after `finish`; removing what is not there does nothing.
        let _ = std::fs::remove_file(&self.partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        blake3::hash(name.as_bytes()).into()
    }

    fn put(cache: &DiskCache, name: &str, bytes: usize) -> Option<File> {
        let Reserved::Room(mut writing) = cache.reserve(&digest(name), bytes as u64).unwrap() else { return None };
        writing.write_all(&vec![7; bytes]).unwrap();
        Some(writing.finish().unwrap())
    }

    /// What the cache holds, by the names of the tests.
    fn names(folder: &Path) -> Vec<String> {
        let known: Vec<(String, String)> =
            ["a", "b", "c", "d", "huge"].map(|name| (digest(name).to_string(), name.to_owned())).into();
        let mut names: Vec<String> = std::fs::read_dir(folder.join(FOLDER))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".lock" && name != TAG.0)
            .map(|name| known.iter().fold(name, |name, (digest, short)| name.replace(digest, short)))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_longest_unused_goes_first_and_what_is_in_use_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(folder.path(), 100, PipelineMetrics::register()).unwrap();
        let a = put(&cache, "a", 40);
        drop(put(&cache, "b", 40));
        let age = |name: &str, seconds| {
            let file = File::options()
                .write(true)
                .open(folder.path().join(FOLDER).join(format!("{}.tar", digest(name))))
                .unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
        };
        age("a", 100);
        age("b", 50);
        drop(put(&cache, "c", 40).unwrap());
        assert_eq!(names(folder.path()), ["a.tar", "c.tar"], "a is older but open");
        let c = cache.get(&digest("c")).unwrap();
        assert!(put(&cache, "d", 40).is_none(), "both are open");
        drop((a, c));
        drop(put(&cache, "d", 90).unwrap());
        assert_eq!(names(folder.path()), ["d.tar"]);
        assert!(put(&cache, "huge", 101).is_none());
    }

    #[test]
    fn half_written_files_are_never_seen_and_go_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let open = || DiskCache::open(folder.path(), 100, PipelineMetrics::register()).unwrap();
        let cache = open();
        let Reserved::Room(mut writing) = cache.reserve(&digest("a"), 40).unwrap() else { panic!("there is room") };
        writing.write_all(b"half").unwrap();
        assert!(cache.get(&digest("a")).unwrap().is_none());
        assert!(
            matches!(open().reserve(&digest("a"), 40).unwrap(), Reserved::Busy),
            "another process sees it is being written"
        );
        assert!(matches!(open().reserve(&digest("b"), 70).unwrap(), Reserved::Full), "and that its bytes are taken");
        // A killed process leaves its partial file, without the lock.
        drop(writing.file.take());
        std::mem::forget(writing);
        assert_eq!(names(folder.path()), [".partial-a-40"]);
        assert!(put(&open(), "a", 40).is_some());
        assert_eq!(names(folder.path()), ["a.tar"]);
    }

    #[test]
    fn only_what_the_cache_wrote_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let own = [folder.path().to_owned(), folder.path().join(FOLDER)];
        std::fs::create_dir(&own[1]).unwrap();
        let files: Vec<PathBuf> = own
            .iter()
            .flat_map(|folder| {
                ["shard-000000.tar", "backup.tar", ".partial-notes", ".partial-x-7"].map(|name| folder.join(name))
            })
            .collect();
        files.iter().for_each(|file| std::fs::write(file, [0; 60]).unwrap());
        let cache = DiskCache::open(folder.path(), 50, PipelineMetrics::register()).unwrap();
        drop(put(&cache, "a", 40).unwrap());
        drop(put(&cache, "b", 40).unwrap());
        assert!(files.iter().all(|file| file.is_file()), "files of the user's are gone");
        assert!(own[1].join(TAG.0).is_file());
    }
}
