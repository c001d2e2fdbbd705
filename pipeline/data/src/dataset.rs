//! Makes a manifest of whatever people name as their data: a manifest, or a folder with one in it; shards, or a folder of
//! them; a folder of images; a list.
//!
//! What had to be read for it is remembered under the user's cache folder, by size and time of each file, so that the next
//! start reads nothing again. Nothing is written among the data.

mod kind;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use simclr_ground::error::{Classify, Error, ErrorClass};
use simclr_ground::files::write_whole;
use simclr_ground::location::Location;
use simclr_ground::sample::SampleRef;

use crate::listing::classes::Named;
use crate::listing::{
    self, Item, Keys, LabelFile, LeftOut, Listing, ListingError, ListingOptions, ReadSample, Reading,
};
use crate::manifest::{BuildOptions, KnownFiles, Manifest, ManifestError, NamedShard, build, expand, loose};
use crate::metrics::PipelineMetrics;
use crate::store::{Store, StoreOptions};

pub use kind::is_images;
use kind::{Kind, kind};

/// The name of a manifest in a folder of shards.
pub const MANIFEST: &str = "manifest.json";

/// What is told while a data set is being looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanProgress {
    /// Another process looks at it, and this one waits for what that remembers.
    Waiting,
    /// So many of its files or shards have been looked at, so many bytes read for it.
    Scanned {
        /// What is counted.
        unit: &'static str,
        /// How many have been looked at.
        done: u64,
        /// How many there are.
        total: u64,
        /// How many bytes were read.
        bytes: u64,
    },
}

/// How to look at a data set.
pub struct OpenOptions<'a> {
    /// Which entries are images and classes.
    pub reading: Reading,
    /// Image files to leave out, by their whole paths.
    pub exclude: BTreeSet<PathBuf>,
    /// How many threads read.
    pub threads: usize,
    /// The folder that remembers what was read; `None` remembers nothing.
    pub memory: Option<PathBuf>,
    /// Told how it goes on.
    pub progress: &'a (dyn Fn(ScanProgress) + Sync),
}

/// A data set, and what a person should know of it.
pub struct Opened {
    /// Its manifest.
    pub manifest: Manifest,
    /// What was left out, why there are no labels.
    pub notes: Vec<String>,
}

/// Why a data set can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its manifest or shards.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its images.
    #[error(transparent)]
    Listing(#[from] ListingError),
}

impl Classify for OpenError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Manifest(error) => error.class(),
            Self::Listing(error) => error.class(),
        }
    }
}

/// A name that no data set has, and why.
fn none(pattern: &str, why: String) -> OpenError {
    OpenError::Manifest(ManifestError::NoShards { pattern: pattern.to_owned(), why })
}

/// Opens the data set that `what` names.
///
/// # Errors
/// If there is nothing of this name, or what is there is no data set.
pub fn open(what: &Path, options: &OpenOptions<'_>) -> Result<Opened, OpenError> {
    let kind = kind(what)?;
    let is_listed = matches!(kind, Kind::Images);
    let mut opened = match kind {
        Kind::Manifest(path) => Opened { manifest: Manifest::read(&path)?, notes: Vec::new() },
        Kind::Shards(patterns) => shards(what, &patterns, options)?,
        Kind::Images => images(what, options)?,
    };
    if let Some(labels) = &options.reading.labels
        && !is_listed
    {
        let (manifest, notes) = labeled(opened.manifest, labels)?;
        opened.notes.extend(notes);
        opened.manifest = manifest;
    }
    Ok(opened)
}

/// The same samples with the classes that a file gives them, and no others; and what a person should know of it. The
/// manifest's numbering is kept if it has all of these classes.
fn labeled(manifest: Manifest, path: &Path) -> Result<(Manifest, Vec<String>), ListingError> {
    let file = LabelFile::read(path)?;
    let (found, notes) = file.classes_of(path, manifest.shards.iter().flat_map(|shard| &shard.entries))?;
    let classes: BTreeSet<&str> = found.iter().copied().flatten().collect();
    let is_known = classes.iter().all(|&class| manifest.classes.iter().any(|known| known == class));
    let names = Named::new(classes.into_iter(), is_known.then_some(&manifest.classes[..]))
        .map_err(|why| listing::input(path, why))?;
    let mut shards = manifest.shards.clone();
    let mut numbers = found.into_iter().map(|class| class.map(|class| names.number(class)));
    for shard in &mut shards {
        let labels: Vec<Option<u32>> = numbers.by_ref().take(shard.entries.len()).collect();
        shard.labels = labels.iter().any(Option::is_some).then_some(labels);
    }
    let mut labeled = Manifest::new(manifest.source, names.into_names(), shards, manifest.base);
    (labeled.image, labeled.labels_from) = (manifest.image, Some(path.display().to_string()));
    Ok((labeled, notes))
}

