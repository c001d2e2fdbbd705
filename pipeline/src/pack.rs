//! Packs class folders into shards and a manifest: deterministic to the byte, whole or not at all.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::files::sync_folder;
use crate::manifest::{BuildOptions, Manifest, ManifestError, build};
use crate::rng::{Draws, Purpose};
use crate::sample::is_image_extension;

/// How to pack.
pub struct PackOptions<'a> {
    /// A shard is closed before its tar stream would grow beyond this.
    pub shard_bytes: u64,
    /// Compress with zstd at this level.
    pub zstd: Option<i32>,
    /// Decides the order in which samples are written.
    pub seed: u64,
    /// How many shards are read back at the same time.
    pub threads: usize,
    /// Called with samples written and samples in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// What was packed.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The manifest, as written to `OUT/manifest.json`.
    pub manifest: Manifest,
    /// Files in the class folders that are no images by their extension and were left out.
    pub left_out: Vec<PathBuf>,
}

/// Why nothing was packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The source or the options are not what is wanted.
    #[error("{}: {why}", path.display())]
    Input {
        /// What it is about.
        path: PathBuf,
        /// What was found and what would be right.
        why: String,
    },
    /// A file can't be read or written.
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
    #[error("the shards just written read back wrong")]
    ReadBack(#[source] ManifestError),
}

/// One image to be packed.
struct Item {
    path: PathBuf,
    key: String,
    extension: String,
    label: u32,
}

/// Packs `source/<class>/<image>` into `out/shard-NNNNNN.tar[.zst]`, `out/manifest.json` and `out/classes.txt`.
///
/// Classes are numbered in the order of their folders' names. A sample's key is `<class>/<file stem>`, dots in the
/// stem made underscores, since a key ends at the first dot. Samples are written in an order drawn from the seed, so
/// that every shard holds a mixture of classes. Everything is written to a hidden folder beside `out`, read back,
/// and renamed at the end.
///
/// # Errors
/// If the source is no folder of class folders with images, if `out` exists, or if the disk fails.
pub fn pack_folders(source: &Path, out: &Path, options: &PackOptions<'_>) -> Result<Packed, PackError> {
    let input = |path: &Path, why: String| PackError::Input { path: path.to_owned(), why };
    if std::fs::symlink_metadata(out).is_ok() && std::fs::read_dir(out).map_or(true, |mut dir| dir.next().is_some()) {
        return Err(input(out, "exists already; pack into a new folder".into()));
    }
    if options.shard_bytes < 10_240 {
        return Err(input(out, format!("shards of {} bytes; at least 10240 are wanted", options.shard_bytes)));
    }
    if let Some(level) = options.zstd
        && !zstd::compression_level_range().contains(&level)
    {
        let range = zstd::compression_level_range();
        return Err(input(out, format!("zstd level {level}; {} to {} are known", range.start(), range.end())));
    }
    let Listing { classes, mut items, left_out } = list(source)?;
    Draws::new(options.seed, Purpose::PackOrder, &[]).shuffle(&mut items);

    let absolute = std::path::absolute(out).map_err(io(out, "cannot find its place"))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(input(out, "is no name for a new folder".into()));
    };
    std::fs::create_dir_all(parent).map_err(io(parent, "cannot create the folder"))?;
    let prefix = format!(".{}.packing-", name.to_string_lossy());
    remove_abandoned(parent, &prefix);
    let aside = tempfile::Builder::new()
        .prefix(&format!("{prefix}{}-", std::process::id()))
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(parent)
        .map_err(io(parent, "cannot create a folder in it"))?;
    let shards = write_shards(&items, aside.path(), options)?;
    let text: String = classes.iter().map(|class| format!("{class}\n")).collect();
    let classes_path = aside.path().join("classes.txt");
    crate::files::write_whole(&classes_path, text.as_bytes()).map_err(io(&classes_path, "cannot write"))?;
    let build_options = BuildOptions {
        base: aside.path(),
        source: format!("packed from class folders, seed {}", options.seed),
        classes,
        threads: options.threads,
        progress: &|_| {},
    };
    let mut manifest = build(&shards, build_options).map_err(PackError::ReadBack)?;
    manifest.write(&aside.path().join("manifest.json")).map_err(PackError::Manifest)?;
    sync_folder(aside.path()).map_err(io(aside.path(), "cannot sync"))?;
    // An empty folder may stand in the place; renaming onto it replaces it.
    std::fs::rename(aside.path(), &absolute).map_err(io(out, "cannot be put in its place"))?;
    let _ = aside.keep();
    sync_folder(parent).map_err(io(parent, "cannot sync"))?;
    manifest.base = absolute;
    Ok(Packed { manifest, left_out })
}

