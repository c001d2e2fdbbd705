//! Packs images into shards and a manifest: deterministic to the byte, whole or not at all, on all cores.
//!
//! [`listing`](crate::listing) says which images there are and where their bytes lie; `encode` re-encodes them on request.
//! Here they are put in order, laid into shards, compressed, and read back.

mod encode;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

pub use encode::Resize;

use simclr_ground::error::{Classify, ErrorClass};
use simclr_ground::files::sync_folder;
use simclr_ground::location::Location;
use simclr_ground::rng::{Draws, Purpose};
use simclr_image::decode::decode_bytes;

use crate::decode_memory::DECODE_MEMORY;
use crate::frames::{FRAME_BYTES, Frames};
use crate::listing::{Item, LeftOut, Listing, ListingError, ListingOptions, Reading, list};
use crate::manifest::{BuildOptions, Manifest, ManifestError, NamedShard, build};

/// Images that are read, and resized, at the same time, while those before them are written.
const CHUNK_IMAGES: usize = 256;

/// So many bytes of them, or one image.
const CHUNK_BYTES: u64 = 256 << 20;

/// How to pack.
pub struct PackOptions<'a> {
    /// A shard is closed before its tar stream would grow beyond this.
    pub shard_bytes: u64,
    /// Compress with zstd at this level, in frames that can be read one by one.
    pub zstd: Option<i32>,
    /// Decides the order in which samples are written.
    pub seed: u64,
    /// Make the images smaller; `None` keeps their bytes as they are.
    pub resize: Option<Resize>,
    /// How many threads work.
    pub threads: usize,
    /// Called with samples written and samples in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Default for PackOptions<'_> {
    fn default() -> Self {
        Self { shard_bytes: 256 << 20, zstd: None, seed: 1, resize: None, threads: 1, progress: &|_, _| {} }
    }
}

/// What was packed.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The manifest, as written to `OUT/manifest.json`.
    pub manifest: Manifest,
    /// What the source holds beside images.
    pub left_out: LeftOut,
    /// What a person should know of the source.
    pub notes: Vec<String>,
    /// Images that were to be made smaller but can't be decoded, with the reason; their bytes are kept as they are.
    pub kept_as_is: Vec<(String, String)>,
}

/// Why nothing was packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The source or the options are invalid.
    #[error("{}: {why}", path.display())]
    Input {
        /// What it is about.
        path: PathBuf,
        /// What was found and what would be right.
        why: String,
    },
    /// The source can't be listed, or an image of it not be read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// A file can't be written.
    #[error("{}: {what}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The manifest can't be written.
    #[error(transparent)]
    Manifest(ManifestError),
    /// What was written reads back wrong.
    #[error("the shards just written do not read back correctly")]
    ReadBack(#[source] ManifestError),
    /// Some of what was written does not read back.
    #[error("{written} samples were written, {read} read back, so nothing was packed; please report this")]
    Lost {
        /// How many images went into the shards.
        written: u64,
        /// How many samples the shards have.
        read: u64,
    },
}

impl Classify for PackError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Input { .. } | Self::Manifest(_) => ErrorClass::Input,
            Self::Listing(error) => error.class(),
            Self::Io { .. } | Self::ReadBack(_) | Self::Lost { .. } => ErrorClass::Runtime,
        }
    }
}

/// Whether there is a free place, and the options can be followed; before hours of looking at the source.
///
/// # Errors
/// If not.
pub fn check(out: &Path, options: &PackOptions<'_>) -> Result<(), PackError> {
    let input = |path: &Path, why: String| PackError::Input { path: path.to_owned(), why };
    if std::fs::symlink_metadata(out).is_ok() && std::fs::read_dir(out).map_or(true, |mut dir| dir.next().is_some()) {
        return Err(input(out, "output directory already exists".into()));
    }
    if options.shard_bytes < 10_240 {
        return Err(input(
            out,
            format!("invalid value {} for the shard size: expected at least 10240 bytes", options.shard_bytes),
        ));
    }
    if let Some(level) = options.zstd
        && !zstd::compression_level_range().contains(&level)
    {
        let range = zstd::compression_level_range();
        return Err(input(
            out,
            format!("invalid value {level} for the zstd level: expected {} to {}", range.start(), range.end()),
        ));
    }
    Ok(())
}

