//! Evaluations that train, and comparisons.

use serde_json::Value;

use crate::training::arguments;
use crate::world::World;

fn number(object: &Value, key: &str) -> f64 {
    object[key].as_f64().unwrap_or_else(|| panic!("no {key} in {object}"))
}

#[test]
fn an_encoder_learns_from_some_labels_and_is_kept() {
    let world = World::new();
    let set = world.packed("set", 200, &[]);
    world.done(&arguments(&set, "run", &[]));
    let sets = ["--run", "run", "--train", &set, "--test", &set];
    let finetune = |more: &[&str]| world.done(&[&["eval", "finetune"], &sets[..], more].concat());
    // What it was taught it knows.
    let learnt = ["--epochs", "30", "--batch", "32", "--learning-rate", "0.8", "--seeds", "2", "--save", "taught"];
    let taught = finetune(&learnt);
    assert!(number(&taught, "top1") > 0.3, "{taught}");
    assert_eq!(taught["values"].as_array().unwrap().len(), 2);
    assert!(number(&taught, "spread") >= 0.0 && taught["checkpoint_digest"].as_str().unwrap().len() == 64);
    world.fails(
        &[&["eval", "finetune"], &sets[..], &learnt].concat(),
        2,
        &["--save", "taught", "already contains a run"],
    );
    // From part of the labels, from a layer of the head, from scratch.
    let few = ["--share", "0.25", "--epochs", "1", "--batch", "16"];
    let some = finetune(&[&few[..], &["--head-layer", "1"]].concat());
    assert_eq!((some["train_images"].as_u64(), some["from"].as_str()), (Some(50), Some("checkpoint")));
    assert_eq!(number(&some, "top1"), number(&finetune(&[&few[..], &["--head-layer", "1"]].concat()), "top1"));
    let scratch = finetune(&[&few[..], &["--untrained", "--augment", "recipe"]].concat());
    assert_eq!((scratch["step"].as_u64(), scratch["from"].as_str()), (Some(0), Some("scratch")));
    // What was kept is a run as any other.
    let compare =
        ["eval", "linear", "--solver", "lbfgs", "--compare", "taught", "run", "--train", &set, "--test", &set];
    let both = world.done(&compare);
    assert!((number(&both["first"], "top1") - number(&both["comparison"], "first")).abs() < 1e-9, "{both}");
    let comparison = &both["comparison"];
    let [low, high] = [0, 1].map(|i| comparison["interval"][i].as_f64().unwrap());
    let difference = number(comparison, "difference");
    assert!(difference != 0.0 && low < difference && difference < high, "{comparison}");
    assert_eq!(number(comparison, "p_value") < 0.05, low > 0.0 || high < 0.0, "{comparison}");
    let same = world.done(&["eval", "knn", "--compare", "run", "run", "--train", &set, "--test", &set]);
    assert_eq!((number(&same["comparison"], "difference"), number(&same["comparison"], "p_value")), (0.0, 1.0));
    world.done(&["report", "--run", "taught"]);
}

