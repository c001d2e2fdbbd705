//! What people name as their data: a manifest, shards, or images.

use std::io::Read;
use std::path::{Path, PathBuf};

use simclr_ground::location::Location;

use super::{MANIFEST, OpenError, none};
use crate::compression::Compression;
use crate::listing;

/// What a name stands for.
pub(super) enum Kind {
    Manifest(PathBuf),
    Shards(Vec<String>),
    Images,
}

/// Whether `what` names images that are files of their own: a folder of them, or a list.
///
/// # Errors
/// If there is nothing of this name.
pub fn is_images(what: &Path) -> Result<bool, OpenError> {
    Ok(matches!(kind(what)?, Kind::Images))
}

/// What `what` stands for; a path that exists is taken as it is written before it is taken for a pattern.
pub(super) fn kind(what: &Path) -> Result<Kind, OpenError> {
    let text = what.to_string_lossy().into_owned();
    let is_pattern = text.contains(['*', '?', '[', '{']);
    let place = Location::parse(&text).map_err(|error| none(&text, error.to_string()))?;
    if let Location::Url(url) = &place {
        let name = url.path().to_lowercase();
        return Ok(if is_pattern || is_shard(&name) || text.contains(".json#") {
            Kind::Shards(vec![text])
        } else if name.ends_with(".json") {
            Kind::Manifest(what.to_owned())
        } else {
            Kind::Manifest(format!("{}/{MANIFEST}", text.trim_end_matches('/')).into())
        });
    }
    if what.is_dir() {
        if what.join(MANIFEST).is_file() {
            return Ok(Kind::Manifest(what.join(MANIFEST)));
        }
        let shards = shards_in(what);
        return Ok(if shards.is_empty() { Kind::Images } else { Kind::Shards(shards) });
    }
    if what.is_file() {
        let name = text.to_lowercase();
        return Ok(if listing::is_list(what) {
            Kind::Images
        } else if is_shard(&name) {
            Kind::Shards(vec![glob::Pattern::escape(&text)])
        } else if listing::is_image_file(what) {
            let why = "is one image; name the folder that it is in".to_owned();
            return Err(none(&text, why));
        } else if let Some(why) = no_manifest(what) {
            return Err(none(&text, why));
        } else {
            Kind::Manifest(what.to_owned())
        });
    }
    if is_pattern && listing::has_image_extension(what) {
        let why = "a pattern names shards, and these are images; name the folder that they are in, or a list of them";
        return Err(none(&text, why.to_owned()));
    }
    if is_pattern || text.contains(".json#") {
        return Ok(Kind::Shards(vec![text]));
    }
    if what.exists() {
        return Err(none(&text, "neither a regular file nor a directory".to_owned()));
    }
    let why = "no such file or directory; name a data set with --data: a folder of images or shards, a manifest, a shard \
               pattern, or a list (.txt, .csv)";
    Err(none(&text, why.to_owned()))
}

/// Why a file that is no list, shard or image by its name is no manifest either, which begins with a brace; `None` if it
/// may be one.
fn no_manifest(path: &Path) -> Option<String> {
    let mut start = Vec::new();
    std::fs::File::open(path).ok()?.take(512).read_to_end(&mut start).ok()?;
    let is_text = std::str::from_utf8(&start).is_ok_and(|text| text.trim_start().starts_with('{'));
    if is_text {
        return None;
    }
    let found = match Compression::of_bytes(&start) {
        Err(why) => why,
        Ok(_) => "not a manifest".to_owned(),
    };
    Some(format!(
        "{found}; expected a manifest (.json), a folder of images or shards, a shard (.tar, .tar.zst, .tar.gz), or a list (.txt, .csv)"
    ))
}

fn is_shard(name: &str) -> bool {
    [".tar", ".tar.zst", ".tar.zstd", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending))
}

/// The shards directly in a folder, escaped, if it holds no images there.
fn shards_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    if paths.iter().any(|path| listing::is_image_file(path)) {
        return Vec::new();
    }
    let is_tar = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        is_shard(&name) && !simclr_ground::sample::belongs_to_nobody(&name) && path.is_file()
    };
    let mut shards: Vec<String> = paths.iter().filter(is_tar).map(|path| path.to_string_lossy().into_owned()).collect();
    shards.sort();
    shards.iter().map(|path| glob::Pattern::escape(path)).collect()
}