/// Packs `source` into `out/shard-NNNNNN.tar[.zst]`, `out/manifest.json` and `out/classes.txt`.
///
/// A source is a folder of images in any shape, whose classes are its folders if every image lies in one of a kind; a tar
/// of class tars, as ILSVRC2012's training set comes; a tar of images, with folders or a label list for classes; or a text
/// file with a path, and perhaps a class, on each line. Classes are numbered in the order of their names. A sample's key is
/// `<class>/<file stem>`, or its path where that says no class, dots made underscores, since a key ends at the first dot. Samples are written in an order drawn from the seed, so that every shard holds
/// a mixture of classes. Everything is written to a hidden folder beside `out`, read back, and renamed at the end.
///
/// # Errors
/// If the source is none of these or contains no images, if `out` exists, or if the disk fails.
pub fn pack(source: &Path, out: &Path, options: &PackOptions<'_>) -> Result<Packed, PackError> {
    check(out, options)?;
    pack_listing(list(source, &ListingOptions::default())?, out, options)
}

/// Packs what is listed, as [`pack`] does.
///
/// # Errors
/// As [`pack`].
pub fn pack_listing(listing: Listing, out: &Path, options: &PackOptions<'_>) -> Result<Packed, PackError> {
    check(out, options)?;
    let Listing { classes, mut items, left_out, notes, origin } = listing;
    let input = |path: &Path, why: String| PackError::Input { path: path.to_owned(), why };
    Draws::new(options.seed, Purpose::PackOrder, &[]).shuffle(&mut items);

    let absolute = std::path::absolute(out).map_err(io(out, "cannot resolve the path"))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(input(out, "not a valid directory name".into()));
    };
    std::fs::create_dir_all(parent).map_err(io(parent, "cannot create the directory"))?;
    let prefix = format!(".{}.packing-", name.to_string_lossy());
    remove_abandoned(parent, &prefix);
    let aside = tempfile::Builder::new()
        .prefix(&format!("{prefix}{}-", std::process::id()))
        .rand_bytes(RANDOM)
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(parent)
        .map_err(io(parent, "cannot create a directory in it"))?;
    // Where there are no locks, only the number of the process tells that it lives.
    let alive = File::open(aside.path()).map_err(io(aside.path(), "cannot open"))?;
    let _ = alive.lock_shared();
    let threads = rayon::ThreadPoolBuilder::new().num_threads(options.threads).thread_name(|i| format!("pack-{i}"));
    let threads = threads.build().expect("the system gives us threads");
    let Written { shards, kept_as_is } = threads.install(|| write_shards(&items, aside.path(), options))?;
    let text: String = classes.iter().map(|class| format!("{class}\n")).collect();
    let classes_path = aside.path().join("classes.txt");
    simclr_ground::files::write_whole(&classes_path, text.as_bytes()).map_err(io(&classes_path, "cannot write"))?;
    let resized = options.resize.map_or(String::new(), |resize| format!(", {resize}"));
    let build_options = BuildOptions {
        base: Location::File(aside.path().to_owned()),
        source: format!("packed from {origin}, seed {}{resized}", options.seed),
        classes,
        reading: Reading::default(),
        folder_classes: false,
        exclude: Default::default(),
        rows: true,
        threads: options.threads,
        progress: &|_| {},
    };
    let shards: Vec<NamedShard> = shards.into_iter().map(|path| NamedShard::at(Location::File(path))).collect();
    let (mut manifest, _) = build(&shards, build_options).map_err(PackError::ReadBack)?;
    if manifest.samples != items.len() as u64 {
        return Err(PackError::Lost { written: items.len() as u64, read: manifest.samples });
    }
    manifest.write(&aside.path().join("manifest.json")).map_err(PackError::Manifest)?;
    sync_folder(aside.path()).map_err(io(aside.path(), "cannot sync"))?;
    // An empty folder may stand in the place; renaming onto it replaces it.
    std::fs::rename(aside.path(), &absolute).map_err(io(out, "cannot rename into place"))?;
    let _ = aside.keep();
    sync_folder(parent).map_err(io(parent, "cannot sync"))?;
    manifest.base = Location::File(absolute);
    Ok(Packed { manifest, left_out, notes, kept_as_is })
}

