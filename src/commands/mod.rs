//! One module for each verb of the command line.

mod bench;
mod digest;
mod doctor;
#[cfg(feature = "trainer")]
mod embed;
#[cfg(feature = "trainer")]
mod eval;
#[cfg(feature = "trainer")]
mod export;
#[cfg(feature = "trainer")]
mod import;
mod manifest;
mod pack;
mod preview;
mod serve;
#[cfg(feature = "trainer")]
mod quickstart;
#[cfg(feature = "trainer")]
mod train;

use crate::Ending;
use crate::cli::{Cli, Command};

/// How a command speaks.
#[derive(Debug, Clone, Copy)]
pub struct Voice {
    /// One JSON object on stdout instead of text.
    pub json: bool,
    /// No progress.
    pub quiet: bool,
}

impl Voice {
    /// Prints a command's result: the object, or the text.
    pub fn result(self, object: &impl serde::Serialize, text: impl FnOnce() -> String) {
        use std::io::Write;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        // A reader that has gone away is no failure of ours.
        let _ = match self.json {
            true => serde_json::to_writer(&mut out, object).map_err(Into::into).and_then(|()| writeln!(out)),
            false => writeln!(out, "{}", text()),
        };
        let _ = out.flush();
    }
}

/// Does what the command line asks for.
///
/// # Errors
/// Whatever the command failed with; the exit code follows from it.
pub fn run(cli: Cli) -> anyhow::Result<Ending> {
    let voice = Voice { json: cli.json, quiet: cli.quiet };
    match cli.command {
        Command::Pack(args) => pack::run(&args, voice),
        Command::Manifest(command) => manifest::run(&command, voice),
        Command::Preview(args) => preview::run(&args, voice),
        Command::Digest(args) => digest::run(&args, voice),
        Command::Bench(args) => bench::run(&args, voice),
        Command::Doctor(args) => doctor::run(&args, voice),
        Command::Serve(args) => serve::run(&args, voice),
        #[cfg(feature = "trainer")]
        Command::Quickstart(args) => quickstart::run(&args, voice),
        #[cfg(feature = "trainer")]
        Command::Train(args) => train::run(&args, voice),
        #[cfg(feature = "trainer")]
        Command::Eval(command) => eval::run(&command, voice),
        #[cfg(feature = "trainer")]
        Command::Embed(args) => embed::run(&args, voice),
        #[cfg(feature = "trainer")]
        Command::Export(args) => export::run(&args, voice),
        #[cfg(feature = "trainer")]
        Command::Import(args) => import::run(&args, voice),
        #[cfg(feature = "trainer")]
        Command::Report(args) => {
            let out = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
            let folder = crate::run::RunFolder::open(&args.run)?;
            crate::report::write(&folder, args.embedding.as_deref(), &out)?;
            if let Some(csv) = &args.csv {
                crate::report::write_table(&folder, csv)?;
            }
            voice.result(&serde_json::json!({ "out": out, "csv": args.csv }), || out.display().to_string());
            Ok(Ending::Done)
        }
    }
}
