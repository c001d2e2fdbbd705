"""The losses of a run here beside those of plain PyTorch, from the same first weights, on the same batches.

    python3 trainer/benches/curve.py --manifest train.json --steps 300

Needs a Python with torch 2.11.0, torchvision 0.26, safetensors and pyarrow, and target/release/simclr-pipeline. Batches
come to PyTorch from `serve`, through examples/feed.py. Prints how far losses are apart, step by step at first (rounding
grows from step to step in any training), then as means over parts of the run.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import pyarrow.flight as flight
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
from feed import Feed  # noqa: E402

WIDTH, SIZE, DIM, TEMPERATURE = 0.25, 32, 128, 0.5


def model_with(weights):
    """torchvision's ResNet-18, narrow and with the CIFAR stem, and the paper's head."""
    encoder = torchvision.models.resnet18()
    block, channels = type(encoder.layer1[0]), int(64 * WIDTH)
    encoder.inplanes, encoder.maxpool, encoder.fc = channels, nn.Identity(), nn.Identity()
    encoder.conv1, encoder.bn1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
    for stage in range(4):
        layer = encoder._make_layer(block, channels << stage, 2, stride=1 if stage == 0 else 2)
        setattr(encoder, f"layer{stage + 1}", layer)
    h = channels * 8
    head = nn.ModuleDict({
        str(i): nn.ModuleDict({"linear": nn.Linear(h, to, bias=False), "bn": nn.BatchNorm1d(to)})
        for i, to in enumerate([h, DIM])
    })
    missing, unexpected = encoder.load_state_dict({k: v for k, v in weights.items() if k[:5] != "head."}, strict=False)
    assert not unexpected and all("num_batches" in name for name in missing), (missing, unexpected)
    for i in "01":
        head[i]["linear"].weight.data.copy_(weights[f"head.{i}.weight"])
        head[i]["bn"].weight.data.copy_(weights[f"head.{i}.bn.weight"])
    return encoder, head


def projected(encoder, head, x):
    z = head["0"]["bn"](head["0"]["linear"](encoder(x))).relu()
    # The official head's last batch norm has no shift.
    last = head["1"]["bn"]
    return nn.functional.batch_norm(head["1"]["linear"](z), None, None, last.weight, None, training=True, eps=last.eps)


def when_ready(url, count):
    """The node's batches, once it has made the first one."""
    while True:
        try:
            return Feed(url, count=count)
        except flight.FlightUnavailableError:
            time.sleep(0.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", default=str(ROOT / "target/release/simclr-pipeline"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(args, pathlib.Path(folder))


def compare(args, folder):
    stream = ["--config", "cifar10-resnet18", "--manifest", args.manifest, "--set", f"batch.size={args.batch}"]
    settings = {
        "model.width": WIDTH, "machine.precision": "fp32", "machine.device": "cpu", "machine.torch_threads": args.threads,
        "optimizer.kind": "sgd", "optimizer.learning_rate": 0.1, "optimizer.learning_rate_rule": "constant",
        "schedule.epochs": 4, "schedule.warmup_epochs": 1,
    }
    train = [args.program, "train", "-q", *stream]
    for key, value in settings.items():
        train += ["--set", f"{key}={value}"]

    def run(name, *more):
        sets = [part for setting in more for part in ("--set", setting)]
        subprocess.run([*train, "--run", str(folder / name), *sets], check=True, stdout=subprocess.DEVNULL)

    # A step of no length leaves the first weights as they are.
    run("first", "train.steps=1", "optimizer.learning_rate=1e-30")
    run("ours", f"train.steps={args.steps}")
    lines = [json.loads(line) for line in (folder / "ours/metrics.jsonl").read_text().splitlines()]

    torch.set_num_threads(args.threads)
    weights = load_file(str(folder / "first/checkpoints/step-00000001/model.safetensors"))
    # Running statistics have seen a batch, which is nothing to losses in training.
    encoder, head = model_with(weights)
    named = [*encoder.named_parameters(), *((n, p) for n, p in head.named_parameters() if n != "1.bn.bias")]
    decayed = [p for n, p in named if "bn" not in n and "downsample.1" not in n and p.ndim > 1]
    others = [p for _, p in named if all(p is not other for other in decayed)]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    itself = torch.eye(2 * args.batch, dtype=torch.bool)
    partner = torch.arange(2 * args.batch).roll(args.batch)
    node = subprocess.Popen([args.program, "serve", "--json", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *stream],
                            stdout=subprocess.PIPE, text=True)
    theirs = []
    try:
        url = json.loads(node.stdout.readline())["listen"]
        for line, (views, _, _) in zip(lines, when_ready(url, args.steps)):
            x = views.clone().transpose(0, 1).flatten(0, 1).permute(0, 3, 1, 2).float().div(255)
            u = nn.functional.normalize(projected(encoder, head, x), dim=1)
            loss = nn.functional.cross_entropy((u @ u.T / TEMPERATURE).masked_fill(itself, float("-inf")), partner)
            for group in optimizer.param_groups:
                group["lr"] = line["learning_rate"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            theirs.append(loss.item())
    finally:
        node.terminate()
    ours = [line["loss"] for line in lines]
    for step in [1, 2, 3, 5, 10, 20, 50]:
        if step <= args.steps:
            a, b = ours[step - 1], theirs[step - 1]
            print(f"step {step:3}: {a:.6f} here, {b:.6f} there, apart by {abs(a - b) / b:.1e} of it")
    part = max(args.steps // 6, 1)
    for begin in range(0, args.steps - part + 1, part):
        a, b = (statistics.mean(losses[begin : begin + part]) for losses in (ours, theirs))
        print(f"mean of steps {begin + 1} to {begin + part}: {a:.4f} here, {b:.4f} there, apart by {abs(a - b) / b:.1e}")


main()
