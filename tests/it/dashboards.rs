//! Dashboards, rules and metrics, held against each other, and dashboards against the rules of Grafana's linter.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub const DASHBOARDS: [&str; 4] = ["fleet.json", "pipeline.json", "service.json", "training.json"];

/// What every selector begins with, so that the variables choose what is shown.
const MATCHERS: &str = r#"{job=~"$job",instance=~"$instance""#;

/// The units of our panels, by Grafana's names.
const UNITS: [&str; 10] = ["Bps", "bytes", "cpm", "dtdurations", "none", "ops", "percentunit", "reqps", "s", "string"];

/// Every metric that is served is on a dashboard, and every one on the dashboard `name` is served.
#[cfg_attr(not(feature = "trainer"), expect(dead_code))]
pub fn dashboards_and_metrics_agree(name: &str, served: &str) {
    let served: BTreeSet<String> = served
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|rest| rest.split(' ').next().map(str::to_owned))
        .collect();
    let (here, shown) = (shown(&[name]), shown(&DASHBOARDS));
    let unknown: Vec<_> = here.iter().filter(|name| !served.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "on a dashboard, but not served: {unknown:?}");
    let missing: Vec<_> = served.iter().filter(|name| !shown.contains(*name)).collect();
    assert!(missing.is_empty(), "served, but on no dashboard: {missing:?}");
}

/// The names of all metrics in the panels of some dashboards, without the recorded ones.
fn shown(names: &[&str]) -> BTreeSet<String> {
    let mut shown = BTreeSet::new();
    for name in names {
        for expression in expressions(&dashboard(name)) {
            let metrics = metrics(&expression).into_iter().map(|(_, metric, _)| metric);
            shown.extend(
                metrics
                    .filter(|metric| metric.starts_with("simclr_"))
                    .map(|metric| metric.trim_end_matches("_bucket").to_owned()),
            );
        }
    }
    shown
}

#[test]
fn dashboards_keep_the_rules_of_grafanas_linter() {
    let mut identities: Vec<String> =
        DASHBOARDS.iter().map(|name| dashboard(name)["uid"].as_str().unwrap().to_owned()).collect();
    identities.sort();
    identities.dedup();
    assert_eq!(identities.len(), DASHBOARDS.len(), "dashboards share a uid");
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        assert_eq!(dashboard["editable"], false, "{name}: what is changed in the browser is lost");
        variables_are_as_wanted(name, &dashboard["templating"]["list"]);
        let panels = dashboard["panels"].as_array().unwrap();
        let numbers: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(numbers.len(), panels.len(), "{name}: panels share an id");
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            let title = panel["title"].as_str().expect("a panel has a title");
            let described = panel["description"].as_str().is_some_and(|text| text.len() > 20);
            assert!(!title.is_empty() && described, "{name}: {title:?} has no title or description");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default();
            assert!(UNITS.contains(&unit), "{name}: {title} has the unit {unit:?}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{name}: {title} asks nothing");
            assert!(targets.iter().all(|target| target["datasource"]["uid"] == "${datasource}"), "{name}: {title}");
        }
        for expression in all_expressions(&dashboard) {
            expression_is_as_wanted(name, &expression);
        }
        let text = read(name);
        for link in text.split("\"/d/").skip(1) {
            let uid = link.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).next().unwrap();
            assert!(identities.iter().any(|known| known == uid), "{name}: a link to {uid:?}");
        }
    }
}

/// A data source, then job and instance, of which any number can be chosen.
fn variables_are_as_wanted(name: &str, variables: &Value) {
    let [source, choices @ ..] = variables.as_array().unwrap().as_slice() else { panic!("{name}: no variables") };
    for (key, wanted) in
        [("name", "datasource"), ("label", "Data source"), ("type", "datasource"), ("query", "prometheus")]
    {
        assert_eq!(source[key], wanted, "{name}: {key}");
    }
    assert_eq!(choices.len(), 2, "{name}");
    for (variable, (key, label)) in choices.iter().zip([("job", "Job"), ("instance", "Instance")]) {
        for (field, wanted) in [("name", key), ("label", label), ("type", "query"), ("allValue", ".+")] {
            assert_eq!(variable[field], wanted, "{name}: {key}");
        }
        assert_eq!(variable["datasource"]["uid"], "${datasource}", "{name}: {key}");
        assert!(variable["multi"] == true && variable["includeAll"] == true, "{name}: {key}");
        assert_eq!(variable["refresh"], 2, "{name}: {key} is asked for again when the time range changes");
    }
}

