# Golden values for the loss, the optimisers, the learning rate schedule and the
# weighted k-nearest-neighbour classifier. All arithmetic is float64; numbers are
# printed with 9 significant digits.
#
# Python 3.11, torch 2.11.0
#
#   python trainer.py > trainer.json

import json
import math
import platform

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)


def table(rows, cols, f):
    return torch.tensor([[f(i, j) for j in range(cols)] for i in range(rows)])


def column(n, f):
    return torch.tensor([float(f(k)) for k in range(n)])


# ---------------------------------------------------------------- NT-Xent
# The loss is the mean over the 2B views, half of what the SimCLR authors' code
# reports; accuracy and entropy look at the first view's logits against the B
# second views only, as that code does.

def nt_xent(temperature):
    z1 = table(5, 8, lambda i, j: math.sin(0.7 * i + 1.3 * j + 0.1))
    z2 = table(5, 8, lambda i, j: math.sin(
        0.7 * i + 1.3 * j + 0.1 + 0.35 * math.cos(2.1 * i + 0.9 * j)))
    z1.requires_grad_()
    z2.requires_grad_()
    batch = len(z1)

    z = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = z @ z.T / temperature
    masked = logits.masked_fill(torch.eye(2 * batch, dtype=torch.bool), -math.inf)
    partner = torch.arange(2 * batch).roll(batch)
    loss = F.cross_entropy(masked, partner)
    loss.backward()

    logits_ab = logits[:batch, batch:].detach()
    hits = logits_ab.argmax(dim=1) == torch.arange(batch)
    p = logits_ab.softmax(dim=1)
    entropy = -(p * torch.log(p + 1e-8)).sum(dim=1).mean()
    return {
        "temperature": temperature,
        "loss": loss.item(),
        "accuracy": hits.double().mean().item(),
        "entropy": entropy.item(),
        "grad_z1": z1.grad.tolist(),
        "grad_z2": z2.grad.tolist(),
    }


# ------------------------------------------------- losses between two views
# Term by term as in the paper's table 2: anchors of one view, others of the other
# view alone, both ways; semi-hard keeps, of those less similar than the partner,
# the most similar one.

def projections():
    z1 = table(6, 5, lambda i, j: math.sin(0.9 * i + 1.7 * j + 0.3))
    z2 = table(6, 5, lambda i, j: math.sin(0.9 * i + 1.7 * j + 0.3 + 0.9 * math.cos(1.3 * i + 2.9 * j)))
    return torch.cat([z1, z2])


def pair_loss(kind, temperature, normalize, margin, semi_hard):
    z = projections().requires_grad_()
    u = F.normalize(z, dim=1) if normalize else z
    n = len(z) // 2
    scale = 1 if kind == "margin_triplet" else temperature

    def term(positive, negative):
        if kind == "margin_triplet":
            return torch.clamp(negative - positive + margin, min=0)
        return -F.logsigmoid(-negative)

    if kind == "nt_xent":
        logits = (u @ u.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -math.inf)
        loss = F.cross_entropy(logits, torch.arange(2 * n).roll(n))
    else:
        total = torch.zeros(())
        for a, b in [(u[:n], u[n:]), (u[n:], u[:n])]:
            for i in range(n):
                positive = a[i] @ b[i] / scale
                negatives = [a[i] @ b[j] / scale for j in range(n) if j != i]
                if semi_hard:
                    below = [s for s in negatives if s < positive]
                    mean = term(positive, max(below)) if below else 0
                else:
                    mean = sum(term(positive, s) for s in negatives) / len(negatives)
                total = total + mean
                if kind == "nt_logistic":
                    total = total - F.logsigmoid(positive)
        loss = total / (2 * n)
    loss.backward()
    between = (u[:n] @ u[n:].T).detach()
    return {
        "config": {"kind": kind, "temperature": temperature, "normalize": normalize,
                   "margin": margin, "semi_hard": semi_hard},
        "loss": loss.item(),
        "accuracy": (between.argmax(dim=1) == torch.arange(n)).double().mean().item(),
        "gradient": z.grad.tolist(),
    }


def pair_losses():
    yield pair_loss("nt_xent", 0.5, True, 0.8, False)
    yield pair_loss("nt_xent", 1.0, False, 0.8, False)
    for semi_hard in (False, True):
        for normalize in (False, True):
            yield pair_loss("nt_logistic", 0.2, normalize, 0.8, semi_hard)
            yield pair_loss("margin_triplet", 0.2, normalize, 0.4, semi_hard)


# ------------------------------------------------------------- optimisers
# Three parameters and three steps; "bias" is excluded from decay and adaptation.

RATES = [0.3, 0.2, 0.1]
MOMENTUM = 0.9
DECAY = 0.01


