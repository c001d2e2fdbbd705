//! The laws of the stream, on small sets of drawn pictures.

use super::*;
use crate::manifest::Manifest;
use crate::plan::StreamConfig;
use crate::test_pictures::{Set, stream};

fn source(manifest: &Manifest, config: StreamConfig) -> Arc<Source> {
    let metrics = PipelineMetrics::register();
    let plan = Plan::new(manifest, config).unwrap();
    let allowed = (plan.config.data.max_damaged * plan.num_samples() as f64) as u64;
    let store = Store::new(Arc::new(manifest.clone()), 1 << 30, metrics.clone());
    let quarantine = Quarantine::new(allowed, metrics.clone());
    Arc::new(Source { plan, store, quarantine, metrics })
}

type Seen = (Vec<u8>, Vec<i64>, Vec<u64>, Vec<usize>);

/// The batches from `from` up to before `to`, and the error that ended the stream.
fn run(source: &Arc<Source>, threads: usize, slabs: usize, from: u64, to: u64) -> (Vec<Seen>, Option<LoadError>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let slabs = vec![vec![0; slab_bytes(&source.plan)]; slabs];
    let options = LoaderOptions { threads, from_batch: from, to_batch: Some(to) };
    let mut loader = match Loader::start(source.clone(), slabs, options, runtime.handle()) {
        Ok(loader) => loader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut seen = Vec::new();
    loop {
        match loader.next_batch() {
            Ok(Some(batch)) => {
                assert_eq!(batch.position.batch, from + seen.len() as u64, "batches come in order");
                seen.push((
                    batch.pixels().to_vec(),
                    batch.labels.clone(),
                    batch.sample_ids.clone(),
                    batch.replaced.clone(),
                ));
            }
            Ok(None) => return (seen, None),
            Err(error) => return (seen, Some(error)),
        }
    }
}

fn all(source: &Arc<Source>, threads: usize, slabs: usize, from: u64, to: u64) -> Vec<Seen> {
    let (seen, error) = run(source, threads, slabs, from, to);
    assert!(error.is_none(), "{error:?}");
    seen
}

#[test]
fn a_batch_is_a_value() {
    let set = Set::draw(90, 20, None);
    let base = all(&source(&set.manifest, stream(1, 12, 4)), 1, 1, 0, 16);
    for (threads, slabs) in [(2, 2), (8, 5)] {
        assert!(
            base == all(&source(&set.manifest, stream(1, 12, 4)), threads, slabs, 0, 16),
            "{threads} threads, {slabs} slabs"
        );
    }
    assert!(base != all(&source(&set.manifest, stream(2, 12, 4)), 1, 1, 0, 16), "another seed");
}

#[test]
fn seek_is_arithmetic() {
    let set = Set::draw(50, 20, None);
    let source = source(&set.manifest, stream(1, 12, 4));
    let base = all(&source, 2, 3, 0, 10);
    for from in 0..10 {
        assert!(base[from as usize..] == all(&source, 2, 3, from, 10), "from batch {from}");
    }
}

#[test]
fn plain_and_zstd_shards_give_the_same_batches() {
    let plain = Set::draw(60, 20, None);
    let zstd = Set::draw(60, 20, Some(3));
    assert!(plain.manifest.shards.len() > 2);
    let (plain, zstd) = (source(&plain.manifest, stream(1, 12, 4)), source(&zstd.manifest, stream(1, 12, 4)));
    assert_eq!(plain.plan.digest, zstd.plan.digest);
    assert!(all(&plain, 2, 2, 0, 7) == all(&zstd, 2, 2, 0, 7));
}

#[test]
fn an_epoch_holds_every_sample_once() {
    let set = Set::draw(60, 16, None);
    let source = source(&set.manifest, stream(1, 8, 4));
    assert_eq!((source.plan.batches_per_epoch(), source.plan.dropped_per_epoch()), (7, 4));
    for epoch in 0..3 {
        let mut ids: Vec<u64> =
            all(&source, 2, 2, epoch * 7, epoch * 7 + 7).into_iter().flat_map(|batch| batch.2).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 56, "epoch {epoch}");
    }
}