/// An image as it will be stored.
struct Ready {
    bytes: Vec<u8>,
    extension: String,
    /// Why it was not made smaller, if it should have been.
    kept_as_is: Option<String>,
}

/// The shards that were written, and the images that could not be made smaller.
struct Written {
    shards: Vec<PathBuf>,
    kept_as_is: Vec<(String, String)>,
}

/// Writes the items in order. While one chunk is being laid out and written, the next is read and resized.
fn write_shards(items: &[Item], folder: &Path, options: &PackOptions<'_>) -> Result<Written, PackError> {
    let prepare = |items: &[Item]| items.par_iter().map(|item| ready(item, options)).collect::<Result<Vec<_>, _>>();
    let mut writer = SetWriter::new(folder, options);
    let mut kept_as_is = Vec::new();
    let mut chunks = chunks(items);
    let mut current = chunks.next();
    let mut prepared = current.map_or(Ok(Vec::new()), prepare)?;
    let mut written = 0;
    while let Some(items_now) = current {
        let next = chunks.next();
        let (done, coming) = rayon::join(
            || {
                for (item, image) in items_now.iter().zip(&prepared) {
                    writer.append(item, image)?;
                }
                writer.flush()
            },
            || next.map_or(Ok(Vec::new()), prepare),
        );
        done?;
        for (item, image) in items_now.iter().zip(&mut prepared) {
            kept_as_is.extend(image.kept_as_is.take().map(|why| (item.key.clone(), why)));
        }
        written += items_now.len();
        (options.progress)(written as u64, items.len() as u64);
        (current, prepared) = (next, coming?);
    }
    Ok(Written { shards: writer.finish()?, kept_as_is })
}

/// The items in runs that fit into memory together.
fn chunks(mut items: &[Item]) -> impl Iterator<Item = &[Item]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |item: &&Item| {
            bytes += item.size();
            bytes <= CHUNK_BYTES
        };
        let count = items.iter().take(CHUNK_IMAGES).take_while(fits).count().max(1).min(items.len());
        let (now, later) = items.split_at(count);
        items = later;
        (!now.is_empty()).then_some(now)
    })
}

fn ready(item: &Item, options: &PackOptions<'_>) -> Result<Ready, PackError> {
    let bytes = item.read()?;
    let extension = item.extension.clone();
    let Some(resize) = options.resize else { return Ok(Ready { bytes, extension, kept_as_is: None }) };
    let _room = DECODE_MEMORY.room(decode_bytes(&bytes));
    Ok(match resize.apply(&bytes) {
        Ok(smaller) => Ready { bytes: smaller, extension: "jpg".into(), kept_as_is: None },
        Err(damage) => Ready { bytes, extension, kept_as_is: Some(damage.to_string()) },
    })
}

/// Lays samples into shards, and compresses their frames side by side.
struct SetWriter<'a> {
    folder: &'a Path,
    options: &'a PackOptions<'a>,
    paths: Vec<PathBuf>,
    /// Bytes of the open shard's tar stream so far.
    used: u64,
    open: Option<BufWriter<File>>,
    frames: Frames,
    /// What is to be written, in order.
    pending: Vec<Pending>,
}

enum Pending {
    /// A new shard begins.
    Begin(PathBuf),
    /// More of the shard's tar stream.
    Tar(Vec<u8>),
    /// The shard ends.
    End,
}

impl<'a> SetWriter<'a> {
    fn new(folder: &'a Path, options: &'a PackOptions<'a>) -> Self {
        Self { folder, options, paths: Vec::new(), used: 0, open: None, frames: Frames::default(), pending: Vec::new() }
    }

