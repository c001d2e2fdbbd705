//! Which images a source holds, with their classes, and where the bytes of each lie: folders in any shape, lists, tars.
//!
//! `folder`, `list` and `archive` each know one kind of source; `classes` says which classes follow from where
//! images lie, and numbers them. Knows neither shards nor manifests.

mod archive;
pub(crate) mod classes;
mod folder;
mod labels;
mod list;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use simclr_ground::error::{Classify, Error, ErrorClass};
use simclr_ground::sample::{IMAGE_EXTENSIONS, is_image_extension, split_name};

use classes::Named;
pub use labels::LabelFile;

use crate::shard::MAX_ENTRY_BYTES;

/// One image of a source.
pub struct Item {
    /// A name that no other image of the source has, with the class before it if there is one.
    pub key: String,
    /// The extension of its file, in lower case.
    pub extension: String,
    /// Its class, an index into [`Listing::classes`].
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
    /// A sample of a data set that has a manifest already, by its number.
    Sample(Arc<dyn ReadSample>, u64),
}

/// A data set whose samples can be read by their numbers.
pub trait ReadSample: Send + Sync {
    /// The bytes of an image.
    ///
    /// # Errors
    /// If they can't be read.
    fn read(&self, number: u64) -> Result<Vec<u8>, Error>;

    /// How many bytes an image has.
    fn size(&self, number: u64) -> u64;
}

impl Item {
    /// Sample `number` of a data set, whose entry has this name.
    pub fn of_sample(set: Arc<dyn ReadSample>, number: u64, entry: &str, label: Option<u32>) -> Self {
        let extension = extension(Path::new(entry));
        Self { key: split_name(entry).0.to_owned(), extension, label, bytes: Bytes::Sample(set, number) }
    }

    /// Gives it another key where one of these is the same, and adds it to them.
    pub fn make_unlike(&mut self, keys: &mut Keys) {
        self.key = keys.free(std::mem::take(&mut self.key));
    }

    /// The image's bytes.
    ///
    /// # Errors
    /// If its file can't be read.
    pub fn read(&self) -> Result<Vec<u8>, ListingError> {
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| ListingError::Io { path, what: "cannot read", source }
        };
        match &self.bytes {
            Bytes::Sample(set, number) => set.read(*number).map_err(ListingError::Sample),
            Bytes::File(path) => {
                let size = std::fs::metadata(path).map_err(error(path))?.len();
                if size > MAX_ENTRY_BYTES {
                    return Err(input(path, format!("{size} bytes; an image can have at most {MAX_ENTRY_BYTES}")));
                }
                std::fs::read(path).map_err(error(path))
            }
            Bytes::Within { archive, offset, size } => {
                if *size > MAX_ENTRY_BYTES {
                    let why = format!("{} has {size} bytes; an image can have at most {MAX_ENTRY_BYTES}", self.key);
                    return Err(input(&archive.0, why));
                }
                let mut bytes = vec![0; *size as usize];
                archive.1.read_exact_at(&mut bytes, *offset).map_err(error(&archive.0))?;
                Ok(bytes)
            }
        }
    }

    /// How many bytes the image has, as far as that is known without reading it.
    pub fn size(&self) -> u64 {
        match &self.bytes {
            Bytes::File(path) => std::fs::metadata(path).map_or(0, |known| known.len()),
            Bytes::Within { size, .. } => *size,
            Bytes::Sample(set, number) => set.size(*number),
        }
    }

    /// The file that is this image; `None` for one in an archive.
    pub fn file(&self) -> Option<&Path> {
        match &self.bytes {
            Bytes::File(path) => Some(path),
            Bytes::Within { .. } | Bytes::Sample(..) => None,
        }
    }
}

/// What a source holds, in the order of names.
pub struct Listing {
    /// The names of the classes; empty without labels.
    pub classes: Vec<String>,
    /// The images.
    pub items: Vec<Item>,
    /// What is no image.
    pub left_out: LeftOut,
    /// What a person should know: classes without images, links that lead nowhere, why there are no labels.
    pub notes: Vec<String>,
    /// What the source was, for people.
    pub origin: &'static str,
}

/// What a source holds beside its images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Files that are no images by their extension.
    pub others: Vec<PathBuf>,
    /// How many files and folders are nobody's: hidden ones, and what systems put beside files.
    pub nobodys: u64,
}

