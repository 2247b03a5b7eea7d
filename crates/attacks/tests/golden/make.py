"""Golden trajectories of the attacks on a small network, from programs that share no code with the crate.

    pip install torch numpy scipy scikit-learn six tqdm
    pip install --no-deps adversarial-robustness-toolbox==1.9.1
    python make.py

writes `golden.json` beside itself. Adam is `torch.optim.Adam`; Auto-PGD is written below from Croce and Hein 2020,
algorithm 1, with the rounding of their code's schedule; Auto-PGD as the toolbox does it is the toolbox, one image per
batch, without its random start.
"""

import importlib
import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import torch

EPS, SIZE, HIDDEN, CLASSES, IMAGES = 0.25, 12, 16, 4, 6
rng = np.random.default_rng(3)
FIRST = np.round(rng.normal(size=(HIDDEN, SIZE)) * 0.9, 4)
SECOND = np.round(rng.normal(size=(CLASSES, HIDDEN)) * 0.9, 4)
X = np.round(rng.uniform(size=(IMAGES, SIZE)), 4).astype(np.float32).astype(np.float64)


def logits(x):
    first, second = torch.tensor(FIRST, dtype=x.dtype), torch.tensor(SECOND, dtype=x.dtype)
    return torch.tanh(x.reshape(len(x), -1) @ first.T) @ second.T


def ask(x, label, loss="cross-entropy"):
    """The loss and its gradient at one image."""
    x = torch.tensor(x[None], requires_grad=True)
    z, y = logits(x), torch.tensor([label])
    if loss == "cross-entropy":
        value = torch.nn.functional.cross_entropy(z, y)
    else:
        value = torch.cat([z[0, :label], z[0, label + 1 :]]).max() - z[0, label]
    value.backward()
    return value.item(), x.grad[0].numpy()


def project(x, origin, norm, eps=EPS):
    x = np.clip(x, 0, 1)
    if norm == "linf":
        return np.clip(x, origin - eps, origin + eps)
    length = np.linalg.norm(x - origin)
    return origin + (x - origin) * min(1, eps / max(length, 1e-12))


def adam(origin, label, rate, steps, signs, loss, direction):
    x = torch.tensor(origin.copy(), requires_grad=True)
    optimiser = torch.optim.Adam([x], lr=rate)
    path = []
    for _ in range(steps):
        gradient = ask(x.detach().numpy(), label, loss)[1]
        # The optimiser descends.
        x.grad = torch.tensor(-direction * (np.sign(gradient) if signs else gradient))
        optimiser.step()
        with torch.no_grad():
            x.copy_(torch.tensor(project(x.numpy(), origin, "linf")))
        path.append(x.detach().numpy().copy())
    return path


