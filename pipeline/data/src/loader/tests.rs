//! The laws of the stream, on small sets of drawn images.

use simclr_ground::location::Location;
use simclr_image::decode::jpeg::RowIndex;
use simclr_plan::Plan;
use simclr_plan::StreamConfig;

use super::*;
use crate::manifest::Manifest;
use crate::metrics::PipelineMetrics;
use crate::metrics::Stage;
use crate::quarantine::Quarantine;
use crate::store::Store;
use crate::store::StoreOptions;
use crate::testing::{Set, stream};

fn in_memory(memory_bytes: u64) -> StoreOptions {
    StoreOptions { memory_bytes, ..StoreOptions::default() }
}

fn source(manifest: &Manifest, config: StreamConfig) -> Arc<Source> {
    let metrics = PipelineMetrics::register();
    let plan = Plan::new(manifest, config).unwrap();
    let allowed = (plan.config.data.max_damaged * plan.num_samples() as f64) as u64;
    let store = Store::new(Arc::new(manifest.clone()), &in_memory(1 << 30), metrics.clone()).unwrap();
    let quarantine = Quarantine::new(allowed, metrics.clone());
    Arc::new(Source::of(plan, store, quarantine, metrics))
}

/// The batch that the feeder of a test is not up to.
pub const FAULT: u64 = 777;

type Seen = (Vec<u8>, Vec<i64>, Vec<u64>, Vec<usize>);

/// The batches from `from` up to before `to`, and the error that ended the stream.
fn run(source: &Arc<Source>, threads: usize, slabs: usize, from: u64, to: u64) -> (Vec<Seen>, Option<LoadError>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let slabs = vec![vec![0; source.plan.slab_bytes(Share::ALL)]; slabs];
    let options = LoaderOptions { threads, from_batch: from, to_batch: Some(to), share: Share::ALL };
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
    assert!(message.contains("> 2 (data.max_damaged)") && message.contains("truncated"), "{message}");
}

#[test]
fn bounded_a_forged_row_index_changes_no_batch() {
    let set = Set::draw_jpegs(40, 96);
    let mut plain = set.manifest.clone();
    plain.shards.iter_mut().for_each(|shard| shard.rows = None);
    let mut forged = set.manifest.clone();
    for rows in forged.shards.iter_mut().filter_map(|shard| shard.rows.as_mut()) {
        assert!(rows.iter().all(|row| !row.is_empty()));
        rows.rotate_left(1);
        // A single image's, with every part of it brighter.
        let mut index = RowIndex::from_text(&rows[0]).unwrap();
        index.starts.iter_mut().for_each(|start| start.predictions[0] += 9);
        rows[0] = index.to_text();
    }
    // Three epochs, so that an index that was found right is used.
    let wanted = all(&source(&plain, stream(1, 8, 4)), 2, 2, 0, 15);
    assert!(wanted == all(&source(&set.manifest, stream(1, 8, 4)), 2, 2, 0, 15), "an index changes no batch");
    assert!(wanted == all(&source(&forged, stream(1, 8, 4)), 2, 2, 0, 15), "nor does a forged one");
}

