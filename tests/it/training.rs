//! Training, stopping, going on, evaluating.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::service::until;
use crate::sources::{Bucket, Gate};
use crate::world::{TINY, World, text};

pub const STEPS: u64 = 12;

pub fn arguments<'a>(manifest: &'a str, run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base =
        [TINY, &["--manifest", manifest, "--run", run, "--set", "checkpoint.every=3", "--set", "train.steps=12"]];
    [&["train"], &base.concat()[..], more].concat()
}

/// Step and loss of every line, to the last bit.
fn losses(world: &World, run: &str) -> Vec<(u64, u64)> {
    let lines = text(&world.at(run).join("metrics.jsonl"));
    let parse = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    lines
        .lines()
        .map(parse)
        .map(|line| (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap().to_bits()))
        .collect()
}

fn weights(world: &World, run: &str) -> Vec<u8> {
    std::fs::read(world.at(run).join(format!("checkpoints/step-{STEPS:08}/model.safetensors"))).unwrap()
}

/// Waits until `run` has logged `steps` steps.
fn wait_for(world: &World, run: &str, steps: usize, child: &mut Child) {
    let began = Instant::now();
    let path = world.at(run).join("metrics.jsonl");
    while std::fs::read_to_string(&path).map_or(0, |text| text.lines().count()) < steps {
        assert!(child.try_wait().unwrap().is_none(), "it ended before step {steps}");
        assert!(began.elapsed() < Duration::from_secs(120), "step {steps} was never reached");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_run_goes_on_with_the_losses_it_would_have_had() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let whole = world.done(&arguments(&manifest, "whole", &[]));
    assert_eq!(whole["step"], STEPS);
    let (wanted, wanted_weights) = (losses(&world, "whole"), weights(&world, "whole"));
    assert_eq!(wanted.iter().map(|line| line.0).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());
    // Stopped at every step, and gone on with.
    let mut step = 0;
    while step < STEPS {
        step += 1;
        let steps = format!("train.steps={step}");
        world.done(&arguments(&manifest, "steps", &["--resume", "--set", &steps]));
    }
    assert!(losses(&world, "steps") == wanted && weights(&world, "steps") == wanted_weights, "stopped at every step");
    // Killed at several moments, checkpoints only every third step.
    for (i, after) in [1, 4, 5, 8].into_iter().enumerate() {
        let run = format!("killed-{i}");
        let args = arguments(&manifest, &run, &["--resume"]);
        let mut child = world.start(&args);
        wait_for(&world, &run, after, &mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        world.done(&args);
        assert!(losses(&world, &run) == wanted && weights(&world, &run) == wanted_weights, "killed after step {after}");
    }
}

/// Every optimizer and loss, with and without parts of a batch: what they remember is in the checkpoint.
#[test]
fn runs_of_every_kind_go_on() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let kinds: [&[&str]; 4] = [
        &["optimizer.kind=adamw", "optimizer.learning_rate=0.001", "optimizer.learning_rate_rule=constant"],
        &["optimizer.kind=sgd", "optimizer.nesterov=true", "loss.kind=nt_logistic", "loss.semi_hard=true"],
        &["train.micro_batch=3", "model.initialization=he"],
        &["loss.kind=margin_triplet", "loss.normalize=false", "train.micro_batch=4", "optimizer.kind=adamw"],
    ];
    for (i, kind) in kinds.iter().enumerate() {
        let settings: Vec<&str> = kind.iter().flat_map(|setting| ["--set", setting]).collect();
        let [whole, parts] = ["whole", "parts"].map(|name| format!("{name}-{i}"));
        world.done(&arguments(&manifest, &whole, &settings));
        for steps in ["train.steps=4", "train.steps=5", "train.steps=12"] {
            world.done(&arguments(&manifest, &parts, &[&settings[..], &["--resume", "--set", steps]].concat()));
        }
        assert_eq!(losses(&world, &parts), losses(&world, &whole), "{kind:?}");
        assert!(weights(&world, &parts) == weights(&world, &whole), "{kind:?}");
    }
}

/// A disk on which the second checkpoint has no place: the first stays, and with more room the run goes on from it.
#[test]
fn a_full_disk_loses_no_checkpoint() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&arguments(&manifest, "whole", &[]));
    let of_one = std::fs::read_dir(world.at("whole/checkpoints/step-00000012")).unwrap();
    let bytes: u64 = of_one.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    std::fs::create_dir(world.at("disk")).unwrap();
    let disk = world.arg("disk");
    let mount = |arguments: &[&str]| std::process::Command::new("mount").args(arguments).output();
    let small = format!("size={}", bytes * 3 / 2 + 100_000);
    if !mount(&["-t", "tmpfs", "-o", &small, "tmpfs", &disk]).is_ok_and(|output| output.status.success()) {
        eprintln!("this machine lets us mount no small disk: a full one is not tried");
        return;
    }
    let run = ["--resume", "--set", "machine.tensorboard=false", "--set", "checkpoint.keep=2"];
    let arguments = arguments(&manifest, "disk/run", &run);
    world.fails(&arguments, 1, &["cannot write checkpoint", "checkpoints/step-00000006", "No space left"]);
    assert!(world.at("disk/run/checkpoints/step-00000003/state.json").is_file());
    assert!(mount(&["-o", "remount,size=100m", &disk]).unwrap().status.success());
    let goes_on = world.run(&arguments);
    let said = String::from_utf8_lossy(&goes_on.stderr);
    assert!(goes_on.status.success() && said.contains("resuming from step 3"), "{said}");
    assert!(
        losses(&world, "disk/run") == losses(&world, "whole")
            && weights(&world, "disk/run") == weights(&world, "whole")
    );
    assert!(std::process::Command::new("umount").arg(&disk).status().unwrap().success());
}

