//! `report`: a run as one HTML file, and its logged steps as a table.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use simclr_ground::error::Result;
use simclr_trainer::run::RunFolder;

use super::embed::EMBEDDING;
use super::runs;
use crate::commands::Run;
use crate::output::{ExitStatus, Output, check_replaceable};
use crate::report;

/// Write a run's report: one HTML file with curves, settings and evaluations.
#[derive(Args)]
pub struct ReportArgs {
    /// Run directory [default: the latest runs/train-N].
    #[arg(long = "run-dir", visible_alias = "run", value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// HTML file to write [default: report.html in the run directory].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Embeddings written by `embed`; adds maps of them and images with their nearest neighbors to the report
    /// [default: embedding.parquet in the run directory, if it is there].
    #[arg(long, value_name = "PARQUET")]
    pub embedding: Option<PathBuf>,
    /// Also write the logged steps as a CSV table.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

impl Run for ReportArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let run = self.run.clone().map_or_else(runs::latest, Ok)?;
        let out = self.out.clone().unwrap_or_else(|| run.join("report.html"));
        let folder = RunFolder::open(&run)?;
        let embedding = self.embedding.clone().or_else(|| Some(run.join(EMBEDDING)).filter(|path| path.is_file()));
        check_replaceable("--out", &out, "a report", |file| file.starts("<!") && file.contains("simclr-pipeline"))?;
        if let Some(csv) = &self.csv {
            check_replaceable("--csv", csv, "a table of steps", |file| file.starts("step,batch,"))?;
        }
        report::write(&folder, embedding.as_deref(), &out)?;
        if let Some(csv) = &self.csv {
            report::write_table(&folder, csv)?;
        }
        output.result(&json!({ "out": out, "csv": self.csv }), || out.display().to_string())?;
        Ok(ExitStatus::Success)
    }
}
