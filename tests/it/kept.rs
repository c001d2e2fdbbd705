//! What is the user's stays: nothing that a command did not write itself is replaced by it, and no file is believed over
//! an image.

use std::io::{BufRead, BufReader, Write};

use crate::service::until;
use crate::training::arguments;
use crate::world::{TINY, World, text};

#[test]
fn a_new_run_replaces_nothing() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    world.packed("trained", 16, &[]);
    // What a run would write, as somebody else left it.
    for name in ["checkpoints/step-00000010/state.json", "metrics.jsonl", "evaluations.jsonl", "quarantine.jsonl"] {
        let folder = format!("run-{}", name.len());
        let path = world.at(&folder).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "mine").unwrap();
        let first = name.split('/').next().unwrap();
        let wanted = [folder.as_str(), first, "run.json"];
        world.fails(&arguments(&manifest, &folder, &["--set", "train.steps=1"]), 2, &wanted);
        world.fails(&["import", "none.safetensors", "--run", &folder], 2, &wanted);
        assert_eq!(text(&path), "mine");
        assert!(!world.at(&folder).join("run.json").exists());
    }
    // A data set is no place for a run either: its manifest has the name of a run's.
    world.fails(&arguments(&manifest, "trained", &["--set", "train.steps=1"]), 2, &["trained", "manifest.json"]);
}

#[test]
fn the_lock_of_a_run_is_written_to_by_nobody() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    std::fs::create_dir(world.at("run")).unwrap();
    std::fs::write(world.at("letter"), "mine").unwrap();
    std::os::unix::fs::symlink(world.at("letter"), world.at("run/.lock")).unwrap();
    world.done(&arguments(&manifest, "run", &["--set", "train.steps=1"]));
    assert_eq!(text(&world.at("letter")), "mine");
}

#[test]
fn exports_and_embeddings_replace_only_their_own_kind() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    world.done(&arguments(&manifest, "run", &["--set", "train.steps=1"]));
    let export = ["export", "--run", "run", "--out", "encoder.safetensors"];
    let embed = ["embed", "--run", "run", "--out", "values.npy"];
    for (command, files) in [
        (&export, &["encoder.safetensors", "encoder.safetensors.md"][..]),
        (&embed, &["values.npy", "values.ids.npy", "values.labels.npy"]),
    ] {
        for file in files {
            std::fs::write(world.at(file), "mine").unwrap();
            world.fails(command, 2, &[file, "already there"]);
            assert_eq!(text(&world.at(file)), "mine");
            std::fs::remove_file(world.at(file)).unwrap();
        }
        // What it wrote itself it may write again.
        world.done(command);
        world.done(command);
    }
    std::fs::write(world.at("values.parquet"), "mine").unwrap();
    world.fails(&["embed", "--run", "run", "--out", "values.parquet"], 2, &["values.parquet", "already there"]);
}

#[test]
fn results_replace_no_file_that_only_looks_like_one() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    world.done(&arguments(&manifest, "run", &["--set", "train.steps=1"]));
    std::fs::copy(first_file(&world.at("set-pictures")), world.at("photo.png")).unwrap();
    for (file, text) in [
        ("notes.json", "{\"mine\": 1}"),
        ("page.html", "<!doctype html>mine"),
        ("table.csv", "step,mine\n1,2\n"),
        ("values.parquet", "PAR1 mine"),
    ] {
        std::fs::write(world.at(file), text).unwrap();
    }
    let commands: [(&[&str], &str); 7] = [
        (&["manifest", "build", "set/*.tar", "--out", "notes.json"], "notes.json"),
        (&["manifest", "build", "set/*.tar", "--out", "run/run.json"], "run/run.json"),
        (&["manifest", "convert", &manifest, "--wids", "notes.json"], "notes.json"),
        (&[&["preview"], TINY, &["--data", "set", "--out", "photo.png"]].concat(), "photo.png"),
        (&["report", "--run", "run", "--out", "page.html"], "page.html"),
        (&["report", "--run", "run", "--out", "new.html", "--csv", "table.csv"], "table.csv"),
        (&["embed", "--run", "run", "--out", "values.parquet"], "values.parquet"),
    ];
    for (command, file) in commands {
        let before = std::fs::read(world.at(file)).unwrap();
        world.fails(command, 2, &[file, "already there"]);
        assert!(std::fs::read(world.at(file)).unwrap() == before, "{command:?}");
        // Of itself it makes one, and then another in its place.
        if file != "run/run.json" {
            std::fs::remove_file(world.at(file)).unwrap();
            world.done(command);
            world.done(command);
            std::fs::write(world.at(file), &before).unwrap();
        }
    }
    // A link stays one, also if what it leads to is not there yet.
    std::fs::create_dir(world.at("later")).unwrap();
    std::os::unix::fs::symlink("later/manifest.json", world.at("link.json")).unwrap();
    world.done(&["manifest", "build", "set/*.tar", "--out", "link.json"]);
    assert!(world.at("link.json").is_symlink() && world.at("later/manifest.json").is_file());
}