/// `cargo test --test it -- --ignored --nocapture killed_at_twenty_random_moments`
#[test]
#[ignore = "takes a minute"]
fn a_run_killed_at_twenty_random_moments_ends_as_one_that_was_not() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let more = ["--set", "train.steps=2400", "--set", "schedule.epochs=360.0", "--set", "checkpoint.every=3"];
    world.done(&arguments(&manifest, "whole", &more));
    let args = arguments(&manifest, "killed", &[&more[..], &["--resume"]].concat());
    let mut draws = simclr_ground::rng::Draws::new(1, simclr_ground::rng::Purpose::Image, &[20]);
    let steps_done =
        || std::fs::read_to_string(world.at("killed/metrics.jsonl")).map_or(0, |text| text.lines().count());
    let mut kills = Vec::new();
    while kills.len() < 20 {
        let mut child = world.start(&args);
        // From before the first step of the rest, through steps and checkpoints, to some steps later.
        std::thread::sleep(Duration::from_millis(150 + draws.below(900)));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let aside = std::fs::read_dir(world.at("killed/checkpoints")).into_iter().flatten().flatten();
        let half = aside.filter(|entry| entry.file_name().to_string_lossy().starts_with(".writing")).count();
        kills.push((steps_done(), half));
    }
    println!("steps on record, and checkpoints half written, at each kill: {kills:?}");
    assert_eq!(kills.len(), 20, "the run was over before");
    world.done(&args);
    assert!(losses(&world, "killed") == losses(&world, "whole"));
    let last = |run: &str| std::fs::read(world.at(run).join("checkpoints/step-00002400/model.safetensors")).unwrap();
    assert!(last("killed") == last("whole"));
}

#[test]
fn sigterm_stops_cleanly_with_a_checkpoint() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&arguments(&manifest, "whole", &[]));
    let args = arguments(&manifest, "run", &["--resume", "--set", "checkpoint.every=1000"]);
    let mut child = world.start(&args);
    wait_for(&world, "run", 2, &mut child);
    let status = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    let code = output.status.code();
    let done = losses(&world, "run").len() as u64;
    assert!(code == Some(130) || (code == Some(0) && done == STEPS), "{output:?}");
    assert!(world.at("run").join(format!("checkpoints/step-{done:08}/state.json")).is_file());
    world.done(&args);
    assert!(losses(&world, "run") == losses(&world, "whole"));
}

