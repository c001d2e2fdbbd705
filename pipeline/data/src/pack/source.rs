//! Which images a source holds, with their classes, and where the bytes of each lie.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use simclr_ground::sample::{IMAGE_EXTENSIONS, is_image_extension};

use super::{PackError, io};
use crate::shard::MAX_ENTRY_BYTES;
use crate::tar_entries::{Entries, TarSource, shown};

/// One image to be packed.
pub(super) struct Item {
    pub key: String,
    pub extension: String,
    pub label: Option<u32>,
    bytes: Bytes,
}

/// Where an image's bytes are.
enum Bytes {
    File(PathBuf),
    /// In an archive, which is read in place and never unpacked.
    Within {
        archive: Arc<(PathBuf, File)>,
        offset: u64,
        size: u64,
    },
}

impl Item {
    /// The image's bytes.
    pub fn read(&self) -> Result<Vec<u8>, PackError> {
        match &self.bytes {
            Bytes::File(path) => std::fs::read(path).map_err(io(path, "cannot read")),
            Bytes::Within { archive, offset, size } => {
                if *size > MAX_ENTRY_BYTES {
                    let why = format!("{} has {size} bytes; an image can have at most {MAX_ENTRY_BYTES}", self.key);
                    return Err(input(&archive.0, &why));
                }
                let mut bytes = vec![0; *size as usize];
                archive.1.read_exact_at(&mut bytes, *offset).map_err(io(&archive.0, "cannot read"))?;
                Ok(bytes)
            }
        }
    }
}

/// What a source holds, in the order of names.
pub(super) struct Listing {
    pub classes: Vec<String>,
    pub items: Vec<Item>,
    pub left_out: Vec<PathBuf>,
    /// What the source was, for people.
    pub origin: &'static str,
}

/// Looks at `source`, whatever of the four kinds it is.
pub(super) fn list(source: &Path, labels: Option<&Path>) -> Result<Listing, PackError> {
    let extension = source.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    let labels_of_no_use = |kind: &str| match labels {
        Some(path) => Err(input(path, &format!("a label file applies only to a tar of images; {kind}"))),
        None => Ok(()),
    };
    if source.is_dir() {
        labels_of_no_use("class folders already define the classes")?;
        return folders(source);
    }
    if !source.is_file() {
        return Err(input(source, "no such file or directory"));
    }
    match extension.as_str() {
        "tar" => {
            let archive = Archive::open(source)?;
            let entries = archive.entries(0, archive.bytes, "")?;
            if entries.iter().any(|entry| entry.name.ends_with(".tar")) {
                labels_of_no_use("a tar of class tars already defines the classes")?;
                class_tars(&archive, entries)
            } else {
                labelled_tar(&archive, entries, labels)
            }
        }
        "txt" | "tsv" | "csv" => {
            labels_of_no_use("a list already defines the classes")?;
            listed(source)
        }
        _ => Err(input(source, "unsupported source: expected a directory, a .tar or a list (.txt, .tsv, .csv)")),
    }
}

