//! The manifest: which shards a data set has, every sample in them, and digests that pin both.
//!
//! The manifest's digest covers what the samples are (keys, labels, bytes, grouping into shards) and not where or
//! how they are stored: plain and zstd shards of the same tar streams, in any folder, have the same digest, hence
//! the same batches.

mod braces;
mod build;
mod expand;
mod foreign;
pub(crate) mod loose;
mod problem;
mod scan;
mod shard;
mod verify;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use build::{BuildOptions, build, shard_name};
pub use expand::expand;
pub use foreign::wids;
pub use loose::{KnownFiles, changes, loose};
pub use problem::Problem;
pub use shard::Shard;
pub use verify::verify;

use simclr_ground::error::{Classify, ErrorClass};
use simclr_ground::location::Location;
use simclr_ground::sample::SampleRef;
use simclr_plan::Catalog;

use crate::compression::Compression;
use crate::objects;
use crate::tar_entries::shown;

/// The value of a manifest's `kind` key.
pub const KIND: &str = "simclr-pipeline-manifest";
/// The version of the manifest format that this build reads and writes.
pub const VERSION: u32 = 1;

/// The shards of a set have at most so many bytes together, as stored and unpacked: as many as a file can have.
const MAX_SET_BYTES: u64 = i64::MAX as u64;

/// A data set as a list of shards, each with its samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`KIND`].
    pub kind: String,
    /// Always [`VERSION`].
    pub version: u32,
    /// BLAKE3 over the content of the data set, in hex; see [`Manifest::content_digest`].
    pub digest: String,
    /// Number of samples over all shards.
    pub samples: u64,
    /// Where the data came from, for people.
    pub source: String,
    /// The name of class `i`; empty if the classes have no names.
    pub classes: Vec<String>,
    /// The extension of the entries that are images, where it was chosen among several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Where labels come from, if not from `.cls` entries beside the images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels_from: Option<String>,
    /// The shards, in order.
    pub shards: Vec<Shard>,
    /// The folder that relative locations start from.
    #[serde(skip)]
    pub base: Location,
}

impl Catalog for Manifest {
    fn digest(&self) -> &str {
        &self.digest
    }

    fn num_shards(&self) -> usize {
        self.shards.len()
    }

    fn shard_samples(&self, shard: u32) -> u32 {
        self.shards[shard as usize].num_samples() as u32
    }

    fn shard_bytes(&self, shard: u32) -> u64 {
        self.shards[shard as usize].bytes
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn num_classes(&self) -> usize {
        Manifest::num_classes(self)
    }

    fn num_labeled(&self) -> u64 {
        Manifest::num_labeled(self)
    }

    fn label(&self, sample: SampleRef) -> Option<u32> {
        self.shards[sample.shard as usize].label(sample.index as usize)
    }

    fn entry(&self, sample: SampleRef) -> &str {
        &self.shards[sample.shard as usize].entries[sample.index as usize]
    }
}

/// A shard that is to be read, and what is said of it where it was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedShard {
    /// Where it is.
    pub place: Location,
    /// How many samples it is said to have.
    pub samples: Option<u64>,
    /// How many bytes it is said to have.
    pub bytes: Option<u64>,
    /// The MD5 it is said to have, in hex.
    pub md5: Option<String>,
}

impl NamedShard {
    /// A shard of which nothing is said.
    pub fn at(place: Location) -> Self {
        Self { place, samples: None, bytes: None, md5: None }
    }
}

/// What can be wrong with a manifest or the shards it is made of. All of it is wrong input.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file that can't be read or written.
    #[error("{}: {what}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file that is no manifest.
    #[error("{}: not a manifest: {why}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found and what would be right.
        why: String,
    },
    /// A manifest whose digest is not that of its content.
    #[error("{}: manifest digest mismatch (recorded {said}, computed {content}): the file was edited or damaged; rebuild it", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// The digest written in the file.
        said: String,
        /// The digest of what the file holds.
        content: String,
    },
    /// A pattern that names no shard.
    #[error("{pattern}: {why}")]
    NoShards {
        /// The path, glob or brace range.
        pattern: String,
        /// What was looked for.
        why: String,
    },
    /// Shards that can't be put into a manifest.
    #[error("{} problems in the shards:\n{}", problems.len(), list(problems))]
    Unsound {
        /// Every problem found.
        problems: Vec<Problem>,
    },
}

