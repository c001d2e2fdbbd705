# Golden values for the encoders: torchvision's ResNets in float64 on the CPU, with weights that a formula
# gives. (In float32 a value next to zero may pass a ReLU on one machine and not on another, and gradients jump.)
#
# Python 3.11, torch 2.11.0, torchvision 0.26.0, numpy 2.3.5
#
#   python resnet.py > resnet.json
#   python resnet.py wide > resnet_wide.json
#
# "eval" and "train" hold the first eight features of each picture; "gradients" the norm of each parameter's gradient
# and its product with the wave of its name, of the loss sum(features * wave("loss")) in train mode; "running" the same
# two numbers of all running statistics after that step.

import json
import platform
import sys

import numpy as np
import torch
import torchvision

SIDE, PICTURES = 64, 4


def wave(name, shape):
    """Values in [-1, 1) that depend on the name and the place alone."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    k = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64)
    bits = (k * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)) ^ np.uint64(seed >> 29)
    bits = (bits ^ (bits >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (bits >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    return torch.from_numpy(values).reshape(shape)


def value(name, shape):
    if name.endswith("running_var"):
        return 1 + 0.5 * wave(name, shape).abs()
    if name.endswith("running_mean") or name.endswith("bias"):
        return 0.1 * wave(name, shape)
    if len(shape) == 1:  # a batch norm's scale
        return 1 + 0.2 * wave(name, shape)
    fan_in = shape[1] * shape[2] * shape[3]
    return wave(name, shape) * (6 / fan_in) ** 0.5


def numbers(name, tensor):
    return [tensor.norm().item(), (tensor * wave(name, tuple(tensor.shape))).sum().item()]


LAYERS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3], "resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3],
          "resnet152": [3, 8, 36, 3]}


def encoder(name, width, stem):
    """torchvision's model; its own methods build the stages of one that is wider or begins otherwise."""
    model = torchvision.models.get_model(name)
    model.fc = torch.nn.Identity()
    if (width, stem) != (1, "imagenet"):
        block = type(model.layer1[0])
        channels = int(64 * width)
        model.inplanes = channels
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        model.conv1 = torch.nn.Conv2d(3, channels, kernel, stride, kernel // 2, bias=False)
        model.bn1 = torch.nn.BatchNorm2d(channels)
        for stage, count in enumerate(LAYERS[name]):
            layer = model._make_layer(block, channels << stage, count, stride=1 if stage == 0 else 2)
            setattr(model, f"layer{stage + 1}", layer)
        if stem == "cifar":
            model.maxpool = torch.nn.Identity()
    return model


def case(name, width=1, stem="imagenet"):
    model = encoder(name, width, stem)
    model.double()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                tensor.copy_(value(key, tuple(tensor.shape)))
    x = 0.5 + 0.5 * wave("pictures", (PICTURES, 3, SIDE, SIDE))
    model.eval()
    with torch.no_grad():
        evaluated = model(x)
    model.train()
    trained = model(x)
    (trained * wave("loss", tuple(trained.shape))).sum().backward()
    running = {k: v for k, v in model.state_dict().items() if "running" in k}
    return {
        "encoder": name,
        "width": width,
        "stem": stem,
        "eval": evaluated[:, :8].flatten().tolist(),
        "train": trained[:, :8].flatten().tolist(),
        "gradients": {k: numbers(k, p.grad) for k, p in model.named_parameters()},
        "running": {k: numbers(k, v) for k, v in running.items()},
    }


def main():
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
    if "wide" in sys.argv:
        cases = [case("resnet18", 4), case("resnet50", 2)]
    else:
        cases = [case(name) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")]
        cases += [case("resnet18", 1, "cifar"), case("resnet18", 2), case("resnet50", 0.5, "cifar")]
    rounded = json.loads(json.dumps(cases), parse_float=lambda text: float(f"{float(text):.8g}"))
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in rounded)
    print('{"made_with":%s,\n"cases":[\n%s\n]}' % (json.dumps(versions, separators=(",", ":")), lines))


if __name__ == "__main__":
    main()