/// Every selector is narrowed by the variables, counters are read as rates, and rates look back as far as Grafana says.
fn expression_is_as_wanted(name: &str, expression: &str) {
    for (before, metric, after) in metrics(expression) {
        assert!(after.starts_with(MATCHERS), "{name}: {metric} is not narrowed in {expression}");
        let window = after.split_once('}').and_then(|(_, rest)| rest.strip_prefix('['));
        let window = window.and_then(|rest| rest.split(']').next());
        let (rate, increase) = (before.ends_with("rate("), before.ends_with("increase("));
        if metric.ends_with("_total") || metric.ends_with("_bucket") {
            assert!(window.is_some() && (rate || increase), "{name}: {metric} only grows, in {expression}");
        }
        assert!(!rate || window == Some("$__rate_interval"), "{name}: the window of {metric} in {expression}");
    }
}

#[test]
fn rules_read_what_is_shown_and_are_tested_and_explained() {
    let [recording, alerts, tests] = ["recording", "alerts", "tests"].map(|name| read(&format!("rules/{name}.yml")));
    let recorded: BTreeSet<&str> =
        recording.split("- record: ").skip(1).map(|rest| rest.lines().next().unwrap()).collect();
    let shown = shown(&DASHBOARDS);
    let on_dashboards = DASHBOARDS.iter().flat_map(|name| all_expressions(&dashboard(name)));
    for expression in on_dashboards.chain([recording.clone(), alerts.clone()]) {
        for (_, metric, _) in metrics(&expression).into_iter().filter(|(_, metric, _)| *metric != "ALERTS") {
            assert!(recorded.contains(metric) || shown.contains(metric.trim_end_matches("_bucket")), "{metric}");
        }
    }
    assert!(recorded.iter().all(|name| tests.contains(*name)), "a recording rule without a test");
    let readme = read("README.md");
    for rule in alerts.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        for key in ["expr: ", "for: ", "severity: ", "summary: ", "description: ", "runbook: |"] {
            assert!(rule.contains(key), "{name} has no {key}");
        }
        assert!(tests.matches(name).count() >= 2, "{name}: a case in which it fires and one in which it is silent");
        assert!(readme.contains(name), "{name} is not in the README");
    }
}

#[test]
fn rules_pass_promtools_tests() {
    let mut promtool = Command::new("promtool");
    let Ok(output) = promtool.args(["test", "rules", "tests.yml"]).current_dir(folder().join("rules")).output() else {
        eprintln!("promtool is not installed: the tests of the rules are left out");
        return;
    };
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}

/// Every metric in an expression, with what stands before and after it.
fn metrics(expression: &str) -> Vec<(&str, &str, &str)> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let (mut found, mut end) = (Vec::new(), 0);
    while let Some(start) = expression[end..].find(of_name).map(|at| end + at) {
        end = expression[start..].find(|c: char| !of_name(c)).map_or(expression.len(), |at| start + at);
        let name = &expression[start..end];
        if name.starts_with("simclr_") || name.contains(":simclr_") || name == "ALERTS" {
            found.push((&expression[..start], name, &expression[end..]));
        }
    }
    found
}

pub fn all_expressions(dashboard: &Value) -> Vec<String> {
    let mut all = expressions(dashboard);
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    all.extend(annotations.iter().map(|annotation| annotation["expr"].as_str().unwrap().to_owned()));
    all
}

/// What the panels of a dashboard ask.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

pub fn dashboard(name: &str) -> Value {
    serde_json::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}
