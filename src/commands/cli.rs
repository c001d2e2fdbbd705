//! The command line: what all commands have in common.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, ValueEnum};

use super::Command;
use crate::config;
use crate::output::Output;
use crate::telemetry::logging::{Format, say};

/// Self-supervised image pretraining (SimCLR): stream data, train, evaluate and export encoders.
///
/// Exit codes: 0 success, 1 failure, 2 usage or input error, 130 interrupted (checkpoint saved).
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
    /// Print the result as one JSON object on stdout; logs and progress go to stderr.
    #[arg(long, global = true)]
    pub json: bool,
    /// Use verbose output (-vv for debug output).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Suppress all output except errors and the result.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log format; `json` writes one object per line with time, run and rank.
    #[arg(long = "log-format", visible_alias = "log", global = true, value_enum, default_value = "human")]
    pub log: Format,
    /// When to use colored output.
    #[arg(long, global = true, value_enum, default_value = "auto")]
    color: When,
}

#[derive(Clone, Copy, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

impl Cli {
    /// Whether stderr is colored.
    pub fn color(&self) -> bool {
        match self.color {
            When::Always => true,
            When::Never => false,
            When::Auto => std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// How the command prints its result.
    pub fn output(&self) -> Output {
        Output { json: self.json, quiet: self.quiet }
    }
}

/// What other tools call what is asked for otherwise here.
const ELSEWHERE: [(&str, &str); 8] = [
    ("checkpoint_dir", "--run-dir DIR"),
    ("gpus", "--nproc N"),
    ("model", "--set model.encoder=resnet50"),
    ("name", "--run-dir DIR"),
    ("nproc_per_node", "--nproc N"),
    ("out", "--run-dir DIR"),
    ("output", "--run-dir DIR"),
    ("output_dir", "--run-dir DIR"),
];

/// Says why the arguments are none, or what was asked for, such as the help; and what may be meant by a flag of another tool.
pub fn refuse(error: &clap::Error) -> ExitCode {
    // A reader that has gone away is no failure of ours.
    let _ = error.print();
    if let (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
        && let Some(meant) = meant(flag)
    {
        say(&format!("hint: {meant}"));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// What is written here for a flag of another tool.
fn meant(flag: &str) -> Option<String> {
    let name = flag.strip_prefix("--")?.split('=').next()?.replace('-', "_");
    let elsewhere = ELSEWHERE.iter().find(|(known, _)| *known == name);
    elsewhere.map(|(_, here)| (*here).to_owned()).or_else(|| Some(format!("--set {}=VALUE", config::full_key(&name)?)))
}