/// The encoder does not notice the probe: its losses are the same to the last bit.
#[test]
fn a_probe_is_trained_beside_the_encoder() {
    let world = World::new();
    let set = world.packed("set", 60, &[]);
    let lines = |run: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(world.at(run).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let probe = ["--set", "train.probe=true"];
    world.done(&arguments(&set, "without", &[]));
    world.done(&arguments(&set, "probed", &probe));
    world.done(&arguments(&set, "stopped", &[&probe[..], &["--set", "train.steps=5"]].concat()));
    world.done(&["train", "--run", "stopped", "--resume", "--set", "train.steps=12"]);
    let (without, probed, stopped) = (lines("without"), lines("probed"), lines("stopped"));
    assert_eq!(probed.len(), 12);
    for ((plain, probed), stopped) in without.iter().zip(&probed).zip(&stopped) {
        for key in ["loss", "gradient_norm", "embedding_std"] {
            assert_eq!(plain[key], probed[key], "{key} of {plain} and {probed}");
        }
        assert!(plain.get("probe_accuracy").is_none());
        assert!((0.0..=1.0).contains(&number(probed, "probe_accuracy")), "{probed}");
        assert_eq!(probed["probe_accuracy"], stopped["probe_accuracy"]);
    }
    world.done(&["eval", "knn", "--run", "probed", "--train", &set, "--test", &set]);
    world.done(&["export", "--run", "probed", "--out", "probed.safetensors"]);
    let both = [&probe[..], &["--set", "train.micro_batch=4"]].concat();
    world.fails(&arguments(&set, "refused", &both), 2, &["train.probe", "train.micro_batch"]);
}

#[test]
fn transfer_chooses_what_does_best_on_held_out_images() {
    let world = World::new();
    let set = world.packed("set", 100, &[]);
    world.done(&arguments(&set, "run", &[]));
    let sets = ["--run", "run", "--train", &set, "--test", &set];
    let transfer = |more: &[&str]| world.done(&[&["eval", "transfer"], &sets[..], more].concat());
    let linear = transfer(&["--metric", "map11"]);
    assert_eq!(linear["validation"].as_array().unwrap().len(), 45);
    assert!(number(&linear, "value") != number(&linear, "top1") && number(&linear, "value") > 0.1, "{linear}");
    let grid = ["--steps", "6", "--batch", "16", "--learning-rates", "0.1,1e-6", "--weight-decays", "0,0.001"];
    let tuned = transfer(&[&["--method", "finetune", "--metric", "mean-per-class"], &grid[..]].concat());
    let tried = tuned["tried"].as_array().unwrap();
    assert_eq!(tried.len(), 4);
    let best = tried.iter().map(|one| number(one, "validation")).fold(0.0, f64::max);
    let chosen = tried
        .iter()
        .find(|one| one["learning_rate"] == tuned["learning_rate"] && one["weight_decay"] == tuned["weight_decay"]);
    assert_eq!(number(chosen.unwrap(), "validation"), best);
    let crops = ["eval", "linear", "--crops", "--epochs", "2"];
    let crops = world.done(&[&crops[..], &sets].concat());
    assert_eq!((crops["train_images"].as_u64(), crops["validation_top1"].as_array().unwrap().len()), (Some(100), 6));
}

#[test]
fn wrong_requests_to_evaluate_are_named() {
    let world = World::new();
    let set = world.packed("set", 60, &[]);
    world.done(&arguments(&set, "run", &[]));
    let refused = |command: &str, more: &[&str], wanted: &[&str]| {
        let sets = ["--run", "run", "--train", &set, "--test", &set];
        world.fails(&[&["eval", command], &sets[..], more].concat(), 2, wanted);
    };
    refused("finetune", &["--share", "0"], &["invalid value [0.0, 0.0] for data.part"]);
    refused("finetune", &["--share", "1.5"], &["invalid value [0.0, 1.5] for data.part"]);
    refused("finetune", &["--subset", "nowhere.txt"], &["data.subset", "nowhere.txt"]);
    refused("finetune", &["--epochs", "0"], &["--epochs must be"]);
    refused("finetune", &["--batch", "0"], &["--batch must be"]);
    refused("finetune", &["--head-layer", "3"], &["2 layers"]);
    refused("linear", &["--solver", "lbfgs", "--crops"], &["--crops", "--solver sgd"]);
    refused("knn", &["--seeds", "0"], &["--seeds must be"]);
    world.fails(&["eval", "knn", "--compare", "run", "nowhere", "--train", &set, "--test", &set], 2, &["nowhere"]);
}

/// Protocols are the paper's, whatever was pre-trained with: crops and flips to learn from, all images in the end, the whole
/// center where appendix B.8 looks at it.
#[test]
fn protocols_do_not_depend_on_the_recipe() {
    let world = World::new();
    let set = world.packed("set", 60, &[]);
    let ops =
        "recipe.ops=[{op=\"center_crop\",fraction=0.9,interpolation=\"bilinear\"},{op=\"grayscale\",probability=0.5}]";
    let center = ["--set", "eval.center_crop=0.875"];
    world.done(&arguments(&set, "run", &[&center[..], &["--set", ops, "--set", "train.steps=2"]].concat()));
    let eval =
        |args: &[&str]| world.done(&[&["eval"], args, &["--run", "run", "--train", &set, "--test", &set]].concat());
    let crops = eval(&["linear", "--crops", "--epochs", "2"]);
    assert_eq!((&crops["train_images"], &crops["center_crop"]), (&60.into(), &0.875.into()), "{crops}");
    let linear = eval(&["linear", "--epochs", "2"]);
    assert_eq!(linear["train_images"], 60, "the classifier that answers has learned from all");
    let finetune = eval(&["finetune", "--epochs", "1", "--batch", "16"]);
    assert_eq!(finetune["augment"], "crop", "{finetune}");
    assert_eq!(eval(&["linear", "--solver", "lbfgs"])["center_crop"], 1.0);
    assert_eq!(eval(&["transfer"])["center_crop"], 1.0);
    assert_eq!(eval(&["transfer", "--set", "eval.center_crop=0.875"])["center_crop"], 0.875);
    let both =
        world.done(&["eval", "knn", "--compare", "run", "run", "--metric", "map11", "--train", &set, "--test", &set]);
    assert!(both["comparison"]["p_value"].is_null(), "answers can't be exchanged under average precision: {both}");
}