/// What `what` names, as a listing that can be packed: images in folders, lists and tars, and the samples of a data set that
/// has shards already. `classes` numbers the classes, `storage` and `runtime` read shards.
///
/// # Errors
/// As [`open`].
pub fn listing(
    what: &Path,
    classes: Option<Vec<String>>,
    options: &OpenOptions<'_>,
    storage: &StoreOptions,
    runtime: &tokio::runtime::Handle,
) -> Result<Listing, OpenError> {
    let Reading { image, label_field, labels } = &options.reading;
    let as_images = ListingOptions { labels: labels.clone(), classes: classes.clone() };
    match kind(what)? {
        Kind::Images => return Ok(listing::list(what, &as_images)?),
        // In the names of a tar of images dots mean nothing; a shard says of its samples what they are.
        Kind::Shards(_) if what.is_file() && image.is_none() && label_field.is_none() => {
            if let Some(images) = listing::images_in_tar(what, &as_images)? {
                return Ok(images);
            }
        }
        Kind::Shards(_) | Kind::Manifest(_) => {}
    }
    let Opened { manifest, mut notes } = open(what, options)?;
    let names = match classes {
        None => Named::given(&manifest.classes),
        Some(_) if manifest.classes.is_empty() && manifest.num_labeled() > 0 => {
            let why = "its classes have no names, so they cannot be numbered by the names given".to_owned();
            return Err(none(&what.display().to_string(), why));
        }
        Some(given) => Named::new(manifest.classes.iter().map(String::as_str), Some(&given))
            .map_err(|why| none(&what.display().to_string(), why))?,
    };
    notes.extend(names.note());
    let manifest = Arc::new(manifest);
    let store = Store::new(manifest.clone(), storage, PipelineMetrics::silent())
        .map_err(|error| ListingError::Sample(error.into()))?;
    let mut samples = Vec::with_capacity(manifest.samples as usize);
    for (shard, of) in (0u32..).zip(&manifest.shards) {
        samples.extend((0..of.num_samples() as u32).map(|index| SampleRef { shard, index }));
    }
    let set: Arc<dyn ReadSample> = Arc::new(Samples { store, runtime: runtime.clone(), samples: samples.clone() });
    let mut keys = Keys::default();
    let item = |(number, sample): (u64, SampleRef)| {
        let shard = &manifest.shards[sample.shard as usize];
        let label = shard
            .label(sample.index as usize)
            .map(|label| manifest.classes.get(label as usize).map_or(label, |name| names.number(name)));
        let mut item = Item::of_sample(set.clone(), number, &shard.entries[sample.index as usize], label);
        item.make_unlike(&mut keys);
        item
    };
    let items = (0u64..).zip(samples).map(item).collect();
    Ok(Listing { classes: names.into_names(), items, left_out: LeftOut::default(), notes, origin: "shards" })
}

/// The samples of a data set, by their numbers.
struct Samples {
    store: Store,
    runtime: tokio::runtime::Handle,
    samples: Vec<SampleRef>,
}

impl ReadSample for Samples {
    fn read(&self, number: u64) -> Result<Vec<u8>, Error> {
        Ok(self.store.read(&[self.samples[number as usize]], &self.runtime)?.remove(0))
    }

    fn size(&self, number: u64) -> u64 {
        let SampleRef { shard, index } = self.samples[number as usize];
        self.store.manifest().shards[shard as usize].sizes[index as usize].into()
    }
}

/// What was read of a folder or list of images.
#[derive(Default, Serialize, Deserialize)]
struct RememberedImages {
    /// For whom the file is looked at by a person.
    of: String,
    files: KnownFiles,
}

