//! `completions` and `man`: what shells and manuals know of the command line, made from its definition.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;
use simclr_ground::error::{Context, Error, Result};

use super::Run;
use super::cli::Cli;
use crate::output::{ExitStatus, Output};

/// Print completions for a shell, e.g. `simclr-pipeline completions bash > ~/.local/share/bash-completion/completions/simclr-pipeline`.
#[derive(Args)]
pub struct CompletionsArgs {
    /// Shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

impl Run for CompletionsArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "simclr-pipeline", &mut script);
        let script = String::from_utf8(script).expect("completions are text");
        output
            .result(&json!({ "shell": self.shell.to_string(), "script": script }), || script.trim_end().to_owned())?;
        Ok(ExitStatus::Success)
    }
}

/// Write man pages, one for each verb.
#[derive(Args)]
pub struct ManArgs {
    /// Directory to create; it must not exist yet.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

impl Run for ManArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let out = self.out.display();
        if self.out.exists() {
            return Err(Error::input(format!("--out {out}: already exists; choose another name")));
        }
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot create {out}"))?;
        let command = Cli::command().disable_help_subcommand(true);
        clap_mangen::generate_to(command, &self.out).with_context(|| format!("cannot write to {out}"))?;
        let pages = std::fs::read_dir(&self.out).with_context(|| format!("cannot read {out}"))?.count();
        output.result(&json!({ "out": self.out, "pages": pages }), || format!("wrote {pages} man pages to {out}"))?;
        Ok(ExitStatus::Success)
    }
}
