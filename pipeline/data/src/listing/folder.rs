//! Folders of images, in any shape.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use simclr_ground::sample::belongs_to_nobody;

use super::{Bytes, Found, Image, LeftOut, ListingError, classes, input, is_image};

/// All images below `source`: of the classes that its folders are, or of none.
pub(super) fn found(source: &Path) -> Result<Found, ListingError> {
    let mut walk = Walk::default();
    walk.visit(source, &PathBuf::new(), &mut Vec::new())?;
    let Walk { images: paths, left_out, mut notes, top_folders } = walk;
    let folders: Vec<Vec<String>> = paths.iter().map(|path| classes::folders_of(path)).collect();
    let (classes, no_labels, origin) = match classes::by_folders(&folders) {
        Ok((_, classes)) => (Some(classes), None, "class folders"),
        Err(why) => (None, Some(why), "a folder of images"),
    };
    // Where folders are classes, one without images is a class that is missing.
    if classes.is_some() && folders.first().is_some_and(|parts| parts.len() == 1) {
        let with_images: BTreeSet<&String> = folders.iter().map(|parts| &parts[0]).collect();
        let empty: Vec<&str> =
            top_folders.iter().filter(|name| !with_images.contains(name)).map(String::as_str).collect();
        if !empty.is_empty() {
            notes.push(format!("{} class folders hold no image and are no classes: {}", empty.len(), some(&empty)));
        }
    }
    let by_class = folders.first().is_some_and(|parts| parts.len() == 1) && classes.is_some();
    let mut classes = classes.map(Vec::into_iter);
    let images = paths
        .into_iter()
        .map(|path| Image {
            class: classes.as_mut().and_then(Iterator::next),
            by_class,
            bytes: Bytes::File(source.join(&path)),
            path,
        })
        .collect();
    Ok(Found { images, left_out, notes, no_labels, origin })
}

/// The first of many names.
fn some(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", "))
}

#[derive(Default)]
struct Walk {
    /// Paths below the source.
    images: Vec<PathBuf>,
    left_out: LeftOut,
    notes: Vec<String>,
    /// The folders directly in the source.
    top_folders: Vec<String>,
}

impl Walk {
    /// Goes through `folder` and what is below it, by name; `at` is its path in the source, `above` says which folders it
    /// is in, so that links can't lead in a circle.
    fn visit(&mut self, folder: &Path, at: &Path, above: &mut Vec<(u64, u64)>) -> Result<(), ListingError> {
        let why = |error: std::io::Error| ListingError::Io {
            path: folder.to_owned(),
            what: "cannot list the directory",
            source: error,
        };
        let known = std::fs::metadata(folder).map_err(why)?;
        let id = (known.dev(), known.ino());
        if above.contains(&id) {
            self.notes.push(format!("{}: a link to a folder that it is in; not followed", folder.display()));
            return Ok(());
        }
        above.push(id);
        let entries = std::fs::read_dir(folder).map_err(why)?.collect::<Result<Vec<_>, _>>().map_err(why)?;
        let mut names: Vec<_> = entries.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            if name.to_str().is_none() {
                self.notes.push(format!("{}: its name is not UTF-8, left out", folder.join(&name).display()));
                self.left_out.others.push(folder.join(&name));
                continue;
            }
            if belongs_to_nobody(&name.to_string_lossy()) {
                self.left_out.nobodys += 1;
                continue;
            }
            let (path, at) = (folder.join(&name), at.join(&name));
            match std::fs::metadata(&path) {
                Ok(known) if known.is_dir() => {
                    if above.len() == 1 {
                        self.top_folders.push(name.to_string_lossy().into_owned());
                    }
                    self.visit(&path, &at, above)?;
                }
                Ok(known) => self.file(path, at, &known)?,
                Err(error) => {
                    self.notes.push(format!("{}: cannot be looked at, left out: {error}", path.display()));
                }
            }
        }
        above.pop();
        Ok(())
    }

    fn file(&mut self, path: PathBuf, at: PathBuf, known: &Metadata) -> Result<(), ListingError> {
        if !is_image(&at) {
            self.left_out.others.push(path);
        } else if !known.is_file() {
            // Reading a pipe or a device might never end.
            self.notes.push(format!("{}: not a regular file, left out", path.display()));
            self.left_out.others.push(path);
        } else if at.to_str().is_none() {
            return Err(input(&path, "the name is not UTF-8"));
        } else {
            self.images.push(at);
        }
        Ok(())
    }
}
