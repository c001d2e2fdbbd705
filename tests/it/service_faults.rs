//! The data service when things go wrong: nodes and clients that die, hang, or talk nonsense.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightDescriptor, Ticket};
use serde_json::{Value, json};

use crate::service::{Node, fed, local, until};
use crate::sources::{Bucket, Gate};
use crate::world::World;

/// A stream that takes some seconds on one node.
const LONG: [&str; 4] = ["--batches", "2000", "--set", "batch.size=48"];

/// A client in a process of its own; what it said in the end.
struct Client(std::process::Child);

impl Client {
    fn start(world: &World, manifest: &str, nodes: &str, more: &[&str]) -> Self {
        Self(world.start(&[&fed(manifest, nodes, &[&LONG, more].concat())[..], &["--json"]].concat()))
    }

    fn signal(&self, signal: &str) {
        let status = std::process::Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn done(self) -> Value {
        let output = self.0.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// A packed set, what its long stream is, and arguments of nodes that serve it.
fn set(world: &World) -> (String, Value, Vec<String>) {
    let manifest = world.packed("set", 60, &[]);
    let wanted = local(world, &manifest, &LONG);
    let arguments = ["--manifest", &manifest, "--set", "batch.size=48", "--set", "machine.threads=1"];
    let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
    (manifest, wanted, arguments)
}

/// A client that talks to a node as any other program would.
async fn flight(node: &Node) -> FlightServiceClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", node.address())).unwrap();
    FlightServiceClient::new(endpoint.connect().await.unwrap())
}

fn sent(node: &Node) -> f64 {
    let (_, metrics) = node.get("/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("simclr_service_sent_bytes_total ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn nodes_are_killed_and_come_back_and_every_batch_comes_once() {
    let world = World::new();
    let (manifest, wanted, arguments) = set(&world);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut nodes: Vec<Node> = (0..2).map(|_| Node::start(&world, &arguments)).collect();
    let urls = nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>().join(",");
    let client = Client::start(&world, &manifest, &urls, &[]);
    until("the first batch", || nodes.iter().all(|node| sent(node) > 1e6));
    nodes[0].kill();
    let before = sent(&nodes[1]);
    until("more", || sent(&nodes[1]) > before + 1e6);
    // Back at its old address, it gets its lanes back. However long it takes to start, the stream waits.
    client.signal("-STOP");
    let address = nodes[0].address().to_owned();
    nodes[0] = Node::start_at(&world, &address, &arguments);
    client.signal("-CONT");
    until("the first is taken back", || sent(&nodes[0]) > 1e5);
    for node in &mut nodes {
        node.kill();
    }
    std::thread::sleep(Duration::from_millis(300));
    for node in &mut nodes {
        let address = node.address().to_owned();
        *node = Node::start_at(&world, &address, &arguments);
    }
    assert_eq!(client.done(), wanted);
}

#[test]
fn a_node_that_hangs_is_replaced() {
    let world = World::new();
    let (manifest, wanted, arguments) = set(&world);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let nodes: Vec<Node> = (0..2).map(|_| Node::start(&world, &arguments)).collect();
    let urls = nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>().join(",");
    let client = Client::start(&world, &manifest, &urls, &["--set", "machine.feed.timeout_seconds=1"]);
    until("the first batch", || nodes.iter().all(|node| sent(node) > 1e6));
    nodes[0].signal("-STOP");
    let before = sent(&nodes[1]);
    let began = Instant::now();
    assert_eq!(client.done(), wanted);
    assert!(began.elapsed() < Duration::from_secs(20) && sent(&nodes[1]) > before);
}

/// The stream goes on for longer than the node sleeps, so it takes minutes:
/// `SLEEP_SECONDS=60 cargo test --test it sleeps -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn a_node_that_sleeps_for_a_minute_is_taken_back() {
    let seconds: u64 = std::env::var("SLEEP_SECONDS").map_or(60, |text| text.parse().expect("a number of seconds"));
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let stream = ["--set", "batch.size=48", "--set", "recipe.size=32", "--set", "machine.threads=1"];
    let digest = |batches: &str| {
        let began = Instant::now();
        (local(&world, &manifest, &[&stream[..], &["--batches", batches]].concat()), began.elapsed())
    };
    // One thread is as fast as the node that is left alone; that both are there before and after is in the bargain.
    let (_, short) = digest("400");
    let batches = (400.0 / short.as_secs_f64() * (1.5 * seconds as f64 + 20.0)) as u64;
    let batches = batches.to_string();
    let (wanted, _) = digest(&batches);
    let arguments = [&["--manifest", &manifest], &stream[..]].concat();
    let nodes: Vec<Node> = (0..2).map(|_| Node::start(&world, &arguments)).collect();
    let urls = nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>().join(",");
    let more = [&stream[..], &["--set", "machine.feed.timeout_seconds=2", "--batches", &batches, "--json"]].concat();
    let client = Client(world.start(&fed(&manifest, &urls, &more)));
    until("the first batches", || nodes.iter().all(|node| sent(node) > 1e6));
    nodes[0].signal("-STOP");
    let before = sent(&nodes[1]);
    std::thread::sleep(Duration::from_secs(seconds));
    let alone = sent(&nodes[1]) - before;
    nodes[0].signal("-CONT");
    let known = sent(&nodes[0]);
    let woken = Instant::now();
    until("it is taken back", || sent(&nodes[0]) > known + 20e6);
    let back = woken.elapsed();
    assert_eq!(client.done(), wanted);
    println!(
        "{batches} batches; a node slept for {seconds} s, the other sent {:.0} MB meanwhile; {:.1} s after it woke it had sent 20 MB more; digest {}",
        alone / 1e6,
        back.as_secs_f64(),
        wanted["digest"]
    );
    until("nothing is left of the old connection", || nodes.iter().all(|node| node.status("clients") == 0));
    assert!(alone > 1e6 && nodes.iter().all(|node| node.status("memory_bytes") == 0));
}

#[test]
fn a_node_that_is_told_to_stop_hands_its_lanes_over_and_ends_well() {
    let world = World::new();
    let (manifest, wanted, arguments) = set(&world);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut nodes: Vec<Node> = (0..2).map(|_| Node::start(&world, &arguments)).collect();
    let urls = nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>().join(",");
    let client = Client::start(&world, &manifest, &urls, &[]);
    until("the first batch", || nodes.iter().all(|node| sent(node) > 1e6));
    nodes[0].signal("-TERM");
    assert_eq!(nodes[0].child.wait().unwrap().code(), Some(0));
    // By an action, as by a signal.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let body = runtime.block_on(async {
        let mut flight = flight(&nodes[1]).await;
        let results = flight.do_action(Action::new("status", "")).await.unwrap().into_inner().message().await.unwrap();
        results.unwrap().body
    });
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["draining"], false);
    assert_eq!(client.done(), wanted);
}