#[test]
fn a_shard_that_changed_stops_the_stream_and_is_named() {
    let set = Set::draw(40, 16, None);
    let Location::File(path) = set.manifest.shard_place(0) else { panic!("a local set") };
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
fn zstd_shards_that_do_not_fit_are_read_frame_by_frame_or_an_error_before_anything_is_read() {
    let set = Set::draw(40, 16, Some(1));
    let wanted = all(&source(&set.manifest, stream(1, 8, 4)), 1, 1, 0, 5);
    let with_little_memory = |manifest: &Manifest| {
        let metrics = PipelineMetrics::register();
        let plan = Plan::new(manifest, stream(1, 8, 4)).unwrap();
        let store = Store::new(Arc::new(manifest.clone()), &in_memory(1000), metrics.clone()).unwrap();
        let quarantine = Quarantine::new(0, metrics.clone());
        Arc::new(Source::of(plan, store, quarantine, metrics))
    };
    assert!(wanted == all(&with_little_memory(&set.manifest), 2, 2, 0, 5));
    let mut without_table = set.manifest.clone();
    without_table.shards.iter_mut().for_each(|shard| shard.frames = None);
    let (_, error) = run(&with_little_memory(&without_table), 1, 1, 0, 1);
    assert!(error.unwrap().to_string().contains("machine.memory_bytes is 1000"));
}

#[test]
fn the_shares_of_all_ranks_are_the_global_batch() {
    let set = Set::draw(70, 16, None);
    let source = source(&set.manifest, stream(1, 16, 8));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let views = |share: Share| {
        let slabs = vec![vec![0; source.plan.slab_bytes(share)]; 2];
        let options = LoaderOptions { threads: 2, from_batch: 0, to_batch: Some(6), share };
        let mut loader = Loader::start(source.clone(), slabs, options, runtime.handle()).unwrap();
        let mut seen = Vec::new();
        while let Some(batch) = loader.next_batch().unwrap() {
            let images = 0..batch.num_images;
            let pixels = |i: usize| [0, 1].map(|view| batch.view(i, view).to_vec());
            seen.push(images.map(|i| (batch.sample_ids[i], batch.labels[i], pixels(i))).collect::<Vec<_>>());
        }
        seen
    };
    let global = views(Share::ALL);
    for world in [2, 4, 8] {
        let ranks: Vec<_> = (0..world).map(|rank| views(Share { rank, world })).collect();
        for (g, batch) in global.iter().enumerate() {
            let together: Vec<_> = ranks.iter().flat_map(|rank| rank[g].clone()).collect();
            assert!(*batch == together, "batch {g} of {world} ranks");
        }
    }
    assert!(source.plan.check_share(Share { rank: 0, world: 3 }).unwrap_err().to_string().contains("multiple"));
}

#[test]
fn a_selection_is_streamed_and_named_by_the_plan() {
    let set = Set::draw(60, 16, None);
    let plain = source(&set.manifest, stream(1, 6, 2));
    let mut config = stream(1, 6, 2);
    config.data.classes = vec![set.manifest.classes[3].clone(), "7".into()];
    let classes = source(&set.manifest, config.clone());
    assert_eq!(classes.plan.num_samples(), 12);
    let seen = all(&classes, 2, 2, 0, 2);
    assert!(seen.iter().flat_map(|batch| &batch.1).all(|label| [3, 7].contains(label)));
    let mut ids: Vec<u64> = seen.iter().flat_map(|batch| batch.2.clone()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 12);
    let folder = tempfile::tempdir().unwrap();
    config.data = stream(1, 6, 2).data;
    config.data.subset = folder.path().join("10percent.txt");
    let write = |names: &[&str]| std::fs::write(folder.path().join("10percent.txt"), names.join("\n")).unwrap();
    let entries: Vec<&str> =
        set.manifest.shards.iter().flat_map(|shard| shard.entries.iter().map(String::as_str)).collect();
    write(&entries[10..16]);
    let subset = source(&set.manifest, config.clone());
    let mut ids = all(&subset, 2, 2, 0, 1)[0].2.clone();
    ids.sort_unstable();
    assert_eq!(ids, (10..16).collect::<Vec<_>>());
    // Other extensions, and folders left out, are the same names: lists name the original files.
    let renamed: Vec<String> = entries[10..16]
        .iter()
        .map(|name| format!("{}.JPEG", name.rsplit('/').next().unwrap().trim_end_matches(".png")))
        .collect();
    write(&renamed.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(source(&set.manifest, config.clone()).plan.digest, subset.plan.digest);
    let digests = [&plain, &classes, &subset].map(|source| source.plan.digest.clone());
    assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
    let refused = |config: &StreamConfig, wanted: &str| {
        let message = Plan::new(&set.manifest, config.clone()).unwrap_err().to_string();
        assert!(message.contains(wanted), "{message}");
    };
    write(&[entries[0], "n00000000_1.JPEG"]);
    refused(&config, "1 of 2 names, such as n00000000_1.JPEG");
    config.data.subset = "".into();
    config.data.classes = vec!["unicorn".into()];
    refused(&config, "invalid value unicorn for data.classes");
}

#[test]
fn parts_hold_the_same_share_of_each_class_and_do_not_overlap() {
    let set = Set::draw(200, 16, None);
    let part = |seed, part| {
        let mut config = stream(seed, 10, 2);
        config.data.part = part;
        let source = source(&set.manifest, config);
        let batches = all(&source, 2, 2, 0, source.plan.num_samples() / 10);
        let labels: Vec<i64> = batches.iter().flat_map(|batch| batch.1.clone()).collect();
        let mut ids: Vec<u64> = batches.iter().flat_map(|batch| batch.2.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), labels.len());
        let of_class = |class| labels.iter().filter(|&&label| label == class).count();
        (ids, (0..10).map(of_class).collect::<Vec<_>>())
    };
    let (first, in_first) = part(1, [0.0, 0.25]);
    let (rest, in_rest) = part(1, [0.25, 1.0]);
    assert_eq!((in_first, in_rest), (vec![5; 10], vec![15; 10]));
    let mut together = [first.clone(), rest].concat();
    together.sort_unstable();
    assert_eq!(together, (0..200).collect::<Vec<_>>());
    assert_ne!(part(2, [0.0, 0.25]).0, first, "the seed chooses");
    // However small the parts, those that meet share no sample and leave none out.
    let parts = [[0.0, 0.33], [0.33, 0.99], [0.99, 1.0]].map(|part| {
        let mut config = stream(1, 10, 2);
        config.data.part = part;
        Plan::new(&set.manifest, config).map_or(0, |plan| plan.num_samples())
    });
    assert_eq!(parts, [70, 130, 0]);
    let mut config = stream(1, 10, 2);
    config.data.part = [0.0, 0.001];
    let message = Plan::new(&set.manifest, config).unwrap_err().to_string();
    assert!(message.contains("it has no sample, as its classes are small"), "{message}");
    for wrong in [[0.5, 0.5], [-0.1, 0.5], [0.2, 1.5], [f64::NAN, 1.0]] {
        let mut config = stream(1, 10, 2);
        config.data.part = wrong;
        let message = Plan::new(&set.manifest, config).unwrap_err().to_string();
        assert!(message.starts_with("invalid value [") && message.contains("data.part"), "{message}");
    }
}

#[test]
fn a_slow_consumer_stops_the_producer() {
    let set = Set::draw(60, 16, None);
    let source = source(&set.manifest, stream(1, 4, 4));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let slabs = vec![vec![0; source.plan.slab_bytes(Share::ALL)]; 2];
    let options = LoaderOptions { threads: 2, from_batch: 0, to_batch: None, share: Share::ALL };
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

/// An image with which a decoder does not cope is a damaged sample, and nothing else: its place is filled, the stream goes
/// on, and the worker that met it makes the same images of all others.
#[test]
fn a_decoder_that_panics_damages_its_sample_and_no_other() {
    let with = |bytes: &'static [u8]| {
        Set::draw_with(60, 16, None, move |i, image| {
            if i == 7 {
                *image = bytes.to_vec();
            }
        })
    };
    let (sets, mut config) = ([with(crate::workers::tests::FAULT), with(b"no picture at all")], stream(1, 12, 4));
    config.data.max_damaged = 0.05;
    let [faulty, damaged] = sets.each_ref().map(|set| source(&set.manifest, config.clone()));
    let seen = all(&faulty, 1, 2, 0, 10);
    assert_eq!(faulty.quarantine.entries().len(), 1);
    assert_eq!(faulty.quarantine.entries()[0].reason, "corrupt");
    let views = |batches: &[Seen]| {
        batches.iter().map(|batch| (batch.1.clone(), batch.2.clone(), batch.3.clone())).collect::<Vec<_>>()
    };
    assert!(
        views(&seen) == views(&all(&damaged, 1, 2, 0, 10)),
        "the damaged sample's place is filled by the same rule"
    );
    assert!(seen == all(&source(&sets[0].manifest, config.clone()), 4, 3, 0, 10), "whoever meets it");
}

/// The end of a stream is said. A feeder that dies before it leaves no complete stream behind, whatever it has promised.
#[test]
fn a_stream_whose_feeder_dies_has_not_ended() {
    let set = Set::draw(60, 16, None);
    let source = source(&set.manifest, stream(1, 12, 4));
    let (seen, error) = run(&source, 2, 2, FAULT - 3, FAULT + 3);
    assert!(seen.len() <= 3 && error.is_some(), "{} batches, and no word of what failed", seen.len());
    let (none, error) = run(&source, 2, 2, FAULT, FAULT + 3);
    assert!(none.is_empty() && matches!(error, Some(LoadError::NothingPromised)), "{error:?}");
    assert!(run(&source, 2, 2, FAULT - 3, FAULT).1.is_none());
}

/// Who waits for a batch can look up from time to time, and loses nothing by it.
#[test]
fn a_batch_that_is_not_there_yet_is_not_lost() {
    let set = Set::draw(60, 16, None);
    let source = source(&set.manifest, stream(1, 12, 4));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let slabs = vec![vec![0; source.plan.slab_bytes(Share::ALL)]; 1];
    let options = LoaderOptions { threads: 1, from_batch: 0, to_batch: Some(3), share: Share::ALL };
    let mut loader = Loader::start(source.clone(), slabs, options, runtime.handle()).unwrap();
    let first = loader.next_batch().unwrap().unwrap();
    // The only slab is out: there can be no other batch.
    for _ in 0..3 {
        assert!(matches!(loader.next_within(Duration::from_millis(1)), Ok(Next::NotYet)));
    }
    drop(first);
    let mut numbers = Vec::new();
    loop {
        match loader.next_within(Duration::from_micros(100)).unwrap() {
            Next::Batch(batch) => numbers.push(batch.position.batch),
            Next::NotYet => {}
            Next::End => break,
        }
    }
    assert_eq!(numbers, [1, 2]);
    assert!(matches!(loader.next_within(Duration::ZERO), Ok(Next::End)), "an end stays one");
}