    fn append(&mut self, item: &Item, image: &Ready) -> Result<(), PackError> {
        let mut tar = tar::Builder::new(Vec::with_capacity(image.bytes.len() + 4096));
        let label = item.label.map(|label| label.to_string());
        let entries = std::iter::once((image.extension.as_str(), &image.bytes[..]))
            .chain(label.as_deref().map(|label| ("cls", label.as_bytes())));
        for (extension, data) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            let name = format!("{}.{extension}", item.key);
            tar.append_data(&mut header, &name, data).map_err(io(Path::new(&name), "cannot write as a tar entry"))?;
        }
        let mut tar = tar.into_inner().expect("memory does not fail");
        // The two blocks that end the archive are the shard's, and count for each.
        tar.truncate(tar.len() - 1024);
        let begins = self.paths.is_empty() || self.used + tar.len() as u64 + 1024 > self.options.shard_bytes;
        if begins {
            self.end_shard();
            let suffix = if self.options.zstd.is_some() { "tar.zst" } else { "tar" };
            let path = self.folder.join(format!("shard-{:06}.{suffix}", self.paths.len()));
            self.paths.push(path.clone());
            self.pending.push(Pending::Begin(path));
            self.used = 0;
        }
        self.used += tar.len() as u64;
        self.push(tar);
        Ok(())
    }

    /// Adds to the open shard's tar stream, in pieces of a frame's size.
    fn push(&mut self, tar: Vec<u8>) {
        match self.pending.last_mut() {
            Some(Pending::Tar(last)) if last.len() < FRAME_BYTES => last.extend_from_slice(&tar),
            _ => self.pending.push(Pending::Tar(tar)),
        }
    }

    fn end_shard(&mut self) {
        if !self.paths.is_empty() {
            self.push(vec![0; 1024]);
            self.pending.push(Pending::End);
        }
    }

    /// Compresses what is pending, all frames at once, and writes it.
    fn flush(&mut self) -> Result<(), PackError> {
        let pending = std::mem::take(&mut self.pending);
        let level = self.options.zstd;
        let packed: Vec<(Pending, u32)> = pending
            .into_par_iter()
            .map(|piece| match (piece, level) {
                (Pending::Tar(tar), Some(level)) => {
                    let mut encoder = zstd::bulk::Compressor::new(level)?;
                    encoder.include_checksum(true)?;
                    Ok((Pending::Tar(encoder.compress(&tar)?), tar.len() as u32))
                }
                (piece, _) => Ok((piece, 0)),
            })
            .collect::<std::io::Result<_>>()
            .map_err(io(self.folder, "cannot compress"))?;
        for (piece, unpacked) in packed {
            let path = self.paths.last().cloned().unwrap_or_default();
            match piece {
                Pending::Begin(path) => {
                    let file = File::create_new(&path).map_err(io(&path, "cannot create"))?;
                    self.open = Some(BufWriter::with_capacity(1 << 20, file));
                    self.frames = Frames::default();
                }
                Pending::Tar(bytes) => {
                    self.frames.packed.push(bytes.len() as u32);
                    self.frames.unpacked.push(unpacked);
                    let file = self.open.as_mut().expect("a shard begins before it goes on");
                    file.write_all(&bytes).map_err(io(&path, "cannot write"))?;
                }
                Pending::End => {
                    let mut file = self.open.take().expect("a shard begins before it ends");
                    if level.is_some() {
                        file.write_all(&self.frames.table()).map_err(io(&path, "cannot write"))?;
                    }
                    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error);
                    file.and_then(|file| file.sync_all()).map_err(io(&path, "cannot write"))?;
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<PathBuf>, PackError> {
        self.end_shard();
        self.flush()?;
        Ok(self.paths)
    }
}

/// Removes what a pack of this process into `out` has made so far, if it is not done. Whatever still writes there finds its
/// folder gone; to be called by who ends the program.
pub fn abandon(out: &Path) {
    let Ok(absolute) = std::path::absolute(out) else { return };
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return };
    let prefix = format!(".{}.packing-{}-", name.to_string_lossy(), std::process::id());
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            // A file may come into it while it is emptied, though hardly more than once.
            let _ = (0..100).find(|_| std::fs::remove_dir_all(entry.path()).is_ok() || !entry.path().exists());
        }
    }
}

