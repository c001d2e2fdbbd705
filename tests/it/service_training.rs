//! Trainers that are fed: the losses of a run that makes its own batches, whatever was killed.

use std::io::{BufRead, BufReader, Read};
use std::process::Child;

use crate::service::{Node, get, until};
use crate::world::{TINY, World};

const STEPS: u64 = 40;

fn train<'a>(manifest: &'a str, run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["--manifest", manifest, "--run", run, "--set", "checkpoint.every=5", "--set", "train.steps=40"];
    [&["train"], TINY, &fixed, more].concat()
}

fn killed(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_fed_run_has_the_losses_of_one_that_makes_its_own_batches() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&train(&manifest, "own", &[]));
    let wanted = world.losses("own");
    assert_eq!(wanted.len(), STEPS as usize);
    let mut nodes: Vec<Node> = (0..2).map(|_| Node::start(&world, &["--manifest", &manifest])).collect();
    let urls = nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>().join(",");
    let resume = ["--resume", "--feed", &urls];
    // A node dies, then the trainer; the rest is fed by the node that is left.
    let child = world.start(&train(&manifest, "fed", &resume));
    until("step 4", || world.steps_done("fed") >= 4);
    nodes[0].kill();
    until("step 12", || world.steps_done("fed") >= 12);
    killed(child);
    world.done(&train(&manifest, "fed", &resume));
    assert!(world.losses("fed") == wanted, "node and trainer were killed");
    // Of another plan it gets nothing.
    let other = train(&manifest, "other", &["--feed", &nodes[1].url, "--set", "seed=2"]);
    world.fails(&other, 2, &["seed is 2 in the ticket, 1 here"]);
    // It goes on without nodes too: who makes the batches is no part of the run.
    world.done(&train(&manifest, "changed", &["--feed", &nodes[1].url, "--set", "train.steps=20"]));
    world.done(&train(&manifest, "changed", &["--resume", "--set", "machine.feed.nodes=[]"]));
    assert!(world.losses("changed") == wanted, "fed at first, by itself later");
}

#[test]
fn what_service_and_fed_trainer_count_is_on_the_dashboard() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let node = Node::start(&world, &["--manifest", &manifest]);
    let more = ["--feed", &node.url, "--set", "machine.metrics=127.0.0.1:0", "--set", "train.steps=0"];
    let mut trainer = world.start(&train(&manifest, "run", &more));
    let mut line = String::new();
    let mut said = BufReader::new(trainer.stderr.take().unwrap());
    said.read_line(&mut line).unwrap();
    let address = line.trim().trim_start_matches("metrics: http://").trim_end_matches("/metrics").to_owned();
    std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
    until("step 3", || world.steps_done("run") >= 3);
    let (fed, served) = (get(&address, "/metrics").1, node.get("/metrics").1);
    killed(trainer);
    let value = |text: &str, name: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.trim().parse::<f64>().unwrap()
    };
    assert!(value(&served, "simclr_service_batches_sent_total ") >= 3.0);
    assert_eq!(value(&served, "simclr_service_clients "), 1.0);
    assert_eq!(value(&served, "simclr_service_streams "), 1.0);
    assert_eq!(value(&fed, "simclr_feed_nodes "), 1.0);
    assert!(
        value(&fed, "simclr_feed_received_bytes_total ") >= value(&fed, "simclr_trainer_steps_total ") * 8.0 * 1536.0
    );
    let all = fed + &served;
    for dashboard in ["service.json", "fleet.json"] {
        crate::dashboards::dashboards_and_metrics_agree(dashboard, &all);
    }
}
