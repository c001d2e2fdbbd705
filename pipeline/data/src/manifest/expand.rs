//! Turns what a user names (paths, globs, brace ranges, URLs, indexes of other tools) into a list of shards.

use std::path::{Path, PathBuf};

use simclr_ground::location::Location;

use super::braces::braces;
use super::foreign::{self, Index};
use super::{ManifestError, NamedShard};
use crate::objects;

/// How many missing files a message lists.
const SHOWN: usize = 20;

/// The shards that `patterns` name, in the order given; a glob's matches are sorted.
///
/// Brace ranges are WebDataset's: `name-{000000..001281}.tar` counts with the width of its first number, and
/// `{a,b}` lists alternatives. Globs work on local folders and in buckets. A `.json` is the index of another tool: a
/// `wids` shard index, or a Hugging Face style `_info.json`, whose split is named as in `_info.json#train`.
///
/// # Errors
/// If nothing is named, a pattern matches nothing, a file is missing, or a shard is listed twice.
pub fn expand(patterns: &[String]) -> Result<Vec<NamedShard>, ManifestError> {
    let mut shards: Vec<NamedShard> = Vec::new();
    for pattern in patterns {
        let none = |why: &str| ManifestError::NoShards { pattern: pattern.clone(), why: why.into() };
        if let Some(index) = Index::named(pattern) {
            shards.extend(foreign::read(&index).map_err(|why| none(&why))?);
            continue;
        }
        // A path that exists is what it says before it is a pattern.
        if pattern.contains(['{', '*', '?', '[']) && Path::new(pattern).is_file() {
            shards.push(NamedShard::at(Location::File(pattern.into())));
            continue;
        }
        let mut missing: Vec<String> = Vec::new();
        for name in braces(pattern)
            .ok_or_else(|| none("unbalanced, empty or too large braces; expected {000..012} or {a,b}"))?
        {
            if name != *pattern
                && !name.contains(['*', '?', '['])
                && !name.contains("://")
                && !Path::new(&name).exists()
            {
                missing.push(name);
                continue;
            }
            let place = Location::parse(&name).map_err(|error| none(&error.to_string()))?;
            let places = match place {
                Location::File(path) => files(path, &name)
                    .map_err(|why| none(&if name == *pattern { why } else { format!("{name}: {why}") }))?,
                Location::Url(url) if name.contains(['*', '?', '[']) => {
                    objects(&url, &name).map_err(|why| none(&why))?
                }
                place => vec![place],
            };
            shards.extend(places.into_iter().map(NamedShard::at));
        }
        if !missing.is_empty() {
            let more = if missing.len() > SHOWN { ", …" } else { "" };
            let names = missing[..missing.len().min(SHOWN)].join(", ");
            return Err(none(&format!("{} of its files do not exist: {names}{more}", missing.len())));
        }
    }
    if shards.is_empty() {
        return Err(ManifestError::NoShards {
            pattern: "SHARD".into(),
            why: "no shards given; expected paths, URLs, globs, brace ranges or an index".into(),
        });
    }
    let real = |shard: &NamedShard| match &shard.place {
        Location::File(path) => Location::File(std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())),
        place => place.clone(),
    };
    let mut sorted: Vec<Location> = shards.iter().map(real).collect();
    sorted.sort();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ManifestError::NoShards { pattern: twice[0].to_string(), why: "listed twice".into() });
    }
    Ok(shards)
}

/// The local files that a name or a glob stands for.
fn files(path: PathBuf, name: &str) -> Result<Vec<Location>, String> {
    if !name.contains(['*', '?', '[']) {
        return match path.is_file() {
            true => Ok(vec![Location::File(path)]),
            false if path.is_dir() => Err("is a directory; list its shards, e.g. DIR/*.tar".into()),
            false => Err("no such file".into()),
        };
    }
    let matches = glob::glob(name).map_err(|error| format!("not a glob: {error}"))?;
    let mut matches: Vec<PathBuf> = matches.filter_map(Result::ok).filter(|path| path.is_file()).collect();
    matches.sort();
    if matches.is_empty() {
        Err("matches no files".into())
    } else {
        Ok(matches.into_iter().map(Location::File).collect())
    }
}

/// The objects of a bucket that a glob stands for.
fn objects(url: &url::Url, name: &str) -> Result<Vec<Location>, String> {
    let pattern = glob::Pattern::new(name).map_err(|error| format!("not a glob: {error}"))?;
    let fixed = &name[..name.find(['*', '?', '[']).expect("a glob")];
    let mut folder = url.clone();
    let start = url::Url::parse(&fixed[..=fixed.rfind('/').expect("a URL has slashes")]).map_err(|e| e.to_string())?;
    folder.set_path(start.path());
    let found = objects::list(&folder).map_err(|error| format!("cannot list {folder}: {error}"))?;
    let mut found: Vec<Location> =
        found.into_iter().filter(|url| pattern.matches(url.as_str())).map(Location::Url).collect();
    found.sort();
    if found.is_empty() { Err("matches no objects".into()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_nothing_is_an_error_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        for name in ["s-0.tar", "s-1.tar", "s-10.tar"] {
            std::fs::write(at(name), b"").unwrap();
        }
        assert_eq!(expand(&[at("s-?.tar")]).unwrap().len(), 2);
        assert_eq!(expand(&[at("s-{0..1}.tar"), at("s-10.tar")]).unwrap().len(), 3);
        assert_eq!(expand(&["s3://bucket/s-{0..4}.tar".into()]).unwrap().len(), 5, "brace ranges need no listing");
        let check = |patterns: &[String], wanted: &str| {
            let message = expand(patterns).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        };
        check(&[], "no shards given");
        check(&[at("x*.tar")], "matches no files");
        check(&[at("s-{0..4}.tar")], "3 of its files do not exist: ");
        check(&[at("s-{0..2}.tar")], "s-2.tar");
        check(&[dir.path().display().to_string()], "is a directory");
        check(&[at("s-0.tar"), at("s-?.tar")], "listed twice");
        check(&["ftp://host/s.tar".into()], "unknown scheme");
        check(&[at("nowhere.json")], "No such file");
        std::fs::write(at("other.json"), "{}").unwrap();
        check(&[at("other.json")], "neither a wids index");
        std::fs::write(
            at("_info.json"),
            r#"{"splits":{"train":{"filenames":["s-0.tar"],"shard_lengths":[3]},"validation":{"filenames":[]}}}"#,
        )
        .unwrap();
        check(&[at("_info.json")], "#train");
        let found = expand(&[format!("{}#train", at("_info.json"))]).unwrap();
        assert_eq!((found.len(), found[0].samples), (1, Some(3)));
    }
}