/// `source/<class>/<image>`.
fn folders(source: &Path) -> Result<Listing, PackError> {
    let mut folders = Vec::new();
    let mut images_outside = false;
    for path in sorted(source)? {
        if path.is_dir() {
            folders.push(path);
        } else {
            images_outside |= image_extension(&path).is_some();
        }
    }
    if folders.is_empty() {
        let why = if images_outside {
            "contains images but no class folders; expected SRC/<class>/<image>"
        } else {
            "contains no class folders; expected SRC/<class>/<image>"
        };
        return Err(input(source, why));
    }
    let (mut classes, mut items, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    let mut keys = BTreeSet::new();
    for (label, folder) in folders.iter().enumerate() {
        let class = folder.file_name().and_then(|name| name.to_str());
        let class = class.ok_or_else(|| input(folder, "the name is not UTF-8"))?;
        if class.contains(['\n', '\r']) {
            return Err(input(folder, "the name contains a line break"));
        }
        classes.push(class.to_owned());
        let before = items.len();
        for path in sorted(folder)? {
            if path.is_dir() {
                return Err(input(&path, "nested directory inside a class directory"));
            }
            let Some(extension) = image_extension(&path) else {
                left_out.push(path);
                continue;
            };
            let key = free_key(&mut keys, class, &path)?;
            items.push(Item { key, extension, label: Some(label as u32), bytes: Bytes::File(path) });
        }
        if items.len() == before {
            return Err(input(folder, &format!("contains no images; {}", wanted_extensions())));
        }
    }
    Ok(Listing { classes, items, left_out, origin: "class folders" })
}

/// A line for each image: its path (relative to the list), blanks or a comma, its class.
fn listed(list: &Path) -> Result<Listing, PackError> {
    let text = std::fs::read_to_string(list).map_err(|error| input(list, &format!("cannot read: {error}")))?;
    let folder = list.parent().unwrap_or(Path::new(""));
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |why: &str| input(list, &format!("line {}: {why}", number + 1));
        let (path, class) =
            line.trim().rsplit_once(['\t', ',', ' ']).ok_or_else(|| wrong("expected a path and a class"))?;
        let path = folder.join(path.trim());
        let extension = image_extension(&path)
            .ok_or_else(|| wrong(&format!("{} is not an image; {}", path.display(), wanted_extensions())))?;
        if !path.is_file() {
            return Err(wrong(&format!("{}: no such file", path.display())));
        }
        lines.push((path, extension, class.trim().to_owned()));
    }
    if lines.is_empty() {
        return Err(input(list, "lists no images; expected a path and a class on each line"));
    }
    let classes = class_names(lines.iter().map(|(_, _, class)| class));
    let mut keys = BTreeSet::new();
    let mut items = Vec::new();
    for (path, extension, class) in lines {
        let key = free_key(&mut keys, &class, &path)?;
        items.push(Item { key, extension, label: Some(classes[&class]), bytes: Bytes::File(path) });
    }
    Ok(Listing { classes: classes.into_keys().collect(), items, left_out: Vec::new(), origin: "a list" })
}

/// A tar of tars, each of one class and named for it, as ILSVRC2012's training set comes.
fn class_tars(archive: &Archive, entries: Vec<Entry>) -> Result<Listing, PackError> {
    let (tars, others): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| entry.name.ends_with(".tar"));
    let mut left_out: Vec<PathBuf> = others.into_iter().map(|entry| entry.name.into()).collect();
    let class_of = |entry: &Entry| {
        let name = entry.name.rsplit('/').next().expect("a name has a last part");
        name.trim_end_matches(".tar").to_owned()
    };
    let names: Vec<String> = tars.iter().map(class_of).collect();
    let classes = class_names(names.iter());
    if classes.len() != tars.len() {
        return Err(input(archive.path(), "two tars have the same name"));
    }
    let mut items = Vec::new();
    let mut keys = BTreeSet::new();
    for (tar, class) in tars.iter().zip(&names) {
        let before = items.len();
        for entry in archive.entries(tar.offset, tar.size, &tar.name)? {
            let Some(extension) = image_extension(Path::new(&entry.name)) else {
                left_out.push(format!("{}/{}", tar.name, entry.name).into());
                continue;
            };
            let key = free_key(&mut keys, class, Path::new(&entry.name))?;
            items.push(archive.item(key, extension, Some(classes[class]), &entry));
        }
        if items.len() == before {
            return Err(input(archive.path(), &format!("{} contains no images; {}", tar.name, wanted_extensions())));
        }
    }
    Ok(Listing { classes: classes.into_keys().collect(), items, left_out, origin: "a tar of class tars" })
}

/// A tar of images, with the class of each on a line of `labels` (in the order of the images' names, as ILSVRC2012's
/// validation list), or with the image's name before it; without `labels` the images have no class.
fn labelled_tar(archive: &Archive, entries: Vec<Entry>, labels: Option<&Path>) -> Result<Listing, PackError> {
    let is_image = |entry: &Entry| image_extension(Path::new(&entry.name)).is_some();
    let (mut images, others): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(is_image);
    let left_out = others.into_iter().map(|entry| entry.name.into()).collect();
    if images.is_empty() {
        return Err(input(archive.path(), &format!("contains no images; {}", wanted_extensions())));
    }
    images.sort_by(|a, b| a.name.cmp(&b.name));
    let said = labels.map(|path| read_labels(path, &images)).transpose()?;
    let classes = class_names(said.iter().flatten());
    let mut keys = BTreeSet::new();
    let mut items = Vec::new();
    for (i, entry) in images.iter().enumerate() {
        let path = Path::new(&entry.name);
        let class = said.as_ref().map(|said| &said[i]);
        let key = free_key(&mut keys, class.map_or("", String::as_str), path)?;
        let extension = image_extension(path).expect("chosen for it");
        items.push(archive.item(key, extension, class.map(|class| classes[class]), entry));
    }
    Ok(Listing { classes: classes.into_keys().collect(), items, left_out, origin: "a tar of images" })
}

