//! Where data comes from: other tools' indexes, the official archives, buckets; and what is left out of it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::world::World;

/// A tar of these files.
fn tar_of(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &data[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn the_official_archives_pack_as_their_folders_do() {
    let world = World::new();
    world.draw("pictures", 0, 40);
    let folders = world.done(&["pack", "pictures", "--out", "folders", "--shard-bytes", "60000"]);
    let class = |entry: std::fs::DirEntry| {
        (format!("{}.tar", entry.file_name().to_str().unwrap()), tar_of(&files(&entry.path())))
    };
    let classes: Vec<_> = std::fs::read_dir(world.at("pictures")).unwrap().flatten().map(class).collect();
    std::fs::write(world.at("train.tar"), tar_of(&classes)).unwrap();
    let train = world.done(&["pack", "train.tar", "--out", "train", "--shard-bytes", "60000"]);
    assert_eq!((&train["samples"], &train["classes"]), (&folders["samples"], &folders["classes"]));
    assert_eq!(world.done(&["manifest", "verify", "train/manifest.json"])["problems"], serde_json::json!([]));

    let images: Vec<(String, String, Vec<u8>)> = std::fs::read_dir(world.at("pictures"))
        .unwrap()
        .flatten()
        .flat_map(|class| {
            let name = class.file_name().into_string().unwrap();
            files(&class.path()).into_iter().map(move |(file, bytes)| (file, name.clone(), bytes))
        })
        .collect();
    let flat: Vec<_> = images.iter().map(|(file, _, bytes)| (file.clone(), bytes.clone())).collect();
    std::fs::write(world.at("val.tar"), tar_of(&flat)).unwrap();
    let mut by_name: Vec<_> = images.iter().map(|(file, class, _)| (file, class)).collect();
    by_name.sort();
    let labels: String = by_name.iter().map(|(_, class)| format!("{class}\n")).collect();
    std::fs::write(world.at("labels.txt"), labels).unwrap();
    world.done(&["pack", "val.tar", "--labels", "labels.txt", "--out", "val", "--shard-bytes", "60000"]);
    let list: String = images.iter().map(|(file, class, _)| format!("pictures/{class}/{file}\t{class}\n")).collect();
    std::fs::write(world.at("list.txt"), list).unwrap();
    world.done(&["pack", "list.txt", "--out", "listed", "--shard-bytes", "60000"]);
    // The same images of the same classes, whatever they came in.
    let content = |set: &str| -> BTreeSet<(String, u64, String)> {
        let text = std::fs::read_to_string(world.at(&format!("{set}/manifest.json"))).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        let shards = manifest["shards"].as_array().unwrap().iter();
        shards
            .flat_map(|shard| {
                let of = |key: &str, i: usize| shard[key][i].clone();
                (0..shard["entries"].as_array().unwrap().len()).map(move |i| {
                    let text = |value: serde_json::Value| value.as_str().unwrap().to_owned();
                    (text(of("entries", i)), of("labels", i).as_u64().unwrap(), text(of("checks", i)))
                })
            })
            .collect()
    };
    for other in ["train", "val", "listed"] {
        assert_eq!(content("folders"), content(other), "{other}");
    }
    std::fs::write(world.at("labels.txt"), "disc\n").unwrap();
    world.fails(&["pack", "val.tar", "--labels", "labels.txt", "--out", "x"], 2, &["1 labels for 40 images"]);
}

#[test]
fn images_can_be_made_smaller() {
    let world = World::new();
    world.draw("pictures", 0, 20);
    std::fs::write(world.at("pictures/disc/broken.jpg"), b"no picture").unwrap();
    let small =
        world.done(&["pack", "pictures", "--out", "small", "--resize-short", "12", "--quality", "80", "--subsample"]);
    assert_eq!((small["samples"].as_u64(), small["kept_as_is"].as_u64()), (Some(21), Some(1)));
    let again =
        world.done(&["pack", "pictures", "--out", "again", "--resize-short", "12", "--quality", "80", "--subsample"]);
    assert_eq!(small["digest"], again["digest"]);
    let shown = world.done(&["manifest", "show", "small/manifest.json"]);
    assert!(shown["source"].as_str().unwrap().contains("short side 12, quality 80 4:2:0"), "{shown}");
    world.fails(
        &["pack", "pictures", "--out", "x", "--quality", "101"],
        2,
        &["--quality must be between 1 and 100, got 101"],
    );
}

#[test]
fn a_pack_that_is_interrupted_leaves_nothing_behind() {
    let world = World::new();
    world.draw("pictures", 0, 3000);
    let hidden = || {
        let entries = std::fs::read_dir(world.at("")).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".set.packing")).count()
    };
    for name in ["-INT", "-TERM"] {
        let child = world.start(&["pack", "pictures", "--out", "set", "--shard-bytes", "20000", "--zstd", "19"]);
        crate::service::until("something is written", || hidden() > 0);
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(hidden(), 0, "{name}");
        assert!(!world.at("set").exists());
    }
}

