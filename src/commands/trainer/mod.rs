//! The verbs that train or use what was trained. A new one is a file here and a row below.

mod embed;
mod eval;
mod export;
mod import;
mod model;
mod quickstart;
mod report;
pub mod runs;
mod train;

use super::verbs;

verbs! {
    /// The verbs that need the trainer.
    TrainerCommand {
        Quickstart(quickstart::QuickstartArgs),
        Train(train::TrainArgs),
        #[command(subcommand)]
        Eval(eval::EvalCommand),
        Embed(embed::EmbedArgs),
        Export(export::ExportArgs),
        Import(import::ImportArgs),
        Report(report::ReportArgs),
    }
}