/// The class of each image, which are in the order of their names.
fn read_labels(path: &Path, images: &[Entry]) -> Result<Vec<String>, PackError> {
    let text = std::fs::read_to_string(path).map_err(|error| input(path, &format!("cannot read: {error}")))?;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.len() != images.len() {
        return Err(input(path, &format!("{} labels for {} images", lines.len(), images.len())));
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
        classes.get(&name).map(|class| (*class).to_owned()).ok_or_else(|| input(path, &format!("{name} has no label")))
    };
    images.iter().map(class).collect()
}

/// An archive on a disk, of which headers are read and contents skipped.
struct Archive {
    file: Arc<(PathBuf, File)>,
    bytes: u64,
}

/// A regular file in an archive.
struct Entry {
    name: String,
    /// Where its bytes begin in the outermost archive.
    offset: u64,
    size: u64,
}

impl Archive {
    fn open(path: &Path) -> Result<Self, PackError> {
        let file = File::open(path).map_err(io(path, "cannot open"))?;
        let bytes = file.metadata().map_err(io(path, "cannot read"))?.len();
        Ok(Self { file: Arc::new((path.to_owned(), file)), bytes })
    }

    fn path(&self) -> &Path {
        &self.file.0
    }

    fn item(&self, key: String, extension: String, label: Option<u32>, entry: &Entry) -> Item {
        let bytes = Bytes::Within { archive: self.file.clone(), offset: entry.offset, size: entry.size };
        Item { key, extension, label, bytes }
    }

    /// The regular files of the tar in these bytes of the archive, which is called `name`.
    fn entries(&self, offset: u64, size: u64, name: &str) -> Result<Vec<Entry>, PackError> {
        let window = Window { file: &self.file.1, start: offset, size, position: 0 };
        let at = if name.is_empty() { String::new() } else { format!("{name}: ") };
        let wrong = |after: &str, error: std::io::Error| {
            let after = if after.is_empty() { String::new() } else { format!(" after {after}") };
            input(self.path(), &format!("{at}malformed tar{after}: {error}"))
        };
        let mut entries = Entries::new(window);
        let mut found: Vec<Entry> = Vec::new();
        let last = |found: &[Entry]| found.last().map_or(String::new(), |entry| shown(&entry.name));
        while let Some(entry) = entries.next_entry().map_err(|error| wrong(&last(&found), error))? {
            if !entry.kind.is_file() {
                continue;
            }
            let name = String::from_utf8(entry.name)
                .map_err(|_| input(self.path(), &format!("{at}an entry's name is not UTF-8")))?;
            if entry.offset.saturating_add(entry.size) > size {
                return Err(input(self.path(), &format!("{at}{} is truncated", shown(&name))));
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

/// What is in a folder, by name, without hidden files.
fn sorted(folder: &Path) -> Result<Vec<PathBuf>, PackError> {
    let why = |error: std::io::Error| input(folder, &format!("cannot list the directory: {error}"));
    let entries = std::fs::read_dir(folder).map_err(why)?.collect::<Result<Vec<_>, _>>().map_err(why)?;
    let visible = entries.into_iter().filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let mut paths: Vec<PathBuf> = visible.map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// The classes, numbered in the order of their names.
fn class_names<'a>(names: impl Iterator<Item = &'a String>) -> BTreeMap<String, u32> {
    let names: BTreeSet<&String> = names.collect();
    names.into_iter().enumerate().map(|(i, name)| (name.clone(), i as u32)).collect()
}

/// A key for the image at `path` that no other has.
fn free_key(keys: &mut BTreeSet<String>, class: &str, path: &Path) -> Result<String, PackError> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| input(path, "the name is not UTF-8"))?;
    let class = class.replace(['/', '.'], "_");
    let stem = stem.replace('.', "_");
    let base = if class.is_empty() { stem } else { format!("{class}/{stem}") };
    let mut key = base.clone();
    let mut copy = 1;
    while !keys.insert(key.clone()) {
        copy += 1;
        key = format!("{base}-{copy}");
    }
    Ok(key)
}

/// The image extension of a file, in lower case.
fn image_extension(path: &Path) -> Option<String> {
    let extension = path.extension()?.to_str()?.to_lowercase();
    is_image_extension(&extension).then_some(extension)
}

fn wanted_extensions() -> String {
    format!("expected files ending in .{}", IMAGE_EXTENSIONS.join(" ."))
}

fn input(path: &Path, why: &str) -> PackError {
    PackError::Input { path: path.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn seen(listing: &Listing) -> Vec<(String, Option<u32>, Vec<u8>)> {
        listing.items.iter().map(|item| (item.key.clone(), item.label, item.read().unwrap())).collect()
    }

    #[test]
    fn a_tar_of_tars_is_read_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.tar");
        let cats = tar_of(&[("n02_1.JPEG", b"one"), ("n02_2.JPEG", b"two")]);
        let dogs = tar_of(&[("n01_1.JPEG", b"three"), ("notes.txt", b"x")]);
        std::fs::write(&path, tar_of(&[("n02.tar", &cats), ("n01.tar", &dogs)])).unwrap();
        let listing = list(&path, None).unwrap();
        assert_eq!(listing.classes, ["n01", "n02"]);
        assert_eq!(listing.left_out, [PathBuf::from("n01.tar/notes.txt")]);
        let wanted: [(String, Option<u32>, Vec<u8>); 3] = [
            ("n02/n02_1".into(), Some(1), b"one".to_vec()),
            ("n02/n02_2".into(), Some(1), b"two".to_vec()),
            ("n01/n01_1".into(), Some(0), b"three".to_vec()),
        ];
        assert_eq!(seen(&listing), wanted);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..2000]).unwrap();
        let error = list(&path, None).err().unwrap().to_string();
        assert!(error.contains("train.tar") && error.contains("n02.tar"), "{error}");
    }

