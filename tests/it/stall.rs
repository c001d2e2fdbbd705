//! Why the trainer waits: each stage is slowed down in turn, and must be found to be the culprit.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;
use simclr_image::drawn;

use crate::service::Node;
use crate::sources::Bucket;
use crate::world::{TINY, World};

/// A way to `target` on which every piece of an answer takes `pause`: its address.
fn slow_way(target: &str, pause: Duration) -> String {
    let (listener, target) = (TcpListener::bind("127.0.0.1:0").unwrap(), target.to_owned());
    let address = listener.local_addr().unwrap().to_string();
    let carry = |mut from: TcpStream, mut to: TcpStream, pause: Duration| {
        let mut piece = [0; 16 << 10];
        while let Ok(n) = from.read(&mut piece)
            && n > 0
        {
            std::thread::sleep(pause);
            if to.write_all(&piece[..n]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    };
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&target) else { continue };
            let (asks, answers) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || carry(asks, server, Duration::ZERO));
            std::thread::spawn(move || carry(answers, client, pause));
        }
    });
    address
}

/// Packs images of this side, drawn in 40 files; the manifest's path.
fn packed(world: &World, side: u32) -> String {
    for i in 0..40u64 {
        let class = (i % 10) as usize;
        let folder = world.at("drawn").join(drawn::CLASSES[class]);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{i:02}.png")), drawn::png(&drawn::image(3, class, i, side))).unwrap();
    }
    world.done(&["pack", "drawn", "--out", "set", "--shard-bytes", "4000000"]);
    world.arg("set/manifest.json")
}

const STEPS: &str = "train.steps=12";

fn arguments<'a>(manifest: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "--run", "run", "--manifest", manifest, "--set", STEPS, "--set", "schedule.epochs=90"];
    let one = ["--set", "machine.threads=1", "--set", "machine.batches_ahead=1"];
    [&fixed, TINY, &one, more].concat()
}

/// Trains, and wants the shares of all causes to sum to one, and this one to be the largest of what steps waited for.
fn culprit(world: &World, command: &mut std::process::Command, wanted: &str) {
    let output = command.arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let ended: Value = serde_json::from_slice(&output.stdout).unwrap();
    let shares = ended["stalls"].as_object().unwrap();
    let share = |cause: &str| shares[cause].as_f64().unwrap();
    let sum: f64 = shares.values().map(|share| share.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9, "{shares:?} sum to {sum}");
    // The first batch is waited for once, whatever is slow.
    let waits = shares.keys().filter(|cause| !["steps", "start"].contains(&cause.as_str()));
    let largest = waits.max_by(|a, b| share(a).total_cmp(&share(b))).unwrap();
    assert!(largest == wanted && share(wanted) > 0.1, "{largest} is found, {wanted} is slow: {shares:?}");
    assert!(ended["verdict"].as_str().unwrap().contains(wanted), "{ended}");
    // What is on record of the steps says the same: the parts of each wait are the wait.
    for line in crate::world::text(&world.at("run/metrics.jsonl")).lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let parts: f64 = line["waited_for"].as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum();
        assert!((parts - line["data_wait_seconds"].as_f64().unwrap()).abs() < 1e-6, "{line}");
    }
}

#[test]
fn a_slow_store_is_found() {
    let world = World::new();
    packed(&world, 24);
    let bucket = Bucket::serve(&world.at(""));
    let mut environment = bucket.environment("secret");
    let address = environment[0].1.trim_start_matches("http://").to_owned();
    environment[0].1 = format!("http://{}", slow_way(&address, Duration::from_millis(60)));
    let shards = "s3://set/*.tar";
    let built = world.command(&["manifest", "build", shards, "--out", "far.json"]).envs(environment.clone()).output();
    assert!(built.unwrap().status.success());
    let manifest = world.arg("far.json");
    // Samples are read one by one, none is held.
    let more = ["--set", "machine.storage_requests=1", "--set", "machine.memory_bytes=1"];
    let args = arguments(&manifest, &more);
    culprit(&world, world.command(&args).envs(environment), "storage");
}

#[test]
fn slow_decoding_is_found() {
    let world = World::new();
    let manifest = packed(&world, 900);
    culprit(&world, &mut world.command(&arguments(&manifest, &[])), "decode");
}

#[test]
fn slow_augmentation_is_found() {
    let world = World::new();
    let manifest = packed(&world, 24);
    let blur = r#"{ op = "gaussian_blur", probability = 1.0, sigma = [1.0, 2.0], kernel = 0.9 }"#;
    let crop = r#"{ op = "random_resized_crop", scale = [0.5, 1.0], ratio = [1.0, 1.0], interpolation = "bicubic" }"#;
    let ops = format!("recipe.ops=[{crop}, {}]", vec![blur; 400].join(", "));
    culprit(&world, &mut world.command(&arguments(&manifest, &["--set", &ops])), "augment");
}

#[test]
fn a_slow_link_is_found_and_so_is_a_slow_node_behind_a_fast_one() {
    let world = World::new();
    let manifest = packed(&world, 24);
    let node = Node::start(&world, &["--manifest", &manifest]);
    let far = format!("grpc://{}", slow_way(node.address(), Duration::from_millis(120)));
    culprit(&world, &mut world.command(&arguments(&manifest, &["--feed", &far])), "network");

    let world = World::new();
    let manifest = packed(&world, 900);
    let node = Node::start(&world, &["--manifest", &manifest, "--set", "machine.threads=1"]);
    culprit(&world, &mut world.command(&arguments(&manifest, &["--feed", &node.url])), "decode");
}

#[test]
fn checkpoints_count_as_well() {
    let world = World::new();
    let manifest = packed(&world, 24);
    let ended = world.done(&arguments(&manifest, &["--set", "checkpoint.every=1"]));
    let (shares, verdict) = (&ended["stalls"], ended["verdict"].as_str().unwrap());
    assert!(shares["checkpoint"].as_f64().unwrap() > 0.0, "{shares}");
    assert!(verdict.starts_with("data wait: "), "{verdict}");
}
