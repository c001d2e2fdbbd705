//! Several processes that train together: the same numbers for any number of them, errors that name ranks, no hang.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::service::{Node, until};
use crate::world::{TINY, World, text};

/// Loss and gradient norm may differ by this much between worlds, as shares: sums are taken in another order.
const CLOSE: f64 = 2e-5;

/// A model on which a step's rounding is not blown up: few steps, small ones.
fn train<'a>(manifest: &'a str, run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = [
        "--manifest",
        manifest,
        "--run",
        run,
        "--set",
        "checkpoint.every=4",
        "--set",
        "train.steps=8",
        "--set",
        "optimizer.learning_rate=0.1",
        "--set",
        "machine.rank_timeout_seconds=60",
    ];
    [&["train"], TINY, &fixed, more].concat()
}

/// All weights and running statistics of the last checkpoint, by name.
fn weights(world: &World, run: &str) -> Vec<(String, Vec<f32>)> {
    let checkpoints = std::fs::read_dir(world.at(run).join("checkpoints")).unwrap();
    let last = checkpoints.map(|entry| entry.unwrap().path()).max().unwrap();
    let bytes = std::fs::read(last.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let values = |tensor: &Value| {
        let at = |i: usize| 8 + header + tensor["data_offsets"][i].as_u64().unwrap() as usize;
        bytes[at(0)..at(1)].chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
    };
    tensors.iter().filter(|(name, _)| *name != "__metadata__").map(|(name, t)| (name.clone(), values(t))).collect()
}

fn far(a: f64, b: f64) -> f64 {
    (a - b).abs() / a.abs().max(b.abs()).max(1e-12)
}

/// Holds the steps of two runs against each other.
fn agree(world: &World, run: &str, wanted: &str, keys: &[&str]) {
    let (found, wanted_lines) = (world.steps(run), world.steps(wanted));
    assert_eq!(found.len(), wanted_lines.len(), "{run}");
    for (a, b) in found.iter().zip(&wanted_lines) {
        for &key in keys {
            let (x, y) = (a[key].as_f64().unwrap(), b[key].as_f64().unwrap());
            assert!(far(x, y) < CLOSE, "{run}, step {}: {key} is {x}, {wanted} has {y}", a["step"]);
        }
    }
}

/// As [`agree`], and every weight and running statistic.
fn agree_whole(world: &World, run: &str, wanted: &str) {
    agree(world, run, wanted, &["loss", "gradient_norm", "contrastive_entropy", "embedding_std"]);
    for ((name, found), (_, wanted)) in weights(world, run).iter().zip(weights(world, wanted)) {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let off = norm(&mut found.iter().zip(&wanted).map(|(a, b)| f64::from(a - b)));
        let all = norm(&mut wanted.iter().map(|&x| f64::from(x)));
        // Shifts, which begin at zero, have learned little more than rounding yet.
        assert!(off < CLOSE * all.max(0.1), "{run}: {name} is off by {off}, of {all}");
    }
}

#[test]
fn worlds_of_any_size_learn_the_same() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let probe = ["--set", "train.probe=true"];
    world.done(&train(&manifest, "one", &probe));
    for count in ["1", "2", "4"] {
        let said = world.done(&train(&manifest, count, &[&probe[..], &["--nproc", count]].concat()));
        assert_eq!((said["step"].as_u64(), said["interrupted"].as_bool()), (Some(8), Some(false)), "{said}");
        agree_whole(&world, count, "one");
        agree(&world, count, "one", &["probe_accuracy", "contrastive_accuracy"]);
    }
}

#[test]
fn every_loss_is_that_of_the_whole_batch() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let cases: [&[&str]; 3] = [
        &["loss.kind=nt_logistic", "loss.semi_hard=true"],
        &["loss.kind=margin_triplet", "loss.normalize=false"],
        &["model.head.layers=3", "optimizer.kind=sgd"],
    ];
    for (i, case) in cases.iter().enumerate() {
        let settings: Vec<&str> = case.iter().flat_map(|setting| ["--set", setting]).collect();
        let [one, two] = ["one", "two"].map(|name| format!("{name}-{i}"));
        world.done(&train(&manifest, &one, &settings));
        world.done(&train(&manifest, &two, &[&settings[..], &["--nproc", "2"]].concat()));
        agree_whole(&world, &two, &one);
    }
}

/// Batch norm that is not synchronized sees what it sees when one process takes its batch in as many parts; and a rank's
/// batch may be taken in parts too.
#[test]
fn parts_of_batches_are_as_those_of_one_process() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let local = ["--set", "train.sync_batch_norm=false"];
    for (part, micro) in
        [("train.micro_batch=4", "train.micro_batch=0"), ("train.micro_batch=2", "train.micro_batch=2")]
    {
        let [one, two] = ["one", "two"].map(|name| format!("{name}-{part}-{micro}"));
        world.done(&train(&manifest, &one, &["--set", part]));
        world.done(&train(&manifest, &two, &[&local[..], &["--nproc", "2", "--set", micro]].concat()));
        agree(&world, &two, &one, &["loss", "gradient_norm"]);
    }
    // With both, parts of all ranks are normalized together: another batch norm, and no error.
    world.done(&train(&manifest, "both", &["--nproc", "2", "--set", "train.micro_batch=2"]));
    assert!(world.steps("both").iter().all(|line| line["loss"].as_f64().unwrap().is_finite()));
}