    #[test]
    fn a_tar_of_images_takes_its_labels_from_a_list() {
        let folder = tempfile::tempdir().unwrap();
        let (path, labels) = (folder.path().join("val.tar"), folder.path().join("labels.txt"));
        std::fs::write(&path, tar_of(&[("val_2.JPEG", b"two"), ("val_1.JPEG", b"one")])).unwrap();
        assert!(list(&path, None).unwrap().items.iter().all(|item| item.label.is_none()));
        std::fs::write(&labels, "n07\nn03\n").unwrap();
        let listing = list(&path, Some(&labels)).unwrap();
        assert_eq!(listing.classes, ["n03", "n07"]);
        assert_eq!(seen(&listing)[0], ("n07/val_1".into(), Some(1), b"one".to_vec()));
        std::fs::write(&labels, "val_1.JPEG n03\nval_2.JPEG n07\n").unwrap();
        assert_eq!(seen(&list(&path, Some(&labels)).unwrap())[0].0, "n03/val_1");
        let refused = |text: &str, wanted: &str| {
            std::fs::write(&labels, text).unwrap();
            let error = list(&path, Some(&labels)).err().unwrap().to_string();
            assert!(error.contains(wanted), "{error}");
        };
        refused("n07\n", "1 labels for 2 images");
        refused("490\n361\n", "development kit");
        refused("val_1.JPEG a\nval_3.JPEG b\n", "val_2.JPEG has no label");
    }

    #[test]
    fn a_list_names_paths_and_classes() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a b.jpg"), b"one").unwrap();
        let path = folder.path().join("list.txt");
        std::fs::write(&path, "a b.jpg\tcat\n").unwrap();
        assert_eq!(seen(&list(&path, None).unwrap()), [("cat/a b".into(), Some(0), b"one".to_vec())]);
        std::fs::write(&path, "a b.jpg cat\nb.jpg dog\n").unwrap();
        let error = list(&path, None).err().unwrap().to_string();
        assert!(error.contains("line 2") && error.contains("b.jpg: no such file"), "{error}");
    }
}
