//! `digest`: the bytes of global batches, as BLAKE3.

use pipeline::loader::LoaderOptions;
use pipeline::plan::Share;
use pipeline::quarantine::QuarantineEntry;
use serde::Serialize;

use super::Voice;
use crate::cli::DigestArgs;
use crate::progress::Progress;
use crate::{Ending, WrongInput, stream};

/// What `--json` tells. Runs over hundreds of thousands of batches are told too, so they are not copied for it.
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

pub fn run(args: &DigestArgs, voice: Voice) -> anyhow::Result<Ending> {
    let mut config = args.config.load()?;
    args.feed.apply(&mut config.machine.feed);
    let source = stream::open(config.stream(), &config.machine)?;
    let runtime = stream::runtime()?;
    let threads = if config.machine.threads == 0 { stream::cores() } else { config.machine.threads };
    let to_batch = args.from_batch.checked_add(args.batches);
    let to_batch =
        to_batch.ok_or_else(|| WrongInput("--from-batch and --batches reach beyond the last number".into()))?;
    let (from_batch, to_batch) = (args.from_batch, Some(to_batch));
    let rank = |rank| {
        let options = LoaderOptions { threads, from_batch, to_batch, share: Share { rank, world: args.ranks } };
        let slabs = stream::plain_slabs(&source.plan, &config.machine, options.share);
        stream::feed(&source, slabs, &config.machine, options, runtime.handle())
    };
    source.plan.check_share(Share { rank: 0, world: args.ranks })?;
    let mut ranks = (0..args.ranks).map(rank).collect::<anyhow::Result<Vec<_>>>()?;
    let progress = Progress::new("digest", 0, args.batches, voice.quiet || args.batches < 20);
    let (mut all, mut batches) = (blake3::Hasher::new(), Vec::new());
    loop {
        let shares =
            ranks.iter_mut().filter_map(|rank| rank.next_batch().transpose()).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = shares.first() else { break };
        let digest = pipeline::batch::digest(&shares);
        all.update(digest.as_bytes());
        batches.push(BatchDigest { batch: first.position.batch, digest });
        progress.set(batches.len() as u64, args.batches, || "batches".into());
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
    voice.result(&report, || {
        let line = |BatchDigest { batch, digest }: &BatchDigest| format!("{batch:>8}  {digest}\n");
        let mut text: String = batches.iter().map(line).collect();
        for entry in &damaged {
            text += &format!("damaged: {} in {}: {}: {}\n", entry.entry, entry.shard, entry.reason, entry.detail);
        }
        text + &format!("{:>8}  {digest}\n{:>8}  {}", "all", "plan", plan.digest)
    });
    Ok(Ending::Done)
}
