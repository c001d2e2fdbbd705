//! What every kind of storage promises: the manifest's bytes, or an error that names the shard and the cause.

use object_store::ObjectStoreExt;

use super::servers::{copy_shards, s3, web, web_without_ranges};
use super::*;

/// Changes the bytes of a shard.
type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

/// A place for shards, as files that a test may change, and how a store finds them.
struct Backend<'a> {
    name: &'static str,
    base: String,
    connect: &'a dyn Fn(&Remote),
    /// Puts a set's shards there, the first changed by the function.
    put: &'a dyn Fn(&Set, Change<'_>),
    /// Takes the first shard away.
    take_away: &'a dyn Fn(&Set),
    ranges: bool,
}

fn fulfils(backend: &Backend<'_>) {
    let name = backend.name;
    for zstd in [None, Some(3)] {
        let set = Set::draw(50, 20, zstd);
        let wanted = quiet_digest(&set);
        let manifest = moved(&set, &backend.base);
        (backend.put)(&set, &|_| {});
        let cache = tempfile::tempdir().unwrap();
        let mut ways =
            vec![("held in memory", in_memory(1 << 30)), ("held in the cache", in_cache(cache.path(), 1 << 30))];
        if backend.ranges {
            ways.push(("read sample by sample", in_memory(0)));
        }
        for (way, options) in ways {
            let found = digest(&manifest, &options, backend.connect);
            assert_eq!(found.as_ref().ok(), Some(&wanted), "{name}, zstd {zstd:?}, {way}: {found:?}");
        }
        if !backend.ranges {
            let error = digest(&manifest, &in_memory(0), backend.connect).unwrap_err().to_string();
            assert!(!error.is_empty(), "what can't be held can't be read, {name}: {error}");
        }
        let refuses = |change: Change<'_>, wanted: &str| {
            (backend.put)(&set, change);
            for options in [in_memory(1 << 30), in_memory(if backend.ranges { 0 } else { 1 << 30 })] {
                let error = digest(&manifest, &options, backend.connect).expect_err(wanted).to_string();
                let names = error.contains(&set.manifest.shards[0].location);
                assert!(names && error.contains("does not match the manifest"), "{name}: {error}");
            }
        };
        refuses(&|bytes| bytes.iter_mut().skip(600).step_by(700).for_each(|byte| *byte ^= 1), "changed bytes");
        refuses(&|bytes| bytes.truncate(bytes.len() - 9), "another size");
        (backend.put)(&set, &|_| {});
        (backend.take_away)(&set);
        for options in [in_memory(1 << 30), in_memory(if backend.ranges { 0 } else { 1 << 30 })] {
            let error = digest(&manifest, &options, backend.connect).unwrap_err().to_string().to_lowercase();
            let names = error.contains(&set.manifest.shards[0].location);
            assert!(names && (error.contains("no such object") || error.contains("no such file")), "{name}: {error}");
        }
    }
}

fn files(root: &Path) -> (impl Fn(&Set, Change<'_>), impl Fn(&Set)) {
    let put = |set: &Set, change: Change<'_>| {
        let paths = copy_shards(&folder(set), root);
        let mut bytes = std::fs::read(&paths[0]).unwrap();
        change(&mut bytes);
        std::fs::write(&paths[0], bytes).unwrap();
    };
    let take_away = |set: &Set| std::fs::remove_file(root.join(&set.manifest.shards[0].location)).unwrap();
    (put, take_away)
}

#[test]
fn local_files() {
    let root = tempfile::tempdir().unwrap();
    let (put, take_away) = files(root.path());
    let base = root.path().display().to_string();
    fulfils(&Backend { name: "local", base, connect: &|_| {}, put: &put, take_away: &take_away, ranges: true });
}

#[test]
fn memory() {
    let store = Arc::new(object_store::memory::InMemory::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let put = |set: &Set, change: Change<'_>| {
        for (i, shard) in set.manifest.shards.iter().enumerate() {
            let mut bytes = std::fs::read(folder(set).join(&shard.location)).unwrap();
            if i == 0 {
                change(&mut bytes);
            }
            let path = object_store::path::Path::from(format!("set/{}", shard.location));
            runtime.block_on(store.put(&path, bytes.into())).unwrap();
        }
    };
    let take_away = |set: &Set| {
        let path = object_store::path::Path::from(format!("set/{}", set.manifest.shards[0].location));
        runtime.block_on(store.delete(&path)).unwrap();
    };
    let connect = |remote: &Remote| remote.register("memory://test", store.clone());
    let base = "memory://test/set".into();
    fulfils(&Backend { name: "memory", base, connect: &connect, put: &put, take_away: &take_away, ranges: true });
}

#[test]
fn web_server_with_ranges() {
    let root = tempfile::tempdir().unwrap();
    let (put, take_away) = files(root.path());
    let server = web(root.path());
    let base = server.endpoint();
    fulfils(&Backend { name: "web", base, connect: &|_| {}, put: &put, take_away: &take_away, ranges: true });
}

#[test]
fn web_server_without_ranges() {
    let root = tempfile::tempdir().unwrap();
    let (put, take_away) = files(root.path());
    let server = web_without_ranges(root.path());
    let base = server.endpoint();
    fulfils(&Backend { name: "web, whole", base, connect: &|_| {}, put: &put, take_away: &take_away, ranges: false });
}

#[test]
fn s3_compatible_server() {
    let root = tempfile::tempdir().unwrap();
    let set = root.path().join("bucket/set");
    let (put, take_away) = files(&set);
    std::fs::create_dir_all(root.path().join("bucket")).unwrap();
    let server = s3(root.path());
    let endpoint = server.endpoint();
    let connect = |remote: &Remote| {
        remote.register("s3://bucket", crate::objects::remote::test_bucket(&endpoint, "bucket", "secret"))
    };
    let base = "s3://bucket/set".into();
    fulfils(&Backend { name: "s3", base, connect: &connect, put: &put, take_away: &take_away, ranges: true });
}
