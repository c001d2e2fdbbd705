//! Tars of images, read in place: with the folders in them as classes, with a list of labels, or of tars that each are a
//! class.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use simclr_ground::location::Location;
use simclr_ground::patience::LongWait;
use simclr_ground::sample::{belongs_to_nobody, split_name};

use super::{Bytes, Found, Image, LeftOut, ListingError, classes, expected_extensions, input, is_image};
use crate::compression::Compression;
use crate::tar_entries::{Entries, SPARSE, TarSource, shown};

/// What a tar holds, before anybody says whether it is one of images or a shard.
pub(super) struct Contents {
    archive: Archive,
    entries: Vec<Entry>,
    left_out: LeftOut,
}

impl Contents {
    /// Reads the headers of the tar at `path`, which may be compressed.
    pub fn read(path: &Path) -> Result<Self, ListingError> {
        let archive = Archive::open(path)?;
        let mut left_out = LeftOut::default();
        let entries = archive.entries(0, archive.bytes, "", &mut left_out)?;
        Ok(Self { archive, entries, left_out })
    }

    /// Whether entries say the classes of others, as those of shards do.
    pub fn says_classes(&self) -> bool {
        let says = |entry: &Entry| matches!(split_name(&entry.name).1.to_lowercase().as_str(), "cls" | "cls.txt");
        self.entries.iter().any(says)
    }

    /// Its images.
    pub fn found(self, labels: Option<&Path>) -> Result<Found, ListingError> {
        let Self { archive, entries, left_out } = self;
        if entries.iter().any(|entry| entry.name.ends_with(".tar")) {
            if let Some(path) = labels {
                return Err(input(
                    path,
                    "a label file applies only to a tar of images; class tars already define the classes",
                ));
            }
            class_tars(&archive, entries, left_out)
        } else {
            images(&archive, entries, labels, left_out)
        }
    }
}

/// A tar of tars, each of one class and named for it, as ILSVRC2012's training set comes.
fn class_tars(archive: &Archive, entries: Vec<Entry>, mut left_out: LeftOut) -> Result<Found, ListingError> {
    let (tars, others): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| entry.name.ends_with(".tar"));
    left_out.others.extend(others.into_iter().map(|entry| PathBuf::from(entry.name)));
    let class_of = |entry: &Entry| {
        let name = entry.name.rsplit('/').next().expect("a name has a last part");
        name.trim_end_matches(".tar").to_owned()
    };
    let classes: BTreeSet<String> = tars.iter().map(class_of).collect();
    if classes.len() != tars.len() {
        return Err(input(archive.path(), "two tars have the same name"));
    }
    let mut images = Vec::new();
    for tar in &tars {
        let before = images.len();
        for entry in archive.entries(tar.offset, tar.size, &tar.name, &mut left_out)? {
            if is_image(Path::new(&entry.name)) {
                images.push(archive.image(&entry, Some(class_of(tar)), true));
            } else {
                left_out.others.push(format!("{}/{}", tar.name, entry.name).into());
            }
        }
        if images.len() == before {
            let why = format!("{} contains no images; {}", tar.name, expected_extensions());
            return Err(input(archive.path(), why));
        }
    }
    Ok(Found { images, left_out, notes: Vec::new(), no_labels: None, origin: "a tar of class tars" })
}

/// A tar of images, with the class of each on a line of `labels` (in the order of the images' names, as ILSVRC2012's
/// validation list), or with the image's name before it; without `labels`, of the classes that its folders are.
fn images(
    archive: &Archive,
    entries: Vec<Entry>,
    labels: Option<&Path>,
    mut left_out: LeftOut,
) -> Result<Found, ListingError> {
    let (mut images, others): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| is_image(Path::new(&entry.name)));
    left_out.others.extend(others.into_iter().map(|entry| PathBuf::from(entry.name)));
    images.sort_by(|a, b| a.name.cmp(&b.name));
    let (classes, no_labels) = match labels {
        Some(path) => (Some(read_labels(path, &images)?), None),
        None => {
            let folders: Vec<Vec<String>> =
                images.iter().map(|entry| classes::folders_of(Path::new(&entry.name))).collect();
            match classes::by_folders(&folders) {
                Ok((_, classes)) => (Some(classes), None),
                Err(why) => (None, Some(why)),
            }
        }
    };
    let mut classes = classes.map(Vec::into_iter);
    let by_class = classes.is_some();
    let image = |entry: &Entry| archive.image(entry, classes.as_mut().and_then(Iterator::next), by_class);
    let images = images.iter().map(image).collect();
    Ok(Found { images, left_out, notes: Vec::new(), no_labels, origin: "a tar of images" })
}