#[test]
fn wids_indexes_are_written_and_read() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    world.done(&["manifest", "convert", &manifest, "--wids", "set/index.json"]);
    let text = std::fs::read_to_string(world.at("set/index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((index["__kind__"].as_str(), index["wids_version"].as_u64()), (Some("wids-shard-index-v1"), Some(1)));
    let built = world.done(&["manifest", "build", "set/index.json", "--out", "built.json"]);
    assert_eq!(built["digest"], world.done(&["manifest", "show", &manifest])["digest"]);
    let md5 = index["shardlist"][0]["md5sum"].as_str().unwrap();
    std::fs::write(world.at("set/index.json"), text.replace(md5, "00000000000000000000000000000000")).unwrap();
    world.fails(&["manifest", "build", "set/index.json", "--out", "x.json"], 2, &["the index lists MD5 0000", md5]);
}

#[test]
fn the_quarantined_are_left_out_on_request() {
    let world = World::new();
    world.draw("pictures", 0, 40);
    std::fs::write(world.at("pictures/disc/bad.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
    world.done(&["pack", "pictures", "--out", "set", "--shard-bytes", "60000"]);
    let damaged = world.done(&[
        "digest",
        "--config",
        "quickstart",
        "--manifest",
        "set/manifest.json",
        "--set",
        "batch.size=8",
        "--set",
        "order.lanes=2",
        "--set",
        "data.max_damaged=0.1",
        "--batches",
        "5",
    ])["damaged"]
        .clone();
    let ledger: String = damaged.as_array().unwrap().iter().map(|entry| format!("{entry}\n")).collect();
    assert_eq!(damaged.as_array().unwrap().len(), 1);
    std::fs::write(world.at("quarantine.jsonl"), ledger).unwrap();
    let built = world.done(&[
        "manifest",
        "build",
        "set/shard-*.tar",
        "--exclude",
        "quarantine.jsonl",
        "--out",
        "set/sound.json",
    ]);
    assert_eq!(built["samples"], 40);
    assert_eq!(world.done(&["manifest", "verify", "set/sound.json"])["problems"], serde_json::json!([]));
    std::fs::write(world.at("quarantine.jsonl"), "{}\n").unwrap();
    let exclude = ["manifest", "build", "set/shard-*.tar", "--exclude", "quarantine.jsonl", "--out", "x.json"];
    world.fails(&exclude, 2, &["quarantine.jsonl", "line 1"]);
}

#[test]
fn ranks_together_make_the_global_batches() {
    let world = World::new();
    let manifest = world.packed("set", 120, &[]);
    let digest = |ranks: &str| {
        world.done(&[
            "digest",
            "--config",
            "quickstart",
            "--manifest",
            &manifest,
            "--set",
            "batch.size=16",
            "--set",
            "order.lanes=8",
            "--batches",
            "8",
            "--ranks",
            ranks,
        ])
    };
    let one = digest("1");
    for ranks in ["2", "4", "8"] {
        assert_eq!(one["batches"], digest(ranks)["batches"], "{ranks} ranks");
    }
    let set = ["--set", "batch.size=16", "--set", "order.lanes=8"];
    let shown =
        world.done(&[&["manifest", "show", &manifest, "--shuffle", "--config", "quickstart"], &set[..]].concat());
    assert!(shown["mean_distance"].as_f64().unwrap() > 0.2, "{shown}");
}

#[test]
fn a_bucket_is_as_good_as_a_folder() {
    let world = World::new();
    let manifest = world.packed("bucket/set", 60, &["--zstd", "3"]);
    let bucket = Bucket::serve(&world.at(""));
    let args = |manifest: &str| {
        let args = ["digest", "--config", "quickstart", "--batches", "4", "--json", "--manifest", manifest];
        let more = ["--set", "batch.size=8", "--set", "order.lanes=2", "--set", "machine.cache_dir=cache"];
        [&args[..], &more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let with_credentials = |secret: &str, args: &[String]| {
        let mut command = world.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
        command.envs(bucket.environment(secret)).output().unwrap()
    };
    let object = |output: std::process::Output| -> serde_json::Value {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let local =
        object(world.command(&args(&manifest).iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap());
    let remote = object(with_credentials("secret", &args("s3://bucket/set/manifest.json")));
    assert_eq!(local["digest"], remote["digest"]);
    let build =
        |pattern: &str| ["manifest", "build", pattern, "--out", "built.json", "--json"].map(str::to_owned).to_vec();
    for pattern in ["s3://bucket/set/shard-*.tar.zst", "s3://bucket/set/shard-00000{0..1}.tar.zst"] {
        let built = object(with_credentials("secret", &build(pattern)));
        assert!(built["samples"].as_u64() > Some(20), "{built}");
        let verified = ["manifest", "verify", "built.json", "--json"].map(str::to_owned);
        assert_eq!(object(with_credentials("secret", &verified))["problems"], serde_json::json!([]));
    }
    let refused = with_credentials("wrong", &args("s3://bucket/set/manifest.json"));
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && message.contains("access denied"), "{message}");
    let missing = with_credentials("secret", &args("s3://bucket/nowhere.json"));
    let message = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(missing.status.code() == Some(2) && message.contains("no such object"), "{message}");
}

/// An S3-compatible server whose buckets are folders; it goes with the test.
pub struct Bucket {
    endpoint: String,
    sent: Arc<AtomicU64>,
    _runtime: tokio::runtime::Runtime,
}

impl Bucket {
    /// Serves the folders of `root`.
    pub fn serve(root: &Path) -> Self {
        let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
        builder.set_auth(s3s::auth::SimpleAuth::from_single("key", "secret"));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let sent = Arc::<AtomicU64>::default();
        let counted = sent.clone();
        runtime.spawn(async move {
            let http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            while let Ok((socket, _)) = listener.accept().await {
                let (http, service) = (http.clone(), service.clone());
                let socket = Counting { socket, sent: counted.clone() };
                tokio::spawn(async move {
                    let _ = http.serve_connection(hyper_util::rt::TokioIo::new(socket), service).await;
                });
            }
        });
        Self { endpoint, sent, _runtime: runtime }
    }

    /// What a program needs to know to read from it.
    pub fn environment(&self, secret: &str) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", "key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
    }

    /// Bytes sent so far, HTTP's own included.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// A way to `target` that can be shut: what is under way then does not arrive, and nobody is told.
pub struct Gate {
    pub address: String,
    open: Arc<AtomicBool>,
}

impl Gate {
    pub fn before(target: &str, open: bool) -> Self {
        let (listener, target) = (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), target.to_owned());
        let (address, open) = (listener.local_addr().unwrap().to_string(), Arc::new(AtomicBool::new(open)));
        let is_open = open.clone();
        let carry = move |mut from: std::net::TcpStream, mut to: std::net::TcpStream, is_open: Arc<AtomicBool>| {
            let mut piece = [0; 16 << 10];
            while let Ok(n) = io::Read::read(&mut from, &mut piece)
                && n > 0
            {
                while !is_open.load(Ordering::Relaxed) {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                if io::Write::write_all(&mut to, &piece[..n]).is_err() {
                    break;
                }
            }
            let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
        };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = std::net::TcpStream::connect(&target) else { continue };
                let (asks, answers) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (there, back) = (is_open.clone(), is_open.clone());
                std::thread::spawn(move || carry(asks, server, there));
                std::thread::spawn(move || carry(answers, client, back));
            }
        });
        Self { address, open }
    }

    pub fn set(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }
}

/// A connection whose sent bytes are counted.
struct Counting {
    socket: TcpStream,
    sent: Arc<AtomicU64>,
}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, into)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        if let Poll::Ready(Ok(bytes)) = written {
            self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
