//! Makes a manifest of images that are files of their own, in blocks that take the place of shards.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use simclr_ground::location::Location;
use simclr_ground::rng::{Draws, Purpose};
use simclr_ground::sample::Check;
use simclr_image::decode::jpeg;

use super::problem::Problem;
use super::{Manifest, ManifestError, Shard};
use crate::listing::{Item, Listing};
use crate::shard::row_index;

/// The order of a set's files is drawn from this, as `pack` draws by default.
const SEED: u64 = 1;
/// A set is cut into about so many blocks, so that every lane has its own.
const BLOCKS: usize = 64;
/// A block has at least and at most so many files.
const BLOCK_FILES: (usize, usize) = (16, 1024);
/// Files above this size are no images.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// What was found when a file was read, which holds as long as it has this size and time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFile {
    bytes: u64,
    /// Seconds and nanoseconds of the last change.
    modified: (i64, i64),
    check: Check,
    rows: String,
}

/// What is known of files, by their paths below the folder of the set.
pub type KnownFiles = BTreeMap<String, KnownFile>;

/// The manifest of the images that `listing` names, each a file of its own. What is in `known` is not read again if it did
/// not change; when all have been read, `known` holds these files and no others. `progress` is told files done, files in
/// all, and bytes read.
///
/// The files are put in an order drawn from a fixed seed, so that classes mix, and cut into blocks that stand where shards
/// do. As `pack` draws the same order, the same images give the same batches loose or packed, where the blocks are equal.
///
/// # Errors
/// If files can't be read; all of them are listed.
pub fn loose(
    listing: Listing,
    known: &mut KnownFiles,
    threads: usize,
    progress: &(dyn Fn(u64, u64, u64) + Sync),
) -> Result<Manifest, ManifestError> {
    let Listing { classes, mut items, origin, .. } = listing;
    Draws::new(SEED, Purpose::PackOrder, &[]).shuffle(&mut items);
    let files: Vec<&Path> = items.iter().map(|item| item.file().expect("images in archives are packed")).collect();
    let root = common_folder(&files);
    let entries: Vec<String> = files.iter().map(|path| below(path, &root)).collect();
    let (done, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("scan-{i}"));
    let threads = threads.build().expect("the system gives us threads");
    let looked_at: Vec<Result<KnownFile, String>> = threads.install(|| {
        let look = |decoder: &mut jpeg::Decoder, (path, entry): (&&Path, &String)| {
            let found = look_at(path, known.get(entry), decoder);
            let read = found.as_ref().map_or(0, |(_, read)| *read);
            let bytes = bytes.fetch_add(read, Ordering::Relaxed) + read;
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, files.len() as u64, bytes);
            found.map(|(file, _)| file)
        };
        files.par_iter().zip(&entries).map_init(jpeg::Decoder::default, look).collect()
    });
    let problems: Vec<Problem> = looked_at
        .iter()
        .zip(&files)
        .filter_map(|(found, path)| found.as_ref().err().map(|what| (path, what.clone())))
        .map(|(path, what)| Problem { shard: path.display().to_string(), entry: None, offset: 0, what })
        .collect();
    if !problems.is_empty() {
        return Err(ManifestError::Unsound { problems });
    }
    let found: Vec<KnownFile> = looked_at.into_iter().map(|found| found.expect("no problems")).collect();
    let location = root.display().to_string();
    let size = items.len().div_ceil(BLOCKS).clamp(BLOCK_FILES.0, BLOCK_FILES.1);
    let block = |i: usize| {
        let range = i * size..((i + 1) * size).min(items.len());
        block(&location, &items[range.clone()], &entries[range.clone()], &found[range])
    };
    let shards = (0..items.len().div_ceil(size)).map(block).collect();
    *known = entries.into_iter().zip(found).collect();
    let source = format!("{origin} at {location}, files in place");
    Ok(Manifest::new(source, classes, shards, Location::File(root)))
}

/// What is known of a file, looked at anew if that is not known yet or it changed; and how many bytes were read for it.
fn look_at(path: &Path, known: Option<&KnownFile>, decoder: &mut jpeg::Decoder) -> Result<(KnownFile, u64), String> {
    let meta = std::fs::metadata(path).map_err(|error| format!("cannot read: {error}"))?;
    let (bytes, modified) = (meta.len(), (meta.mtime(), meta.mtime_nsec()));
    if let Some(known) = known
        && (known.bytes, known.modified) == (bytes, modified)
    {
        return Ok((known.clone(), 0));
    }
    if bytes > MAX_FILE_BYTES {
        return Err(format!("{bytes} bytes; an image can have at most {MAX_FILE_BYTES}"));
    }
    let data = std::fs::read(path).map_err(|error| format!("cannot read: {error}"))?;
    if data.len() as u64 != bytes {
        return Err(format!("it changed while it was read: {} bytes, {bytes} before", data.len()));
    }
    let (check, rows) = (Check::of(&data), row_index(decoder, &data));
    Ok((KnownFile { bytes, modified, check, rows }, bytes))
}

