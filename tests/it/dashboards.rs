//! Dashboards and metrics, held against each other both ways.

use std::collections::BTreeSet;
use std::path::Path;

/// Metrics that no panel needs to show: who is running, not how it goes.
const NOT_SHOWN: [&str; 2] = ["simclr_build_info", "simclr_run_info"];

/// Every metric that is served is on a dashboard, and every one on the dashboard `name` is served.
#[cfg_attr(not(feature = "trainer"), expect(dead_code))]
pub fn dashboards_and_metrics_agree(name: &str, served: &str) {
    let served: BTreeSet<String> = served
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|rest| rest.split(' ').next().map(str::to_owned))
        .collect();
    let (here, shown) = (shown(Some(name)), shown(None));
    let unknown: Vec<_> = here.iter().filter(|name| !served.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "on a dashboard, but not served: {unknown:?}");
    let missing: Vec<_> =
        served.iter().filter(|name| !shown.contains(*name) && !NOT_SHOWN.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "served, but on no dashboard: {missing:?}");
}

/// The names of all metrics in all expressions of one dashboard, or of all.
fn shown(name: Option<&str>) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "json"))
        .filter(|entry| name.is_none_or(|name| entry.file_name() == name))
    {
        let dashboard: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(entry.path()).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            let title = panel["title"].as_str().expect("a panel has a title");
            assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{title} has no description");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
            for target in panel["targets"].as_array().unwrap() {
                let expression = target["expr"].as_str().unwrap();
                let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                names.extend(
                    words
                        .filter(|word| word.starts_with("simclr_"))
                        .map(|word| word.trim_end_matches("_bucket").to_owned()),
                );
            }
        }
    }
    names
}

#[test]
fn dashboards_are_whole() {
    for name in ["training.json", "service.json"] {
        assert!(shown(Some(name)).len() > 5, "{name}");
    }
}