#[test]
fn a_run_goes_on_in_a_world_of_another_size() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&train(&manifest, "one", &[]));
    for (count, until) in [("2", "train.steps=3"), ("4", "train.steps=6"), ("1", "train.steps=8")] {
        world.done(&train(&manifest, "many", &["--resume", "--nproc", count, "--set", until]));
    }
    agree_whole(&world, "many", "one");
    // In a world of the same size, to the last bit.
    world.done(&train(&manifest, "whole", &["--nproc", "4"]));
    for until in ["train.steps=3", "train.steps=8"] {
        world.done(&train(&manifest, "parts", &["--resume", "--nproc", "4", "--set", until]));
    }
    assert_eq!(world.losses("parts"), world.losses("whole"));
    assert!(weights(&world, "parts") == weights(&world, "whole"));
}

/// The process that a launcher started as this rank.
fn process_of(launcher: &Child, rank: u32) -> String {
    let id = launcher.id();
    let mut found = None;
    until("the rank runs", || {
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        found = children.split_whitespace().map(str::to_owned).find(|child| {
            let environment = std::fs::read(format!("/proc/{child}/environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|variable| variable == format!("RANK={rank}").as_bytes())
        });
        found.is_some()
    });
    found.unwrap()
}

fn signal(process: &str, name: &str) {
    assert!(Command::new("kill").args([name, process]).status().unwrap().success());
}

fn ended(child: Child) -> (Output, String) {
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (output, said)
}

#[test]
fn a_rank_that_is_killed_ends_the_step_everywhere_and_all_start_again() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let more = ["--nproc", "2", "--set", "train.steps=40"];
    world.done(&train(&manifest, "quiet", &more));
    for (run, rank) in [("follower", 1), ("leader", 0)] {
        let child = world.start(&train(&manifest, run, &more));
        until("step 2", || world.steps_done(run) >= 2);
        let began = Instant::now();
        signal(&process_of(&child, rank), "-KILL");
        let (output, said) = ended(child);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(began.elapsed() < Duration::from_secs(30), "it took {:.1?}", began.elapsed());
        let (gone, named) = (format!("rank {rank} is not responding"), format!("rank {rank} exited with signal: 9"));
        assert!(said.contains(&gone) && said.contains(&named), "{said}");
    }
    let child = world.start(&train(&manifest, "again", &[&more[..], &["--restarts", "2"]].concat()));
    for rank in [1, 0] {
        let known = world.steps_done("again");
        until("another step", || world.steps_done("again") > known.max(5));
        signal(&process_of(&child, rank), "-KILL");
    }
    let (output, said) = ended(child);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("restarting from the last checkpoint (2/2)"), "{said}");
    assert!(world.losses("again") == world.losses("quiet") && weights(&world, "again") == weights(&world, "quiet"));
}

#[test]
fn a_rank_that_hangs_is_given_up_in_time() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let more = ["--nproc", "2", "--set", "train.steps=4000", "--set", "machine.rank_timeout_seconds=3"];
    let child = world.start(&train(&manifest, "run", &more));
    until("step 2", || world.steps_done("run") >= 2);
    let began = Instant::now();
    signal(&process_of(&child, 1), "-STOP");
    let (output, said) = ended(child);
    assert!(began.elapsed() < Duration::from_secs(40), "it took {:.1?}", began.elapsed());
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("rank 1 is not responding"), "{said}");
}

#[test]
fn a_signal_stops_all_ranks_after_the_same_step() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let child = world.start(&train(&manifest, "run", &["--nproc", "2", "--set", "train.steps=4000"]));
    until("step 3", || world.steps_done("run") >= 3);
    signal(&child.id().to_string(), "-TERM");
    let (output, said) = ended(child);
    assert_eq!(output.status.code(), Some(130), "{said}");
    let reached = world.steps_done("run");
    let last = std::fs::read_dir(world.at("run/checkpoints")).unwrap().map(|entry| entry.unwrap().file_name()).max();
    assert_eq!(last.unwrap().to_str().unwrap(), format!("step-{reached:08}"));
}

#[test]
fn fed_ranks_get_their_share_of_each_batch() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&train(&manifest, "own", &["--nproc", "2"]));
    let nodes: Vec<Node> = (0..2).map(|_| Node::start(&world, &["--manifest", &manifest])).collect();
    let urls = nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>().join(",");
    world.done(&train(&manifest, "fed", &["--nproc", "2", "--feed", &urls]));
    assert_eq!(world.losses("fed"), world.losses("own"));
}

