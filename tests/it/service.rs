//! The data service: real nodes on loopback, and what comes out of them.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::sources::{Bucket, Gate};
use crate::world::{TINY, World};

/// A node in a process of its own; it goes with the test.
pub struct Node {
    pub child: Child,
    /// Where trainers connect, `grpc://…`.
    pub url: String,
    /// Host and port of the pages.
    pub pages: String,
    pub plan_digest: String,
}

impl Node {
    /// Starts a node that serves the stream of `arguments` at free ports.
    pub fn start(world: &World, arguments: &[&str]) -> Self {
        Self::start_at(world, "127.0.0.1:0", arguments)
    }

    pub fn start_at(world: &World, listen: &str, arguments: &[&str]) -> Self {
        Self::start_with(world, listen, arguments, &[])
    }

    /// As `start_at`, with more in its environment.
    pub fn start_with(world: &World, listen: &str, arguments: &[&str], environment: &[(&str, String)]) -> Self {
        let fixed = ["serve", "--json", "--listen", listen, "--metrics", "127.0.0.1:0"];
        let mut command = world.command(&[&fixed, TINY, arguments].concat());
        let mut child = command.envs(environment.iter().cloned()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("{arguments:?} does not serve: {stderr}");
        }
        let object: Value = serde_json::from_str(&line).unwrap();
        let text = |key: &str| object[key].as_str().unwrap().to_owned();
        let pages = text("metrics").trim_start_matches("http://").trim_end_matches("/metrics").to_owned();
        Self { child, url: text("listen"), pages, plan_digest: text("plan_digest") }
    }

    /// Host and port where trainers connect.
    pub fn address(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }

    /// The status line's code, and the rest of a page.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(&self.pages, path)
    }

    /// A number of its status.
    pub fn status(&self, key: &str) -> Value {
        let (_, page) = self.get("/status");
        serde_json::from_str::<Value>(page.split("\r\n\r\n").nth(1).unwrap()).unwrap()[key].clone()
    }

    /// The same, from a node that asks for a token.
    pub fn status_with(&self, token: &str, key: &str) -> Value {
        let (_, page) = self.get(&format!("/status HTTP/1.1\r\nAuthorization: Bearer {token}\r\nX:"));
        serde_json::from_str::<Value>(page.split("\r\n\r\n").nth(1).unwrap()).unwrap()[key].clone()
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A page over HTTP.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what} never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What `digest` takes to ask these nodes.
pub fn fed<'a>(manifest: &'a str, nodes: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["digest"], TINY, &["--manifest", manifest, "--feed", nodes], more].concat()
}

pub fn local(world: &World, manifest: &str, more: &[&str]) -> Value {
    world.done(&[&["digest"], TINY, &["--manifest", manifest], more].concat())
}

#[test]
fn batches_over_the_network_equal_those_made_here() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let nodes: Vec<Node> = (0..3).map(|_| Node::start(&world, &["--manifest", &manifest])).collect();
    let url = |n: usize| nodes[..n].iter().map(|node| node.url.as_str()).collect::<Vec<_>>().join(",");
    for more in [&["--batches", "12"][..], &["--from-batch", "5", "--batches", "7"], &["--ranks", "2"]] {
        let wanted = local(&world, &manifest, more);
        for n in 1..=3 {
            assert_eq!(wanted, world.done(&fed(&manifest, &url(n), more)), "{more:?} from {n} nodes");
        }
    }
    let (ready, _) = nodes[0].get("/readyz");
    assert_eq!((ready, nodes[0].get("/livez").0, nodes[0].get("/").0), (200, 200, 200));
    assert_eq!(nodes[0].status("stream")["plan_digest"], nodes[0].plan_digest.as_str());
    // Small messages, several a batch; and one column for each size of views.
    let branch = "recipe.branches=[{ size = 8, views = 2, ops = [{ op = \"center_crop\", fraction = 1.0, interpolation = \"bicubic\" }] }]";
    let stream = ["--manifest", &manifest, "--set", branch, "--set", "machine.service.message_bytes=4000"];
    let node = Node::start(&world, &stream);
    let more = ["--set", branch, "--batches", "12"];
    assert_eq!(local(&world, &manifest, &more), world.done(&fed(&manifest, &node.url, &more)));
}

