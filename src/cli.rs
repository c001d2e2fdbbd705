//! The command line: what all commands have in common.

use std::io::IsTerminal;

use clap::{Parser, ValueEnum};

use crate::commands::Command;
use crate::output::Output;
use crate::telemetry::logging::Format;

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
    #[arg(long, global = true, value_enum, default_value = "human")]
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
