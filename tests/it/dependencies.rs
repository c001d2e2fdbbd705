//! What the project builds on: licenses that people can live with, one version of each crate. `deny.toml` is what holds;
//! `cargo deny check` reads it with advisories, this test without network.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

fn metadata() -> Value {
    let args = ["metadata", "--format-version", "1", "--all-features", "--offline", "--locked"];
    let platform = ["--filter-platform", "x86_64-unknown-linux-gnu"];
    let out = Command::new(env!("CARGO")).args(args).args(platform).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn deny() -> toml::Table {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

fn words(list: &toml::Value) -> BTreeSet<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// Whether an SPDX expression is satisfied with these licenses: all of its alternatives need not be, each of its parts must.
fn allowed(expression: &str, is_allowed: &dyn Fn(&str) -> bool) -> bool {
    // `A OR B AND C` is `A OR (B AND C)`; parentheses stand around alternatives only, in what crates write.
    let expression = expression.replace('/', " OR ");
    if let Some((before, rest)) = expression.split_once('(') {
        let (inside, after) = rest.split_once(')').expect("parentheses are closed");
        let inside = if allowed(inside, is_allowed) { "ALLOWED" } else { "REFUSED" };
        return allowed(&format!("{before}{inside}{after}"), is_allowed);
    }
    let part = |part: &str| match part.trim() {
        "ALLOWED" => true,
        "REFUSED" => false,
        license => is_allowed(license.split(" WITH ").next().unwrap().trim()),
    };
    expression.split(" OR ").any(|alternative| alternative.split(" AND ").all(part))
}

#[test]
fn every_license_is_one_that_is_allowed() {
    let (metadata, deny) = (metadata(), deny());
    let licenses = &deny["licenses"];
    let everywhere = words(&licenses["allow"]);
    let mut unlike = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let own = licenses["exceptions"].as_array().unwrap().iter().filter(|one| one["crate"].as_str() == Some(name));
        let own: BTreeSet<&str> = own.flat_map(|one| words(&one["allow"])).collect();
        let is_allowed = |license: &str| everywhere.contains(license) || own.contains(license);
        match package["license"].as_str() {
            Some(expression) if allowed(expression, &is_allowed) => {}
            found => unlike.push(format!("{name}: {}", found.unwrap_or("no license"))),
        }
    }
    assert!(unlike.is_empty(), "{unlike:#?}");
    let only_mit = |license: &str| license == "MIT";
    assert!(allowed("MIT OR GPL-3.0", &only_mit) && allowed("(GPL-3.0 OR MIT) AND MIT", &only_mit));
    assert!(!allowed("MIT AND GPL-3.0", &only_mit) && !allowed("GPL-3.0", &only_mit));
}

#[test]
fn a_second_version_of_a_crate_has_its_reason() {
    let (metadata, deny) = (metadata(), deny());
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let used: BTreeSet<&str> = nodes.iter().map(|node| node["id"].as_str().unwrap()).collect();
    let packages = metadata["packages"].as_array().unwrap();
    for package in packages.iter().filter(|package| used.contains(package["id"].as_str().unwrap())) {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        versions.entry(name).or_default().insert(version);
    }
    let banned: Vec<&str> =
        words(&deny["bans"]["deny"]).into_iter().filter(|name| versions.contains_key(name)).collect();
    assert!(banned.is_empty(), "{banned:?} must not come in");
    let skipped = deny["bans"]["skip"].as_array().unwrap().iter().map(|one| one["crate"].as_str().unwrap());
    let skipped: Vec<(&str, &str)> = skipped.filter_map(|one| one.split_once(':')).collect();
    // `digest:0.10` means 0.10.x, `nom:7` 7.x.y.
    let is_skipped = |name: &str, version: &str| {
        let fits = |of: &str| version == of || version.strip_prefix(of).is_some_and(|rest| rest.starts_with('.'));
        skipped.iter().any(|(other, of)| *other == name && fits(of))
    };
    let mut unlike = Vec::new();
    for (name, versions) in versions {
        let left: Vec<&str> = versions.into_iter().filter(|version| !is_skipped(name, version)).collect();
        if left.len() > 1 {
            unlike.push(format!("{name}: {}", left.join(", ")));
        }
    }
    assert!(unlike.is_empty(), "{unlike:#?}");
}