#[test]
fn a_broken_checkpoint_is_not_taken() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&arguments(&manifest, "run", &[]));
    let wanted = losses(&world, "run");
    let newest = world.at("run").join(format!("checkpoints/step-{STEPS:08}"));
    let mut model = std::fs::read(newest.join("model.safetensors")).unwrap();
    let middle = model.len() / 2;
    model[middle] ^= 1;
    std::fs::write(newest.join("model.safetensors"), model).unwrap();
    let output = world.run(&arguments(&manifest, "run", &["--resume"]));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.contains("skipping corrupt checkpoint") && stderr.contains("step 9"),
        "{stderr}"
    );
    assert!(losses(&world, "run") == wanted);
    // Without a whole one the run is not silently begun anew.
    for path in std::fs::read_dir(world.at("run/checkpoints")).unwrap().flatten() {
        std::fs::write(path.path().join("optimizer.safetensors"), b"").unwrap();
    }
    world.fails(&arguments(&manifest, "run", &["--resume"]), 2, &["all checkpoints are corrupt", "BLAKE3"]);
    assert!(losses(&world, "run") == wanted);
}

#[test]
fn a_broken_newer_checkpoint_does_not_push_out_the_good_ones() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&arguments(&manifest, "run", &["--set", "train.steps=6"]));
    let checkpoint = |step: u64| world.at("run").join(format!("checkpoints/step-{step:08}"));
    std::fs::write(checkpoint(6).join("model.safetensors"), b"").unwrap();
    let more = ["--resume", "--set", "train.steps=4", "--set", "checkpoint.every=1", "--set", "checkpoint.keep=1"];
    assert_eq!(world.done(&arguments(&manifest, "run", &more))["step"], 4);
    assert!(checkpoint(4).join("state.json").is_file() && !checkpoint(3).exists());
    assert_eq!(world.done(&arguments(&manifest, "run", &["--resume", "--set", "train.steps=5"]))["step"], 5);
}

#[test]
fn a_run_has_one_owner() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let args = arguments(&manifest, "run", &["--set", "train.steps=5000", "--set", "schedule.epochs=5000"]);
    let mut child = world.start(&args);
    wait_for(&world, "run", 1, &mut child);
    world.fails(&[&args[..], &["--resume"]].concat(), 2, &["locked by another process"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let ends = ["--resume", "--set", "schedule.epochs=5000", "--set", "train.steps=3"];
    world.done(&arguments(&manifest, "run", &ends));
}

#[test]
fn the_quarantine_is_remembered_when_a_run_goes_on() {
    let world = World::new();
    world.draw("pictures", 0, 60);
    for i in [5, 15, 25] {
        std::fs::write(world.at(&format!("pictures/star/{i:04}.png")), b"").unwrap();
    }
    world.done(&["pack", "pictures", "--out", "set", "--shard-bytes", "60000"]);
    let manifest = world.arg("set/manifest.json");
    let allow = ["--set", "data.max_damaged=0.05"];
    world.done(&arguments(&manifest, "run", &[&allow[..], &["--set", "train.steps=11"]].concat()));
    let ledger = text(&world.at("run/quarantine.jsonl"));
    assert_eq!(ledger.lines().count(), 3, "{ledger}");
    assert!(ledger.contains("star/0015.png") && ledger.contains("\"reason\":\"empty\""), "{ledger}");
    world.done(&arguments(&manifest, "run", &[&allow[..], &["--resume"]].concat()));
    assert_eq!(text(&world.at("run/quarantine.jsonl")), ledger);
    world.fails(
        &arguments(&manifest, "run", &["--resume", "--set", "data.max_damaged=0.03"]),
        1,
        &["too many damaged samples: 3 > 2"],
    );
}

#[test]
fn wrong_requests_to_train_are_named() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let args = |run: &'static str, more: &[&'static str]| {
        arguments(&manifest, run, more).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let fails = |args: Vec<String>, wanted: &[&str]| {
        world.fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2, wanted)
    };
    fails(args("run", &["--set", "machine.device=tpu"]), &["machine.device", "cuda"]);
    if tch_has_no_cuda(&world, &manifest) {
        fails(args("run", &["--set", "machine.device=cuda"]), &["machine.device", "CUDA library"]);
    }
    fails(args("run", &["--set", "loss.temperature=0"]), &["invalid value 0 for loss.temperature"]);
    fails(args("run", &["--set", "model.encoder=resnet19"]), &["model.encoder", "resnet18"]);
    fails(args("run", &["--set", "machine.metrics=here"]), &["machine.metrics"]);
    fails(args("run", &["--set", "recipe.views=1"]), &["invalid value 1 for recipe.views"]);
    assert!(!world.at("run").exists(), "nothing is begun before everything is checked");
    world.done(&arguments(&manifest, "run", &["--set", "train.steps=1"]));
    fails(args("run", &[]), &["already contains a run", "--resume"]);
    fails(args("run", &["--resume", "--set", "seed=2"]), &["configuration differs", "seed: 1 vs 2"]);
    world.fails(
        &["eval", "knn", "--run", "nowhere", "--train", &manifest, "--test", &manifest],
        2,
        &["not a run directory"],
    );
    let plan = world.done(&arguments(&manifest, "other", &["--dry-run"]));
    assert_eq!((plan["steps"].as_u64(), world.at("other").exists()), (Some(STEPS), false));
}