/// Plain and compressed shards of the same samples give the same batches, but whoever mixed them by mistake should know.
#[test]
fn a_node_that_reads_other_files_is_told_of() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&["pack", "set-pictures", "--out", "small", "--shard-bytes", "60000", "--zstd", "3"]);
    let compressed = world.arg("small/manifest.json");
    let wanted = local(&world, &manifest, &["--batches", "6"]);
    for (served, is_told) in [(&manifest, false), (&compressed, true)] {
        let node = Node::start(&world, &["--manifest", served]);
        let found = world.run(&fed(&manifest, &node.url, &["--batches", "6", "--json"]));
        let said = String::from_utf8_lossy(&found.stderr);
        assert_eq!(said.contains("bytes, frames, row index"), is_told, "{said}");
        assert_eq!(serde_json::from_slice::<Value>(&found.stdout).unwrap(), wanted);
    }
}

/// Lanes follow each other on a node. What is fetched twice does not grow with the set: shards at the borders between
/// nodes, those with which the next epoch begins, and the first samples, which are needed before their shard is there.
#[test]
fn nodes_together_read_the_set_once() {
    let world = World::new();
    world.draw("pictures", 0, 8000);
    world.done(&["pack", "pictures", "--out", "bucket/set", "--shard-bytes", "120000"]);
    let manifest = world.arg("bucket/set/manifest.json");
    let listed: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    let shards = listed["shards"].as_array().unwrap();
    let set: u64 = shards.iter().map(|shard| shard["bytes"].as_u64().unwrap()).sum();
    assert!(shards.len() > 200, "{} shards", shards.len());
    let blocks = ["--set", "order.shuffle_block_shards=1"];
    let epoch = [&blocks[..], &["--batches", "1000"]].concat();
    let wanted = local(&world, &manifest, &epoch);
    for count in [2, 3] {
        let bucket = Bucket::serve(&world.at(""));
        let environment = bucket.environment("secret");
        let arguments = [&["--manifest", "s3://bucket/set/manifest.json"], &blocks[..]].concat();
        let node = || Node::start_with(&world, "127.0.0.1:0", &arguments, &environment);
        let nodes: Vec<Node> = (0..count).map(|_| node()).collect();
        // Without one that comes late the others would begin, with its lanes too.
        nodes.iter().for_each(|node| until("it is ready", || node.get("/readyz").0 == 200));
        // What they read to be ready, and their manifests, are not part of it.
        let before = bucket.sent();
        let urls = nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>().join(",");
        assert_eq!(world.done(&fed(&manifest, &urls, &epoch)), wanted);
        let read = (bucket.sent() - before) as f64 / set as f64;
        println!("{count} nodes read {read:.3} times the set of {} shards, {set} bytes", shards.len());
        assert!(read <= 1.1, "{count} nodes read {read} times the set");
    }
}

#[test]
fn who_asks_for_another_plan_is_told_what_differs() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let other = world.packed("other", 50, &[]);
    let node = Node::start(&world, &["--manifest", &manifest]);
    let refused = |manifest: &str, more: &[&str], wanted: &[&str]| {
        world.fails(&fed(manifest, &node.url, more), 2, &[&[node.url.as_str(), &node.plan_digest], wanted].concat());
    };
    refused(&manifest, &["--set", "seed=2"], &["seed is 2 in the ticket, 1 here"]);
    refused(&manifest, &["--set", "recipe.ops.0.scale=[0.5,1.0]"], &["recipe.ops.0.scale.0 is 0.5 in the ticket"]);
    refused(&manifest, &["--set", "batch.size=16"], &["batch.size is 16 in the ticket, 8 here"]);
    refused(&other, &[], &["manifest is"]);
    // Beside a node that serves the plan, one that does not is left out.
    let right = Node::start(&world, &["--manifest", &other]);
    let both = format!("{},{}", node.url, right.url);
    assert_eq!(local(&world, &other, &[]), world.done(&fed(&other, &both, &[])));
}

#[test]
fn damage_is_told_to_whom_it_concerns() {
    let world = World::new();
    world.draw("pictures", 0, 40);
    for i in [3, 13, 23] {
        std::fs::write(world.at(&format!("pictures/triangle/{i:04}.png")), b"no picture at all").unwrap();
    }
    world.done(&["pack", "pictures", "--out", "set"]);
    let manifest = "set/manifest.json";
    let node = Node::start(&world, &["--manifest", manifest]);
    let more = ["--batches", "5", "--set", "data.max_damaged=0.1"];
    let wanted = local(&world, manifest, &more);
    assert_eq!(wanted["damaged"].as_array().unwrap().len(), 3);
    for _ in 0..2 {
        assert_eq!(wanted, world.done(&fed(manifest, &node.url, &more)), "the second time the node knows them already");
    }
    // How much is too much is for the one who trains to say.
    world.fails(
        &fed(manifest, &node.url, &["--batches", "5"]),
        1,
        &["data.max_damaged", "triangle/00", "unknown_format"],
    );
}

