//! `digest`: the bytes of global batches, as BLAKE3.

use pipeline::loader::LoaderOptions;
use pipeline::plan::Share;
use serde_json::json;

use super::Voice;
use crate::cli::DigestArgs;
use crate::progress::Progress;
use crate::{Ending, WrongInput, stream};

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
        batches.push((first.position.batch, digest.to_hex().to_string()));
        progress.set(batches.len() as u64, args.batches, || "batches".into());
    }
    progress.finish();
    let digest = all.finalize().to_hex().to_string();
    let list: Vec<_> = batches.iter().map(|(batch, digest)| json!({ "batch": batch, "digest": digest })).collect();
    let damaged = source.quarantine.entries();
    let plan = &source.plan;
    let object = json!({
        "batches": list, "digest": digest, "plan_digest": plan.digest, "manifest_digest": plan.manifest_digest,
        "batches_per_epoch": plan.batches_per_epoch(), "damaged": damaged,
    });
    voice.result(&object, || {
        let mut text: String = batches.iter().map(|(batch, digest)| format!("{batch:>8}  {digest}\n")).collect();
        for entry in &damaged {
            text += &format!("damaged: {} in {}: {}: {}\n", entry.entry, entry.shard, entry.reason, entry.detail);
        }
        text + &format!("{:>8}  {digest}\n{:>8}  {}", "all", "plan", plan.digest)
    });
    Ok(Ending::Done)
}
