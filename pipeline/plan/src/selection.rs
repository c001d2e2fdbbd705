//! Which samples a plan takes from its manifest: those of some classes, those that a list names, a part of each class.

use std::collections::{BTreeMap, BTreeSet};

use simclr_ground::error::InvalidValue;
use simclr_ground::rng::{Draws, Purpose};
use simclr_ground::sample::{SampleRef, split_name};

use crate::catalog::Catalog;
use crate::config::DataConfig;

/// How many wrong names a message lists.
const SHOWN: usize = 3;

/// For each shard the samples wanted, in order; `None` if all are.
pub(super) fn select(
    catalog: &dyn Catalog,
    data: &DataConfig,
    seed: u64,
) -> Result<Option<Vec<Vec<u32>>>, InvalidValue> {
    let classes = classes(catalog, &data.classes)?;
    let listed = if data.subset.as_os_str().is_empty() { None } else { Some(listed(catalog, data)?) };
    let [from, to] = data.part;
    if !(0.0 <= from && from < to && to <= 1.0) {
        let wanted = "expected [from, to] with 0 <= from < to <= 1 ([0, 1] = all)".into();
        return Err(wrong("data.part", format!("{:?}", data.part), wanted));
    }
    let whole = data.part == [0.0, 1.0];
    if classes.is_none() && listed.is_none() && whole {
        return Ok(None);
    }
    let is_selected = |shard: u32, index: u32| {
        let label = || catalog.label(SampleRef { shard, index });
        let of_class = classes.as_ref().is_none_or(|classes| label().is_some_and(|label| classes.contains(&label)));
        of_class && listed.as_ref().is_none_or(|listed| listed.contains(&(shard, index)))
    };
    let mut selected: Vec<Vec<u32>> = (0..catalog.num_shards() as u32)
        .map(|shard| (0..catalog.shard_samples(shard)).filter(|&index| is_selected(shard, index)).collect())
        .collect();
    if selected.iter().all(Vec::is_empty) {
        let found = format!("classes = {:?}, subset = {:?}", data.classes, data.subset);
        return Err(wrong("data", found, "expected filters that select at least one sample".into()));
    }
    if !whole {
        selected = part(catalog, &selected, data.part, seed);
        if selected.iter().all(Vec::is_empty) {
            let wanted = "it has no sample, as its classes are small; expected a part that has some".into();
            return Err(wrong("data.part", format!("{:?}", data.part), wanted));
        }
    }
    Ok(Some(selected))
}

/// A part of each class's samples among `selected`, from where `from` of them are before it to where `to` are, rounded: parts
/// that meet share no sample and leave none out, so that a part of a small class may be empty. Samples without labels are
/// one class.
fn part(catalog: &dyn Catalog, selected: &[Vec<u32>], [from, to]: [f64; 2], seed: u64) -> Vec<Vec<u32>> {
    let mut classes: BTreeMap<Option<u32>, Vec<(usize, u32)>> = BTreeMap::new();
    for (shard, samples) in selected.iter().enumerate() {
        for &i in samples {
            let sample = SampleRef { shard: shard as u32, index: i };
            classes.entry(catalog.label(sample)).or_default().push((shard, i));
        }
    }
    let mut taken = vec![Vec::new(); selected.len()];
    for (class, mut samples) in classes {
        let key = class.map_or(0, |class| u64::from(class) + 1);
        Draws::new(seed, Purpose::Subset, &[key]).shuffle(&mut samples);
        let place = |share: f64| (share * samples.len() as f64).round() as usize;
        for &(shard, i) in &samples[place(from)..place(to)] {
            taken[shard].push(i);
        }
    }
    taken.iter_mut().for_each(|samples: &mut Vec<u32>| samples.sort_unstable());
    taken
}

/// BLAKE3 of a selection, in hex.
pub(super) fn digest(selected: &[Vec<u32>]) -> String {
    let mut hasher = blake3::Hasher::new();
    for shard in selected {
        hasher.update(&(shard.len() as u64).to_le_bytes());
        for index in shard {
            hasher.update(&index.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// The classes that names or indices stand for.
fn classes(catalog: &dyn Catalog, wanted: &[String]) -> Result<Option<BTreeSet<u32>>, InvalidValue> {
    if wanted.is_empty() {
        return Ok(None);
    }
    if catalog.num_labeled() == 0 {
        return Err(wrong("data.classes", format!("{wanted:?}"), "the dataset has no labels".into()));
    }
    let class = |name: &String| {
        let named = catalog.classes().iter().position(|known| known == name).map(|i| i as u32);
        let index = || name.parse().ok().filter(|&i: &u32| (i as usize) < catalog.num_classes());
        named.or_else(index).ok_or_else(|| {
            let known = catalog.classes().iter().max_by(|a, b| {
                let likeness = |known: &str| known.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
                likeness(a).cmp(&likeness(b))
            });
            let hint = known.map_or(String::new(), |known| format!(", such as {known}"));
            let wanted = format!("expected a class name{hint}, or an index below {}", catalog.num_classes());
            wrong("data.classes", name.clone(), wanted)
        })
    };
    wanted.iter().map(class).collect::<Result<_, _>>().map(Some)
}

/// The samples, by shard and index, that the subset's file names.
fn listed(catalog: &dyn Catalog, data: &DataConfig) -> Result<BTreeSet<(u32, u32)>, InvalidValue> {
    let key = "data.subset";
    let path = data.subset.display().to_string();
    let text = simclr_ground::files::read_named_text(&data.subset)
        .map_err(|error| wrong(key, path.clone(), format!("expected a list of file names: {error}")))?;
    let mut names: BTreeMap<&str, Vec<(u32, u32)>> = BTreeMap::new();
    for shard in 0..catalog.num_shards() as u32 {
        for index in 0..catalog.shard_samples(shard) {
            let key = split_name(catalog.entry(SampleRef { shard, index })).0;
            let base = key.rsplit('/').next().expect("a key has a last part");
            names.entry(key).or_default().push((shard, index));
            if base != key {
                names.entry(base).or_default().push((shard, index));
            }
        }
    }
    let (mut found, mut unknown, mut lines) = (BTreeSet::new(), Vec::new(), 0);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        lines += 1;
        match names.get(split_name(line).0).map(Vec::as_slice) {
            Some([one]) => {
                found.insert(*one);
            }
            Some(several) => {
                let wanted =
                    format!("ambiguous, {} samples have this name; expected their keys (folder/name)", several.len());
                return Err(wrong(key, format!("{path} (line {line:?})"), wanted));
            }
            None => unknown.push(line),
        }
    }
    if lines == 0 {
        return Err(wrong(key, path, "the file is empty; expected one file name per line".into()));
    }
    if !unknown.is_empty() {
        let some: Vec<&str> = unknown.iter().take(SHOWN).copied().collect();
        let found = format!("{path} ({} of {lines} names, such as {})", unknown.len(), some.join(", "));
        return Err(wrong(key, found, "expected names of samples in the manifest".into()));
    }
    Ok(found)
}

fn wrong(key: &'static str, found: String, wanted: String) -> InvalidValue {
    InvalidValue::new(key, found, wanted)
}