/// The first one stops reading, so that more is made for it than its connection takes; the second one comes to those
/// batches for certain.
#[test]
fn two_who_want_the_same_share_what_is_made() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let size = ["--set", "batch.size=48"];
    let stream = [&["--manifest", &manifest, "--set", "machine.batches_ahead=100"], &size[..]].concat();
    let node = Node::start(&world, &stream);
    let value = |name: &str| {
        let (_, metrics) = node.get("/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
        line.trim().parse::<f64>().unwrap()
    };
    let sent = || value("simclr_service_batches_sent_total ");
    let mut first = world.start(&fed(&manifest, &node.url, &[&["--batches", "1000000"], &size[..]].concat()));
    until("the first batch", || sent() > 0.0);
    let stop = std::process::Command::new("kill").args(["-STOP", &first.id().to_string()]).status();
    assert!(stop.unwrap().success());
    let mut before = -1.0;
    until("a full window", || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut before, sent()) == before
    });
    // The next one may be on its way already, and with it nobody; the one behind it waits.
    let count = (before as u64 + 2).to_string();
    let more = [&["--batches", &count], &size[..]].concat();
    assert_eq!(local(&world, &manifest, &more), world.done(&fed(&manifest, &node.url, &more)));
    let shared = value("simclr_service_batches_shared_total ");
    assert!(shared > 0.0, "none of {more:?} were shared");
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn strangers_are_kept_out() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    std::fs::write(world.at("token"), "a long secret\n").unwrap();
    std::fs::write(world.at("wrong"), "a short one\n").unwrap();
    certificates(&world);
    let wanted = local(&world, &manifest, &[]);
    let node = Node::start(&world, &["--manifest", &manifest, "--token", "token"]);
    world.fails(&fed(&manifest, &node.url, &[]), 2, &[&node.url, "bearer token"]);
    world.fails(&fed(&manifest, &node.url, &["--feed-token", "wrong"]), 2, &["bearer token"]);
    world.fails(&fed(&manifest, &node.url, &["--feed-token", "nowhere"]), 2, &["machine.feed.token", "nowhere"]);
    assert_eq!(wanted, world.done(&fed(&manifest, &node.url, &["--feed-token", "token"])));
    let hasty = ["--set", "machine.feed.patience_seconds=1"];
    let tls = ["--manifest", &manifest, "--token", "token", "--certificate", "node.pem", "--key", "node.key"];
    let node = Node::start(&world, &tls);
    assert!(node.url.starts_with("grpcs://"));
    let (with_ca, other_ca) =
        (["--feed-token", "token", "--feed-ca", "ca.pem"], ["--feed-token", "token", "--feed-ca", "client.pem"]);
    assert_eq!(wanted, world.done(&fed(&manifest, &node.url, &with_ca)));
    world.fails(&fed(&manifest, &node.url, &[&other_ca[..], &hasty].concat()), 1, &[&node.url]);
    let plain = node.url.replace("grpcs", "grpc");
    world.fails(&fed(&manifest, &plain, &hasty), 1, &[&plain]);
    world.fails(&fed(&manifest, &node.url, &[]), 2, &["machine.feed.ca"]);
    // Both sides show a certificate.
    let node = Node::start(&world, &[&tls[..], &["--client-ca", "ca.pem"]].concat());
    let own = ["--feed-cert", "client.pem", "--feed-key", "client.key"];
    assert_eq!(wanted, world.done(&fed(&manifest, &node.url, &[&with_ca[..], &own].concat())));
    world.fails(&fed(&manifest, &node.url, &[&with_ca[..], &hasty].concat()), 1, &[&node.url]);
}

