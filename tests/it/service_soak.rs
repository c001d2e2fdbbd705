//! Random kills under load: `SOAK_SECONDS=1800 cargo test --test it service_soak -- --ignored --nocapture`.
//!
//! Three nodes feed one client, which keeps a ledger: the digest of every batch, in the order in which they came. Nodes
//! are killed, stopped, told to end, and started again at moments that a seed decides. The expected ledger is made
//! at the same time without them, and takes its share of the machine.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::service::{Node, fed};
use crate::world::World;

const BATCH: [&str; 4] = ["--set", "batch.size=64", "--set", "recipe.size=32"];

#[test]
#[ignore = "takes as long as it is told to"]
fn service_soak() {
    let seconds: u64 = std::env::var("SOAK_SECONDS").map_or(60, |text| text.parse().expect("a number of seconds"));
    let world = World::new();
    let manifest = world.packed("set", 200, &[]);
    // How many batches fill the time is measured; being fed by nodes that come and go takes longer.
    let local = |batches: &str| {
        let local =
            [&["digest"], crate::world::TINY, &["--manifest", &manifest, "--batches", batches, "--json"], &BATCH];
        world.start(&local.concat())
    };
    let began = Instant::now();
    assert!(local("2000").wait_with_output().unwrap().status.success());
    let batches = (2000.0 * seconds as f64 / began.elapsed().as_secs_f64() * 0.5) as u64;
    let batches = batches.to_string();
    let wanted = local(&batches);
    let wanted = std::thread::spawn(move || wanted.wait_with_output().unwrap());

    let arguments = [&["--manifest", &manifest, "--set", "machine.threads=1"], &BATCH[..]].concat();
    let mut nodes: Vec<Node> = (0..3).map(|_| Node::start(&world, &arguments)).collect();
    let urls = nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>().join(",");
    let more = [&["--batches", &batches, "--set", "machine.feed.timeout_seconds=2", "--json"], &BATCH[..]].concat();
    let client = world.start(&fed(&manifest, &urls, &more));
    let client_id = client.id();
    let output = std::thread::spawn(move || client.wait_with_output().unwrap());
    let (began, mut dice) = (Instant::now(), 1u64);
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    let (mut faults, mut memory) = ([0u32; 3], Vec::new());
    while !output.is_finished() {
        std::thread::sleep(Duration::from_millis(500 + roll(3000)));
        memory.extend(resident(client_id));
        let at = roll(3) as usize;
        let node = &mut nodes[at];
        let address = node.address().to_owned();
        match roll(3) {
            0 => {
                faults[0] += 1;
                node.kill();
                std::thread::sleep(Duration::from_millis(roll(2000)));
                *node = Node::start_at(&world, &address, &arguments);
            }
            1 => {
                faults[1] += 1;
                node.signal("-STOP");
                std::thread::sleep(Duration::from_millis(roll(5000)));
                node.signal("-CONT");
            }
            _ => {
                faults[2] += 1;
                node.signal("-TERM");
                assert_eq!(node.child.wait().unwrap().code(), Some(0), "it ends well");
                *node = Node::start_at(&world, &address, &arguments);
            }
        }
    }
    let output = output.join().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ledger: Value = serde_json::from_slice(&output.stdout).unwrap();
    let wanted = wanted.join().unwrap();
    assert!(wanted.status.success(), "{}", String::from_utf8_lossy(&wanted.stderr));
    let wanted: Value = serde_json::from_slice(&wanted.stdout).unwrap();
    let early = memory[..memory.len().div_ceil(4)].iter().max().unwrap();
    let late = memory[memory.len() / 2..].iter().max().unwrap();
    println!(
        "{batches} batches in {:.0} s, {} kills, {} stops, {} ends; client's memory {:.1} MB at most in the first quarter, {:.1} MB in the second half",
        began.elapsed().as_secs_f64(),
        faults[0],
        faults[1],
        faults[2],
        *early as f64 / 1e6,
        *late as f64 / 1e6
    );
    assert!(ledger == wanted, "every batch came once, in order, with the right bytes");
    assert!(late <= &(early + early / 4 + (16 << 20)), "memory is flat: {memory:?}");
}

/// Bytes of memory that a process has.
fn resident(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
    Some(text.split(' ').nth(1)?.parse::<u64>().ok()? * 4096)
}