fn images(what: &Path, options: &OpenOptions<'_>) -> Result<Opened, OpenError> {
    let mut listing = listing::list(what, &ListingOptions { labels: options.reading.labels.clone(), classes: None })?;
    let Reading { image, label_field, .. } = &options.reading;
    for (key, is_set) in [("data.image", image.is_some()), ("data.label_field", label_field.is_some())] {
        if is_set {
            return Err(none(
                &what.display().to_string(),
                format!("{key} applies to shards, and these are image files"),
            ));
        }
    }
    listing.items.retain(|item| {
        let is_excluded = |path: &Path| std::path::absolute(path).is_ok_and(|path| options.exclude.contains(&path));
        !item.file().is_some_and(is_excluded)
    });
    if listing.items.is_empty() {
        return Err(none(&what.display().to_string(), "all of its images are excluded".into()));
    }
    let mut notes = listing.notes.clone();
    notes.extend(listing.left_out.told());
    let memory = Memory::of(what, "images", options);
    let mut remembered: RememberedImages = memory.read().unwrap_or_default();
    let before = remembered.files.clone();
    let manifest = named(listing, &mut remembered.files, options)?;
    // What is excluded is there all the same, and not missing the next time.
    if let Location::File(root) = &manifest.base {
        let excluded = before.iter().filter(|(name, _)| options.exclude.contains(&root.join(name)));
        remembered.files.extend(excluded.map(|(name, file)| (name.clone(), file.clone())));
    }
    notes.extend(changed(&before, &remembered.files));
    if remembered.files != before {
        remembered.of = what.display().to_string();
        memory.write(&remembered);
    }
    Ok(Opened { manifest, notes })
}

