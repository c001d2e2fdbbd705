# Golden values for projection heads of none to three layers, in float64 on the CPU: each layer is linear without bias
# and followed by batch norm, with ReLU between layers; the last batch norm has no shift (the official code's
# `projection_head`). Weights and inputs are waves, of which `resnet.py` has the formula.
#
# Python 3.11, torch 2.11.0
#
#   python head.py > head.json
#
# "z" is the output in train mode; "gradients" the norm of each parameter's gradient and of the input's, of the loss
# sum(z * wave("loss")).

import json

import torch

from resnet import wave

ROWS, INPUTS, HIDDEN, DIM = 8, 12, 10, 6


def case(count):
    layers, leaves, width = [], {}, INPUTS
    for i in range(count):
        last = i + 1 == count
        to = DIM if last else HIDDEN
        linear, norm = torch.nn.Linear(width, to, bias=False).double(), torch.nn.BatchNorm1d(to).double()
        with torch.no_grad():
            linear.weight.copy_(wave(f"head.{i}.weight", (to, width)))
            norm.weight.copy_(1 + 0.2 * wave(f"head.{i}.bn.weight", (to,)))
            norm.bias.copy_(torch.zeros(to) if last else 0.1 * wave(f"head.{i}.bn.bias", (to,)))
        leaves |= {f"head.{i}.weight": linear.weight, f"head.{i}.bn.weight": norm.weight}
        if not last:
            leaves[f"head.{i}.bn.bias"] = norm.bias
        layers += ([torch.nn.ReLU()] if i else []) + [linear, norm]
        width = to
    h = wave("h", (ROWS, INPUTS)).requires_grad_()
    z = torch.nn.Sequential(*layers)(h)
    (z * wave("loss", tuple(z.shape))).sum().backward()
    gradients = {name: leaf.grad.norm().item() for name, leaf in leaves.items()}
    return {"layers": count, "z": z.flatten().tolist(), "gradients": gradients | {"h": h.grad.norm().item()}}


print(json.dumps({"made_with": {"torch": torch.__version__}, "cases": [case(count) for count in range(4)]}))