#[test]
fn a_shard_that_changed_stops_the_node_that_reads_it() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let wanted = local(&world, &manifest, &[]);
    let shard = world.at("set/shard-000000.tar");
    let good = std::fs::read(&shard).unwrap();
    let mut bad = good.clone();
    let listed: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    for offset in listed["shards"][0]["offsets"].as_array().unwrap() {
        bad[offset.as_u64().unwrap() as usize + 5] ^= 1;
    }
    std::fs::write(&shard, &bad).unwrap();
    let node = Node::start(&world, &["--manifest", &manifest]);
    let hasty = ["--set", "machine.feed.patience_seconds=1"];
    world.fails(&fed(&manifest, &node.url, &hasty), 1, &[&node.url, "shard-000000.tar", "manifest verify"]);
    assert_eq!((node.get("/readyz").0, node.get("/livez").0), (503, 200));
    assert!(node.get("/readyz").1.contains("shard-000000.tar"));
    // With the right shard in its place it works again, without being started anew.
    std::fs::write(world.at("good.tar"), &good).unwrap();
    std::fs::rename(world.at("good.tar"), &shard).unwrap();
    assert_eq!(world.done(&fed(&manifest, &node.url, &[])), wanted);
    until("it is ready", || node.get("/readyz").0 == 200);
}

