//! Weights go out to other libraries and come back.

use crate::training::{STEPS, arguments};
use crate::world::{TINY, World, text};

#[test]
fn a_run_is_exported_with_a_card() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&arguments(&manifest, "run", &[]));
    for (names, first) in
        [("torchvision", "\"bn1.bias\""), ("hugging-face", "\"embedder.embedder.normalization.bias\"")]
    {
        let out = format!("{names}.safetensors");
        let said = world.done(&["export", "--run", "run", "--names", names, "--out", &out]);
        assert_eq!((said["step"].as_u64(), said["dim"].as_u64()), (Some(STEPS), Some(64)), "{said}");
        let bytes = std::fs::read(world.at(&out)).unwrap();
        assert!(String::from_utf8_lossy(&bytes[..20_000]).contains(first), "{names}");
        let card = text(&world.at(&format!("{out}.md")));
        assert!(card.contains("resnet18") && card.contains("manifest_digest") && card.contains("3×3"), "{card}");
    }
    world.fails(&["export", "--run", "nowhere", "--out", "x.safetensors"], 2, &["nowhere"]);
}

#[test]
fn an_encoder_goes_out_and_comes_back_and_is_trained_on() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    world.done(&arguments(&manifest, "run", &[]));
    let knn = |run: &str| {
        let found = world.done(&["eval", "knn", "--run", run, "--train", &manifest, "--test", &manifest, "--k", "3"]);
        (found["top1"].as_f64(), found["top5"].as_f64())
    };
    let wanted = knn("run");
    let sets = ["--train", &manifest, "--test", &manifest];
    let through_head = [&["eval", "knn", "--run", "run", "--head-layer", "1"], &sets[..]].concat();
    assert_eq!(world.done(&through_head)["head_layer"], 1);
    world.fails(&[&["eval", "knn", "--run", "run", "--head-layer", "3"], &sets[..]].concat(), 2, &["2 layers"]);
    for names in ["torchvision", "hugging-face"] {
        let file = format!("{names}.safetensors");
        world.done(&["export", "--run", "run", "--names", names, "--out", &file]);
        let run = format!("back-from-{names}");
        let settings = &TINY[2..];
        let said = world.done(&[&["import", &file, "--run", &run, "--config", "cifar10-resnet18"], settings].concat());
        assert_eq!((said["encoder"].as_str(), said["width"].as_f64()), (Some("resnet18"), Some(0.125)), "{said}");
        assert_eq!(said["stem"], "cifar");
        assert_eq!(knn(&run), wanted, "the same features by {names} names");
        world.fails(&[&["import", &file, "--run", &run][..], settings].concat(), 2, &["already contains a run"]);
        let through_head = ["eval", "knn", "--run", &run, "--head-layer", "1"];
        world.fails(&[&through_head[..], &sets].concat(), 2, &["--head-layer 1", "random weights", &file]);
    }
    // The head goes along when it is asked for.
    world.done(&["export", "--run", "run", "--head", "--out", "whole.safetensors"]);
    let said = world.done(&[&["import", "whole.safetensors", "--run", "whole"], TINY].concat());
    assert_eq!((said["head_layers"].as_u64(), said["shortcuts"].as_str()), (Some(2), Some("every_group")), "{said}");
    let of =
        |run| world.done(&[&["eval", "knn", "--run", run, "--head-layer", "1"], &sets[..]].concat())["top1"].clone();
    assert_eq!(of("whole"), of("run"));
    // Fine-tuning without the head leaves it as random as it was.
    let tune = ["eval", "finetune", "--run", "back-from-torchvision", "--epochs", "0.2", "--save", "tuned"];
    world.done(&[&tune[..], &sets].concat());
    let tuned = ["eval", "knn", "--run", "tuned", "--head-layer", "1"];
    world.fails(&[&tuned[..], &sets].concat(), 2, &["--head-layer 1", "random weights", "tuned"]);
    // The run's model is given; everything else is still to be decided.
    let run = ["--manifest", &manifest, "--run", "back-from-torchvision", "--resume"];
    let other = [&["train"][..], &run, &["--set", "model.width=0.25"]].concat();
    world.fails(&other, 2, &["configuration differs", "model.width"]);
    let trained = [&["train"][..], &run, &["--set", "train.steps=3", "--set", "optimizer.kind=sgd"]].concat();
    assert_eq!(world.done(&trained)["step"], 3);
    let record = text(&world.at("back-from-torchvision/run.json"));
    assert!(record.contains("torchvision.safetensors"), "{record}");
    let through_head = |step: &str| {
        let checkpoint = format!("back-from-torchvision/checkpoints/step-{step}");
        world.run(&[&["eval", "knn", "--checkpoint", &checkpoint, "--head-layer", "1", "--k", "3"], &sets[..]].concat())
    };
    let first = through_head("00000000");
    assert!(
        first.status.code() == Some(2) && String::from_utf8_lossy(&first.stderr).contains("random weights"),
        "{first:?}"
    );
    assert!(through_head("00000003").status.success());
    for extension in ["onnx", "pt", "bin"] {
        let out = format!("encoder.{extension}");
        world.fails(&["export", "--run", "run", "--out", &out], 2, &[&out, ".safetensors"]);
        assert!(!world.at(&out).exists());
    }
    std::fs::write(world.at("none.safetensors"), b"{}").unwrap();
    world.fails(&["import", "none.safetensors", "--run", "none"], 2, &["none.safetensors", "not a safetensors file"]);
    assert!(!world.at("none").exists());
}
