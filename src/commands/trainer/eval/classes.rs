//! Classes of two data sets meet by name: a test set that lacks the first class must not be scored against the wrong ones.

use std::collections::BTreeMap;
use std::path::Path;

use simclr_data::manifest::Manifest;
use simclr_ground::error::{Error, Result};

/// How many classes a message lists.
const SHOWN: usize = 5;

/// Numbers the classes of the test set as those of the training set. Without names on both sides their numbers must do.
///
/// # Errors
/// If the test set has a class that the training set does not have.
pub fn match_by_name((train_path, train): (&Path, &Manifest), (test_path, test): (&Path, &mut Manifest)) -> Result<()> {
    let (known, found) = (train.num_classes(), test.num_classes());
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
    let numbers: BTreeMap<&str, u32> = train.classes.iter().zip(0..).map(|(name, i)| (name.as_str(), i)).collect();
    let map: Vec<Option<u32>> = test.classes.iter().map(|name| numbers.get(name.as_str()).copied()).collect();
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
            "{}: {} of its classes are not in {} ({}{more}); classes are matched by name, so pack both sets with the same class names",
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
