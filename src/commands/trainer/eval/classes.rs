//! Classes of two data sets meet by name: a test set that lacks the first class must not be scored against the wrong ones.

use std::collections::BTreeMap;
use std::path::Path;

use icu_normalizer::ComposingNormalizerBorrowed;
use simclr_data::manifest::Manifest;
use simclr_ground::error::{Error, Result};

/// How many classes a message lists.
const SHOWN: usize = 5;

/// Numbers the classes of the test set as those of the training set. Where neither has names their numbers must do.
///
/// # Errors
/// If the test set has a class that the training set does not have, or one set alone has names.
pub fn match_by_name((train_path, train): (&Path, &Manifest), (test_path, test): (&Path, &mut Manifest)) -> Result<()> {
    let (known, found) = (train.num_classes(), test.num_classes());
    if train.classes.is_empty() != test.classes.is_empty() && known > 0 && found > 0 {
        let (with, without) = if train.classes.is_empty() { (test_path, train_path) } else { (train_path, test_path) };
        return Err(Error::input(format!(
            "the classes of {} have names, those of {} are numbers alone, and which is which nobody knows; name them: a \
             classes.txt beside the shards, one name on each line in the order of the numbers, or pack both sets from folders or \
             lists with names",
            with.display(),
            without.display()
        )));
    }
    if train.classes.is_empty() || test.classes.is_empty() {
        if found > known && known > 0 {
            return Err(Error::input(format!(
                "{} has {found} classes, {} has {known}; they have no names that could tell which they are; expected the same classes",
                test_path.display(),
                train_path.display()
            )));
        }
        if found < known && found > 0 {
            tracing::warn!(
                "{} has {found} classes, {} has {known}; without names they are matched by number",
                test_path.display(),
                train_path.display()
            );
        }
        return Ok(());
    }
    if train.classes == test.classes {
        return Ok(());
    }
    // As one system composes letters, or as another does.
    let plain = |name: &String| ComposingNormalizerBorrowed::new_nfc().normalize(name).into_owned();
    let numbers: BTreeMap<String, u32> = train.classes.iter().map(plain).zip(0..).collect();
    let map: Vec<Option<u32>> = test.classes.iter().map(|name| numbers.get(&plain(name)).copied()).collect();
    let mut unknown: Vec<&str> = Vec::new();
    for label in test.shards.iter().filter_map(|shard| shard.labels.as_ref()).flatten().flatten() {
        if let Some(None) = map.get(*label as usize) {
            let name = test.classes[*label as usize].as_str();
            if !unknown.contains(&name) {
                unknown.push(name);
            }
        }
    }
    if !unknown.is_empty() {
        let more = if unknown.len() > SHOWN { ", …" } else { "" };
        return Err(Error::input(format!(
            "{}: {} of its classes are not in {} ({}{more}); classes are matched by name",
            test_path.display(),
            unknown.len(),
            train_path.display(),
            unknown[..unknown.len().min(SHOWN)].join(", ")
        )));
    }
    tracing::warn!(
        "{} numbers its {} classes otherwise than {}; matched by name",
        test_path.display(),
        test.classes.len(),
        train_path.display()
    );
    for label in test.shards.iter_mut().filter_map(|shard| shard.labels.as_mut()).flatten().flatten() {
        *label = map[*label as usize].expect("checked above");
    }
    test.classes.clone_from(&train.classes);
    Ok(())
}
