//! `config`: which presets there are, what a configuration comes to, and where two differ.

use clap::Args;
use serde_json::json;
use simclr_ground::error::Result;

use super::args::ConfigArgs;
use super::verbs;
use crate::config::{Config, PRESETS};
use crate::output::{ExitStatus, Output};

verbs! {
    /// Show, compare and explain configurations.
    ConfigCommand {
        List(ListArgs),
        Show(ShowArgs),
        Diff(DiffArgs),
        Explain(ExplainArgs),
    }
}

/// List the presets.
#[derive(Args)]
pub struct ListArgs {}

impl super::Run for ListArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let about: Vec<(&str, String)> = PRESETS.iter().map(|(name, text)| (*name, about(text))).collect();
        let object: Vec<_> = about.iter().map(|(name, about)| json!({ "name": name, "about": about })).collect();
        output.result(&json!({ "presets": object }), || {
            let lines: Vec<String> = about.iter().map(|(name, about)| format!("{name:<18} {about}")).collect();
            lines.join("\n")
        })?;
        Ok(ExitStatus::Success)
    }
}

/// What a preset says of itself: the comment that it begins with.
fn about(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix('#'));
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Print a configuration with all its values, as TOML: a preset, a file, changes.
#[derive(Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
}

impl super::Run for ShowArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let config = self.config.load()?;
        output.result(&config, || config.to_toml().trim_end().to_owned())?;
        Ok(ExitStatus::Success)
    }
}

/// Print where two configurations differ.
#[derive(Args)]
pub struct DiffArgs {
    /// TOML file or preset name.
    #[arg(value_name = "FILE|PRESET")]
    pub one: String,
    /// Another one.
    #[arg(value_name = "FILE|PRESET")]
    pub other: String,
}

impl super::Run for DiffArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let [one, other] = [&self.one, &self.other].map(|source| Config::load(Some(source), &[]));
        let lines: Vec<String> = one?.all_differences(&other?).iter().map(ToString::to_string).collect();
        output.result(&json!({ "differences": lines }), || match lines.is_empty() {
            true => "no difference".to_owned(),
            false => lines.join("\n"),
        })?;
        Ok(ExitStatus::Success)
    }
}

/// Print what a key is for, and its value in each preset.
#[derive(Args)]
pub struct ExplainArgs {
    /// Key, e.g. batch.size.
    pub key: String,
}

impl super::Run for ExplainArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let mut values = Vec::new();
        for (name, text) in PRESETS {
            let value = Config::load(Some(name), &[])?.value(&self.key)?;
            values.push((name, value, comment(text, &self.key)));
        }
        let object: Vec<_> = values
            .iter()
            .map(|(name, value, comment)| json!({ "preset": name, "value": value, "comment": comment }))
            .collect();
        output.result(&json!({ "key": self.key, "presets": object }), || {
            let line = |(name, value, comment): &(&str, String, Option<String>)| {
                let comment = comment.as_ref().map_or(String::new(), |comment| format!("  # {comment}"));
                format!("{name:<18} {value}{comment}")
            };
            format!("{}\n{}", self.key, values.iter().map(line).collect::<Vec<_>>().join("\n"))
        })?;
        Ok(ExitStatus::Success)
    }
}

/// What the text of a preset says beside a key, if it has the key.
fn comment(text: &str, key: &str) -> Option<String> {
    let (table, last) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            name.clone_into(&mut current);
        }
        if current == table && line.split('=').next().is_some_and(|found| found.trim() == last) {
            // A `#` in a string would have to be told apart; no preset has one.
            return line.split_once('#').map(|(_, comment)| comment.trim().to_owned());
        }
    }
    None
}