/// What a folder of class folders holds, in the order of names.
struct Listing {
    classes: Vec<String>,
    items: Vec<Item>,
    left_out: Vec<PathBuf>,
}

fn list(source: &Path) -> Result<Listing, PackError> {
    let input = |path: &Path, why: &str| PackError::Input { path: path.to_owned(), why: why.to_owned() };
    let mut folders = Vec::new();
    let mut images_outside = false;
    for path in sorted(source)? {
        if path.is_dir() {
            folders.push(path);
        } else {
            images_outside |= extension(&path).is_some();
        }
    }
    if folders.is_empty() {
        let why = if images_outside {
            "holds images but no class folders; SRC/<class>/<image> is wanted"
        } else {
            "holds no class folders; SRC/<class>/<image> is wanted"
        };
        return Err(input(source, why));
    }
    let (mut classes, mut items, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    let mut keys = BTreeSet::new();
    for (label, folder) in folders.iter().enumerate() {
        let class = folder.file_name().and_then(|name| name.to_str());
        let class = class.ok_or_else(|| input(folder, "its name is not UTF-8"))?;
        if class.contains(['\n', '\r']) {
            return Err(input(folder, "its name has a line break"));
        }
        classes.push(class.to_owned());
        let mut found = 0;
        for path in sorted(folder)? {
            if path.is_dir() {
                return Err(input(&path, "is a folder in a class folder; images are wanted there"));
            }
            let Some(extension) = extension(&path) else {
                left_out.push(path);
                continue;
            };
            let stem =
                path.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| input(&path, "its name is not UTF-8"))?;
            let stem = stem.replace('.', "_");
            let mut key = format!("{class}/{stem}");
            let mut copy = 1;
            while !keys.insert(key.clone()) {
                copy += 1;
                key = format!("{class}/{stem}-{copy}");
            }
            items.push(Item { path, key, extension, label: label as u32 });
            found += 1;
        }
        if found == 0 {
            let why =
                format!("holds no image; files ending in .{} are wanted", crate::sample::IMAGE_EXTENSIONS.join(" ."));
            return Err(PackError::Input { path: folder.clone(), why });
        }
    }
    Ok(Listing { classes, items, left_out })
}