#[test]
fn storage_that_is_lost_while_nobody_asks_is_noticed() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let wanted = local(&world, &manifest, &[]);
    let node = Node::start(&world, &["--manifest", &manifest]);
    // From here on the shards' files are open.
    assert_eq!(world.done(&fed(&manifest, &node.url, &[])), wanted);
    assert_eq!(node.get("/readyz").0, 200);
    std::fs::rename(world.at("set"), world.at("gone")).unwrap();
    until("the loss", || node.get("/readyz").0 == 503);
    let (_, page) = node.get("/readyz");
    assert!(page.contains("shard-0") && page.contains("No such file"), "{page}");
    let hasty = ["--set", "machine.feed.patience_seconds=1"];
    let gone = world.arg("gone/manifest.json");
    world.fails(&fed(&gone, &node.url, &hasty), 1, &[&node.url, "not ready", "No such file"]);
    std::fs::rename(world.at("gone"), world.at("set")).unwrap();
    until("its return", || node.get("/readyz").0 == 200);
    assert_eq!(world.done(&fed(&manifest, &node.url, &[])), wanted);
    drop(node);
    // A server that is gone without a word: reading neither succeeds nor fails.
    let bucket = Bucket::serve(&world.at(""));
    let mut environment = bucket.environment("secret");
    let gate = Gate::before(environment[0].1.trim_start_matches("http://"), true);
    environment[0].1 = format!("http://{}", gate.address);
    let build = ["manifest", "build", "s3://set/*.tar", "--out", "far.json"];
    assert!(world.command(&build).envs(environment.clone()).output().unwrap().status.success());
    // Of which so little is wanted that no shard is held.
    let stream = ["--manifest", "far.json", "--set", "data.part=[0.0, 0.2]"];
    let mut node = Node::start_with(&world, "127.0.0.1:0", &stream, &environment);
    until("it is ready", || node.get("/readyz").0 == 200);
    gate.set(false);
    until("silence", || node.get("/readyz").0 == 503);
    let (_, page) = node.get("/readyz");
    assert!(page.contains("storage has not responded"), "{page}");
    assert_eq!(node.get("/livez").0, 200);
    node.signal("-TERM");
    assert_eq!(node.child.wait().unwrap().code(), Some(0), "it ends well though somebody still waits");
}

#[test]
fn a_client_that_is_gone_holds_nothing() {
    let world = World::new();
    let (manifest, _, arguments) = set(&world);
    let timeout = ["--set", "machine.service.client_timeout_seconds=1"];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(timeout).collect();
    let node = Node::start(&world, &arguments);
    let open = || (node.status("streams").as_u64().unwrap(), node.status("memory_bytes").as_u64().unwrap());
    for signal in ["-KILL", "-STOP"] {
        let mut client = Client::start(&world, &manifest, &node.url, &[]).0;
        until("a stream", || open().0 == 1);
        let id = client.id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &id]).status().unwrap().success());
        until("no stream and no memory", || open() == (0, 0));
        until("no connection", || node.status("clients") == 0);
        client.kill().unwrap();
        client.wait().unwrap();
    }
}

#[test]
fn a_slow_client_slows_the_node() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let node = Node::start(&world, &["--manifest", &manifest, "--set", "batch.size=48"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    until("it is ready", || node.get("/readyz").0 == 200);
    runtime.block_on(async {
        let mut flight = flight(&node).await;
        let ticket = json!({ "plan_digest": node.plan_digest, "first_batch": 0 }).to_string();
        let mut stream = flight.do_get(Ticket::new(ticket)).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        let made = || {
            let (_, metrics) = node.get("/metrics");
            let line = metrics.lines().find_map(|line| line.strip_prefix("simclr_pipeline_batches_total ")).unwrap();
            line.parse::<u64>().unwrap()
        };
        // Nobody reads: after what fits into windows and buffers nothing more is made.
        let mut known = (made(), Instant::now());
        let began = Instant::now();
        while known.1.elapsed() < Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if made() != known.0 {
                known = (made(), Instant::now());
            }
            assert!(began.elapsed() < Duration::from_secs(20), "it goes on making: {known:?}");
        }
        let memory = node.status("memory_bytes").as_u64().unwrap();
        assert!(memory <= 3 * 48 * 2 * 16 * 16 * 3, "{memory} bytes are held for one stream");
        // It goes on where it was.
        let mut last = None;
        for _ in 0..known.0 + 10 {
            let message = stream.message().await.unwrap().unwrap();
            let info: Value = serde_json::from_slice(&message.app_metadata).unwrap();
            let batch = info["batch"].as_u64().unwrap();
            assert!(last.is_none_or(|last| last == batch || last + 1 == batch));
            last = Some(batch);
        }
    });
}