fn tch_has_no_cuda(world: &World, manifest: &str) -> bool {
    let plan = world.done(&arguments(manifest, "probe", &["--dry-run", "--set", "machine.device=auto"]));
    plan["device"] == "Cpu"
}

#[test]
fn metrics_are_served_while_training() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let more = ["--set", "machine.metrics=127.0.0.1:0", "--set", "train.steps=2000", "--set", "schedule.epochs=2000"];
    let mut child = world.start(&arguments(&manifest, "run", &more));
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let address = line
        .trim()
        .strip_prefix("metrics: http://")
        .and_then(|rest| rest.strip_suffix("/metrics"))
        .expect(&line)
        .to_owned();
    wait_for(&world, "run", 3, &mut child);
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(get("/livez").starts_with("HTTP/1.1 200") && get("/readyz").starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics");
    child.kill().unwrap();
    child.wait().unwrap();
    let value = |name: &str| {
        let line =
            metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value("simclr_trainer_steps_total ") >= 3.0);
    assert!(value("simclr_pipeline_samples_total ") >= 24.0);
    assert!(value("simclr_pipeline_stage_seconds_total{stage=\"augment\"} ") > 0.0);
    assert!(value("simclr_trainer_loss ") > 0.0);
    assert!(metrics.contains("# TYPE simclr_trainer_data_wait_seconds_total counter"), "{metrics}");
    for dashboard in ["training.json", "pipeline.json"] {
        crate::dashboards::dashboards_and_metrics_agree(dashboard, &metrics);
    }
}

#[test]
fn the_quick_start_does_the_whole_job() {
    let world = World::new();
    let mut args = vec!["quickstart", "--run", "quick", "--train-images", "120", "--test-images", "40"];
    for setting in ["model.width=0.125", "batch.size=16", "schedule.epochs=2", "machine.torch_threads=1"] {
        args.extend(["--set", setting]);
    }
    let done = world.done(&args);
    for key in ["knn_top1_before", "knn_top1", "linear_top1"] {
        assert!(done[key].as_f64().is_some_and(|top1| (0.0..=1.0).contains(&top1)), "{key} in {done}");
    }
    let report = text(&world.at("quick/report.html"));
    assert!(
        report.contains("kNN top-1, trained")
            && report.contains("<polyline")
            && report.contains("data:image/png;base64,")
    );
    assert!(!report.contains("http://") && !report.contains("https://"), "the report needs nothing else");
    // What it made is an ordinary run.
    let set = |name: &str| world.arg(&format!("quick/data/{name}/manifest.json"));
    let knn = world.done(&["eval", "knn", "--run", "quick", "--train", &set("train"), "--test", &set("test")]);
    assert_eq!(knn["top1"], done["knn_top1"]);
    let before =
        world.done(&["eval", "knn", "--run", "quick", "--untrained", "--train", &set("train"), "--test", &set("test")]);
    assert_eq!(before["top1"], done["knn_top1_before"]);
    let linear = world.done(&[
        "eval",
        "linear",
        "--run",
        "quick",
        "--epochs",
        "5",
        "--train",
        &set("train"),
        "--test",
        &set("test"),
    ]);
    assert!(linear["top5"].as_f64() >= linear["top1"].as_f64());
    let (train, test) = (set("train"), set("test"));
    let regression = ["eval", "linear", "--run", "quick", "--solver", "lbfgs", "--confusion", "confusion.png"];
    let regression = world.done(&[&regression[..], &["--train", &train, "--test", &test]].concat());
    assert_eq!(regression["validation"].as_array().unwrap().len(), 45);
    assert_eq!(regression["per_class"].as_array().unwrap().len(), 10);
    assert!(regression["mean_per_class"].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)), "{regression}");
    assert!(std::fs::read(world.at("confusion.png")).unwrap().starts_with(b"\x89PNG"));
    world.done(&["report", "--run", "quick", "--out", "again.html"]);
    world.fails(&["quickstart", "--run", "quick"], 2, &["already exists"]);
}