#[test]
fn a_sequential_stream_keeps_the_last_short_batch() {
    let set = Set::draw(21, 16, None);
    let mut config = stream(1, 8, 4);
    config.traversal = Traversal::Sequential;
    let seen = all(&source(&set.manifest, config), 2, 2, 0, 99);
    assert_eq!(seen.iter().map(|batch| batch.1.len()).collect::<Vec<_>>(), [8, 8, 5]);
    assert_eq!(seen.into_iter().flat_map(|batch| batch.2).collect::<Vec<_>>(), (0..21).collect::<Vec<_>>());
}

#[test]
fn a_damaged_sample_is_replaced_by_the_next_and_recorded() {
    let set = Set::draw_with(40, 16, None, |i, bytes| {
        if i % 10 == 3 {
            bytes.truncate(60)
        }
    });
    let mut config = stream(1, 8, 4);
    config.data.max_damaged = 0.1;
    let quiet = source(&set.manifest, config.clone());
    let seen = all(&quiet, 1, 1, 0, 5);
    assert_eq!(quiet.quarantine.entries().len(), 4);
    assert!(quiet.quarantine.entries().iter().all(|entry| entry.reason == "truncated" && !entry.entry.is_empty()));
    assert_eq!(seen.iter().map(|batch| batch.3.len()).sum::<usize>(), 4);
    let damaged: Vec<u64> = quiet.quarantine.entries().iter().map(|entry| entry.sample).collect();
    let used: Vec<u64> = seen.iter().flat_map(|batch| batch.2.clone()).collect();
    assert!(damaged.iter().all(|id| !used.contains(id)));
    assert!(seen == all(&source(&set.manifest, config.clone()), 8, 3, 0, 5), "the rule depends on the data alone");
    config.data.max_damaged = 0.05;
    let (_, error) = run(&source(&set.manifest, config), 2, 2, 0, 5);
    let message = error.expect("the budget of 2 is spent").to_string();
    assert!(message.contains("more than the 2 that") && message.contains("truncated"), "{message}");
}

#[test]
fn a_shard_that_changed_stops_the_stream_and_is_named() {
    let set = Set::draw(40, 16, None);
    let path = set.manifest.shard_path(0);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = set.manifest.shards[0].offsets[2] as usize + 9;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (_, error) = run(&source(&set.manifest, stream(1, 8, 4)), 2, 2, 0, 5);
    let message = error.unwrap().to_string();
    assert!(message.contains(&set.manifest.shards[0].entries[2]) && message.contains("XXH3"), "{message}");
    std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
    let (_, error) = run(&source(&set.manifest, stream(1, 8, 4)), 2, 2, 0, 5);
    assert!(error.unwrap().to_string().contains("expected"));
}

#[test]
fn zstd_shards_that_do_not_fit_are_an_error_before_anything_is_read() {
    let set = Set::draw(40, 16, Some(1));
    let metrics = PipelineMetrics::register();
    let plan = Plan::new(&set.manifest, stream(1, 8, 4)).unwrap();
    let store = Store::new(Arc::new(set.manifest.clone()), 1000, metrics.clone());
    let quarantine = Quarantine::new(0, metrics.clone());
    let (_, error) = run(&Arc::new(Source { plan, store, quarantine, metrics }), 1, 1, 0, 1);
    assert!(error.unwrap().to_string().contains("machine.memory_bytes = 1000"));
}

#[test]
fn a_slow_consumer_stops_the_producer() {
    let set = Set::draw(60, 16, None);
    let source = source(&set.manifest, stream(1, 4, 4));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let slabs = vec![vec![0; slab_bytes(&source.plan)]; 2];
    let options = LoaderOptions { threads: 2, from_batch: 0, to_batch: None };
    let mut loader = Loader::start(source.clone(), slabs, options, runtime.handle()).unwrap();
    let first = loader.next_batch().unwrap().unwrap();
    let second = loader.next_batch().unwrap().unwrap();
    // Both slabs are out: nothing more can be read, however long the wait.
    let read = source.metrics.busy_seconds(Stage::Read);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(read, source.metrics.busy_seconds(Stage::Read));
    drop((first, second));
    assert_eq!(loader.next_batch().unwrap().unwrap().position.batch, 2);
}
