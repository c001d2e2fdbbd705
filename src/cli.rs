//! The command line: what all commands have in common.

use std::io::IsTerminal;

use clap::{Parser, ValueEnum};

use crate::commands::Command;
use crate::output::Output;
use crate::telemetry::logging::Format;

/// Streams SimCLR batches from tar shards, trains on them, evaluates what was learnt.
///
/// Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted after a clean stop.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// What is asked for.
    #[command(subcommand)]
    pub command: Command,
    /// Print one JSON object on stdout; logs and progress stay on stderr.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more; twice for debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing but errors.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Logs for people, or for machines: one JSON object a line, with time, run and rank.
    #[arg(long, global = true, value_enum, default_value = "human")]
    pub log: Format,
    /// Colour messages.
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

    /// How the command answers.
    pub fn output(&self) -> Output {
        Output { json: self.json, quiet: self.quiet }
    }
}
