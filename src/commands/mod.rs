//! The verbs of the command line. A new one is a file here, with its arguments and what it does, and a row below.

pub mod args;
mod bench;
pub mod cli;
mod completions;
mod config;
mod digest;
mod doctor;
mod manifest;
mod pack;
mod preview;
mod serve;
mod version;
#[cfg(feature = "trainer")]
mod trainer;

use clap::Subcommand;
use simclr_ground::error::Result;

use crate::output::ExitStatus;
use crate::output::Output;

/// What a verb's arguments ask for.
pub trait Run {
    /// Does it.
    ///
    /// # Errors
    /// Whatever it failed with; the exit code follows from the error's class.
    fn run(&self, output: Output) -> Result<ExitStatus>;
}

/// Makes the subcommands of a row each, and runs the one that is asked for.
macro_rules! verbs {
    ($(#[$meta:meta])* $name:ident { $($(#[$attribute:meta])* $verb:ident($arguments:ty),)* }) => {
        $(#[$meta])*
        #[derive(clap::Subcommand)]
        #[allow(missing_docs, clippy::large_enum_variant)]
        pub enum $name {
            $($(#[$attribute])* $verb($arguments),)*
        }

        impl $crate::commands::Run for $name {
            fn run(&self, output: $crate::output::Output) -> simclr_ground::error::Result<$crate::output::ExitStatus> {
                match self {
                    $(Self::$verb(arguments) => arguments.run(output),)*
                }
            }
        }
    };
}
pub(crate) use verbs;

verbs! {
    /// The verbs that need no trainer.
    DataCommand {
        Pack(pack::PackArgs),
        #[command(subcommand)]
        Manifest(manifest::ManifestCommand),
        Preview(preview::PreviewArgs),
        Digest(digest::DigestArgs),
        Bench(bench::BenchArgs),
        Doctor(doctor::DoctorArgs),
        Serve(serve::ServeArgs),
        #[command(subcommand)]
        Config(config::ConfigCommand),
        Completions(completions::CompletionsArgs),
        Man(completions::ManArgs),
        Version(version::VersionArgs),
    }
}

/// All verbs.
#[derive(Subcommand)]
#[allow(missing_docs, clippy::large_enum_variant)]
pub enum Command {
    #[command(flatten)]
    Data(DataCommand),
    #[cfg(feature = "trainer")]
    #[command(flatten)]
    Trainer(trainer::TrainerCommand),
}

impl Run for Command {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        match self {
            Self::Data(command) => command.run(output),
            #[cfg(feature = "trainer")]
            Self::Trainer(command) => command.run(output),
        }
    }
}