/// Files that lost their end, as those of a network file system whose server fails do: what is read of them fails.
struct Outage {
    files: Vec<(std::path::PathBuf, Vec<u8>)>,
}

impl Outage {
    /// Begins for the shards in a folder.
    fn begin(folder: &std::path::Path) -> Self {
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let shards = paths.filter(|path| path.extension().is_some_and(|extension| extension == "tar"));
        let files: Vec<_> = shards.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        files.iter().for_each(|(path, _)| drop(std::fs::File::create(path).unwrap()));
        Self { files }
    }

    fn end(self) {
        self.files.into_iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    }
}

/// The step of the newest checkpoint.
fn newest_checkpoint(world: &World, run: &str) -> Option<u64> {
    let folders = std::fs::read_dir(world.at(run).join("checkpoints")).ok()?.flatten();
    folders.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).max()
}

/// An outage is no wrong input: what was learnt before it is kept, and the run goes on once it is over.
#[test]
fn an_outage_loses_no_step_and_is_no_wrong_input() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let more =
        ["--resume", "--set", "checkpoint.every=1000", "--set", "train.steps=300", "--set", "schedule.epochs=90"];
    let whole = arguments(&manifest, "whole", &more);
    world.done(&whole);
    let args = arguments(&manifest, "run", &more);
    let mut child = world.start(&args);
    wait_for(&world, "run", 3, &mut child);
    let outage = Outage::begin(&world.at("set"));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("shard ") && said.contains("cannot read shard"), "{said}");
    let taken = losses(&world, "run").len() as u64;
    assert!((3..300).contains(&taken), "{taken} steps");
    assert_eq!(newest_checkpoint(&world, "run"), Some(taken), "{said}");
    // Before a step is taken, shards that are not those of the manifest are wrong input.
    world.fails(&args, 2, &["0 bytes", "expected"]);
    outage.end();
    world.done(&args);
    assert!(losses(&world, "run") == losses(&world, "whole"));
}

#[test]
fn an_evaluation_that_fails_loses_no_step() {
    let world = World::new();
    let (manifest, test) = (world.packed("set", 60, &[]), world.packed("test", 20, &[]));
    let setting = format!("eval.test={test}");
    let more = ["--set", "checkpoint.every=1000", "--set", "eval.every=1", "--set", &setting];
    let outage = Outage::begin(&world.at("test"));
    world.fails(&arguments(&manifest, "run", &more), 1, &["0 bytes", "expected"]);
    // An epoch is seven batches.
    assert_eq!((newest_checkpoint(&world, "run"), losses(&world, "run").len()), (Some(7), 7));
    outage.end();
    assert_eq!(world.done(&arguments(&manifest, "run", &[&more[..], &["--resume"]].concat()))["step"], STEPS);
}

/// With several ranks, the one whose data does not come tells the others, and all start again from the step they were at.
#[test]
fn ranks_start_again_after_an_outage_from_the_step_they_were_at() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let more =
        ["--nproc", "2", "--set", "checkpoint.every=1000", "--set", "train.steps=60", "--set", "schedule.epochs=90"];
    world.done(&arguments(&manifest, "whole", &more));
    let mut child = world.start(&arguments(&manifest, "run", &[&more[..], &["--restarts", "30"]].concat()));
    wait_for(&world, "run", 3, &mut child);
    let outage = Outage::begin(&world.at("set"));
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    while !said.last().is_some_and(|line: &String| line.contains("restarting from the last checkpoint")) {
        said.push(lines.next().unwrap_or_else(|| panic!("it ended: {said:?}")));
    }
    let taken = losses(&world, "run").len() as u64;
    assert_eq!(newest_checkpoint(&world, "run"), Some(taken), "{said:?}");
    outage.end();
    said.extend(lines);
    assert!(child.wait().unwrap().success(), "{said:?}");
    assert!(said.iter().any(|line| line.contains(&format!("resuming from step {taken} "))), "{said:?}");
    assert!(losses(&world, "run") == losses(&world, "whole"));
}

