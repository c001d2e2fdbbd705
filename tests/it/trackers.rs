//! What other tools make of a run: TensorBoard, spreadsheets, log collectors; and what the doctor says of the machine.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::world::{TINY, World, text};

fn arguments<'a>(manifest: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train", "--run", "run", "--manifest", manifest, "--set", "schedule.epochs=20"];
    [&fixed, TINY, more].concat()
}

/// The run's lines.
fn lines(world: &World) -> Vec<Value> {
    text(&world.at("run/metrics.jsonl")).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn tensorboard_reads_a_run_that_was_stopped_and_went_on() {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join(".python-tests");
    assert!(packages.join("tensorboard").is_dir(), "no tensorboard here: `bash setup.sh --tests` fetches it");
    let world = World::new();
    let (train, test) = (world.packed("set", 60, &[]), world.packed("test", 20, &[]));
    let test = format!("eval.test={test}");
    let eval = ["--set", "eval.every=1", "--set", &test, "--set", "eval.knn.k=5"];
    // Ten steps, of which the last four are forgotten with their checkpoint, and done again.
    let ten = [&["--set", "checkpoint.every=6", "--set", "train.steps=10"], &eval[..]].concat();
    world.done(&arguments(&train, &ten));
    for entry in std::fs::read_dir(world.at("run/checkpoints")).unwrap().flatten() {
        if !entry.path().ends_with("step-00000006") {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    std::thread::sleep(std::time::Duration::from_millis(1100));
    world.done(&["train", "--run", "run", "--resume", "--set", "train.steps=14"]);
    let script = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]); events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}))";
    let folder = world.arg("run/tensorboard");
    let output = Command::new("python3").env("PYTHONPATH", &packages).args(["-c", script, &folder]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let scalars: Value = serde_json::from_slice(&output.stdout).unwrap();
    let run = lines(&world);
    assert_eq!(run.len(), 14);
    for (tag, key) in [("train/loss", "loss"), ("train/learning_rate", "learning_rate"), ("train/epoch", "epoch")] {
        let found = scalars[tag].as_array().unwrap();
        assert_eq!(found.len(), run.len(), "each step once: {tag}: {found:?}");
        for (found, line) in found.iter().zip(&run) {
            assert_eq!(found[0], line["step"], "{tag}");
            assert_eq!(found[1].as_f64().unwrap() as f32, line[key].as_f64().unwrap() as f32, "{tag}");
        }
    }
    // An epoch has seven batches.
    let knn = scalars["evaluation/knn_top1"].as_array().unwrap();
    assert_eq!(knn.iter().map(|point| point[0].as_u64().unwrap()).collect::<Vec<_>>(), [7, 14]);
    let noted = text(&world.at("run/evaluations.jsonl"));
    let last: Value = serde_json::from_str(noted.lines().last().unwrap()).unwrap();
    assert!((knn[1][1].as_f64().unwrap() - last["top1"].as_f64().unwrap()).abs() < 1e-6, "{last}");
    let again = world.done(&["eval", "knn", "--run", "run", "--k", "5", "--train", &train, "--test", &test[10..]]);
    assert_eq!(again["top1"], last["top1"], "the same as by itself");
}

#[test]
fn a_table_has_a_row_for_each_step() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&arguments(&manifest, &["--set", "train.steps=5", "--set", "machine.tensorboard=false"]));
    assert!(!world.at("run/tensorboard").exists());
    world.done(&["report", "--run", "run", "--csv", "run.csv"]);
    let table = text(&world.at("run.csv"));
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((rows.len(), rows[0][0], rows[0][3]), (6, "step", "loss"));
    for (row, line) in rows[1..].iter().zip(lines(&world)) {
        assert_eq!(row.len(), rows[0].len());
        assert_eq!(row[3].parse::<f64>().unwrap(), line["loss"].as_f64().unwrap());
    }
}

#[test]
fn an_evaluation_while_training_wants_a_set_of_its_own() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.fails(&arguments(&manifest, &["--set", "eval.every=1"]), 2, &["eval.test", "labeled test set"]);
}

