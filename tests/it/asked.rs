//! What people type who know other tools: it does what is meant, or the answer holds the command that does.

use serde_json::Value;

use crate::world::{TINY, World};

#[test]
fn words_and_short_keys_mean_what_they_say() {
    let world = World::new();
    world.packed("set", 40, &[]);
    let plan = |more: &[&str]| world.done(&[&["digest"], TINY, more].concat());
    let full =
        plan(&["--set", "data.manifest=set", "--set", "batch.size=20", "--set", "seed=5", "--set", "order.lanes=4"]);
    for words in [
        &["set", "--batch-size", "20", "--seed", "5", "--set", "order.lanes=4"][..],
        &["data=set", "batch_size=20", "seed=5", "order.lanes=4"],
        &["--data", "set/manifest.json", "--set", "batch-size=20", "seed=5", "order.lanes=4"],
        &["--manifest", "set", "--set", "seed=5", "--set", "batch=20", "--set", "order.lanes=4"],
    ] {
        let found = plan(words);
        assert_eq!((&found["digest"], &found["plan_digest"]), (&full["digest"], &full["plan_digest"]), "{words:?}");
    }
    world.fails(&[&["digest"], TINY, &["set", "set-pictures"]].concat(), 2, &["named twice", "hint:", "--data"]);
    world.fails(&[&["digest"], TINY, &["set", "epoch=3"]].concat(), 2, &["epoch=3", "did you mean"]);
}

#[test]
fn what_a_configuration_comes_to_is_shown() {
    let world = World::new();
    let shown = world.run(&["config", "show", "--config", "cifar10-resnet18", "--epochs", "7", "--lr", "0.5"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.status.success() && text.contains("epochs = 7.0") && text.contains("learning_rate = 0.5"), "{text}");
    // It is a file that the program reads, and the same configuration.
    std::fs::write(world.at("mine.toml"), &text).unwrap();
    let again = world.run(&["config", "show", "--config", "mine.toml"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), text);
    let same = world.done(&["config", "diff", "mine.toml", "mine.toml"]);
    assert_eq!(same["differences"], Value::Array(Vec::new()));
    let differences = world.done(&["config", "diff", "cifar10-resnet18", "mine.toml"])["differences"].to_string();
    assert!(
        differences.contains("schedule.epochs") && differences.contains("optimizer.learning_rate"),
        "{differences}"
    );
    assert_eq!(world.done(&["config", "list"])["presets"].as_array().unwrap().len(), 4);
    let explained = world.done(&["config", "explain", "loss.temperature"]);
    let paper = &explained["presets"].as_array().unwrap()[1];
    assert_eq!((&paper["value"], &paper["comment"]), (&"0.1".into(), &"section 5.1, table 5".into()));
    world.fails(&["config", "explain", "loss.temprature"], 2, &["loss.temprature", "did you mean loss.temperature?"]);
}

#[test]
fn shells_and_manuals_know_every_verb() {
    let world = World::new();
    let version = world.done(&["version"]);
    assert!(version["commit"].as_str().is_some_and(|commit| !commit.is_empty()), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        let script = world.run(&["completions", shell]);
        let script = String::from_utf8(script.stdout).unwrap();
        for verb in ["digest", "manifest", "completions", "config"] {
            assert!(script.contains(verb), "{shell} does not know {verb}");
        }
    }
    world.done(&["man", "--out", "man"]);
    for page in ["simclr-pipeline.1", "simclr-pipeline-digest.1", "simclr-pipeline-manifest-build.1"] {
        assert!(world.at("man").join(page).is_file(), "{page}");
    }
    world.fails(&["man", "--out", "man"], 2, &["man", "already exists"]);
}

#[test]
fn a_place_to_pack_into_needs_no_flag() {
    let world = World::new();
    world.draw("photos", 0, 20);
    world.done(&["pack", "photos", "packed", "--shard-size", "1MB"]);
    assert!(world.at("packed/manifest.json").is_file());
    world.fails(&["pack", "photos"], 2, &["--out"]);
}

#[test]
fn flags_of_other_tools_are_answered() {
    let world = World::new();
    for (flag, hint) in [
        ("--num-workers", "hint: --set machine.threads=VALUE"),
        ("--temperature=0.5", "hint: --set loss.temperature=VALUE"),
        ("--output-dir", "hint: --run-dir DIR"),
    ] {
        world.fails(&["digest", flag], 2, &[flag.split('=').next().unwrap(), hint]);
    }
}

#[cfg(feature = "trainer")]
#[test]
fn quickstart_says_what_trains_on_ones_own_images() {
    let world = World::new();
    world.draw("photos", 0, 20);
    world.fails(&["quickstart", "photos"], 2, &["photos", "hint:", "simclr-pipeline train --data photos"]);
    // As under torchrun, which takes `--run` and `--log` for abbreviations of its own flags.
    let train =
        [&["train"], TINY, &["photos", "--run-dir", "run", "--log-format", "json", "steps=1", "batch=16"]].concat();
    let output = world.run(&train);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(world.at("run/run.json").is_file());
}