/// Rank 0 evaluates while the others wait, longer than they would for a step.
#[test]
fn one_rank_evaluates_for_all() {
    let world = World::new();
    let (manifest, test) = (world.packed("set", 60, &[]), world.packed("test", 20, &[]));
    let test = format!("eval.test={test}");
    let more = ["--nproc", "2", "--set", "eval.every=1", "--set", &test];
    world.done(&train(&manifest, "evaluated", &more));
    world.done(&train(&manifest, "plain", &["--nproc", "2"]));
    assert_eq!(world.losses("evaluated"), world.losses("plain"));
    let results = text(&world.at("evaluated/evaluations.jsonl"));
    assert_eq!(results.lines().count(), 1, "once an epoch of seven batches: {results}");
}

/// Starts one rank of a world by the variables that torchrun sets.
fn start_rank(world: &World, (rank, size, port): (u32, u32, u16), args: &[&str]) -> Child {
    let mut command = world.command(args);
    for (name, value) in [
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", size.to_string()),
        ("LOCAL_WORLD_SIZE", size.to_string()),
        ("MASTER_ADDR", "127.0.0.1".into()),
        ("MASTER_PORT", port.to_string()),
    ] {
        command.env(name, value);
    }
    command.spawn().unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn ranks_that_were_started_one_by_one_meet() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let args = train(&manifest, "run", &[]);
    let port = free_port();
    let ranks = [1, 0].map(|rank| start_rank(&world, (rank, 2, port), &args));
    for (output, said) in ranks.map(ended) {
        assert!(output.status.success(), "{said}");
    }
    world.done(&train(&manifest, "launched", &["--nproc", "2"]));
    assert_eq!(world.losses("run"), world.losses("launched"));
}

#[test]
fn what_keeps_ranks_apart_is_said_and_names_them() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let right = train(&manifest, "run", &[]);
    let both = |args: [&[&str]; 2], code: i32, wanted: &str| {
        let port = free_port();
        let ranks = [0, 1].map(|rank| start_rank(&world, (rank, 2, port), args[rank as usize]));
        for (output, said) in ranks.map(ended) {
            assert_eq!(output.status.code(), Some(code), "{said}");
            assert!(said.contains(wanted), "{wanted:?} is not in: {said}");
        }
    };
    // Another configuration, and other data of the same shape.
    both(
        [&right, &train(&manifest, "run", &["--set", "loss.temperature=0.9"])],
        2,
        "rank 1 has loss.temperature: 0.9 vs 0.5",
    );
    world.draw("other-pictures", 100, 60);
    let (images, packed) = (world.arg("other-pictures"), world.arg("other"));
    world.done(&["pack", &images, "--out", &packed, "--shard-bytes", "60000"]);
    let other = world.arg("other/manifest.json");
    both([&right, &train(&other, "run", &[])], 2, "rank 1 has other data: plan ");
    assert!(!world.at("run/run.json").exists(), "nothing was begun");
    // One that never comes, and one that finds nobody.
    let few = train(&manifest, "run", &["--set", "machine.rank_timeout_seconds=2"]);
    let (output, said) = ended(start_rank(&world, (0, 2, free_port()), &few));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("rank 1 has not joined within 2 s (world size 2)"), "{said}");
    let (output, said) = ended(start_rank(&world, (1, 2, free_port()), &few));
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("rank 1 cannot reach the store at 127.0.0.1:"), "{said}");
    // One that fails on its own before they meet tells the other.
    let broken = train("nowhere.json", "run", &[]);
    let port = free_port();
    let (first, second) = (start_rank(&world, (0, 2, port), &right), start_rank(&world, (1, 2, port), &broken));
    let (output, said) = ended(first);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("rank 1 failed:") && said.contains("nowhere.json"), "{said}");
    assert_eq!(ended(second).0.status.code(), Some(2));
    // A world that does not divide the lanes, and variables that are missing.
    world.fails(
        &train(&manifest, "run", &["--nproc", "3"]),
        2,
        &["4 (rank 0 of 3) for order.lanes", "expected a multiple"],
    );
    let mut command = world.command(&right);
    let (output, said) = ended(command.env("RANK", "0").spawn().unwrap());
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("WORLD_SIZE is not set"), "{said}");
}

/// The lines that a process says, up to the one that holds all of `wanted`.
fn said_until(child: &mut Child, wanted: &[&str]) -> Vec<String> {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said: Vec<String> = Vec::new();
    while !said.last().is_some_and(|line| wanted.iter().all(|part| line.contains(part))) {
        said.push(lines.next().unwrap_or_else(|| panic!("{wanted:?} is not in {said:?}")));
    }
    said
}

/// A rank that waits says for whom and why it thinks that they should come, and does not have to be killed.
#[test]
fn a_rank_that_waits_says_for_whom_and_ends_at_a_signal() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let args = train(&manifest, "run", &[]);
    let mut first = start_rank(&world, (0, 4, free_port()), &args);
    said_until(
        &mut first,
        &["rank 0 has waited", "ranks 1, 2, 3 have not come", "torchrun says so: RANK = 0, WORLD_SIZE = 4"],
    );
    let mut second = start_rank(&world, (1, 2, free_port()), &args);
    said_until(&mut second, &["rank 1 of 2 has waited", "for rank 0, which keeps the store at 127.0.0.1:"]);
    for mut child in [first, second] {
        signal(&child.id().to_string(), "-TERM");
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
}