def start():
    return {
        "conv": column(12, lambda k: math.sin(k + 1)),
        "zero": column(6, lambda k: 0),
        "bias": column(5, lambda k: math.cos(k)),
    }


def gradient(n, t):
    return column(n, lambda k: 0.1 * math.cos(0.5 * k + t))


def snapshot(t, params):
    values = {name: w.tolist() for name, w in params.items()}
    return {"step": t, "learning_rate": RATES[t], **values}


def lars(eeta=0.001):
    params = start()
    velocity = {name: torch.zeros_like(w) for name, w in params.items()}
    steps = []
    for t, rate in enumerate(RATES):
        for name, w in params.items():
            g = gradient(len(w), t)
            trust = 1.0
            if name != "bias":
                g = g + DECAY * w
                if w.norm() > 0 and g.norm() > 0:
                    trust = eeta * w.norm() / g.norm()
            velocity[name] = MOMENTUM * velocity[name] + rate * trust * g
            params[name] = w - velocity[name]
        steps.append(snapshot(t, params))
    return steps


def torchs(make):
    params = start()
    groups = [
        {"params": [w], "weight_decay": DECAY if name == "conv" else 0.0}
        for name, w in params.items()
    ]
    optimizer = make(groups)
    steps = []
    for t, rate in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for w in params.values():
            w.grad = gradient(len(w), t)
        optimizer.step()
        steps.append(snapshot(t, params))
    return steps


def sgd(nesterov):
    return torchs(lambda groups: torch.optim.SGD(groups, lr=RATES[0], momentum=MOMENTUM, nesterov=nesterov))


def adamw():
    return torchs(lambda groups: torch.optim.AdamW(groups, lr=RATES[0], betas=(MOMENTUM, 0.999)))


# --------------------------------------------------------------- schedule

def schedule(scaling, base):
    examples, batch, epochs, warmup_epochs = 50000, 512, 100, 10
    peak = base * (batch / 256 if scaling == "linear" else math.sqrt(batch))
    warmup = int(round(warmup_epochs * examples // batch))
    total = examples * epochs // batch + 1

    def rate(step):
        if step < warmup:
            return step / warmup * peak
        done = min(step - warmup, total - warmup) / (total - warmup)
        return peak * 0.5 * (1 + math.cos(math.pi * done))

    steps = [0, 1, 100, warmup - 1, warmup, warmup + 1, 5000, total - 1]
    return {
        "scaling": scaling, "base_learning_rate": base,
        "examples": examples, "batch": batch,
        "epochs": epochs, "warmup_epochs": warmup_epochs,
        "warmup_steps": warmup, "total_steps": total,
        "steps": steps, "learning_rates": [rate(s) for s in steps],
    }


# ----------------------------------------------------------- weighted k-NN

def knn(k=7, temperature=0.1, classes=4):
    train = F.normalize(table(40, 6, lambda i, j: math.sin(1.1 * i + 0.6 * j)), dim=1)
    test = F.normalize(table(12, 6, lambda i, j: math.sin(1.1 * i + 0.6 * j + 0.2)), dim=1)
    labels = torch.arange(len(train)) % classes
    similarity, nearest = (test @ train.T).topk(k, dim=1)
    scores = torch.zeros(len(test), classes)
    scores.scatter_add_(1, labels[nearest], (similarity / temperature).exp())
    return {
        "k": k, "temperature": temperature, "classes": classes,
        "predicted": scores.argmax(dim=1).tolist(), "scores": scores.tolist(),
    }


# ----------------------------------------------------------------- output

def nine_digits(value):
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, list):
        return [nine_digits(v) for v in value]
    if isinstance(value, dict):
        return {key: nine_digits(v) for key, v in value.items()}
    return value


def dump(value):
    return json.dumps(nine_digits(value), separators=(",", ":"), allow_nan=False)


def dump_lines(values):
    return "[\n%s\n]" % ",\n".join(dump(v) for v in values)


def main():
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    parts = {
        "made_with": dump(versions),
        "nt_xent": dump_lines([nt_xent(0.1), nt_xent(0.5)]),
        "projections": dump(projections().tolist()),
        "pair_losses": dump_lines(pair_losses()),
        "lars": dump_lines(lars()),
        "sgd_nesterov": dump_lines(sgd(nesterov=True)),
        "sgd_momentum": dump_lines(sgd(nesterov=False)),
        "adamw": dump_lines(adamw()),
        "schedule": dump_lines([schedule("linear", 1.0), schedule("sqrt", 0.075)]),
        "knn": dump(knn()),
    }
    print("{%s}" % ",\n".join(f'"{name}":{text}' for name, text in parts.items()))


main()
