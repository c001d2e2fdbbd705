//! Faults: through all of them the stream is the quiet one's, or it stops and says which shard and why.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use simclr_ground::error::{Classify, ErrorClass};
use simclr_plan::Batches;

use super::servers::{Action, Proxy, Request, Server, copy_shards, s3};
use super::*;
use crate::objects::remote::test_bucket;

/// A set in a bucket of a real server, reached through a proxy that makes faults.
struct World {
    set: Set,
    root: tempfile::TempDir,
    _server: Server,
    proxy: Proxy,
}

impl World {
    fn new(action: impl Fn(&Request) -> Action + Send + Sync + 'static) -> Self {
        let (set, root) = (Set::draw(60, 20, None), tempfile::tempdir().unwrap());
        copy_shards(&folder(&set), &root.path().join("bucket/set"));
        let server = s3(root.path());
        let proxy = Proxy::start(&server, action);
        Self { set, root, _server: server, proxy }
    }

    fn digest(&self, options: &StoreOptions) -> Result<String, LoadError> {
        self.digest_with(options, &mut |_| {})
    }

    fn digest_with(&self, options: &StoreOptions, after: &mut dyn FnMut(u64)) -> Result<String, LoadError> {
        let endpoint = self.proxy.endpoint();
        let connect = |remote: &Remote| remote.register("s3://bucket", test_bucket(&endpoint, "bucket", "secret"));
        digest_with(&moved(&self.set, "s3://bucket/set"), options, &connect, after)
    }

    fn actions(&self) -> Vec<Action> {
        self.proxy.seen.lock().unwrap().iter().map(|(_, action)| *action).collect()
    }
}

/// Both ways of reading give the quiet digest, though `action` was met.
fn survives(action: Action, when: impl Fn(&Request) -> bool + Copy + Send + Sync + 'static) {
    for memory in [0, 1 << 30] {
        let world = World::new(move |request| if when(request) { action } else { Action::Pass });
        let found = world.digest(&in_memory(memory));
        assert_eq!(found.as_ref().ok(), Some(&quiet_digest(&world.set)), "{action:?}: {found:?}");
        assert!(world.actions().contains(&action), "the fault was made");
    }
}

#[test]
fn a_storm_of_503_passes() {
    survives(Action::Refuse(503, None), |request| request.number % 3 != 2);
}

#[test]
fn connections_that_break_are_made_again() {
    survives(Action::Reset, |request| request.number % 3 == 0);
}

#[test]
fn answers_cut_short_are_asked_for_again() {
    survives(Action::Truncate(100), |request| request.number % 3 == 0);
}

#[test]
fn wrong_bytes_are_noticed_and_asked_for_again() {
    // Twice for each object: oftener, the way there is taken to be broken for good.
    survives(Action::Flip, |request| [0, 3].contains(&request.attempt));
}

#[test]
fn a_stuck_request_gets_a_second_one() {
    survives(Action::Slow, |request| request.number % 5 == 2);
}

#[test]
fn retry_after_is_kept() {
    let world = World::new(|request| match request.number {
        0 => Action::Refuse(429, Some(1)),
        _ => Action::Pass,
    });
    let began = Instant::now();
    assert_eq!(world.digest(&in_memory(0)).unwrap(), quiet_digest(&world.set));
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[test]
fn patience_ends_with_the_whole_story() {
    let shard = "shard-000001.tar";
    let world = World::new(move |request| match request.object == shard {
        true if request.number % 2 == 0 => Action::Refuse(503, None),
        true => Action::Reset,
        false => Action::Pass,
    });
    let began = Instant::now();
    let error = world.digest(&in_memory(0)).unwrap_err().to_string();
    assert!(error.contains(shard) && error.contains("giving up after") && error.contains("× 503"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "nothing hangs");
}

#[test]
fn credentials_that_expire_stop_the_run_and_are_named() {
    let expired = Arc::new(AtomicBool::new(false));
    let seen = expired.clone();
    let refuse = move |_: &Request| if seen.load(Ordering::SeqCst) { Action::Refuse(403, None) } else { Action::Pass };
    let world = World::new(refuse);
    let error = world.digest_with(&in_memory(0), &mut |batch| expired.store(batch > 1, Ordering::SeqCst)).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("s3://bucket/set/shard-") && error.contains("credentials"), "{error}");
    assert!(error.contains("ExpiredToken"), "what the server says is told: {error}");
}

#[test]
fn a_shard_deleted_in_mid_epoch_stops_the_run_and_is_named() {
    let world = World::new(|_| Action::Pass);
    let path = world.root.path().join("bucket/set/shard-000002.tar");
    let mut delete = |batch| {
        if batch == 2 {
            std::fs::remove_file(&path).unwrap();
        }
    };
    let error = world.digest_with(&in_memory(0), &mut delete).unwrap_err().to_string();
    assert!(error.contains("shard-000002.tar") && error.contains("no such object"), "{error}");
    // Held in the cache before, it is not missed.
    let (world, cache) = (World::new(|_| Action::Pass), tempfile::tempdir().unwrap());
    let wanted = quiet_digest(&world.set);
    // The stream does not wait for shards that it can read in another way.
    let mut streams = 0;
    while held(cache.path()).len() < world.set.manifest.shards.len() {
        assert_eq!(world.digest(&in_cache(cache.path(), 1 << 30)).unwrap(), wanted);
        streams += 1;
        assert!(streams < 100, "{:?}", held(cache.path()));
    }
    std::fs::remove_dir_all(world.root.path().join("bucket/set")).unwrap();
    assert_eq!(world.digest(&in_cache(cache.path(), 1 << 30)).unwrap(), wanted);
}

#[test]
fn a_damaged_file_in_the_cache_is_fetched_again() {
    let (world, cache) = (World::new(|_| Action::Pass), tempfile::tempdir().unwrap());
    let options = in_cache(cache.path(), 1 << 30);
    let wanted = world.digest(&options).unwrap();
    let held = held(cache.path());
    assert!(!held.is_empty());
    for path in held {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.iter_mut().skip(700).step_by(900).for_each(|byte| *byte ^= 4);
        std::fs::write(path, bytes).unwrap();
    }
    assert_eq!(world.digest(&options).unwrap(), wanted);
}

/// The shards that the cache in a folder holds whole.
fn held(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(crate::store::cache::folder_in(folder)).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ending| ending == "tar")).collect()
}