/// A program whose arithmetic is another asks for what looks like the same stream.
#[test]
fn who_makes_streams_of_another_version_is_told_so() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let node = Node::start(&world, &["--manifest", &manifest]);
    until("it is ready", || node.get("/readyz").0 == 200);
    let plan = tiny_plan(&manifest);
    assert_eq!(plan.digest, node.plan_digest);
    let version = simclr_plan::STREAM_VERSION;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut flight = flight(&node).await;
        for other in [version - 1, version + 1] {
            let mut content = plan.content();
            content["stream_version"] = other.into();
            let digest = blake3::hash(content.to_string().as_bytes()).to_hex().to_string();
            let ticket = json!({ "plan_digest": digest, "first_batch": 0, "count": 1, "plan": content }).to_string();
            let described = flight.get_flight_info(FlightDescriptor::new_cmd(ticket.clone())).await.unwrap_err();
            let sent = flight.do_get(Ticket::new(ticket)).await.unwrap_err();
            for error in [described, sent] {
                let said = error.message();
                let wanted = format!("plan {}: stream_version is {other} in the ticket, {version} here", plan.digest);
                assert!(error.code() == tonic::Code::FailedPrecondition && said.contains(&wanted), "{said}");
                assert!(said.contains(&digest), "{said}");
            }
        }
        // A program of a later version that asks in words that are not known here.
        let later = json!({ "plan_digest": plan.digest, "first_batch": 0, "compression": "zstd" }).to_string();
        let error = flight.do_get(Ticket::new(later)).await.unwrap_err();
        assert!(error.message().contains("unknown field `compression`"), "{error}");
        // The same connection, with a ticket of ours.
        let own = json!({ "plan_digest": plan.digest, "first_batch": 0, "count": 1, "plan": plan.content() });
        let mut stream = flight.do_get(Ticket::new(own.to_string())).await.unwrap().into_inner();
        while stream.message().await.unwrap().is_some() {}
    });
}

/// The plan of the tests' small stream, as the program makes it.
fn tiny_plan(manifest: &str) -> simclr_plan::Plan {
    use simclr_plan::{Plan, StreamConfig, Traversal};
    let mut preset: toml::Table = include_str!("../../config/cifar10-resnet18.toml").parse().unwrap();
    fn table<T: serde::de::DeserializeOwned>(preset: &mut toml::Table, key: &str) -> T {
        preset.remove(key).unwrap().try_into().unwrap()
    }
    let mut config = StreamConfig {
        seed: table(&mut preset, "seed"),
        data: table(&mut preset, "data"),
        traversal: Traversal::Shuffled(table(&mut preset, "order")),
        batch: table(&mut preset, "batch"),
        recipe: table(&mut preset, "recipe"),
    };
    // What `TINY` sets of it.
    let Traversal::Shuffled(order) = &mut config.traversal else { unreachable!("set above") };
    (order.lanes, config.batch.size, config.recipe.size) = (4, 8, 16);
    Plan::new(&simclr_data::manifest::Manifest::read(std::path::Path::new(manifest)).unwrap(), config).unwrap()
}