/// The class of each image, which are in the order of their names.
fn read_labels(path: &Path, images: &[Entry]) -> Result<Vec<String>, ListingError> {
    let text =
        simclr_ground::files::read_named_text(path).map_err(|error| input(path, format!("cannot read: {error}")))?;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.len() != images.len() {
        return Err(input(path, format!("{} labels for {} images", lines.len(), images.len())));
    }
    let pairs: Vec<(&str, &str)> = lines.iter().filter_map(|line| line.split_once([' ', '\t', ','])).collect();
    if pairs.is_empty() {
        // The numbers of ILSVRC2012's development kit count from 1 in an order of their own; taking them for classes
        // would shuffle the labels without anybody noticing.
        let numbers: BTreeSet<u32> = lines.iter().filter_map(|line| line.parse().ok()).collect();
        if numbers.len() > 1 && !numbers.contains(&0) {
            let why = "labels are numbers starting at 1, as in the development kit, whose order differs from that of the class names; \
                       expected class names (imagenet_2012_validation_synset_labels.txt)";
            return Err(input(path, why));
        }
        return Ok(lines.iter().map(|line| (*line).to_owned()).collect());
    }
    if pairs.len() != lines.len() {
        return Err(input(path, "some lines have a name and a class, others only one of them"));
    }
    let base = |name: &str| name.rsplit('/').next().expect("a name has a last part").to_owned();
    let classes: BTreeMap<String, &str> = pairs.iter().map(|(name, class)| (base(name), class.trim())).collect();
    let class = |entry: &Entry| {
        let name = base(&entry.name);
        classes.get(&name).map(|class| (*class).to_owned()).ok_or_else(|| input(path, format!("{name} has no label")))
    };
    images.iter().map(class).collect()
}

/// An archive on a disk, of which headers are read and contents skipped.
struct Archive {
    file: Arc<(PathBuf, File)>,
    bytes: u64,
}

/// A tar of images unpacks to no more than so many times its size,
const MOST_UNPACKED: u64 = 200;

/// or to so many bytes.
const LEAST_ALLOWED: u64 = 1 << 30;

/// So many bytes are unpacked between two looks at the time.
const PIECE: u64 = 16 << 20;

/// What the file at `path` unpacks to, at most `most` bytes, in a temporary file.
fn unpacked(path: &Path, compression: Compression, most: u64) -> Result<File, ListingError> {
    let io = |what| move |source| ListingError::Io { path: path.to_owned(), what, source };
    let mut file = tempfile::tempfile().map_err(io("cannot create a temporary file to unpack it"))?;
    let packed = crate::objects::reader(&Location::File(path.to_owned())).map_err(io("cannot read"))?;
    let mut tar = compression.unpacking(packed).map_err(io("cannot unpack"))?.take(most + 1);
    let mut long = LongWait::default();
    while std::io::copy(&mut (&mut tar).take(PIECE), &mut file).map_err(io("cannot unpack"))? > 0 {
        if tar.limit() == 0 {
            let why = format!("unpacks to more than {most} bytes, as no images do; expected a tar of images");
            return Err(input(path, why));
        }
        if let Some(waited) = long.due() {
            let (done, folder) = ((most + 1 - tar.limit()) as f64 / 1e9, std::env::temp_dir());
            let (path, folder, seconds) = (path.display(), folder.display(), waited.as_secs());
            tracing::warn!(
                "{path}: unpacked {done:.1} GB into {folder} in {seconds} s; a tar without compression is read in place"
            );
        }
    }
    Ok(file)
}

/// A regular file in an archive.
struct Entry {
    name: String,
    /// Where its bytes begin in the outermost archive.
    offset: u64,
    size: u64,
}

