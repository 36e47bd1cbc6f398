"""Our attacks beside torchattacks, foolbox and ART: same victim, inputs, budgets and iterations, one process.

    pip install --no-deps torchattacks foolbox adversarial-robustness-toolbox eagerpy requests gitpython
    python benchmarks/peers/attacks.py [NET.onnx ...] [--boxes FOLDER ...] [--samples N] [--out FILE]

Without arguments the shipped fully connected and convolutional digit networks are attacked on
scikit-learn's digits. --boxes FOLDER ... names benchmark folders (instances.csv), NET lying in the
first: inputs are then the distinct centres of all their input boxes of the network's size, cut to
[0, 1], labels the network's own. Tools that are not installed are left out.

The others attack the network as a torch module, which is what they take: layers in a Sequential, or with
sums of them, where those compute it, else a module around the graph. `verifier` attacks the file, as its
commands do, and `verifier, module` the same module as the others. Times are CPU seconds of one thread,
the least of up to three runs. Queries are rows evaluated, counted by a wrapper around the module, or
for ours by the attack itself (a test holds the two to be equal). Beside each tool that minimises stand
ours over its: the median of the distortions' ratios, and the queries, on the inputs that both broke.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from modules import as_module
from torch import Tensor, nn

from verifier.attack.model import Model
from verifier.attack.onnx_victim import GraphModule, graph_module
from verifier.attack.registry import build
from verifier.attack.threat import LpThreat

INF = float("inf")
SPECS = Path(__file__).resolve().parent.parent.parent / "specs" / "onnx"
#: Runs of a tool that are timed, while they last less than this many CPU seconds in all.
REPEATS, PATIENCE_S = 3, 6.0
HEADER = (
    "| attack | eps | tool | robust accuracy | median distortion | CPU s | queries per input "
    "| ours/its: distortion | queries | inputs |\n|---|---|---|---|---|---|---|---|---|---|"
)


class Counter(nn.Module):
    """The victim, counting the rows it evaluates; `each`: for every input, where a tool takes them in turn."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.rows, self.each = inner, 0, list[int]()
        # some tools ask a parameter for the device
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.inner(x.to(self.anchor.dtype))  # some tools work in float64

    def book(self) -> None:
        """Charge the rows since the last call to the next input."""
        self.each.append(self.rows - sum(self.each))