#[test]
fn nonsense_is_answered_with_an_error() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let mut node = Node::start(&world, &["--manifest", &manifest, "--set", "machine.service.streams=2"]);
    let plan = node.plan_digest.clone();
    until("it is ready", || node.get("/readyz").0 == 200);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut flight = flight(&node).await;
        for (ticket, wanted) in [
            (String::new(), "invalid ticket"),
            ("{}".into(), "missing field `plan_digest`"),
            ("\u{0}\u{1}".into(), "invalid ticket"),
            (json!({ "plan_digest": plan, "first_batch": -1 }).to_string(), "invalid ticket"),
            (json!({ "plan_digest": plan, "first_batch": 0, "stride": 0 }).to_string(), "invalid value 0 for stride"),
            (json!({ "plan_digest": plan, "first_batch": 0, "world": 3 }).to_string(), "invalid value 4 (rank"),
            (json!({ "plan_digest": plan, "first_batch": 0, "world": 0 }).to_string(), "invalid value 4 (rank"),
            (json!({ "plan_digest": plan, "first_batch": 0, "rank": 4, "world": 4 }).to_string(), "rank 4 of 4"),
            (json!({ "plan_digest": plan, "first_batch": 0, "ranks": 1 }).to_string(), "unknown field `ranks`"),
            (json!({ "plan_digest": "other", "first_batch": 0 }).to_string(), "plan other"),
            (format!("{}1{}", "[".repeat(60_000), "]".repeat(60_000)), "invalid ticket"),
            ("x".repeat(300_000), "length too large"),
        ] {
            let error = flight.do_get(Ticket::new(ticket.clone())).await.unwrap_err();
            assert!(error.message().contains(wanted), "{:.80}: {error}", ticket);
            if ticket.len() < 1000 {
                let described = flight.get_flight_info(FlightDescriptor::new_cmd(ticket.clone())).await;
                assert!(described.is_err() || ticket.is_empty() || ticket == "{}", "{ticket}");
            }
        }
        let unknown = flight.get_flight_info(FlightDescriptor::new_path(vec!["x".into()])).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        assert!(flight.do_action(Action::new("sing", "")).await.is_err());
        // The last numbers there are, and more streams than are allowed.
        let last = json!({ "plan_digest": plan, "first_batch": u64::MAX, "stride": u64::MAX }).to_string();
        let mut stream = flight.do_get(Ticket::new(last)).await.unwrap().into_inner();
        let mut messages = 0;
        while let Some(message) = stream.message().await.unwrap() {
            messages += usize::from(!message.app_metadata.is_empty());
        }
        assert_eq!(messages, 1, "there is no batch after the last one");
        drop(stream);
        let ticket = json!({ "plan_digest": plan, "first_batch": 0 }).to_string();
        let mut streams = Vec::new();
        for _ in 0..2 {
            streams.push(flight.do_get(Ticket::new(ticket.clone())).await.unwrap());
        }
        let error = flight.do_get(Ticket::new(ticket.clone())).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::ResourceExhausted, "{error}");
    });
    // Bytes that are no HTTP/2, and connections that say nothing.
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff",
        &[0; 1000],
        b"",
    ] {
        let mut stream = TcpStream::connect(node.address()).unwrap();
        stream.write_all(bytes).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = stream.read(&mut [0; 100]);
    }
    drop(runtime);
    until("all are gone", || node.status("clients") == 0);
    assert_eq!(node.get("/livez").0, 200);
    node.signal("-TERM");
    let code = node.child.wait().unwrap().code();
    let mut said = String::new();
    node.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(code == Some(0) && !said.contains("panicked"), "{said}");
}

#[test]
fn more_connections_than_allowed_are_closed() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let node = Node::start(&world, &["--manifest", &manifest, "--set", "machine.service.connections=2"]);
    let held = [(); 2].map(|()| TcpStream::connect(node.address()).unwrap());
    until("two are counted", || node.status("clients") == 2);
    let mut third = TcpStream::connect(node.address()).unwrap();
    assert!(matches!(third.read(&mut [0; 10]), Ok(0) | Err(_)), "it is closed");
    drop(held);
    until("none is left", || node.status("clients") == 0);
    assert_eq!(world.done(&fed(&manifest, &node.url, &[])), local(&world, &manifest, &[]));
}