impl Classify for ManifestError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Io { source, .. } => source.class(),
            _ => ErrorClass::Input,
        }
    }
}

fn list(problems: &[Problem]) -> String {
    const SHOWN: usize = 20;
    let mut lines: Vec<String> = problems.iter().take(SHOWN).map(|p| format!("  {p}")).collect();
    if problems.len() > SHOWN {
        lines.push(format!("  … and {} more", problems.len() - SHOWN));
    }
    lines.join("\n")
}

impl Manifest {
    /// A manifest of these shards, with its digest.
    pub fn new(source: String, classes: Vec<String>, shards: Vec<Shard>, base: Location) -> Self {
        let samples = shards.iter().map(|shard| shard.num_samples() as u64).sum();
        let (kind, version) = (KIND.to_owned(), VERSION);
        let (image, labels_from) = (None, None);
        let digest = String::new();
        let mut manifest = Self { kind, version, digest, samples, source, classes, image, labels_from, shards, base };
        manifest.digest = manifest.content_digest();
        manifest
    }

    /// Reads and checks the manifest at `path`, which may be a URL.
    ///
    /// # Errors
    /// If the file can't be read, is no manifest of this version, contradicts itself, or lists no sample.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let format = |why: String| ManifestError::Format { path: path.to_owned(), why };
        let place = Location::parse(&path.to_string_lossy()).map_err(|error| format(error.to_string()))?;
        let text = objects::read_whole(&place).map_err(|source| ManifestError::Io {
            path: path.to_owned(),
            what: "cannot read the manifest".into(),
            source,
        })?;
        let mut manifest: Self = serde_json::from_slice(&text).map_err(|error| format(error.to_string()))?;
        if manifest.kind != KIND {
            return Err(format(format!("kind is {:?}, expected {KIND:?}", manifest.kind)));
        }
        if manifest.version != VERSION {
            return Err(format(format!("version is {}, but this build reads version {VERSION}", manifest.version)));
        }
        manifest.base = place.folder();
        for shard in &manifest.shards {
            let shard_place = manifest.base.join(&shard.location).map_err(|error| format(error.to_string()))?;
            may_name(&manifest.base, &shard_place).map_err(format)?;
            if shard.loose {
                let Location::File(_) = &shard_place else {
                    return Err(format(format!(
                        "shard {}: files in place must be on this machine",
                        shown(&shard.location)
                    )));
                };
                if let Some(entry) = shard.entries.iter().find(|entry| !loose::is_below(entry)) {
                    let (entry, folder) = (shown(entry), shown(&shard.location));
                    return Err(format(format!("entry {entry:?} of {folder} is not a path below it")));
                }
            }
            let compression = shard.compression.unwrap_or_else(|| Compression::by_name(&shard_place));
            shard.check(compression).map_err(|why| format(format!("shard {}: {why}", shown(&shard.location))))?;
        }
        // No sum over shards overflows from here on.
        for (column, size) in
            [("bytes", (|shard| shard.bytes) as fn(&Shard) -> u64), ("tar_bytes", |shard| shard.tar_bytes)]
        {
            let mut sum = 0u64;
            for shard in &manifest.shards {
                sum = sum.checked_add(size(shard)).filter(|&sum| sum <= MAX_SET_BYTES).ok_or_else(|| {
                    let (name, bytes) = (shown(&shard.location), size(shard));
                    format(format!(
                        "shard {name}: {column} is {bytes}, with which the shards before it exceed {MAX_SET_BYTES}"
                    ))
                })?;
            }
        }
        let counted: u64 = manifest.shards.iter().map(|shard| shard.num_samples() as u64).sum();
        if manifest.samples != counted {
            return Err(format(format!("the manifest claims {} samples but lists {counted}", manifest.samples)));
        }
        if counted == 0 {
            return Err(format(format!("no samples in its {} shards", manifest.shards.len())));
        }
        let content = manifest.content_digest();
        if manifest.digest != content {
            return Err(ManifestError::Digest { path: path.to_owned(), said: manifest.digest, content });
        }
        Ok(manifest)
    }

    /// Writes the manifest to `path`: aside, synced, then renamed, so that it is never there in half.
    ///
    /// # Errors
    /// If a file in that folder can't be written.
    pub fn write(&self, path: &Path) -> Result<(), ManifestError> {
        let io = |source| ManifestError::Io { path: path.to_owned(), what: "cannot write the manifest".into(), source };
        let mut text = serde_json::to_vec(self).expect("a manifest is plain data");
        text.push(b'\n');
        simclr_ground::files::write_whole(path, &text).map_err(io)
    }

    /// BLAKE3 of the data set's content: classes, and per shard its tar stream's digest and every sample's entry,
    /// label, place and check.
    pub fn content_digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let text = |hasher: &mut blake3::Hasher, text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        // The digest's own version, which stays 1 whatever the file's becomes.
        text(&mut hasher, KIND);
        hasher.update(&1u64.to_le_bytes());
        hasher.update(&(self.classes.len() as u64).to_le_bytes());
        for class in &self.classes {
            text(&mut hasher, class);
        }
        hasher.update(&(self.shards.len() as u64).to_le_bytes());
        for shard in &self.shards {
            text(&mut hasher, &shard.tar_blake3);
            hasher.update(&shard.tar_bytes.to_le_bytes());
            hasher.update(&(shard.num_samples() as u64).to_le_bytes());
            for i in 0..shard.num_samples() {
                text(&mut hasher, &shard.entries[i]);
                hasher.update(&shard.label(i).map_or(u64::MAX, u64::from).to_le_bytes());
                hasher.update(&shard.offsets[i].to_le_bytes());
                hasher.update(&u64::from(shard.sizes[i]).to_le_bytes());
                hasher.update(&shard.checks[i].0.to_le_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// BLAKE3, in hex, over what the manifest says of how its samples are stored: each shard's file, frames and row index.
    /// None of it is content: plain and zstd shards of the same tar streams differ here alone.
    pub fn derived_digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for shard in &self.shards {
            let derived = (&shard.bytes, &shard.blake3, &shard.frames, &shard.rows);
            let text = serde_json::to_vec(&derived).expect("plain data");
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(&text);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Where shard `i` is.
    pub fn shard_place(&self, i: usize) -> Location {
        self.base.join(&self.shards[i].location).expect("locations are checked when a manifest is read or built")
    }

    /// How many samples have a label.
    pub fn num_labeled(&self) -> u64 {
        let labels = self.shards.iter().filter_map(|shard| shard.labels.as_ref()).flatten();
        labels.flatten().count() as u64
    }

    /// How the file of shard `i` is compressed.
    pub fn compression(&self, i: usize) -> Compression {
        self.shards[i].compression.unwrap_or_else(|| Compression::by_name(&self.shard_place(i)))
    }

    /// One more than the largest label, or the number of class names if that is larger; 0 without labels.
    pub fn num_classes(&self) -> usize {
        let labels = self.shards.iter().filter_map(|shard| shard.labels.as_ref()).flatten().flatten();
        self.classes.len().max(labels.max().map_or(0, |&max| max as usize + 1))
    }
}

/// Whether a list of shards that was read from the folder `base` may name `place`. What comes from a server can't make
/// this machine read its own files, or ask other servers with its credentials; a local list is its owner's, who may.
pub(super) fn may_name(base: &Location, place: &Location) -> Result<(), String> {
    match base {
        Location::Url(_) if !place.is_below(base) => {
            Err(format!("it names {place}; read from a server, it may name only what is below {base}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::Frames;
    use simclr_ground::sample::Check;

    fn shard(location: &str) -> Shard {
        Shard {
            location: location.into(),
            bytes: 2048,
            blake3: blake3::hash(b"x").into(),
            tar_bytes: 2048,
            tar_blake3: blake3::hash(b"y").into(),
            entries: vec!["a.jpg".into()],
            labels: Some(vec![Some(2)]),
            offsets: vec![512],
            sizes: vec![4],
            checks: vec![Check(1)],
            compression: None,
            loose: false,
            frames: None,
            rows: None,
            excluded: vec![],
        }
    }

    #[test]
    fn digest_is_of_the_content_not_of_the_place() {
        let one = Manifest::new("here".into(), vec![], vec![shard("a.tar")], Location::default());
        let mut packed = shard("elsewhere/b.tar.zst");
        packed.bytes = 5;
        packed.blake3 = blake3::hash(b"z").into();
        let other = Manifest::new("there".into(), vec![], vec![packed], Location::default());
        assert_eq!(one.digest, other.digest);
        let mut relabeled = shard("a.tar");
        relabeled.labels = Some(vec![Some(1)]);
        assert_ne!(one.digest, Manifest::new("here".into(), vec![], vec![relabeled], Location::default()).digest);
    }

    #[test]
    fn reading_refuses_what_contradicts_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.json");
        let good =
            Manifest::new("here".into(), vec!["a".into()], vec![shard("a.tar")], Location::File(dir.path().to_owned()));
        good.write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), good);
        let check = |from: &str, to: &str, wanted: &str| {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            let bad = dir.path().join("bad.json");
            std::fs::write(&bad, text.replacen(from, to, 1)).unwrap();
            let message = Manifest::read(&bad).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        };
        check("\"version\":1", "\"version\":9", "this build reads version 1");
        check("\"sizes\":[4]", "\"sizes\":[4,5]", "differ in length");
        check("\"sizes\":[4]", "\"sizes\":[4000]", "ends after");
        check("\"bytes\":2048", "\"bytes\":9223372036854775808", "of a plain tar they are equal");
        check("\"labels\":[2]", "\"labels\":[1]", "edited or damaged");
        check("\"labels\":[2]", "\"labels\":[4294967295]", "shard a.tar: labels has 4294967295");
        check("\"kind\"", "\"kid\"", "unknown field");
        let digest = blake3::hash(b"y").to_hex().to_string();
        check(&digest, "../victim/backup", "expected 64 lowercase hexadecimal digits");
        check("{", "[", "not a manifest");
    }

    #[test]
    fn bounded_sizes_are_held_against_each_other_before_anything_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.json");
        let check = |shards: Vec<Shard>, wanted: &str| {
            let manifest = Manifest::new("here".into(), vec![], shards, Location::File(dir.path().to_owned()));
            manifest.write(&path).unwrap();
            let error = Manifest::read(&path).map(drop).err();
            let message = error.as_ref().map_or(String::new(), ToString::to_string);
            assert!(message.contains(wanted) && message.is_empty() == wanted.is_empty(), "{message:?}");
            assert!(error.is_none_or(|error| error.class() == ErrorClass::Input));
        };
        let plain = shard("a.tar");
        let packed = |packed: &[u32], unpacked: &[u32]| Shard {
            bytes: 50,
            frames: Some(Frames { packed: packed.into(), unpacked: unpacked.into() }),
            ..shard("a.tar.zst")
        };
        check(vec![plain.clone(), packed(&[10, 7], &[1024, 1024])], "");
        check(vec![packed(&[u32::MAX; 9000], &[0; 9000])], "shard a.tar.zst: frames.packed adds up to 38654705655000");
        check(vec![packed(&[10, 7], &[1024, 4000])], "shard a.tar.zst: frames.unpacked adds up to 5024");
        check(
            vec![Shard { tar_bytes: 1 << 63, ..shard("a.tar.zst") }],
            "shard a.tar.zst: tar_bytes is 9223372036854775808, more",
        );
        check(
            vec![Shard { tar_bytes: 1 << 63, ..plain.clone() }],
            "shard a.tar: tar_bytes is 9223372036854775808 and bytes 2048",
        );
        let half = Shard { bytes: 1 << 62, tar_bytes: 1 << 62, ..plain.clone() };
        let other = Shard { location: "b.tar".into(), ..half.clone() };
        check(vec![half, other], "shard b.tar: bytes is 4611686018427387904, with which");
        let frames = Some(Frames::default());
        check(vec![Shard { frames, ..plain.clone() }], "shard a.tar: frames are listed");
        let huge = Shard { bytes: 1 << 40, tar_bytes: 1 << 40, sizes: vec![u32::MAX], ..plain.clone() };
        check(vec![huge], "shard a.tar: sizes has 4294967295 for a.jpg");
        check(
            vec![Shard { entries: vec!["a".repeat(70_000)], ..plain }],
            "shard a.tar: entries has a name of 70000 bytes",
        );
    }
}