#: (victim, x [B, *S], y [B], eps) -> adversarial inputs
Peer = Callable[[Counter, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Case:
    """One attack: its norm, our settings, and the peers' runs by name. `minimise`: distortion is what counts."""

    name: str
    p: float
    ours: dict[str, Any]
    peers: dict[str, Peer]
    minimise: bool = False


@dataclass(frozen=True)
class Result:
    """What one tool did: found [B] inside the budget, size [B] (inf where not misclassified), cost; queries [B] are
    their mean where only that is known."""

    found: np.ndarray
    size: np.ndarray
    seconds: float
    queries: np.ndarray

    def over(self, other: Result) -> str:
        """Cells: median ratio of distortions and ratio of queries on the inputs that both broke, and how many."""
        both = np.isfinite(self.size) & np.isfinite(other.size) & (self.size > 0)
        if not both.any():
            return "- | - | 0"
        queries = self.queries[both].mean() / other.queries[both].mean()
        return f"{np.median(self.size[both] / other.size[both]):.3f} | {queries:.3f} | {both.sum()}"


def peers() -> dict[str, dict[str, Peer]]:
    """Attack name -> tool -> run, for the tools that are installed."""
    found: dict[str, dict[str, Peer]] = {}
    for loader in (_torchattacks, _foolbox, _art):
        try:
            runs = loader()
        except ImportError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        for (attack, tool), run in runs.items():
            found.setdefault(attack, {})[tool] = run
    return found


def _torchattacks() -> dict[tuple[str, str], Peer]:
    import torchattacks as ta

    def run(make: Callable[..., Any]) -> Peer:
        return lambda net, x, y, eps: make(net, eps)(x, y)

    tool = "torchattacks"
    return {
        ("pgd", tool): run(lambda net, e: ta.PGD(net, eps=e, alpha=e * 2.5 / 40, steps=40)),
        ("apgd", tool): run(lambda net, e: ta.APGD(net, norm="Linf", eps=e, steps=50, loss="ce", seed=0)),
        ("fab", tool): run(lambda net, e: ta.FAB(net, norm="Linf", eps=e, steps=50, n_classes=10, seed=0)),
        ("square", tool): run(lambda net, e: ta.Square(net, norm="Linf", eps=e, n_queries=1000, seed=0)),
        ("cw", tool): run(lambda net, e: ta.CW(net, c=1, steps=200, lr=0.01)),
        ("deepfool", tool): run(lambda net, e: ta.DeepFool(net, steps=50)),
    }


def _foolbox() -> dict[tuple[str, str], Peer]:
    import foolbox as fb

    def run(attack: Any) -> Peer:
        def attack_all(net: Counter, x: Tensor, y: Tensor, eps: float) -> Tensor:
            budget = eps if eps < 10 else None
            return attack(fb.PyTorchModel(net.eval(), bounds=(0, 1)), x, y, epsilons=budget)[1]

        return attack_all

    hop = fb.attacks.HopSkipJumpAttack(steps=20, initial_gradient_eval_steps=100)
    tool = "foolbox"
    return {
        ("pgd", tool): run(fb.attacks.LinfPGD(rel_stepsize=2.5 / 40, steps=40)),
        ("cw", tool): run(fb.attacks.L2CarliniWagnerAttack(binary_search_steps=9, steps=200, initial_const=1e-2)),
        ("deepfool", tool): run(fb.attacks.L2DeepFoolAttack(steps=50)),
        ("ead_l1", tool): run(
            fb.attacks.EADAttack(
                binary_search_steps=9, steps=200, initial_const=0.1, regularization=0.1, decision_rule="L1"
            )
        ),
        ("hopskipjump", tool): run(hop),
    }


def _art() -> dict[tuple[str, str], Peer]:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    def run(make: Callable[[Any, float], Any], in_turn: bool = False) -> Peer:
        def attack_all(net: Counter, x: Tensor, y: Tensor, eps: float) -> Tensor:
            classifier = PyTorchClassifier(net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1))
            attack = make(classifier, eps)
            if not in_turn:
                return torch.tensor(attack.generate(x.numpy(), y.numpy()))
            found = []
            for one, label in zip(x.split(1), y.split(1), strict=True):
                found.append(torch.tensor(attack.generate(one.numpy(), label.numpy())))
                net.book()
            return torch.cat(found)

        return attack_all

    tool = "ART"
    return {
        ("pgd", tool): run(
            lambda c, e: evasion.ProjectedGradientDescent(
                c, eps=e, eps_step=e * 2.5 / 40, max_iter=40, num_random_init=1, batch_size=256, verbose=False
            )
        ),
        ("apgd", tool): run(
            lambda c, e: evasion.AutoProjectedGradientDescent(
                c, eps=e, eps_step=2 * e, max_iter=50, nb_random_init=1, batch_size=256, verbose=False
            )
        ),
        ("square", tool): run(
            lambda c, e: evasion.SquareAttack(c, eps=e, max_iter=1000, nb_restarts=1, batch_size=256, verbose=False)
        ),
        ("hopskipjump", tool): run(
            lambda c, e: evasion.HopSkipJump(c, norm=2, max_iter=20, max_eval=1000, init_eval=100, verbose=False),
            in_turn=True,  # as it takes them anyway
        ),
    }


def cases() -> list[Case]:
    """The comparison: nobody's iterations are more than the least of the others'.

    Ours are fewer where the walk back to the boundary asks too, so that queries are no more either; two
    starts of Auto-PGD share the iterations of one.
    """
    found = peers()
    plans: list[tuple[str, float, dict[str, Any], bool]] = [
        ("pgd", INF, {"steps": 40}, False),
        ("apgd", INF, {"steps": 25, "restarts": 2}, False),
        ("bab", INF, {"steps": 40}, False),
        ("square", INF, {"steps": 1000}, False),
        ("fab", INF, {"steps": 48, "refine": 2}, True),
        ("deepfool", 2.0, {"steps": 50, "polish": 1}, True),
        ("cw", 2.0, {"steps": 90, "search": 6}, True),
        ("ead_l1", 1.0, {"steps": 360, "search": 9}, True),
        ("hopskipjump", 2.0, {"steps": 20}, True),
    ]
    return [Case(name, p, ours, found.get(name, {}), kind) for name, p, ours, kind in plans]


@dataclass(frozen=True)
class Victim:
    """A network as a torch module and as a file, which `read` computes in torch, and where it is attacked: x [B, *S],
    y [B]."""

    net: nn.Module
    file: Model
    read: nn.Module
    x: Tensor
    y: Tensor


#: A tool's attack on a victim: adversarial inputs, and rows evaluated for each [B]
Run = Callable[[], tuple[Tensor, np.ndarray]]


def measure(victim: Victim, run: Run, judge: nn.Module, p: float, eps: float, seed: int) -> Result:
    """Time one tool's run; what it attacked judges exactly what it returned."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < REPEATS and sum(seconds) < PATIENCE_S):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (the peers draw from the global generator)
        began = time.process_time()
        adversarial, queries = run()
        seconds.append(time.process_time() - began)
    x, adversarial = victim.x, adversarial.detach()
    delta = (adversarial.double() - x.double()).flatten(1).numpy()
    size = np.abs(delta).max(1) if p == INF else np.linalg.norm(delta, ord=p, axis=1)
    with torch.no_grad():
        wrong = (judge(adversarial).argmax(1) != victim.y).numpy()
    wrong &= (adversarial.flatten(1).amin(1) >= 0).numpy() & (adversarial.flatten(1).amax(1) <= 1).numpy()
    return Result(wrong & (size <= eps * (1 + 1e-5)), np.where(wrong, size, np.inf), min(seconds), queries)


def compare(case: Case, victim: Victim, eps: float, seed: int) -> list[str]:
    """Markdown rows of one attack: ours first."""
    x, y = victim.x, victim.y
    budget = 1e3 if case.minimise else eps

    def ours(target: Any) -> Run:
        def run() -> tuple[Tensor, np.ndarray]:
            found = build(case.name, **case.ours)(target, x, y, threat, seed=seed)
            return found.adversarial, found.queries.numpy()

        return run

    def theirs(attack: Peer) -> Run:
        def run() -> tuple[Tensor, np.ndarray]:
            counter = Counter(victim.net).eval()
            found = attack(counter, x, y, budget)
            return found, np.array(counter.each) if counter.each else np.full(len(x), counter.rows / len(x))

        return run

    threat = LpThreat(norm=case.p, eps=INF if case.minimise else eps)
    runs = {"verifier": ours(victim.file), "verifier, module": ours(victim.net)}
    runs |= {tool: theirs(run) for tool, run in case.peers.items()}
    results = {}
    for tool, run in runs.items():
        try:
            judge = victim.read if tool == "verifier" else victim.net
            results[tool] = measure(victim, run, judge, case.p, budget, seed)
        except Exception as error:
            print(f"{case.name} in {tool} failed: {type(error).__name__}: {error}", file=sys.stderr)
    both = np.logical_and.reduce([np.isfinite(r.size) for r in results.values()])
    rows = []
    for tool, r in results.items():
        median = f"{np.median(r.size[both]):.4f}" if both.any() and case.minimise else "-"
        shown = "-" if case.minimise else f"{eps:g}"
        paired = results["verifier"].over(r) if case.minimise and tool in case.peers else "- | - | -"
        rows.append(
            f"| {case.name} | {shown} | {tool} | {1 - r.found.mean():.3f} | {median} "
            f"| {r.seconds:.3f} | {r.queries.mean():.0f} | {paired} |"
        )
    return rows


def digit_inputs(net: nn.Module, samples: int) -> tuple[Tensor, Tensor]:
    """Digits that the network classifies correctly."""
    from verifier.data.packaged import digits

    data = digits()
    x, y = torch.tensor(data.x[1200:]), torch.tensor(data.y[1200:])
    with torch.no_grad():
        right = net(x).argmax(1) == y
    return x[right][:samples], y[right][:samples]


def box_inputs(folders: list[Path], net: GraphModule, samples: int) -> tuple[Tensor, Tensor]:
    """Distinct centres of the input boxes of the network's size, as images where they look like some."""
    from verifier.api import load
    from verifier.report.picture import image_shape

    size, points = net.network.graph.input_size, dict[bytes, np.ndarray]()
    for folder in folders:
        with (folder / "instances.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                box = load(str(folder / row["onnx"]), str(folder / row["vnnlib"]))[0].problem.cases[0].inputs
                centre = (0.5 * (box.lower + box.upper)).astype(np.float32).clip(0, 1)
                if len(points) < samples and len(centre) == size:
                    points[centre.tobytes()] = centre
    x = torch.tensor(np.stack(list(points.values())))
    shape = image_shape(x.shape[1])
    x = x.reshape(-1, *shape) if shape else x
    with torch.no_grad():
        return x, net(x).argmax(1)


def main() -> int:
    """Compare and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[str(SPECS / "fc.onnx"), str(SPECS / "conv.onnx")])
    parser.add_argument("--boxes", type=Path, nargs="+", metavar="FOLDER", help="take inputs from these folders' boxes")
    parser.add_argument("--samples", type=int, default=100, metavar="N")
    parser.add_argument("--eps", type=float, default=0.1, metavar="E", help="linf budget of the bounded attacks")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--only", nargs="+", default=[], metavar="ATTACK")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the table to FILE")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in args.networks:
        path = args.boxes[0] / name if args.boxes else Path(name)
        read = graph_module(path).eval()
        net = as_module(read.network.source) or read
        x, y = box_inputs(args.boxes, read, args.samples) if args.boxes else digit_inputs(net, args.samples)
        victim = Victim(net, Model.from_onnx(path), read, x, y)
        for warm in (net, victim.file.forward):  # whoever comes first must not pay for torch's start
            point = x.clone().requires_grad_(True)
            torch.autograd.grad(warm(point).sum(), point)
        lines = [
            "", f"## {Path(name).name}: {len(x)} inputs, seed {args.seed}, {datetime.now(UTC):%Y-%m-%d}", "", HEADER,
        ]  # fmt: skip
        for case in cases():
            if args.only and case.name not in args.only:
                continue
            rows = compare(case, victim, args.eps, args.seed)
            print("\n".join(rows), file=sys.stderr)
            lines += rows
        print("\n".join(lines))
        if args.out is not None:
            with args.out.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
