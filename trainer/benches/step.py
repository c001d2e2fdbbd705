"""A training step here and in PyTorch, in turns: the same model, batch size, precision and threads, on the same device.

    python3 trainer/benches/step.py --manifest train.json                        # on the CPU: ResNet-18, 32 pixels
    python3 trainer/benches/step.py --manifest imagenet.json --device cuda       # ResNet-50, 224 pixels, torch.compile too

Needs a Python with torch 2.11.0 and torchvision 0.26, and target/release/simclr-pipeline. On a GPU, LD_LIBRARY_PATH must
name CUDA's half of libtorch (README, GPU). PyTorch gets the same pinned batch again and again, without a loader; this program
loads, decodes and augments beside its steps. Prints the median step of each round, the medians of all, and on a GPU what
memory each took.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--encoder", help="resnet18 on the CPU, resnet50 on a GPU")
    parser.add_argument("--size", type=int, help="side of a view: 32 on the CPU, 224 on a GPU")
    parser.add_argument("--batch", type=int, help="128 on the CPU, 256 on a GPU")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=2, help="torch's threads on the CPU")
    parser.add_argument("--steps", type=int, help="timed steps a round: 6 on the CPU, 60 on a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--program", default=str(ROOT / "target/release/simclr-pipeline"))
    parser.add_argument("--torch", choices=["eager", "compile"], help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    gpu = args.device == "cuda"
    args.encoder = args.encoder or ("resnet50" if gpu else "resnet18")
    args.size = args.size or (224 if gpu else 32)
    args.batch = args.batch or (256 if gpu else 128)
    args.steps = args.steps or (60 if gpu else 6)
    return args


WARM_UP = 3


def ours(args, precision):
    """Median seconds from step to step, the share of time that it waited for data, and MiB of GPU memory."""
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        preset = "cifar10-resnet18" if args.size <= 64 else "imagenet-resnet50"
        settings = {
            "model.encoder": args.encoder, "model.stem": "cifar" if args.size <= 64 else "imagenet",
            "batch.size": args.batch, "recipe.size": args.size, "order.lanes": 1, "order.shuffle_block_shards": 1,
            "machine.device": args.device, "machine.precision": precision, "machine.torch_threads": args.threads,
            "machine.tensorboard": "false", "optimizer.kind": "sgd", "train.steps": WARM_UP + args.steps,
            "schedule.epochs": 1000, "schedule.warmup_epochs": 1,
        }
        command = [args.program, "train", "-q", "--config", preset, "--manifest", args.manifest, "--run", str(run)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        memory = 0
        while process.poll() is None:
            memory = max(memory, gpu_memory(process.pid) if args.device == "cuda" else 0)
            time.sleep(0.5)
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][WARM_UP:]
        waited = sum(line["data_wait_seconds"] for line in lines)
        return statistics.median(line["wall_seconds"] for line in lines), waited / sum(line["wall_seconds"] for line in lines), memory


def gpu_memory(pid):
    """MiB of GPU memory that a process has, by nvidia-smi."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    rows = [line.split(",") for line in listed.splitlines() if "," in line]
    # In a container pids may be another world's: then all of it is meant.
    return sum(int(used) for own, used in rows if int(own) == pid) or sum(int(used) for _, used in rows)


def theirs(args, precision, how):
    """The same, by PyTorch in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--torch", how, "--one", precision]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return told["seconds"], 0.0, told["memory"]


def torch_steps(args, precision, how):
    """Steps of PyTorch; prints their median."""
    import torch
    import torchvision
    from torch import nn

    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    device = torch.device(args.device)
    encoder = getattr(torchvision.models, args.encoder)(zero_init_residual=True)
    width = encoder.fc.in_features
    encoder.fc = nn.Identity()
    if args.size <= 64:
        encoder.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        encoder.maxpool = nn.Identity()
    head = nn.Sequential(
        nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
        nn.Linear(width, 128, bias=False), nn.BatchNorm1d(128),
    )
    model = nn.Sequential(encoder, head).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    batch = torch.randint(0, 256, (2 * args.batch, args.size, args.size, 3), dtype=torch.uint8)
    batch = batch.pin_memory() if args.device == "cuda" else batch
    positives = torch.arange(2 * args.batch, device=device).roll(args.batch)
    itself = torch.eye(2 * args.batch, dtype=torch.bool, device=device)

    def loss_of(pixels):
        x = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div(255)
        with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
            z = model(x)
        u = nn.functional.normalize(z.float(), dim=1)
        logits = (u @ u.T / 0.5).masked_fill(itself, float("-inf"))
        return nn.functional.cross_entropy(logits, positives)

    loss_of = torch.compile(loss_of) if how == "compile" else loss_of
    times = []
    for _ in range(WARM_UP + args.steps):
        began = time.perf_counter()
        loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - began)
    memory = 0
    if args.device == "cuda":
        memory = torch.cuda.max_memory_reserved() / 2**20
    print(json.dumps({"seconds": statistics.median(times[WARM_UP:]), "memory": memory}))


def main():
    args = arguments()
    if args.torch:
        return torch_steps(args, args.one, args.torch)
    hows = ["eager", "compile"] if args.device == "cuda" else ["eager"]
    for precision in args.precision:
        rounds = {}
        for _ in range(args.rounds):
            rounds.setdefault("simclr-pipeline", []).append(ours(args, precision))
            for how in hows:
                rounds.setdefault(f"PyTorch, {how}", []).append(theirs(args, precision, how))
        print(f"{args.encoder}, {args.size} px, batch of {args.batch}, {precision}, {args.device}")
        own = [seconds for seconds, _, _ in rounds["simclr-pipeline"]]
        for name, told in rounds.items():
            seconds = [seconds for seconds, _, _ in told]
            middle = statistics.median(seconds)
            ratio = statistics.median(a / b for a, b in zip(own, seconds))
            each = " ".join(f"{value:.4f}" for value in seconds)
            line = f"  {name:18} {middle:.4f} s a step ({each}), {args.batch / middle:.0f} images/s"
            line += f"; ours takes {ratio:.3f} of it" if name != "simclr-pipeline" else f"; waits {told[-1][1]:.1%}"
            print(line + (f"; {max(memory for *_, memory in told):.0f} MiB" if args.device == "cuda" else ""), flush=True)


main()