/// The program, started by another one.
fn through(world: &World, starter: &[&str], args: &[&str]) -> std::process::Command {
    let plain = world.command(args);
    let mut command = std::process::Command::new(starter[0]);
    command.args(&starter[1..]).arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(world.at(""));
    command.stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
}

/// Storage that does not answer keeps nobody from stopping: whatever signal a terminal or a scheduler sends, what was learnt
/// is kept.
#[test]
fn a_signal_while_no_data_comes_keeps_what_was_learnt() {
    let world = World::new();
    world.packed("set", 60, &[]);
    let bucket = Bucket::serve(&world.at(""));
    let mut environment = bucket.environment("secret");
    let gate = Gate::before(environment[0].1.trim_start_matches("http://"), true);
    environment[0].1 = format!("http://{}", gate.address);
    let more = ["--set", "checkpoint.every=1000", "--set", "train.steps=4000", "--set", "schedule.epochs=900"];
    // Each sample is asked for by itself, none is held.
    let more = [&more[..], &["--set", "machine.memory_bytes=1"]].concat();
    for name in ["TERM", "HUP", "USR1", "USR2"] {
        gate.set(true);
        let args = arguments("s3://set/manifest.json", name, &more);
        // Also where the tests themselves run under `nohup`.
        let mut command = through(&world, &["env", "--default-signal=HUP"], &args);
        let mut child = command.envs(environment.clone()).spawn().unwrap();
        wait_for(&world, name, 2, &mut child);
        gate.set(false);
        let mut steps = 0;
        until("the steps end", || {
            std::thread::sleep(Duration::from_millis(400));
            let known = std::mem::replace(&mut steps, losses(&world, name).len());
            known == steps
        });
        signal(&child, &format!("-{name}"));
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{name}: {said}");
        assert_eq!(newest_checkpoint(&world, name), Some(steps as u64), "{name}: {said}");
    }
    // Before the first step there is nothing to keep, and nothing to wait for.
    let args = arguments("s3://set/manifest.json", "never", &more);
    let child = world.command(&args).envs(environment.clone()).spawn().unwrap();
    until("it listens", || {
        let status = text(std::path::Path::new(&format!("/proc/{}/status", child.id())));
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() >> 14 & 1 == 1
    });
    signal(&child, "-TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert!(!world.at("never/metrics.jsonl").exists());
}

/// `nohup` has a program ignore SIGHUP.
#[test]
fn a_signal_that_is_ignored_stops_nothing() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let args = arguments(&manifest, "run", &["--set", "train.steps=60", "--set", "schedule.epochs=90", "--json"]);
    let mut child = through(&world, &["sh", "-c", "trap '' HUP; exec \"$0\" \"$@\""], &args).spawn().unwrap();
    wait_for(&world, "run", 2, &mut child);
    signal(&child, "-HUP");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(losses(&world, "run").len(), 60);
}

/// With few open files a run keeps fewer shards open, and learns the same.
#[test]
fn a_run_keeps_within_the_files_that_it_may_open() {
    let world = World::new();
    // Some hundred shards, of which each batch is read from many.
    world.draw("pictures", 0, 400);
    world.done(&["pack", "pictures", "--out", "set", "--shard-bytes", "10240"]);
    let manifest = world.arg("set/manifest.json");
    let more = ["--set", "order.shuffle_block_shards=64", "--set", "machine.threads=2", "--set", "batch.size=16"];
    world.done(&arguments(&manifest, "whole", &more));
    let limited = |args: &[&str]| {
        let plain = world.command(args);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
        command.current_dir(world.at("")).output().unwrap()
    };
    let output = limited(&arguments(&manifest, "few", &more));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(losses(&world, "few") == losses(&world, "whole"));
    let output = limited(&[&["doctor", "--json"], TINY, &["--manifest", &manifest], &more].concat());
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let files = found["findings"].as_array().unwrap().iter().find(|finding| finding["name"] == "files").unwrap();
    assert_eq!((files["grade"].as_str(), files["found"].as_str()), (Some("note"), Some("64 open files allowed")));
    assert!(files["meaning"].as_str().unwrap().contains("shards in use at a time"), "{files}");
}