/// Certificates of a node and a client, and of the authority that vouches for both.
pub fn certificates(world: &World) {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(world.at("ca.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    for (name, host) in [("node", "127.0.0.1"), ("client", "client")] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new([host.to_owned()]).unwrap();
        std::fs::write(world.at(&format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(world.at(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn wrong_settings_are_named() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let serve = |more: &[&str], wanted: &[&str]| {
        let fixed = ["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--manifest", &manifest];
        world.fails(&[&fixed, TINY, more].concat(), 2, wanted);
    };
    serve(&["--listen", "nowhere"], &["cannot be used multiple times"]);
    serve(
        &["--set", "machine.service.memory_bytes=1000"],
        &["invalid value 1000 for machine.service.memory_bytes", "at least 24576"],
    );
    serve(&["--set", "machine.service.streams=0"], &["invalid value 0 for machine.service.streams"]);
    serve(&["--token", "nowhere"], &["machine.service.token: cannot read nowhere"]);
    serve(&["--set", "machine.service.key=k.pem"], &["machine.service.certificate"]);
    serve(&["--set", "machine.service.tokem=t"], &["tokem", "did you mean token?"]);
    std::fs::write(world.at("junk.pem"), "no certificate").unwrap();
    serve(&["--certificate", "junk.pem", "--key", "junk.pem"], &["machine.service.certificate"]);
    for nodes in ["127.0.0.1:8815", "http://a:1", "grpc://a", "grpc://a:1/b", "grpc://:1"] {
        world.fails(&fed(&manifest, nodes, &[]), 2, &["machine.feed.nodes", nodes, "grpc://HOST:8815"]);
    }
    let hasty = ["--set", "machine.feed.patience_seconds=1"];
    world.fails(
        &fed(&manifest, "grpc://127.0.0.1:9,grpc://127.0.0.1:10", &hasty),
        1,
        &["127.0.0.1:9:", "127.0.0.1:10:", "refused"],
    );
}

/// The example for Python reads what `digest` digests, with the real pyarrow.
#[test]
fn python_reads_the_same_batches() {
    let packages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".python-tests");
    assert!(packages.join("pyarrow").is_dir(), "pyarrow is not there: `bash setup.sh --tests` fetches it");
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    std::fs::write(world.at("token"), "a long secret\n").unwrap();
    let wanted = local(&world, &manifest, &["--from-batch", "3", "--batches", "10"]);
    // In one message each, and in several.
    for (message_bytes, whole) in [("2097152", "whole"), ("4000", "cut")] {
        let message_bytes = format!("machine.service.message_bytes={message_bytes}");
        let node = Node::start(&world, &["--manifest", &manifest, "--token", "token", "--set", &message_bytes]);
        until("it is ready", || node.get("/readyz").0 == 200);
        let output = std::process::Command::new("python3")
            .arg(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/service_client.py"))
            .args([&node.url, "3", "10", "a long secret", whole])
            .env("PYTHONPATH", &packages)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (mut rest, mut all) = (&output.stdout[..], blake3::Hasher::new());
        for batch in wanted["batches"].as_array().unwrap() {
            let end = rest.iter().position(|&byte| byte == b'\n').unwrap();
            let header: Value = serde_json::from_slice(&rest[..end]).unwrap();
            let (body, after) = rest[end + 1..].split_at(header["bytes"].as_u64().unwrap() as usize);
            let digest = blake3::hash(body);
            assert_eq!(
                (&header["batch"], digest.to_hex().as_str()),
                (&batch["batch"], batch["digest"].as_str().unwrap())
            );
            all.update(digest.as_bytes());
            rest = after;
        }
        assert!(rest.is_empty() && all.finalize().to_hex().as_str() == wanted["digest"]);
    }
}

/// A client that comes before a node knows whether it can serve waits until it does.
#[test]
fn clients_that_come_before_the_first_batch_wait_for_it() {
    let world = World::new();
    world.packed("set", 60, &[]);
    let bucket = Bucket::serve(&world.at(""));
    let mut environment = bucket.environment("secret");
    let gate = Gate::before(environment[0].1.trim_start_matches("http://"), true);
    environment[0].1 = format!("http://{}", gate.address);
    let far = String::from_utf8(
        world
            .command(&["manifest", "build", "s3://set/*.tar", "--out", "far.json"])
            .envs(environment.clone())
            .output()
            .unwrap()
            .stderr,
    );
    assert!(world.at("far.json").exists(), "{far:?}");
    gate.set(false);
    let node = Node::start_with(&world, "127.0.0.1:0", &["--manifest", "far.json"], &environment);
    let child = world.start(&fed("far.json", &node.url, &["--batches", "3"]));
    // It has asked by now, or it asks later: either way it is not sent away.
    std::thread::sleep(Duration::from_secs(1));
    gate.set(true);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("not ready"), "{said}");
}
