//! `digest`: the bytes of global batches, as BLAKE3.

use clap::Args;
use serde::Serialize;
use simclr_data::loader::LoaderOptions;
use simclr_data::quarantine::QuarantineEntry;
use simclr_ground::error::{Error, Result};
use simclr_ground::position::Share;

use super::Run;
use super::args::{ConfigArgs, FeedArgs};
use crate::open;
use crate::output::ExitStatus;
use crate::output::{Output, row};
use crate::telemetry::progress::Progress;

/// Print the BLAKE3 digest of each global batch (pixels, labels, IDs) and of the whole stream.
#[derive(Args)]
pub struct DigestArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// First global batch.
    #[arg(long, default_value_t = 0)]
    pub from_batch: u64,
    /// Number of batches.
    #[arg(long, default_value_t = 4)]
    pub batches: u64,
    /// Assemble each global batch from N ranks (digests do not change).
    #[arg(long, default_value_t = 1)]
    pub ranks: u32,
    #[command(flatten)]
    pub feed: FeedArgs,
}

/// What `--json` prints. It may cover hundreds of thousands of batches, so nothing is copied for it.
#[derive(Serialize)]
struct Report<'a> {
    batches: &'a [BatchDigest],
    digest: &'a str,
    plan_digest: &'a str,
    manifest_digest: &'a str,
    batches_per_epoch: u64,
    damaged: &'a [QuarantineEntry],
}

#[derive(Serialize)]
struct BatchDigest {
    batch: u64,
    #[serde(serialize_with = "in_hex")]
    digest: blake3::Hash,
}

fn in_hex<S: serde::Serializer>(digest: &blake3::Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&digest.to_hex())
}

impl Run for DigestArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let mut config = self.config.load()?;
        self.feed.apply(&mut config.machine.feed);
        let source = open::source(config.stream(), &config.machine)?;
        let runtime = open::runtime()?;
        let threads = if config.machine.threads == 0 { open::cores() } else { config.machine.threads };
        let to_batch = self.from_batch.checked_add(self.batches);
        let to_batch =
            to_batch.ok_or_else(|| Error::input("--from-batch plus --batches exceeds the largest batch number"))?;
        let (from_batch, to_batch) = (self.from_batch, Some(to_batch));
        let rank = |rank| {
            let options = LoaderOptions { threads, from_batch, to_batch, share: Share { rank, world: self.ranks } };
            let slabs = open::plain_slabs(&source.plan, &config.machine, options.share)?;
            open::batches(&source, slabs, &config.machine, options, runtime.handle())
        };
        source.plan.check_share(Share { rank: 0, world: self.ranks })?;
        let mut ranks = (0..self.ranks).map(rank).collect::<Result<Vec<_>>>()?;
        let progress = Progress::new("digest", 0, self.batches, output.quiet || self.batches < 20);
        let (mut all, mut batches) = (blake3::Hasher::new(), Vec::new());
        loop {
            let shares =
                ranks.iter_mut().filter_map(|rank| rank.next_batch().transpose()).collect::<Result<Vec<_>, _>>()?;
            let Some(first) = shares.first() else { break };
            let digest = simclr_ground::batch::digest(&shares);
            all.update(digest.as_bytes());
            batches.push(BatchDigest { batch: first.position.batch, digest });
            progress.set(batches.len() as u64, self.batches, || "batches".into());
        }
        progress.finish();
        let digest = all.finalize().to_hex().to_string();
        let damaged = source.quarantine.entries();
        let plan = &source.plan;
        let report = Report {
            batches: &batches,
            digest: &digest,
            plan_digest: &plan.digest,
            manifest_digest: &plan.manifest_digest,
            batches_per_epoch: plan.batches_per_epoch(),
            damaged: &damaged,
        };
        output.result(&report, || {
            let line = |BatchDigest { batch, digest }: &BatchDigest| format!("{batch:>8}  {digest}\n");
            let mut text: String = batches.iter().map(line).collect();
            for entry in &damaged {
                let QuarantineEntry { entry, shard, reason, detail, .. } = entry;
                text += &(row(&format!("damaged: {entry} in {shard}: {reason}: {detail}")) + "\n");
            }
            text + &format!("{:>8}  {digest}\n{:>8}  {}", "all", "plan", plan.digest)
        })?;
        Ok(ExitStatus::Success)
    }
}
