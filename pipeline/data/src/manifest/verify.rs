//! Holds a manifest against the shards it names, and lists every difference.

use std::collections::{BTreeMap, BTreeSet};

use simclr_ground::location::Location;
use simclr_ground::sample::split_name;

use super::problem::Problem;
use super::scan::scan_all;
use super::{Manifest, ManifestError, Shard};
use crate::shard::{self, Extras, Label, ShardProblem, ShardScan};
use crate::tar_entries::shown;

/// Re-reads every shard of `manifest`, `threads` at a time, and returns all differences (none for a sound set).
///
/// # Errors
/// Only on a failure that keeps a shard from being read at all; a missing shard is a difference.
pub fn verify(
    manifest: &Manifest,
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Problem>, ManifestError> {
    let places: Vec<Location> = (0..manifest.shards.len()).map(|i| manifest.shard_place(i)).collect();
    let (loose, shards): (Vec<usize>, Vec<usize>) = (0..places.len()).partition(|&i| manifest.shards[i].loose);
    let is_there = |place: &Location| match place {
        Location::File(path) => path.is_file(),
        // Asking a server twice would tell no more than reading does.
        Location::Url(_) => true,
    };
    let (present, missing): (Vec<usize>, Vec<usize>) = shards.into_iter().partition(|&i| is_there(&places[i]));
    let named: Vec<Location> = present.iter().map(|&i| places[i].clone()).collect();
    let rows = manifest.shards.iter().any(|shard| shard.rows.is_some());
    let scans = scan_all(&named, threads, progress, |place| {
        // A shard that can't be read is one more difference.
        let unreadable = |error: std::io::Error| {
            let what = format!("cannot read: {error}");
            ShardScan { problems: vec![ShardProblem { entry: None, offset: 0, what }], ..ShardScan::default() }
        };
        Ok(shard::scan(place, Extras { rows, image: manifest.image.as_deref(), ..Extras::default() })
            .unwrap_or_else(unreadable))
    })?;
    let mut problems = Vec::new();
    for i in loose {
        let Location::File(folder) = &places[i] else { unreachable!("checked when a manifest is read") };
        problems.extend(super::loose::compare(&manifest.shards[i], folder));
        progress(manifest.shards[i].bytes);
    }
    for &i in &missing {
        let what = format!("no such file: {}", places[i]);
        problems.push(Problem { shard: manifest.shards[i].location.clone(), entry: None, offset: 0, what });
    }
    for (&i, scan) in present.iter().zip(&scans) {
        compare(&manifest.shards[i], scan, manifest.labels_from.is_some(), &mut problems);
    }
    Ok(problems)
}

/// Compares a shard with what is in its file; `labeled_elsewhere`, its entries do not say the classes.
fn compare(shard: &Shard, scan: &ShardScan, labeled_elsewhere: bool, problems: &mut Vec<Problem>) {
    let before = problems.len();
    let mut problem = |entry: Option<&str>, offset: u64, what: String| {
        problems.push(Problem { shard: shard.location.clone(), entry: entry.map(str::to_owned), offset, what });
    };
    for found in &scan.problems {
        problem(found.entry.as_deref(), found.offset, found.what.clone());
    }
    if scan.blake3.is_empty() {
        return;
    }
    let found: BTreeMap<&str, usize> = scan.samples.iter().enumerate().map(|(i, s)| (s.entry.as_str(), i)).collect();
    let (mut lost, mut moved) = (Vec::new(), Vec::new());
    for (i, entry) in shard.entries.iter().enumerate() {
        let Some(&at) = found.get(entry.as_str()) else {
            lost.push((entry, shard.offsets[i]));
            continue;
        };
        let sample = &scan.samples[at];
        if sample.size != shard.sizes[i] {
            problem(Some(entry), sample.offset, format!("{} bytes, expected {}", sample.size, shard.sizes[i]));
        } else if sample.check != shard.checks[i] {
            let what = format!("content changed: XXH3 {}, expected {}", sample.check, shard.checks[i]);
            problem(Some(entry), sample.offset, what);
        } else if shard.rows.as_ref().is_some_and(|rows| rows[i] != sample.rows) {
            problem(Some(entry), sample.offset, "the manifest's row index does not match this image".into());
        }
        if sample.offset != shard.offsets[i] {
            moved.push((entry, sample.offset, shard.offsets[i]));
        }
        let found = match sample.label {
            Label::Index(label) => Some(label),
            _ => None,
        };
        match (found, shard.label(i)) {
            _ if labeled_elsewhere => {}
            (found, expected) if found == expected => {}
            (Some(found), Some(expected)) => {
                problem(Some(entry), sample.offset, format!("class {found}, expected {expected}"))
            }
            // The scan has named it already if its neighbors have labels.
            (None, Some(_)) if scan.problems.iter().any(|p| p.entry.as_ref() == Some(entry)) => {}
            (None, Some(expected)) => {
                let what =
                    format!("label file {}.cls is missing, expected class {expected}", shown(split_name(entry).0));
                problem(Some(entry), sample.offset, what);
            }
            (Some(found), None) => problem(Some(entry), sample.offset, format!("class {found}, expected no label")),
            (None, None) => unreachable!("equal labels were handled above"),
        }
    }
    // What is taken out or put in moves everything behind it; the first one says where.
    if let Some((entry, found, expected)) = moved.first() {
        let others = match moved.len() - 1 {
            0 => String::new(),
            n => format!("; {n} other samples moved too"),
        };
        problem(Some(entry), *found, format!("starts at byte {found}, expected {expected}{others}"));
    }
    if let Some((entry, offset)) = lost.first() {
        if scan.is_broken_off && lost.len() > 1 {
            let what = format!("unreadable, with the {} samples after it (the shard is truncated)", lost.len() - 1);
            problem(Some(entry), *offset, what);
        } else {
            for (entry, offset) in &lost {
                problem(Some(entry), *offset, "is missing from the shard".into());
            }
        }
    }
    let expected: BTreeSet<&str> = shard.entries.iter().chain(&shard.excluded).map(String::as_str).collect();
    for sample in scan.samples.iter().filter(|sample| !expected.contains(sample.entry.as_str())) {
        problem(Some(&sample.entry), sample.offset, "is in the shard but not in the manifest".into());
    }
    if scan.bytes != shard.bytes {
        problem(None, scan.bytes, format!("the file has {} bytes, expected {}", scan.bytes, shard.bytes));
    } else if scan.blake3 != shard.blake3 {
        problem(None, 0, format!("the file's BLAKE3 is {}, expected {}", scan.blake3, shard.blake3));
    }
    if scan.blake3 == shard.blake3 && scan.frames != shard.frames {
        let what = "the manifest's table of zstd frames does not match the shard";
        problems.push(Problem { shard: shard.location.clone(), entry: None, offset: 0, what: what.into() });
    }
    if problems.len() == before && scan.tar_blake3 != shard.tar_blake3 {
        let what = format!("the tar stream's BLAKE3 is {}, expected {}", scan.tar_blake3, shard.tar_blake3);
        problems.push(Problem { shard: shard.location.clone(), entry: None, offset: 0, what });
    }
}