/// A connection from another address of this machine, as if from another machine.
pub fn from_afar(runtime: &tokio::runtime::Runtime, from: &str, to: &str) -> TcpStream {
    let _guard = runtime.enter();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let stream = runtime.block_on(socket.connect(to.parse().unwrap())).unwrap().into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Whether the other side has closed a connection.
pub fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    loop {
        match stream.read(&mut [0; 1000]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                return !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
            }
        }
    }
}

/// Without the token one machine can hold a few places, never those that others need.
#[test]
fn a_stranger_cannot_take_all_places() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    std::fs::write(world.at("token"), "a long secret\n").unwrap();
    let few = ["--set", "machine.service.connections=8", "--set", "machine.service.client_timeout_seconds=3600"];
    let node = Node::start(&world, &[&["--manifest", &manifest, "--token", "token"], &few[..]].concat());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut held: Vec<TcpStream> = (0..8).map(|_| from_afar(&runtime, "127.0.0.2", node.address())).collect();
    for stream in &mut held {
        let _ = stream.write_all(b"P");
    }
    until("half of them are closed", || held.iter_mut().map(is_closed).filter(|closed| !closed).count() == 4);
    let own = fed(&manifest, &node.url, &["--feed-token", "token"]);
    assert_eq!(world.done(&own), local(&world, &manifest, &[]));
    // The place of a stranger who leaves is free for the next.
    drop(held);
    until("they are gone", || node.status_with("a long secret", "clients") == 0);
    assert!(!is_closed(&mut from_afar(&runtime, "127.0.0.2", node.address())));
}

/// Whatever a connection sends, it ends unless a request comes that is let in.
#[test]
fn who_asks_for_nothing_in_time_is_gone() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    std::fs::write(world.at("token"), "a long secret\n").unwrap();
    crate::service::certificates(&world);
    let hasty = ["--manifest", &manifest, "--token", "token", "--set", "machine.service.client_timeout_seconds=1"];
    let plain = Node::start(&world, &hasty);
    let tls = Node::start(&world, &[&hasty[..], &["--certificate", "node.pem", "--key", "node.key"]].concat());
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
    let hello = [0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3];
    for (node, at_once, then) in [
        (&plain, &[][..], preface.chunks(1).collect::<Vec<_>>()),
        (&plain, &[&preface[..], &settings].concat(), vec![&ping[..]; 1000]),
        (&tls, &[], hello.chunks(1).chain([&[0; 1][..]; 240]).collect()),
    ] {
        let mut stream = TcpStream::connect(node.address()).unwrap();
        stream.write_all(at_once).unwrap();
        let mut left = then.into_iter();
        until("its end", || {
            let _ = stream.write_all(left.next().unwrap_or_default());
            is_closed(&mut stream)
        });
    }
    // Who has shown the token may be silent for longer than that, and ask again.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut flight = flight(&plain).await;
        let action = || {
            let mut request = tonic::Request::new(Action::new("status", ""));
            request.metadata_mut().insert("authorization", "Bearer a long secret".parse().unwrap());
            request
        };
        flight.do_action(action()).await.unwrap();
        let mut stranger = TcpStream::connect(plain.address()).unwrap();
        until("a stranger's end", || is_closed(&mut stranger));
        flight.do_action(action()).await.unwrap();
        assert_eq!(plain.status_with("a long secret", "clients"), 1, "it is the same connection");
    });
}

/// `drain` is for who shows the token, on this machine too; without one, for this machine.
#[test]
fn nobody_drains_a_node_without_its_token() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    std::fs::write(world.at("token"), "a long secret\n").unwrap();
    let node = Node::start(&world, &["--manifest", &manifest, "--token", "token"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut flight = flight(&node).await;
        for token in [None, Some("Bearer another"), Some("Bearer "), Some("a long secret")] {
            let mut request = tonic::Request::new(Action::new("drain", ""));
            if let Some(token) = token {
                request.metadata_mut().insert("authorization", token.parse().unwrap());
            }
            let refused = flight.do_action(request).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{token:?}");
        }
    });
    assert_eq!(node.status_with("a long secret", "draining"), false);
}