#[test]
fn a_manifest_on_a_server_is_taken_as_it_is_named() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&arguments(&manifest, "local", &[]));
    let bucket = Bucket::serve(&world.at(""));
    let done = |args: &[&str]| {
        let output = world.command(args).envs(bucket.environment("secret")).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let url = "s3://set/manifest.json";
    done(&arguments(url, "far", &["--set", "train.steps=6"]));
    done(&arguments(url, "far", &["--resume"]));
    assert!(losses(&world, "far") == losses(&world, "local"));
    world.done(&["export", "--run", "local", "--names", "torchvision", "--out", "local.safetensors"]);
    done(&[&["import", "local.safetensors", "--run", "imported", "--manifest", url], TINY].concat());
    let fine =
        ["eval", "finetune", "--run", "local", "--train", url, "--test", url, "--epochs", "1", "--save", "tuned"];
    done(&fine);
    for run in ["far", "imported", "tuned"] {
        let record = text(&world.at(run).join("run.json"));
        assert!(record.contains("\"s3://set/manifest.json\""), "{run}: {record}");
    }
}

#[test]
fn every_line_of_a_log_for_machines_is_an_object() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let more = ["--log", "json", "--resume", "--set", "machine.metrics=127.0.0.1:0"];
    let all = [
        world.run(&arguments(&manifest, "run", &more)),
        world.run(&arguments(&manifest, "run", &[&more[..], &["--set", "train.steps=14"]].concat())),
        world.run(&arguments(&manifest, "two", &[&more[..], &["--nproc", "2"]].concat())),
        world.run(&arguments("nowhere.json", "none", &more)),
    ];
    let mut messages = Vec::new();
    for output in &all {
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            let object: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|_| panic!("a plain line: {line}"));
            messages.push(object["message"].as_str().unwrap().to_owned());
        }
    }
    for wanted in ["metrics: http://", "training ", "resuming from step 12", "nowhere.json"] {
        assert!(messages.iter().any(|message| message.contains(wanted)), "{wanted:?} is not in {messages:?}");
    }
}

/// What older versions began goes on after an upgrade, with the batches and losses that it would have had.
#[test]
fn a_run_of_version_0_1_0_goes_on() {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let target = to.join(entry.file_name());
            match entry.path().is_dir() {
                true => copy(&entry.path(), &target),
                false => drop(std::fs::copy(entry.path(), target).unwrap()),
            }
        }
    }
    let world = World::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden/run-0.1.0"), &world.at(""));
    let before: Value = serde_json::from_str(&text(&world.at("run/run.json"))).unwrap();
    assert_eq!((&before["versions"]["simclr_pipeline"], &before["schema_version"]), (&"0.1.0".into(), &Value::Null));
    world.fails(&["train", "--run", "run", "--resume"], 2, &["/data/set/manifest.json", "--data"]);
    let resume = ["train", "--run", "run", "--resume", "--data", "set/manifest.json", "--set", "train.steps=6"];
    assert_eq!(world.done(&resume)["step"], 6);
    let after: Value = serde_json::from_str(&text(&world.at("run/run.json"))).unwrap();
    assert_eq!((&after["plan_digest"], &after["schema_version"]), (&before["plan_digest"], &2.into()));
    let losses = |path: &str| -> Vec<f64> {
        let lines = text(&world.at(path));
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
    };
    let (found, wanted) = (losses("run/metrics.jsonl"), losses("whole-metrics.jsonl"));
    assert_eq!(found.len(), wanted.len());
    // Another processor sums in another order.
    assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-3 * b.abs()), "{found:?}, 0.1.0 had {wanted:?}");
    let evaluate = ["eval", "knn", "--run", "run", "--train", "set", "--test", "set", "--k", "1"];
    assert_eq!(world.done(&evaluate)["step"], 6);
}