/// A disk that is full, made of a file system of a few kilobytes.
#[test]
fn a_full_disk_under_the_cache_costs_speed_only() {
    let cache = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).output();
    let at = cache.path().display().to_string();
    let made = mount(&["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", &at]);
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("this machine lets us mount no small disk: a full one is not tried");
        return;
    }
    for zstd in [None, Some(1)] {
        let (set, root) = (Set::draw(120, 20, zstd), tempfile::tempdir().unwrap());
        copy_shards(&folder(&set), &root.path().join("bucket/set"));
        let server = s3(root.path());
        let endpoint = server.endpoint();
        let connect = |remote: &Remote| remote.register("s3://bucket", test_bucket(&endpoint, "bucket", "secret"));
        let mut manifest = moved(&set, "s3://bucket/set");
        manifest.shards.iter_mut().for_each(|shard| shard.frames = None);
        let found = digest(&manifest, &in_cache(cache.path(), 1 << 30), &connect);
        let wanted = quiet_digest(&set);
        assert_eq!(found.as_ref().ok(), Some(&wanted), "{found:?}");
    }
    mount(&["umount", &at]).unwrap();
}

#[test]
fn ranks_together_read_the_set_about_once() {
    let set = Set::draw(400, 20, None);
    let root = tempfile::tempdir().unwrap();
    copy_shards(&folder(&set), &root.path().join("bucket/set"));
    let server = s3(root.path());
    let all: u64 = set.manifest.shards.iter().map(|shard| shard.bytes).sum();
    let mut table = Vec::new();
    for world in [1, 2, 4] {
        let proxy = Proxy::start(&server, |_| Action::Pass);
        for rank in 0..world {
            let metrics = PipelineMetrics::register();
            let plan = Plan::new(&set.manifest, stream(1, 8, 4)).unwrap();
            let manifest = moved(&set, "s3://bucket/set");
            let store = Store::new(Arc::new(manifest), &in_memory(1 << 30), metrics.clone()).unwrap();
            store.remote().register("s3://bucket", test_bucket(&proxy.endpoint(), "bucket", "secret"));
            let share = Share { rank, world };
            store.prepare(plan.open_shards(share), &plan.shard_sizes).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let mut batches = Batches::new(&plan, share);
            for g in 0..plan.batches_per_epoch() {
                // As the loader does when it has seen to it that the shards are held.
                let (now, _) = batches.shards_around(g);
                runtime.block_on(async {
                    for shard in now {
                        store.holder.hold(shard).await.unwrap();
                    }
                });
                store.read(&batches.samples(g), runtime.handle()).unwrap();
            }
        }
        table.push((world, proxy.bytes.load(Ordering::Relaxed) as f64 / all as f64));
    }
    println!("ranks and read amplification: {table:?}; {} shards", set.manifest.shards.len());
    assert!(table.iter().all(|(_, times)| *times <= 1.1), "a cut through a shard is all that is read twice: {table:?}");
}

/// A server that never was there is a wrong address, however patient a run is with servers that fail.
#[test]
fn a_wrong_address_is_told_apart_from_an_outage() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let patient = RemoteOptions { give_up_after: Duration::from_secs(86_400), ..IMPATIENT };
    let remote = Remote::new(patient, PipelineMetrics::register());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = url::Url::parse(&format!("http://{}/manifest.json", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    let error = runtime.block_on(remote.read(&url)).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{message}");
    assert!(message.contains("127.0.0.1") && message.contains("refused") && message.contains("the port"), "{message}");
    assert_eq!(error.class(), ErrorClass::Input);
    // One that has answered before, if only that it has no such object, has failed: that may pass.
    let folder = tempfile::tempdir().unwrap();
    let server = servers::web(folder.path());
    let remote = Remote::new(IMPATIENT, PipelineMetrics::register());
    let url = url::Url::parse(&format!("{}/manifest.json", server.endpoint())).unwrap();
    assert!(matches!(runtime.block_on(remote.read(&url)).unwrap_err(), FetchError::NotFound(_)));
    drop(server);
    let error = runtime.block_on(remote.read(&url)).unwrap_err();
    assert!(matches!(error, FetchError::GaveUp { .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Runtime);
}

/// What a server sends without end is not taken without end.
#[test]
fn bounded_a_body_without_end_is_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = url::Url::parse(&format!("http://{}/manifest.json", listener.local_addr().unwrap())).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request);
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLast-Modified: Thu, 01 Oct 2026 00:00:00 GMT\r\nContent-Length: 1000000000000\r\n\r\n";
                let _ = stream.write_all(head.as_bytes());
                while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
            });
        }
    });
    let remote = Remote::new(RemoteOptions { whole_bytes: 1 << 20, ..IMPATIENT }, PipelineMetrics::register());
    let error = runtime.block_on(remote.read(&url)).unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { most: 1_048_576 }), "{error}");
    assert_eq!(error.class(), ErrorClass::Input);
}