impl LeftOut {
    /// It in words for people; `None` if nothing was left out.
    pub fn told(&self) -> Option<String> {
        let nobodys = (self.nobodys > 0).then(|| format!("{} hidden or system files", self.nobodys));
        let others = self.others.first().map(|first| {
            let endings = IMAGE_EXTENSIONS.join(" .");
            let is_photo = |path: &&PathBuf| UNREADABLE.contains(&extension(path).as_str());
            let photos: Vec<&PathBuf> = self.others.iter().filter(is_photo).collect();
            let photos = photos.first().map_or(String::new(), |first| {
                let (count, first) = (photos.len(), first.display());
                format!(
                    "; {count} of them are photos in a format that is not decoded, e.g. {first}: convert them to JPEG"
                )
            });
            format!("{} files that are not images (.{endings}), e.g. {}{photos}", self.others.len(), first.display())
        });
        let parts: Vec<String> = others.into_iter().chain(nobodys).collect();
        (!parts.is_empty()).then(|| format!("left out {}", parts.join(", and ")))
    }
}

/// Extensions of photographs that are not decoded here.
const UNREADABLE: [&str; 10] = ["heic", "heif", "avif", "jxl", "jp2", "dng", "cr2", "cr3", "nef", "arw"];

/// Why a source can't be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// A sample of a data set can't be read.
    #[error("{0:#}")]
    Sample(Error),
    /// It is not one, or something in it is not as it should be.
    #[error("{}: {why}", path.display())]
    Input {
        /// What it is about.
        path: PathBuf,
        /// What was found and what would be right.
        why: String,
    },
    /// A file can't be read.
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
}

impl Classify for ListingError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Input { .. } => ErrorClass::Input,
            Self::Io { source, .. } => source.class(),
            Self::Sample(error) => error.class(),
        }
    }
}

/// Which of a sample's entries are its image and its class, where that does not follow from their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// In shards: the extension of the image among several of a key, such as `input.jpg`.
    pub image: Option<String>,
    /// In shards: the field of `.json` entries that is the class, by index or by name, where there is no `.cls`.
    pub label_field: Option<String>,
    /// A file with a name and a class on each line, which decides alone.
    pub labels: Option<PathBuf>,
}

/// What is said of a source beside its place.
#[derive(Debug, Clone, Default)]
pub struct ListingOptions {
    /// The file with the class of each image. For a tar it may be a list of classes alone, in the order of names.
    pub labels: Option<PathBuf>,
    /// The names of the classes in the order of their numbers, of which some may have no image; `None` numbers the classes
    /// that are there.
    pub classes: Option<Vec<String>>,
}

/// The images in the tar at `source`; `None` if its entries say classes, as those of a shard do.
///
/// # Errors
/// As [`list`].
pub fn images_in_tar(source: &Path, options: &ListingOptions) -> Result<Option<Listing>, ListingError> {
    let contents = archive::Contents::read(source)?;
    if contents.says_classes() {
        return Ok(None);
    }
    contents.found(options.labels.as_deref())?.numbered(source, options.classes.as_deref()).map(Some)
}

/// Whether a file is a list of images, by its extension.
pub fn is_list(path: &Path) -> bool {
    matches!(extension(path).as_str(), "txt" | "tsv" | "csv")
}

/// Looks at `source`, whatever of the kinds it is.
///
/// # Errors
/// If it is none of them, holds no image, or something in it is not as it should be.
pub fn list(source: &Path, options: &ListingOptions) -> Result<Listing, ListingError> {
    let mut found = if source.is_dir() {
        folder::found(source)?
    } else if !source.is_file() {
        return Err(input(source, "no such file or directory"));
    } else if is_list(source) {
        list::found(source)?
    } else {
        archive::Contents::read(source)?.found(options.labels.as_deref())?
    };
    if let Some(labels) = options.labels.as_deref().filter(|_| source.is_dir() || is_list(source)) {
        found.label(labels)?;
    }
    found.numbered(source, options.classes.as_deref())
}

/// What a source holds, its classes by name.
struct Found {
    images: Vec<Image>,
    left_out: LeftOut,
    notes: Vec<String>,
    /// Why there are no labels, if there are none.
    no_labels: Option<String>,
    origin: &'static str,
}

/// An image with the name of its class.
struct Image {
    /// Its path in the source, of which the key is made.
    path: PathBuf,
    class: Option<String>,
    /// Whether the key names the class rather than the folders that the image lies in.
    by_class: bool,
    bytes: Bytes,
}