/// A block of files.
fn block(location: &str, items: &[Item], entries: &[String], files: &[KnownFile]) -> Shard {
    let bytes = files.iter().map(|file| file.bytes).sum();
    let mut hasher = blake3::Hasher::new();
    for (entry, file) in entries.iter().zip(files) {
        hasher.update(&(entry.len() as u64).to_le_bytes());
        hasher.update(entry.as_bytes());
        hasher.update(&file.bytes.to_le_bytes());
        hasher.update(&file.check.0.to_le_bytes());
    }
    let digest = simclr_ground::digest::Digest::from(hasher.finalize());
    let has_labels = items.iter().any(|item| item.label.is_some());
    Shard {
        location: location.to_owned(),
        bytes,
        blake3: digest.clone(),
        tar_bytes: bytes,
        tar_blake3: digest,
        entries: entries.to_vec(),
        labels: has_labels.then(|| items.iter().map(|item| item.label).collect()),
        offsets: vec![0; files.len()],
        sizes: files.iter().map(|file| file.bytes as u32).collect(),
        checks: files.iter().map(|file| file.check).collect(),
        rows: Some(files.iter().map(|file| file.rows.clone()).collect()),
        compression: None,
        loose: true,
        frames: None,
        excluded: Vec::new(),
    }
}

/// The deepest folder that all files are in, from the root of the file system on.
fn common_folder(files: &[&Path]) -> PathBuf {
    let folder = |path: &Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        path.parent().map_or_else(PathBuf::new, Path::to_owned)
    };
    let mut common = files.first().map_or_else(PathBuf::new, |path| folder(path));
    for path in files {
        let folder = folder(path);
        while !folder.starts_with(&common) {
            common.pop();
        }
    }
    common
}

/// The path of a file below `root`, with `/` between its parts.
fn below(path: &Path, root: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let rest = path.strip_prefix(root).unwrap_or(&path);
    rest.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Where the file of a sample in a loose block is.
pub(crate) fn file(folder: &Path, entry: &str) -> PathBuf {
    folder.join(entry)
}

/// Whether an entry of a loose block stays below its folder.
pub(super) fn is_below(entry: &str) -> bool {
    !entry.is_empty() && Path::new(entry).components().all(|part| matches!(part, Component::Normal(_)))
}

/// What changed between two manifests of files in place, in words: files that are missing, new, or have other bytes.
pub fn changes(before: &Manifest, now: &Manifest) -> String {
    let files = |manifest: &Manifest| -> BTreeMap<String, Check> {
        let all =
            manifest.shards.iter().flat_map(|shard| shard.entries.iter().cloned().zip(shard.checks.iter().copied()));
        all.collect()
    };
    let (before, now) = (files(before), files(now));
    let told = |names: Vec<&String>, what: &str| {
        let first = names.first()?;
        Some(format!("{} {what}, e.g. {first}", names.len()))
    };
    let missing = before.keys().filter(|name| !now.contains_key(*name)).collect();
    let new = now.keys().filter(|name| !before.contains_key(*name)).collect();
    let changed = now.iter().filter(|(name, check)| before.get(*name).is_some_and(|known| known != *check));
    let parts = [
        told(missing, "files are missing"),
        told(new, "files are new"),
        told(changed.map(|(name, _)| name).collect(), "files changed"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// The differences between the files of a loose block and what the manifest says of them.
pub(super) fn compare(shard: &Shard, folder: &Path) -> Vec<Problem> {
    let look = |i: usize| {
        let path = file(folder, &shard.entries[i]);
        let what = match std::fs::read(&path) {
            Err(error) => format!("cannot read: {error}"),
            Ok(data) if data.len() as u64 != u64::from(shard.sizes[i]) => {
                format!("{} bytes, expected {}", data.len(), shard.sizes[i])
            }
            Ok(data) if Check::of(&data) != shard.checks[i] => {
                format!("content changed: XXH3 {}, expected {}", Check::of(&data), shard.checks[i])
            }
            Ok(_) => return None,
        };
        Some(Problem { shard: shard.location.clone(), entry: Some(shard.entries[i].clone()), offset: 0, what })
    };
    (0..shard.num_samples()).filter_map(look).collect()
}
