//! Which classes follow from where images lie, and which numbers classes have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use icu_normalizer::ComposingNormalizerBorrowed;

/// Classes and their numbers.
pub(crate) struct Named {
    names: Vec<String>,
    numbers: BTreeMap<String, u32>,
    /// Given classes that no image has.
    empty: usize,
}

impl Named {
    /// Numbers the classes that images have: in the order `given`, or else by name, names that are numbers by their value.
    pub fn new<'a>(seen: impl Iterator<Item = &'a str>, given: Option<&[String]>) -> Result<Self, String> {
        let seen: BTreeSet<&str> = seen.collect();
        if let Some(name) = seen.iter().find(|name| name.contains(['\n', '\r'])) {
            return Err(format!("the name of class {name:?} contains a line break"));
        }
        let names: Vec<String> = match given {
            Some(given) => {
                let known: BTreeSet<&str> = given.iter().map(String::as_str).collect();
                if let Some(other) = seen.iter().find(|name| !known.contains(*name)) {
                    return Err(format!("class {other:?} is none of the {} given classes", given.len()));
                }
                given.to_vec()
            }
            None => {
                let mut names: Vec<String> = seen.iter().map(|&name| name.to_owned()).collect();
                if names.iter().all(|name| number(name).is_some()) {
                    names.sort_by_key(|name| (number(name), name.clone()));
                }
                names
            }
        };
        let numbers = names.iter().enumerate().map(|(i, name)| (name.clone(), i as u32)).collect();
        let empty = names.iter().filter(|name| !seen.contains(name.as_str())).count();
        Ok(Self { names, numbers, empty })
    }

    /// The classes with these names, whoever has images.
    pub fn given(names: &[String]) -> Self {
        let numbers = names.iter().enumerate().map(|(i, name)| (name.clone(), i as u32)).collect();
        Self { names: names.to_vec(), numbers, empty: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The number of a class that was seen.
    pub fn number(&self, class: &str) -> u32 {
        self.numbers[class]
    }

    /// What a person should know of the numbering.
    pub fn note(&self) -> Option<String> {
        (self.empty > 0).then(|| format!("{} of the {} given classes have no image", self.empty, self.names.len()))
    }

    pub fn into_names(self) -> Vec<String> {
        self.names
    }
}

/// A name with its letters composed (NFC): macOS takes them apart, and reads both as one.
pub(crate) fn composed(name: &str) -> String {
    ComposingNormalizerBorrowed::new_nfc().normalize(name).into_owned()
}

/// The value of a name that is a number.
fn number(name: &str) -> Option<u64> {
    name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse().ok()).flatten()
}

/// The class of each image, by the folders that it lies in: the one folder in which the images differ, if all lie equally
/// deep. `cat/1.jpg` and `train/cat/images/1.jpg` are of class `cat` among others of their kind; folders of years and
/// months, and images beside folders, give no classes. The error says why there are none, the depth which folder it is.
pub(crate) fn by_folders(folders: &[Vec<String>]) -> Result<(usize, Vec<String>), String> {
    let depth = folders.first().map_or(0, Vec::len);
    if folders.iter().any(|parts| parts.len() != depth) {
        // The depth that most have, and one of those that differ.
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        folders.iter().for_each(|parts| *counts.entry(parts.len()).or_default() += 1);
        let usual = counts.iter().max_by_key(|(_, count)| **count).map_or(0, |(depth, _)| *depth);
        let stray: Vec<&Vec<String>> = folders.iter().filter(|parts| parts.len() != usual).collect();
        let place = stray.first().map_or(String::new(), |parts| parts.join("/"));
        let place = if place.is_empty() { "beside the folders".into() } else { format!("in {place}") };
        return Err(format!(
            "the images lie at different depths; {} lie elsewhere than most, e.g. {place}",
            stray.len()
        ));
    }
    let differ = |&level: &usize| folders.iter().any(|parts| parts[level] != folders[0][level]);
    let level = match depth {
        0 => return Err("the images lie side by side".into()),
        // Even if there is one class alone.
        1 => 0,
        _ => {
            let levels: Vec<usize> = (0..depth).filter(differ).collect();
            match levels[..] {
                [level] => level,
                [] => depth - 1,
                _ => {
                    return Err(
                        "the images lie in folders of folders; name one whose folders are classes to have labels"
                            .into(),
                    );
                }
            }
        }
    };
    Ok((level, folders.iter().map(|parts| parts[level].clone()).collect()))
}

/// The folders that an image lies in.
pub(crate) fn folders_of(path: &Path) -> Vec<String> {
    let parent = path.parent().unwrap_or(Path::new(""));
    parent.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
}