fn first_file(folder: &std::path::Path) -> std::path::PathBuf {
    let class = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    std::fs::read_dir(class).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn old_checkpoints_make_room_and_nothing_else_does() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    let more = ["--set", "checkpoint.every=1", "--set", "checkpoint.keep=2"];
    let train = |steps: &str, resume: &[&str]| {
        world.done(&arguments(&manifest, "run", &[&more[..], &["--set", steps], resume].concat()));
    };
    train("train.steps=2", &[]);
    std::fs::create_dir(world.at("letters")).unwrap();
    for name in ["step-1", "step-00000003-notes", "step-00000001"] {
        let folder = world.at("run/checkpoints").join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("notes.txt"), "mine").unwrap();
    }
    std::os::unix::fs::symlink(world.at("letters"), world.at("run/checkpoints/step-00000000")).unwrap();
    std::fs::write(world.at("run/evaluations.jsonl"), "{\"cut").unwrap();
    train("train.steps=4", &["--resume"]);
    let left = |name: &str| world.at("run/checkpoints").join(name).exists();
    assert!(
        ["step-1/notes.txt", "step-00000003-notes/notes.txt", "step-00000001/notes.txt"].iter().all(|name| left(name))
    );
    assert!(left("step-00000000") && left("step-00000003/state.json") && left("step-00000004/state.json"));
    assert!(!left("step-00000002"), "two are kept");
    // A line that a kill cut short takes no other with it.
    world.done(&["eval", "knn", "--run", "run", "--train", "set", "--test", "set"]);
    let lines = text(&world.at("run/evaluations.jsonl"));
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert!(last["top1"].is_number(), "{lines}");
}

#[test]
fn a_ledger_changes_no_batch() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    let train = |run: &str, more: &[&str]| world.done(&arguments(&manifest, run, more));
    train("whole", &["--set", "train.steps=4"]);
    train("forged", &["--set", "train.steps=2"]);
    // Samples that are sound, called damaged: with the plan's digest, and without any, as version 0.1.0 wrote them.
    let listing = world.done(&["manifest", "show", &manifest]);
    assert_eq!(listing["samples"], 40);
    let record: serde_json::Value = serde_json::from_str(&text(&world.at("forged/run.json"))).unwrap();
    let whole: serde_json::Value = serde_json::from_str(&text(&world.at("set/manifest.json"))).unwrap();
    let entries = whole["shards"][0]["entries"].as_array().unwrap();
    let shard = whole["shards"][0]["location"].as_str().unwrap();
    let mut ledger = std::fs::File::options().append(true).open(world.at("forged/quarantine.jsonl")).unwrap();
    for (sample, entry) in entries.iter().enumerate().take(2) {
        let mut line = serde_json::json!({
            "sample": sample, "shard": shard, "entry": entry, "offset": 0, "reason": "corrupt", "detail": "forged",
        });
        if sample == 0 {
            line["plan"] = record["plan_digest"].clone();
        }
        writeln!(ledger, "{line}").unwrap();
    }
    train("forged", &["--resume", "--set", "train.steps=4", "--set", "data.max_damaged=0.5"]);
    assert_eq!(world.losses("forged"), world.losses("whole"));
}

#[test]
fn a_pipe_that_nobody_writes_into_is_said() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    let pipe = world.at("names");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let digest =
        [&["digest"], TINY, &["--manifest", &manifest, "--batches", "1", "--set", "data.subset=names"]].concat();
    let mut child = world.command(&digest).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("names: waiting")));
    // Then somebody does.
    let record: serde_json::Value = serde_json::from_str(&text(&world.at("set/manifest.json"))).unwrap();
    let entries = record["shards"][0]["entries"].as_array().unwrap().iter();
    let names: String = entries.map(|entry| format!("{}\n", entry.as_str().unwrap())).collect();
    std::fs::write(&pipe, names).unwrap();
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_message_quotes_no_more_of_a_file_than_one_can_read() {
    let world = World::new();
    world.packed("set", 40, &[]);
    std::fs::write(world.at("labels.csv"), format!("a.jpg,0\n{}\n", "b".repeat(5_000_000))).unwrap();
    let output = world.run(&["manifest", "show", "set", "--labels", "labels.csv"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.len() < 10_000, "{} bytes", output.stderr.len());
}

#[test]
fn a_signal_ends_whatever_is_being_done() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    world.draw("photos", 0, 1500);
    let digest = [&["digest"], TINY, &["--manifest", &manifest, "--batches", "10000000"]].concat();
    let bench = [&["bench"], TINY, &["--manifest", &manifest, "--images", "1000000000"]].concat();
    for command in [&digest[..], &bench, &["pack", "photos", "--out", "packed", "--resize-short", "10"]] {
        for signal in ["TERM", "INT"] {
            let child = world.start(command);
            // Once it listens, which it does before it opens anything.
            let status = format!("/proc/{}/status", child.id());
            until("it listens to SIGTERM", || {
                let text = std::fs::read_to_string(&status).unwrap_or_default();
                let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
                u64::from_str_radix(caught.trim(), 16).is_ok_and(|mask| mask >> 14 & 1 == 1)
            });
            let kill = std::process::Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
            assert!(kill.unwrap().success());
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(130), "{command:?}: {said}");
            assert!(said.contains("interrupted") && !said.contains("error"), "{command:?}: {said}");
        }
        assert!(!world.at("packed").exists());
    }
}
