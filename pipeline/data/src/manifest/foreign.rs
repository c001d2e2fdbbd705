//! Indexes of other tools: WebDataset's `wids` shard index, read and written, and Hugging Face's `_info.json`, read.

use serde::{Deserialize, Serialize};
use simclr_ground::location::Location;

use super::braces::braces;
use super::problem::Problem;
use super::scan::scan_all;
use super::{Manifest, ManifestError, NamedShard};
use crate::objects;
use crate::shard::{self, Extras};

/// The value of a wids index's `__kind__`.
const WIDS_KIND: &str = "wids-shard-index-v1";

/// An index file, and the split that is meant.
pub(super) struct Index {
    path: String,
    split: Option<String>,
}

impl Index {
    /// The index that a pattern names, if it names one.
    pub(super) fn named(pattern: &str) -> Option<Self> {
        let (path, split) = match pattern.rsplit_once('#') {
            Some((path, split)) if path.ends_with(".json") => (path, Some(split.to_owned())),
            _ => (pattern, None),
        };
        path.ends_with(".json").then(|| Self { path: path.to_owned(), split })
    }
}

/// A wids index: what webdataset's `widsindex` writes.
#[derive(Debug, Serialize, Deserialize)]
struct Wids {
    #[serde(rename = "__kind__")]
    kind: String,
    wids_version: u32,
    #[serde(default)]
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    shardlist: Vec<WidsShard>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WidsShard {
    url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    md5sum: Option<String>,
    nsamples: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filesize: Option<u64>,
}

/// Hugging Face's `_info.json`, as timm's reader of WebDataset folders takes it.
#[derive(Debug, Deserialize)]
struct Info {
    splits: std::collections::BTreeMap<String, Split>,
}

#[derive(Debug, Deserialize)]
struct Split {
    filenames: Vec<String>,
    #[serde(default)]
    shard_lengths: Vec<u64>,
}

/// The shards that an index lists, with what it says of them.
pub(super) fn read(index: &Index) -> Result<Vec<NamedShard>, String> {
    let place = Location::parse(&index.path).map_err(|error| error.to_string())?;
    let text = objects::read_whole(&place).map_err(|error| error.to_string())?;
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| format!("not JSON: {error}"))?;
    let folder = place.folder();
    let join = |name: &str| {
        let place = folder.join(name).map_err(|error| error.to_string())?;
        super::may_name(&folder, &place).map(|()| place)
    };
    if value["__kind__"] == WIDS_KIND {
        let wids: Wids = serde_json::from_value(value).map_err(|error| format!("not a wids index: {error}"))?;
        let base = wids.base.unwrap_or_default();
        let mut shards = Vec::new();
        for shard in wids.shardlist {
            let name =
                if base.is_empty() { shard.url } else { format!("{}/{}", base.trim_end_matches('/'), shard.url) };
            shards.push(NamedShard {
                place: join(&name)?,
                samples: Some(shard.nsamples),
                bytes: shard.filesize,
                md5: shard.md5sum,
            });
        }
        return Ok(shards);
    }
    if value["splits"].is_object() {
        let info: Info = serde_json::from_value(value).map_err(|error| format!("not a dataset info file: {error}"))?;
        let names: Vec<String> = info.splits.keys().map(|name| format!("{}#{name}", index.path)).collect();
        let split = match &index.split {
            Some(name) => info.splits.get(name),
            None if info.splits.len() == 1 => info.splits.values().next(),
            None => None,
        };
        let split = split.ok_or_else(|| format!("no split given; expected one of {}", names.join(", ")))?;
        let mut shards = Vec::new();
        for name in &split.filenames {
            let names = braces(name).ok_or_else(|| format!("{name}: invalid brace range"))?;
            for name in names {
                shards.push(NamedShard {
                    samples: split.shard_lengths.get(shards.len()).copied(),
                    ..NamedShard::at(join(&name)?)
                });
            }
        }
        if !split.shard_lengths.is_empty() && split.shard_lengths.len() != shards.len() {
            return Err(format!("{} shards, but {} shard_lengths", shards.len(), split.shard_lengths.len()));
        }
        return Ok(shards);
    }
    Err("neither a wids index (\"__kind__\": \"wids-shard-index-v1\") nor a dataset info file (\"splits\": {…})".into())
}

/// The wids index of a manifest's shards, as JSON. Reads every shard for its MD5, `threads` at a time.
///
/// # Errors
/// If a shard can't be read, or is not the manifest's any more.
pub fn wids(
    manifest: &Manifest,
    name: &str,
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<serde_json::Value, ManifestError> {
    let places: Vec<Location> = (0..manifest.shards.len()).map(|i| manifest.shard_place(i)).collect();
    let scans =
        scan_all(&places, threads, progress, |place| shard::scan(place, Extras { md5: true, ..Extras::default() }))?;
    let mut problems = Vec::new();
    let mut shardlist = Vec::new();
    for (shard, scan) in manifest.shards.iter().zip(scans) {
        if scan.blake3 != shard.blake3 {
            let what = format!("the file's BLAKE3 is {}, expected {}", scan.blake3, shard.blake3);
            problems.push(Problem { shard: shard.location.clone(), entry: None, offset: 0, what });
        }
        shardlist.push(WidsShard {
            url: shard.location.clone(),
            md5sum: scan.md5,
            nsamples: scan.samples.len() as u64,
            filesize: Some(scan.bytes),
        });
    }
    if !problems.is_empty() {
        return Err(ManifestError::Unsound { problems });
    }
    let wids = Wids { kind: WIDS_KIND.into(), wids_version: 1, name: name.into(), base: None, shardlist };
    Ok(serde_json::to_value(wids).expect("an index is plain data"))
}
