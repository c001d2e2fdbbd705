//! Makes a manifest by reading shards from end to end.

use std::collections::BTreeSet;

use simclr_ground::location::Location;

use super::problem::Problem;
use super::scan::scan_all;
use super::{Manifest, ManifestError, NamedShard, Shard};
use crate::compression::Compression;
use crate::listing::Reading;
use crate::listing::classes::{Named, by_folders, folders_of};
use crate::shard::{self, Extras, Label, PassedOver, ScannedSample, ShardScan};

/// How to build a manifest.
pub struct BuildOptions<'a> {
    /// The folder the manifest will be in; shards below it are written as relative locations.
    pub base: Location,
    /// What the manifest says of its origin.
    pub source: String,
    /// The names of the classes; empty if they have none.
    pub classes: Vec<String>,
    /// How samples are read.
    pub reading: Reading,
    /// Whether the folders in names of entries are classes, where nothing else says any.
    pub folder_classes: bool,
    /// Images to leave out, such as those that a run has put into quarantine: the name of the shard's file, and the entry.
    pub exclude: BTreeSet<(String, String)>,
    /// Whether to go through every JPEG and note where its data may be entered.
    pub rows: bool,
    /// How many shards are read at the same time.
    pub threads: usize,
    /// Called with each shard's size when it has been read.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Reads every shard and returns the manifest of them, and what they hold beside samples.
///
/// Samples may lack a label. A key need be unique in its shard only.
///
/// # Errors
/// If a file can't be read or anything in the shards is not as it should be; all problems are listed.
pub fn build(all: &[NamedShard], options: BuildOptions<'_>) -> Result<(Manifest, PassedOver), ManifestError> {
    let scans = scan_all(all, options.threads, options.progress, |named| {
        let Reading { image, label_field, .. } = &options.reading;
        let (image, label_field) = (image.as_deref(), label_field.as_deref());
        shard::scan(&named.place, Extras { md5: named.md5.is_some(), rows: options.rows, image, label_field })
    })?;
    let names = ClassNames::of(&scans, &options);
    let mut passed_over = PassedOver::default();
    let mut problems = Vec::new();
    let mut shards = Vec::with_capacity(scans.len());
    for (named, scan) in all.iter().zip(&scans) {
        passed_over.add(&scan.passed_over);
        let location = named.place.relative_to(&options.base);
        let mut problem = |entry: Option<String>, offset: u64, what: String| {
            problems.push(Problem { shard: location.clone(), entry, offset, what });
        };
        for found in &scan.problems {
            problem(found.entry.clone(), found.offset, found.what.clone());
        }
        for what in contradictions(named, scan) {
            problem(None, 0, what);
        }
        for sample in &scan.samples {
            if let Err(what) = names.label(sample) {
                problem(Some(sample.entry.clone()), sample.offset, what);
            }
        }
        let named_as = Compression::by_name(&named.place);
        shards.push(shard_of(location.clone(), scan, named_as, (&options, &names)));
    }
    if let Some(what) = &names.problem {
        problems.push(Problem { shard: shards[0].location.clone(), entry: None, offset: 0, what: what.clone() });
    }
    if problems.is_empty() && shards.iter().all(|shard: &Shard| shard.num_samples() == 0) {
        let held = passed_over.told().join("; ");
        let held = if held.is_empty() { held } else { format!(" ({held})") };
        let choices: Vec<&str> = passed_over.maybe_images.iter().map(String::as_str).collect();
        let hint = match choices.is_empty() {
            true => String::new(),
            false => format!("; choose the images by their extension (data.image, or --image): {}", choices.join(", ")),
        };
        let what = format!("none of the {} shards contains a sample{held}{hint}", all.len());
        problems.push(Problem { shard: shards[0].location.clone(), entry: None, offset: 0, what });
    }
    if !problems.is_empty() {
        return Err(ManifestError::Unsound { problems });
    }
    let (classes, labels_from) = (names.names.into_names(), names.labels_from);
    let mut manifest = Manifest::new(options.source, classes, shards, options.base);
    (manifest.image, manifest.labels_from) = (options.reading.image, labels_from);
    Ok((manifest, passed_over))
}

/// The classes of a set, and how each sample's follows from what its entries say.
struct ClassNames {
    names: Named,
    /// Whether the folder that an entry lies in is its class, and at which depth.
    folder: Option<usize>,
    labels_from: Option<String>,
    problem: Option<String>,
}