/// What is in a folder, by name, without hidden files.
fn sorted(folder: &Path) -> Result<Vec<PathBuf>, PackError> {
    let why = |error: std::io::Error| PackError::Input {
        path: folder.to_owned(),
        why: format!("cannot list the folder: {error}"),
    };
    let entries = std::fs::read_dir(folder).map_err(why)?.collect::<Result<Vec<_>, _>>().map_err(why)?;
    let visible = entries.into_iter().filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let mut paths: Vec<PathBuf> = visible.map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// The image extension of a file, in lower case.
fn extension(path: &Path) -> Option<String> {
    let extension = path.extension()?.to_str()?.to_lowercase();
    is_image_extension(&extension).then_some(extension)
}

fn write_shards(items: &[Item], folder: &Path, options: &PackOptions<'_>) -> Result<Vec<PathBuf>, PackError> {
    let suffix = if options.zstd.is_some() { "tar.zst" } else { "tar" };
    let mut paths = Vec::new();
    let mut open: Option<(PathBuf, tar::Builder<ShardWriter>, u64)> = None;
    for (i, item) in items.iter().enumerate() {
        let data = std::fs::read(&item.path).map_err(io(&item.path, "cannot read"))?;
        let label = item.label.to_string();
        // Two headers, the data in whole blocks, and the two blocks that end the archive.
        let bytes = 512 + (data.len() as u64).next_multiple_of(512) + 1024;
        if open.as_ref().is_some_and(|(_, _, used)| used + bytes + 1024 > options.shard_bytes) {
            let (path, builder, _) = open.take().expect("looked at above");
            close(&path, builder)?;
        }
        let (path, builder, used) = match &mut open {
            Some(open) => open,
            None => {
                let path = folder.join(format!("shard-{:06}.{suffix}", paths.len()));
                let writer = ShardWriter::create(&path, options.zstd).map_err(io(&path, "cannot create"))?;
                paths.push(path.clone());
                open.insert((path, tar::Builder::new(writer), 0))
            }
        };
        *used += bytes;
        for (extension, data) in [(item.extension.as_str(), &data[..]), ("cls", label.as_bytes())] {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            builder
                .append_data(&mut header, format!("{}.{extension}", item.key), data)
                .map_err(io(path, "cannot write"))?;
        }
        (options.progress)(i as u64 + 1, items.len() as u64);
    }
    if let Some((path, builder, _)) = open {
        close(&path, builder)?;
    }
    Ok(paths)
}

fn close(path: &Path, builder: tar::Builder<ShardWriter>) -> Result<(), PackError> {
    builder.into_inner().and_then(ShardWriter::finish).map_err(io(path, "cannot write"))
}

/// A shard's file, compressed or not.
enum ShardWriter {
    Plain(BufWriter<File>),
    Zstd(Box<zstd::Encoder<'static, BufWriter<File>>>),
}

impl ShardWriter {
    fn create(path: &Path, level: Option<i32>) -> std::io::Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
        let Some(level) = level else { return Ok(Self::Plain(file)) };
        let mut encoder = zstd::Encoder::new(file, level)?;
        encoder.include_checksum(true)?;
        Ok(Self::Zstd(Box::new(encoder)))
    }

    fn finish(self) -> std::io::Result<()> {
        let file = match self {
            Self::Plain(file) => file,
            Self::Zstd(encoder) => encoder.finish()?,
        };
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    }
}

impl Write for ShardWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(file) => file.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(file) => file.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// Removes what packs that were killed left beside their target.
fn remove_abandoned(parent: &Path, prefix: &str) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let process = rest.split('-').next().unwrap_or_default();
        if !process.is_empty() && !Path::new("/proc").join(process).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn io<'a>(path: &'a Path, what: &'static str) -> impl Fn(std::io::Error) -> PackError + 'a {
    move |source| PackError::Io { path: path.to_owned(), what, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pictures::Set;

    #[test]
    fn the_same_input_and_seed_give_the_same_bytes() {
        let shards = |set: &Set| {
            let paths = (0..set.manifest.shards.len()).map(|i| set.manifest.shard_path(i));
            paths.map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>()
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
    fn what_cannot_be_packed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let check = |source: &str, out: &str, wanted: &str| {
            let options = PackOptions { shard_bytes: 1 << 20, zstd: None, seed: 1, threads: 1, progress: &|_, _| {} };
            let message = pack_folders(&at(source), &at(out), &options).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        };
        check("nowhere", "out", "cannot list the folder");
        std::fs::create_dir_all(at("empty")).unwrap();
        check("empty", "out", "no class folders");
        std::fs::write(at("empty/a.jpg"), b"x").unwrap();
        check("empty", "out", "images but no class folders");
        std::fs::create_dir_all(at("a/cat")).unwrap();
        std::fs::write(at("a/cat/notes.txt"), b"x").unwrap();
        check("a", "out", "holds no image");
        std::fs::write(at("a/cat/1.jpg"), b"x").unwrap();
        check("a", "a", "exists already");
        assert!(!at("out").exists());
        let hidden = std::fs::read_dir(folder.path())
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with('.'));
        assert_eq!(hidden.count(), 0, "nothing is left behind");
    }
}