def apgd(origin, label, steps, norm, eps, direction):
    """Algorithm 1; a checkpoint's test uses the losses f[0..i] of all iterates so far. `gap` is the nearest tie."""
    first, shorter, shortest = (max(steps * share // 100, 1) for share in (22, 3, 6))

    def unit(g):
        return np.sign(g) if norm == "linf" else g / np.linalg.norm(g)

    x, eta, checkpoint, interval, halved = origin.copy(), 2 * eps, first, first, True
    value, gradient = ask(x, label)
    best, best_value, best_gradient = x, direction * value, gradient
    losses, at_check, path, halvings, before, gap = [direction * value], direction * value, [], 0, None, np.inf
    for i in range(1, steps + 1):
        z = project(x + eta * direction * unit(gradient), origin, norm, eps)
        new = z if before is None else project(x + 0.75 * (z - x) + 0.25 * (x - before), origin, norm, eps)
        before, x = x, new
        path.append(x)
        value, gradient = ask(x, label)
        losses.append(direction * value)
        # Losses at the same point of a corner tie exactly in any precision.
        gap = min([gap, *(g for g in (abs(losses[-1] - losses[-2]), abs(losses[-1] - best_value)) if g > 1e-14)])
        if losses[-1] > best_value:
            best, best_value, best_gradient = x, losses[-1], gradient
        if i == checkpoint:
            rises = sum(losses[j] > losses[j - 1] for j in range(i - interval + 1, i + 1))
            halved, at_check = rises <= 0.75 * interval or (not halved and at_check >= best_value), best_value
            if halved:
                eta, x, gradient, halvings = eta / 2, best, best_gradient, halvings + 1
            interval = max(interval - shorter, shortest)
            checkpoint += interval
    return path, halvings, gap


def toolbox():
    """The toolbox's Auto-PGD and classifier, without the attacks that need packages of their own."""
    root = pathlib.Path(importlib.util.find_spec("art").origin).parent
    for name in ["art.attacks.evasion"]:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    attack = importlib.import_module("art.attacks.evasion.auto_projected_gradient_descent")
    attack.random_sphere = lambda n, size, *_: np.zeros((n, size))
    classifier = importlib.import_module("art.estimators.classification.pytorch").PyTorchClassifier
    # In f32, near ties between losses are broken by rounding.
    for module in [module for name, module in sys.modules.items() if name.startswith("art.")]:
        if hasattr(module, "ART_NUMPY_DTYPE"):
            module.ART_NUMPY_DTYPE = np.float64
    return attack.AutoProjectedGradientDescent, classifier


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return logits(x) + 0 * self.unused


def art(labels, steps, step_size, targeted):
    attack, classifier = toolbox()
    network = classifier(Net(), torch.nn.CrossEntropyLoss(), (3, 2, 2), CLASSES, clip_values=(0, 1), device_type="cpu")
    run = attack(network, norm=np.inf, eps=EPS, eps_step=step_size, max_iter=steps, targeted=targeted,
                 nb_random_init=1, batch_size=1, verbose=False)
    answer = run.generate(X.reshape(-1, 3, 2, 2), np.array(labels)).reshape(IMAGES, -1)
    assert answer.dtype == np.float64
    return answer


def rows(array):
    return np.round(np.asarray(array, dtype=np.float64), 8).tolist()


def main():
    top = logits(torch.tensor(X)).argmax(1).tolist()
    labels = [t if i < 5 else (t + 1) % CLASSES for i, t in enumerate(top)]
    targets = [(t + 1 + i % 3) % CLASSES for i, t in enumerate(top)]
    golden = {"eps": EPS, "first": FIRST.ravel().tolist(), "second": SECOND.ravel().tolist(), "x": rows(X),
              "labels": labels, "targets": targets, "adam": [], "apgd": [], "art": []}
    goals = [(False, labels, 1.0), (True, targets, -1.0)]
    for targeted, classes, direction in goals:
        for signs, loss, rate in [(True, "margin", 0.01), (False, "cross-entropy", 0.01), (False, "margin", 0.03)]:
            paths = [adam(x, y, rate, 40, signs, loss, direction) for x, y in zip(X, classes)]
            golden["adam"].append({"targeted": targeted, "gradient": "sign" if signs else "raw", "loss": loss,
                                   "learning_rate": rate, "steps": [1, 2, 10, 40],
                                   "path": [rows([path[s - 1] for path in paths]) for s in [1, 2, 10, 40]]})
        for norm, eps in [("linf", EPS), ("l2", 1.0)]:
            snapshots = [1, 2, 12, 13, 20, 30, 40, 50]
            paths, halvings, gaps = zip(*(apgd(x, y, 50, norm, eps, direction) for x, y in zip(X, classes)))
            print("apgd", targeted, norm, "halvings", halvings, "gaps", gaps)
            # Iterates are stored in f32: a nearer tie may be broken otherwise.
            images = [i for i, gap in enumerate(gaps) if gap > 1e-6]
            assert len({halvings[i] for i in images}) > 1 or targeted
            golden["apgd"].append({"targeted": targeted, "norm": norm, "eps": eps, "steps": snapshots, "images": images,
                                   "path": [rows([path[s - 1] for path in paths]) for s in snapshots]})
        for steps, step_size in [(7, 0.1), (40, 0.1), (60, 0.3)]:
            answer = art(classes, steps, step_size, targeted)
            moved = [bool(abs(a - x).max() > 0) for a, x in zip(answer, X)]
            print("art", targeted, steps, step_size, "moved", moved)
            golden["art"].append({"targeted": targeted, "steps": steps, "step_size": step_size, "x": rows(answer)})
    pathlib.Path(__file__).with_name("golden.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