impl Found {
    /// Takes the classes from a file, and none from where the images lie.
    fn label(&mut self, path: &Path) -> Result<(), ListingError> {
        let file = LabelFile::read(path)?;
        let (classes, notes) = file.classes_of(path, self.images.iter().map(|image| image.path.to_string_lossy()))?;
        let classes: Vec<Option<String>> = classes.into_iter().map(|class| class.map(str::to_owned)).collect();
        for (image, class) in self.images.iter_mut().zip(classes) {
            (image.class, image.by_class) = (class, false);
        }
        self.no_labels = None;
        self.notes.extend(notes);
        Ok(())
    }

    fn numbered(self, source: &Path, given: Option<&[String]>) -> Result<Listing, ListingError> {
        let Self { mut images, left_out, mut notes, no_labels, origin } = self;
        if images.is_empty() {
            let is_tar = |path: &PathBuf| path.to_string_lossy().to_lowercase().contains(".tar");
            let hint = match left_out.others.iter().find(|path| is_tar(path)) {
                Some(tar) => format!(
                    "; shards are looked for directly in a folder: name {}",
                    tar.with_file_name("*.tar").display()
                ),
                None => String::new(),
            };
            let seen = left_out.told().map_or(String::new(), |told| format!(" ({told}){hint}"));
            return Err(input(source, format!("contains no images{seen}; {}", expected_extensions())));
        }
        for class in images.iter_mut().filter_map(|image| image.class.as_mut()) {
            *class = classes::composed(class);
        }
        let given: Option<Vec<String>> = given.map(|given| given.iter().map(|name| classes::composed(name)).collect());
        let seen = || images.iter().filter_map(|image| image.class.as_deref());
        let named = Named::new(seen(), given.as_deref()).map_err(|why| input(source, why))?;
        notes.extend(no_labels.map(|why| format!("no labels: {why}")));
        notes.extend(named.note());
        let mut keys = Keys::default();
        let mut items = Vec::with_capacity(images.len());
        for image in images {
            let extension = extension(&image.path);
            let key = free_key(&mut keys, &image)?;
            let label = image.class.as_deref().map(|class| named.number(class));
            items.push(Item { key, extension, label, bytes: image.bytes });
        }
        Ok(Listing { classes: named.into_names(), items, left_out, notes, origin })
    }
}

/// A key for an image that no other has.
fn free_key(keys: &mut Keys, image: &Image) -> Result<String, ListingError> {
    let plain = |part: &str| part.replace(['/', '.'], "_");
    let text = |part: Option<&std::ffi::OsStr>| {
        part.and_then(|part| part.to_str())
            .map(str::to_owned)
            .ok_or_else(|| input(&image.path, "the name is not UTF-8"))
    };
    let stem = plain(&text(image.path.file_stem())?);
    let folders = match (&image.class, image.by_class) {
        (Some(class), true) => plain(class),
        _ => {
            let parent = image.path.parent().unwrap_or(Path::new(""));
            let parts: Vec<String> = parent
                .components()
                .map(|part| Ok(plain(&text(Some(part.as_os_str()))?)))
                .collect::<Result<_, ListingError>>()?;
            parts.join("/")
        }
    };
    let base = if folders.is_empty() { stem } else { format!("{folders}/{stem}") };
    Ok(keys.free(base))
}

/// Keys that are taken.
#[derive(Default)]
pub struct Keys {
    /// Each with the number of its last copy.
    taken: HashMap<String, u64>,
}

impl Keys {
    /// `base`, or the first key like it that is free; it is taken then.
    fn free(&mut self, base: String) -> String {
        let Some(&copy) = self.taken.get(&base) else {
            self.taken.insert(base.clone(), 1);
            return base;
        };
        // Those below its last copy are taken already: many images of one name do not ask for each of them again.
        let mut copy = copy + 1;
        while self.taken.contains_key(&format!("{base}-{copy}")) {
            copy += 1;
        }
        let key = format!("{base}-{copy}");
        self.taken.insert(base, copy);
        self.taken.insert(key.clone(), 1);
        key
    }
}

/// The extension of a file, in lower case.
fn extension(path: &Path) -> String {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase()
}

/// Whether a file is an image by its extension, and somebody's.
pub fn is_image_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    is_image(path) && !simclr_ground::sample::belongs_to_nobody(&name)
}

/// Whether a name ends as those of images do.
pub fn has_image_extension(path: &Path) -> bool {
    is_image(path)
}

fn is_image(path: &Path) -> bool {
    is_image_extension(&extension(path))
}

fn expected_extensions() -> String {
    format!("expected files ending in .{}", IMAGE_EXTENSIONS.join(" ."))
}

pub(crate) fn input(path: &Path, why: impl Into<String>) -> ListingError {
    ListingError::Input { path: path.to_owned(), why: why.into() }
}

#[cfg(test)]
mod tests;