#[test]
fn logs_are_objects_for_machines() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let args = arguments(&manifest, &["--set", "train.steps=2", "--log", "json", "-v", "--json", "--nproc", "2"]);
    let output = world.run(&args);
    let said = String::from_utf8(output.stderr).unwrap();
    let objects: Vec<Value> =
        said.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect();
    for rank in [0, 1] {
        let is_wanted = |line: &&Value| line["message"] == "training started" && line["rank"] == rank;
        let begins = objects.iter().find(is_wanted).expect(&said);
        assert_eq!((&begins["level"], &begins["run"]), (&"info".into(), &"run".into()));
        assert!(begins["time"].as_str().unwrap().contains('T') && begins["plan"].is_string(), "{begins}");
    }
}

#[test]
fn the_doctor_says_what_findings_mean() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let well = world.done(&[&["doctor", "--manifest", &manifest], TINY].concat());
    let findings = well["findings"].as_array().unwrap();
    let named =
        |name: &str| findings.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("{name}"));
    for name in ["cores", "vectors", "memory", "decoding", "libtorch", "GPU", "files", "clock", "data", "storage"] {
        let finding = named(name);
        assert!(finding["meaning"].as_str().unwrap().len() > 10, "{finding}");
    }
    assert!(named("data")["found"].as_str().unwrap().starts_with("60 samples"), "{findings:?}");
    assert_eq!(well["problems"], 0, "{findings:?}");
    // A shard that is gone stands in the way.
    let shard = std::fs::read_dir(world.at("set")).unwrap().flatten().find(|e| e.path().extension().unwrap() == "tar");
    std::fs::remove_file(shard.unwrap().path()).unwrap();
    let output = world.run(&[&["doctor", "--manifest", &manifest], TINY].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("FAIL storage") && said.contains("1 problem found"), "{said}");
    let output = world.run(&["doctor", "--manifest", "nowhere.json"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn representations_are_read_by_pyarrow_and_numpy() {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join(".python-tests");
    assert!(packages.join("pyarrow").is_dir(), "no pyarrow here: `bash setup.sh --tests` fetches it");
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&arguments(&manifest, &["--set", "train.steps=3"]));
    let embed = |out: &str, more: &[&str]| {
        world.done(&[&["embed", "--run", "run", "--data", &manifest, "--out", out], more].concat())
    };
    let told = embed("h.parquet", &[]);
    assert_eq!((told["rows"].as_u64(), told["dim"].as_u64(), told["step"].as_u64()), (Some(60), Some(64), Some(3)));
    assert_eq!(embed("z.parquet", &["--head-layer", "2"])["dim"], 16);
    embed("h.npy", &[]);
    let script = "
import sys, numpy, pyarrow.parquet as parquet
table = parquet.read_table('h.parquet')
features = table['feature'].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
assert features.dtype == numpy.float32 and (features == numpy.load('h.npy')).all()
assert (table['id'].to_numpy() == numpy.load('h.ids.npy')).all() and table['id'].to_pylist() == list(range(60))
assert (table['label'].to_numpy() == numpy.load('h.labels.npy')).all()
assert table['entry'][0].as_py().endswith('.png')
print({key.decode(): value.decode() for key, value in table.schema.metadata.items()}['simclr.manifest_digest'])";
    let output = world_python(&world, &packages, script);
    assert_eq!(output.trim(), told["manifest_digest"].as_str().unwrap());
    // The report draws it.
    world.done(&["report", "--run", "run", "--embedding", "h.parquet", "--out", "maps.html"]);
    let report = std::fs::read_to_string(world.at("maps.html")).unwrap();
    assert_eq!(report.matches("<circle").count(), 2 * 60, "each picture on both maps");
    assert!(report.contains("t-SNE") && report.contains("Nearest neighbors"));
    let broken = ["report", "--run", "run", "--embedding", "h.npy", "--out", "no.html"];
    world.fails(&broken, 2, &["--embedding h.npy", "`embed`"]);
    world.fails(&["embed", "--run", "run", "--data", &manifest, "--out", "h.csv"], 2, &["h.csv", ".parquet or .npy"]);
}

/// What Python says to a script that it runs in the test's folder.
fn world_python(world: &World, packages: &Path, script: &str) -> String {
    let mut python = Command::new("python3");
    let output = python.env("PYTHONPATH", packages).args(["-c", script]).current_dir(world.at("")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