/// Removes what packs that were killed left beside their target: folders whose name is of exactly the form that theirs have,
/// whose process is gone, and which nobody holds. A process of another container has no number here, but holds its folder.
fn remove_abandoned(parent: &Path, prefix: &str) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let Some((process, random)) = rest.split_once('-') else { continue };
        let is_number = !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit());
        let is_random = random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_number || !is_random || !is_folder || Path::new("/proc").join(process).exists() {
            continue;
        }
        let Ok(folder) = File::open(entry.path()) else { continue };
        if folder.try_lock().is_ok() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Random characters at the end of the name of a folder that is packed into.
const RANDOM: usize = 6;

fn io<'a>(path: &'a Path, what: &'static str) -> impl Fn(std::io::Error) -> PackError + 'a {
    move |source| PackError::Io { path: path.to_owned(), what, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Set;

    #[test]
    fn the_same_input_and_seed_give_the_same_bytes() {
        let shards = |set: &Set| {
            let places = (0..set.manifest.shards.len()).map(|i| set.manifest.shard_place(i));
            places.map(|place| crate::objects::read_whole(&place).unwrap()).collect::<Vec<_>>()
        };
        let (one, other) = (Set::draw(30, 16, Some(3)), Set::draw(30, 16, Some(3)));
        assert_eq!(one.manifest.digest, other.manifest.digest);
        assert!(shards(&one) == shards(&other));
        assert_eq!(one.manifest.classes.len(), 10);
        assert!(shards(&one).iter().all(|bytes| bytes.len() <= 40_000));
        let labels = one.manifest.shards[0].labels.as_ref().unwrap();
        assert!(labels.windows(2).any(|pair| pair[0] > pair[1]), "classes are mixed: {labels:?}");
    }

    #[test]
    fn what_a_killed_pack_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // No process has this number; one of another container may.
        let names = [
            ".out.packing-999999999-abc123",
            ".out.packing-999999999-held00",
            ".out.packing-999999999-my-own",
            ".out.packing-notes-abc123",
            ".out.packing-999999999",
            ".other.packing-999999999-abc123",
        ];
        for name in names {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join("shard-000000.tar"), b"bytes").unwrap();
        }
        std::fs::write(at(".out.packing-999999999-file00"), b"a file").unwrap();
        let held = File::open(at(names[1])).unwrap();
        held.lock_shared().unwrap();
        remove_abandoned(folder.path(), ".out.packing-");
        let left: Vec<bool> = names.iter().map(|name| at(name).join("shard-000000.tar").exists()).collect();
        assert_eq!(left, [false, true, true, true, true, true]);
        assert!(at(".out.packing-999999999-file00").exists());
    }

    #[test]
    fn what_cannot_be_packed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let check = |source: &str, out: &str, wanted: &str| {
            let progress = &|_, _| {};
            let options = PackOptions { shard_bytes: 1 << 20, progress, ..PackOptions::default() };
            let message = pack(&at(source), &at(out), &options).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        };
        check("nowhere", "out", "no such file or directory");
        std::fs::create_dir_all(at("empty")).unwrap();
        check("empty", "out", "contains no images");
        std::fs::create_dir_all(at("a/cat")).unwrap();
        std::fs::write(at("a/cat/notes.txt"), b"x").unwrap();
        check("a", "out", "contains no images");
        std::fs::write(at("a/cat/1.jpg"), b"x").unwrap();
        check("a", "a", "already exists");
        assert!(!at("out").exists());
        let hidden = std::fs::read_dir(folder.path())
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with('.'));
        assert_eq!(hidden.count(), 0, "nothing is left behind");
    }
}