/// What changed among files since they were looked at last; nothing where that is the first time.
fn changed(before: &KnownFiles, now: &KnownFiles) -> Option<String> {
    let told = |names: &mut dyn Iterator<Item = &String>, what: &str| {
        let first = names.next()?;
        Some(format!("{} {what} (e.g. {first})", 1 + names.count()))
    };
    let parts = [
        told(&mut now.keys().filter(|name| !before.contains_key(*name)), "new"),
        told(
            &mut now
                .iter()
                .filter(|(name, file)| before.get(*name).is_some_and(|known| known != *file))
                .map(|(name, _)| name),
            "changed",
        ),
        told(&mut before.keys().filter(|name| !now.contains_key(*name)), "missing"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!before.is_empty() && !parts.is_empty()).then(|| format!("since the last start: {}", parts.join(", ")))
}

fn named(listing: Listing, known: &mut KnownFiles, options: &OpenOptions<'_>) -> Result<Manifest, ManifestError> {
    loose(listing, known, options.threads, &|done, all, bytes| {
        (options.progress)(ScanProgress::Scanned { unit: "files", done, total: all, bytes });
    })
}

/// What was read of shards.
#[derive(Serialize, Deserialize)]
struct RememberedShards {
    /// Size and time of each.
    stamps: BTreeMap<String, (u64, i64, i64)>,
    notes: Vec<String>,
    manifest: Manifest,
}

fn shards(what: &Path, patterns: &[String], options: &OpenOptions<'_>) -> Result<Opened, OpenError> {
    let shards: Vec<NamedShard> = expand(patterns)?;
    let stamps = stamps(&shards);
    let Reading { image, label_field, .. } = &options.reading;
    let kind = serde_json::json!(["shards 2", image, label_field]).to_string();
    let memory = Memory::of(what, &kind, options);
    if let Some(remembered) = memory.read::<RememberedShards>()
        && stamps.as_ref() == Some(&remembered.stamps)
    {
        return Ok(Opened { manifest: remembered.manifest, notes: remembered.notes });
    }
    let all = shards.len() as u64;
    let (done, bytes) = (std::sync::atomic::AtomicU64::new(0), std::sync::atomic::AtomicU64::new(0));
    let progress = |read: u64| {
        use std::sync::atomic::Ordering::Relaxed;
        let (done, bytes) = (done.fetch_add(1, Relaxed) + 1, bytes.fetch_add(read, Relaxed) + read);
        (options.progress)(ScanProgress::Scanned { unit: "shards", done, total: all, bytes });
    };
    let (manifest, passed_over) = build(
        &shards,
        BuildOptions {
            // Shards are named by their whole paths, which mean the same wherever this is remembered.
            base: Location::default(),
            source: format!("read from {}", what.display()),
            classes: class_names(&shards),
            reading: Reading { labels: None, ..options.reading.clone() },
            folder_classes: true,
            exclude: Default::default(),
            rows: true,
            threads: options.threads,
            progress: &progress,
        },
    )?;
    let mut notes = passed_over.told();
    if let Some(field) = label_field
        && manifest.num_labeled() == 0
    {
        notes.push(format!("no labels: no .json entry has a field {field:?}"));
    } else if manifest.num_labeled() == 0 && passed_over.unused.contains_key("json") {
        notes.push("hint: data.label_field = \"NAME\" takes classes from a field of .json entries".into());
    }
    notes.extend(beside(what));
    if let Some(stamps) = stamps {
        memory.write(&RememberedShards { stamps, notes: notes.clone(), manifest: manifest.clone() });
    }
    Ok(Opened { manifest, notes })
}

/// The names of classes in a `classes.txt` beside the first shard.
fn class_names(shards: &[NamedShard]) -> Vec<String> {
    let text = names_beside(shards).and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// What lies beside the shards in a folder and is not looked at.
fn beside(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut folders: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    folders.retain(|name| !simclr_ground::sample::belongs_to_nobody(name));
    folders.sort();
    let first = folders.first()?;
    Some(format!("{} folders beside the shards are not looked at, e.g. {first}", folders.len()))
}

/// Size and time of each shard; `None` if one is on a server, of which they aren't known.
fn stamps(shards: &[NamedShard]) -> Option<BTreeMap<String, (u64, i64, i64)>> {
    let stamp = |shard: &NamedShard| {
        let Location::File(path) = &shard.place else { return None };
        let known = std::fs::metadata(path).ok()?;
        Some((path.display().to_string(), (known.len(), known.mtime(), known.mtime_nsec())))
    };
    let mut stamps: BTreeMap<_, _> = shards.iter().map(stamp).collect::<Option<_>>()?;
    // What the classes are called is read with the shards.
    if let Some(path) = names_beside(shards)
        && let Ok(known) = std::fs::metadata(&path)
    {
        stamps.insert(path.display().to_string(), (known.len(), known.mtime(), known.mtime_nsec()));
    }
    Some(stamps)
}

/// The file beside the first shard that names the classes in the order of their numbers, if there is one.
pub fn names_beside(shards: &[NamedShard]) -> Option<PathBuf> {
    let Some(Location::File(path)) = shards.first().map(|shard| &shard.place) else { return None };
    Some(path.with_file_name("classes.txt")).filter(|path| path.is_file())
}

/// The file that remembers what was read of one data set, locked while this one is looked at: of several processes that
/// begin together one reads the data, the others what it remembered.
struct Memory {
    path: Option<PathBuf>,
    _alone: Option<File>,
}

impl Memory {
    fn of(what: &Path, kind: &str, options: &OpenOptions<'_>) -> Self {
        let forgetful = Self { path: None, _alone: None };
        let Some(folder) = &options.memory else { return forgetful };
        let whole =
            std::fs::canonicalize(what).or_else(|_| std::path::absolute(what)).unwrap_or_else(|_| what.to_owned());
        let name = blake3::hash(format!("{kind} {}", whole.display()).as_bytes()).to_hex();
        let locked = || -> std::io::Result<File> {
            std::fs::create_dir_all(folder)?;
            let file = File::create(folder.join(format!("{name}.lock")))?;
            if file.try_lock().is_err() {
                (options.progress)(ScanProgress::Waiting);
                file.lock()?;
            }
            Ok(file)
        };
        match locked() {
            Ok(alone) => Self { path: Some(folder.join(format!("{name}.json"))), _alone: Some(alone) },
            Err(error) => {
                tracing::warn!("{}: cannot be used, so the next start scans again: {error}", folder.display());
                forgetful
            }
        }
    }

    /// What is remembered, if it can be read.
    fn read<T: for<'de> Deserialize<'de>>(&self) -> Option<T> {
        let text = std::fs::read(self.path.as_ref()?).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn write(&self, remembered: &impl Serialize) {
        let Some(path) = &self.path else { return };
        let text = serde_json::to_vec(remembered).expect("plain data");
        if let Err(error) = write_whole(path, &text) {
            tracing::warn!("{}: cannot be written, so the next start scans again: {error}", path.display());
        }
    }
}