impl Archive {
    fn open(path: &Path) -> Result<Self, ListingError> {
        let io = |what| move |source| ListingError::Io { path: path.to_owned(), what, source };
        let mut file = File::open(path).map_err(io("cannot open"))?;
        let mut start = Vec::new();
        (&file).take(512).read_to_end(&mut start).map_err(io("cannot read"))?;
        let compression = Compression::of_bytes(&start).map_err(|why| input(path, why))?;
        if compression != Compression::None {
            // Its entries are read here and there, which only what is unpacked allows.
            let size = file.metadata().map_err(io("cannot read"))?.len();
            file = unpacked(path, compression, size.saturating_mul(MOST_UNPACKED).max(LEAST_ALLOWED))?;
        }
        let bytes = file.metadata().map_err(io("cannot read"))?.len();
        Ok(Self { file: Arc::new((path.to_owned(), file)), bytes })
    }

    fn path(&self) -> &Path {
        &self.file.0
    }

    fn image(&self, entry: &Entry, class: Option<String>, by_class: bool) -> Image {
        let bytes = Bytes::Within { archive: self.file.clone(), offset: entry.offset, size: entry.size };
        Image { path: PathBuf::from(&entry.name), class, by_class, bytes }
    }

    /// The regular files of the tar in these bytes of the archive, which is called `name`, without those that are nobody's.
    fn entries(&self, offset: u64, size: u64, name: &str, left_out: &mut LeftOut) -> Result<Vec<Entry>, ListingError> {
        let window = Window { file: &self.file.1, start: offset, size, position: 0 };
        let at = if name.is_empty() { String::new() } else { format!("{name}: ") };
        let wrong = |after: &str, error: std::io::Error| {
            let after = if after.is_empty() { String::new() } else { format!(" after {after}") };
            input(self.path(), format!("{at}malformed tar{after}: {error}"))
        };
        let mut entries = Entries::new(window);
        let mut found: Vec<Entry> = Vec::new();
        let last = |found: &[Entry]| found.last().map_or(String::new(), |entry| shown(&entry.name));
        while let Some(entry) = entries.next_entry().map_err(|error| wrong(&last(&found), error))? {
            if !entry.kind.is_file() {
                // A link's image is elsewhere in the tar, or nowhere.
                if matches!(entry.kind, tar::EntryType::Link | tar::EntryType::Symlink) {
                    left_out.others.push(format!("{} (a link)", String::from_utf8_lossy(&entry.name)).into());
                }
                continue;
            }
            let sparse = entry.sparse;
            let name = String::from_utf8(entry.name)
                .map_err(|_| input(self.path(), format!("{at}an entry's name is not UTF-8")))?;
            let name = name.trim_start_matches("./").to_owned();
            if sparse {
                return Err(input(self.path(), format!("{at}{}: {SPARSE}", shown(&name))));
            }
            if entry.offset.saturating_add(entry.size) > size {
                return Err(input(self.path(), format!("{at}{} is truncated", shown(&name))));
            }
            if name.split('/').any(belongs_to_nobody) {
                left_out.nobodys += 1;
                continue;
            }
            found.push(Entry { name, offset: offset + entry.offset, size: entry.size });
        }
        Ok(found)
    }
}

/// A part of a file that reads as if it were a file.
struct Window<'a> {
    file: &'a File,
    start: u64,
    size: u64,
    position: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.size.saturating_sub(self.position).min(buffer.len() as u64) as usize;
        let n = self.file.read_at(&mut buffer[..left], self.start + self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl TarSource for Window<'_> {
    fn skip(&mut self, bytes: u64) -> std::io::Result<()> {
        self.position = self.position.saturating_add(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_a_compressed_tar_unpacks_to_no_more_than_images_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zeros.tar.zst");
        std::fs::write(&path, zstd::encode_all(&vec![0; 1 << 20][..], 3).unwrap()).unwrap();
        let file = unpacked(&path, Compression::Zstd, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        let message = unpacked(&path, Compression::Zstd, (1 << 20) - 1).unwrap_err().to_string();
        assert!(message.contains("zeros.tar.zst: unpacks to more than 1048575 bytes"), "{message}");
    }
}