impl ClassNames {
    fn of(scans: &[ShardScan], options: &BuildOptions<'_>) -> Self {
        let samples = || scans.iter().flat_map(|scan| &scan.samples);
        let given = (!options.classes.is_empty()).then_some(&options.classes[..]);
        let mut found = Self {
            names: Named::given(&options.classes),
            folder: None,
            labels_from: options.reading.label_field.as_ref().map(|field| format!("field {field:?} of .json entries")),
            problem: None,
        };
        let name = |sample| match sample {
            &ScannedSample { label: Label::Name(ref name), .. } => Some(name.as_str()),
            _ => None,
        };
        if samples().any(|sample| name(sample).is_some()) {
            if let Some(sample) = samples().find(|sample| matches!(sample.label, Label::Index(_))) {
                let what = format!("some classes are names and some are numbers, e.g. that of {}", sample.entry);
                found.problem = Some(what);
            }
            match Named::new(samples().filter_map(name), given) {
                Ok(names) => found.names = names,
                Err(what) => found.problem = Some(what),
            }
        } else if options.folder_classes && samples().all(|sample| sample.label == Label::None) {
            let folders: Vec<Vec<String>> = samples().map(|sample| folders_of(sample.entry.as_ref())).collect();
            // A shard whose entries all lie in a folder named for it says nothing of classes.
            let mut begin = 0;
            let differ = scans.iter().any(|scan| {
                let here = &folders[begin..begin + scan.samples.len()];
                begin += here.len();
                here.iter().any(|parts| *parts != here[0])
            });
            if differ
                && let Ok((depth, classes)) = by_folders(&folders)
                && let Ok(names) = Named::new(classes.iter().map(String::as_str), given)
            {
                (found.names, found.folder) = (names, Some(depth));
                found.labels_from = Some("folders in the shards".into());
            }
        }
        found
    }

    /// The number of a sample's class, if it has one.
    fn label(&self, sample: &ScannedSample) -> Result<Option<u32>, String> {
        if let Some(depth) = self.folder {
            return Ok(Some(self.names.number(&folders_of(sample.entry.as_ref())[depth])));
        }
        match &sample.label {
            Label::None => Ok(None),
            Label::Name(name) => Ok(self.problem.is_none().then(|| self.names.number(name))),
            &Label::Index(label) if self.names.len() > 0 && label as usize >= self.names.len() => {
                Err(format!("class {label}, but only {} class names were given", self.names.len()))
            }
            &Label::Index(label) => Ok(Some(label)),
        }
    }
}

/// What an index says of a shard and is not so.
fn contradictions(named: &NamedShard, scan: &ShardScan) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, said: Option<String>, is: Option<String>| {
        if let (Some(said), Some(is)) = (said, is)
            && said != is
        {
            found.push(format!("the index lists {what} {said}, but the shard has {is}"));
        }
    };
    compare("samples:", named.samples.map(|n| n.to_string()), Some(scan.samples.len().to_string()));
    compare("bytes:", named.bytes.map(|n| n.to_string()), Some(scan.bytes.to_string()));
    compare("MD5", named.md5.as_ref().map(|md5| md5.to_lowercase()), scan.md5.clone());
    found
}

/// The name of a shard's file, which it keeps wherever it is moved to.
pub fn shard_name(location: &str) -> &str {
    location.rsplit('/').next().unwrap_or(location)
}

fn shard_of(
    location: String,
    scan: &ShardScan,
    named_as: Compression,
    (options, names): (&BuildOptions<'_>, &ClassNames),
) -> Shard {
    let name = shard_name(&location).to_owned();
    let is_left_out = |sample: &&ScannedSample| options.exclude.contains(&(name.clone(), sample.entry.clone()));
    let (left_out, samples): (Vec<_>, Vec<_>) = scan.samples.iter().partition(is_left_out);
    // What has no sound label is among the problems.
    let labels: Vec<Option<u32>> = samples.iter().map(|sample| names.label(sample).unwrap_or(None)).collect();
    Shard {
        location,
        bytes: scan.bytes,
        blake3: scan.blake3.clone(),
        tar_bytes: scan.tar_bytes,
        tar_blake3: scan.tar_blake3.clone(),
        entries: samples.iter().map(|sample| sample.entry.clone()).collect(),
        labels: labels.iter().any(Option::is_some).then_some(labels),
        offsets: samples.iter().map(|sample| sample.offset).collect(),
        sizes: samples.iter().map(|sample| sample.size).collect(),
        checks: samples.iter().map(|sample| sample.check).collect(),
        rows: options.rows.then(|| samples.iter().map(|sample| sample.rows.clone()).collect()),
        compression: scan.compression.filter(|&compression| compression != named_as),
        loose: false,
        frames: scan.frames.clone(),
        excluded: left_out.iter().map(|sample| sample.entry.clone()).collect(),
    }
}
