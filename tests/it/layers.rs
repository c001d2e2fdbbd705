//! The house's layers: which package may see which is cargo's to keep, and written down here; inside a package, modules
//! form no circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::world::text;

/// Each package's folder, and the packages of ours that it may see.
const LAYERS: &[(&str, &str, &[&str])] = &[
    ("simclr-ground", "pipeline/ground", &[]),
    ("simclr-image", "pipeline/image", &["simclr-ground"]),
    ("simclr-plan", "pipeline/plan", &["simclr-ground", "simclr-image"]),
    ("simclr-data", "pipeline/data", &["simclr-ground", "simclr-image", "simclr-plan"]),
    ("simclr-service", "pipeline/service", &["simclr-data", "simclr-ground", "simclr-plan"]),
    ("simclr-torch", "trainer/torch", &[]),
    ("simclr-trainer", "trainer", &["simclr-ground", "simclr-torch"]),
];

/// What the lower layers stay free of.
const FREE_OF: &[(&str, &[&str])] = &[
    ("pipeline/ground", &["tokio", "mozjpeg", "object_store", "tch", "zstd"]),
    ("pipeline/image", &["tokio", "object_store", "tch", "rayon"]),
    ("pipeline/plan", &["tokio", "object_store", "tch"]),
    ("trainer", &["tokio", "tonic", "object_store", "mozjpeg", "arrow-flight", "image"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The dependencies that the package in `folder` is built with.
fn dependencies(folder: &str) -> BTreeSet<String> {
    let manifest: toml::Table = text(&root().join(folder).join("Cargo.toml")).parse().unwrap();
    manifest["dependencies"].as_table().unwrap().keys().cloned().collect()
}

#[test]
fn packages_see_only_those_below_them() {
    for (package, folder, may_see) in LAYERS {
        let seen: BTreeSet<String> =
            dependencies(folder).into_iter().filter(|name| name.starts_with("simclr-")).collect();
        let may_see: BTreeSet<String> = may_see.iter().map(|name| (*name).to_owned()).collect();
        assert!(seen.is_subset(&may_see), "{package} sees {:?}", seen.difference(&may_see));
    }
    for (folder, free_of) in FREE_OF {
        let seen = dependencies(folder);
        let stray: Vec<&&str> = free_of.iter().filter(|name| seen.contains(**name)).collect();
        assert!(stray.is_empty(), "{folder} is built with {stray:?}");
    }
}

/// All Rust files below a folder, tests left out.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && !["tests.rs", "testing.rs", "lib.rs", "main.rs"].contains(&name.as_str()) {
            found.push(path);
        }
    }
}

/// Which of a package's modules name which others, from their sources.
fn modules(source: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    sources(source, &mut files);
    let module = |path: &Path| {
        let first = path.strip_prefix(source).unwrap().components().next().unwrap();
        first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
    };
    let names: BTreeSet<String> = files.iter().map(|path| module(path)).collect();
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in &files {
        let code = text(path);
        // A module's own tests may look anywhere.
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code: String = code.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect();
        let own = module(path);
        for piece in code.split("crate::").skip(1) {
            let other: String = piece.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if names.contains(&other) && other != own {
                arrows.entry(own.clone()).or_default().insert(other);
            }
        }
    }
    arrows
}

/// Modules that lead back to themselves.
fn circle(arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk(at: &str, path: &mut Vec<String>, arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
        if let Some(from) = path.iter().position(|known| known == at) {
            return Some(path[from..].to_vec());
        }
        path.push(at.to_owned());
        let found = arrows.get(at).into_iter().flatten().find_map(|next| walk(next, path, arrows));
        path.pop();
        found
    }
    arrows.keys().find_map(|module| walk(module, &mut Vec::new(), arrows))
}

/// What is said to people passes the places that take the sting out of names.
#[test]
fn nothing_is_printed_past_the_output() {
    let mut files = Vec::new();
    for folder in LAYERS.iter().map(|(_, folder, _)| *folder).chain(["."]) {
        sources(&root().join(folder).join("src"), &mut files);
    }
    for path in &files {
        let code = text(path);
        let code = code.split("mod tests {\n").next().unwrap();
        for (i, line) in code.lines().enumerate() {
            let prints = ["print!(", "println!(", "dbg!("].iter().any(|call| line.contains(call));
            assert!(!prints, "{}:{}: {line}: use logging::say or Output::result", path.display(), i + 1);
        }
    }
}

#[test]
fn modules_form_no_circle() {
    for (package, folder) in
        LAYERS.iter().map(|(package, folder, _)| (*package, *folder)).chain([("simclr-pipeline", ".")])
    {
        let arrows = modules(&root().join(folder).join("src"));
        assert_eq!(circle(&arrows), None, "{package}");
    }
    let arrow = |from: &str, to: &str| (from.to_owned(), BTreeSet::from([to.to_owned()]));
    assert!(circle(&BTreeMap::from([arrow("a", "b"), arrow("b", "c"), arrow("c", "b")])).is_some());
}
