"""Dependencies point downwards only, and starting up does not pay for torch."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "verifier"

#: From the ground up. A module may import its own room and rooms of lower layers, nothing else.
#: A single module listed here leaves its room for this purpose: `report.model` is a contract that
#: the analysis fills in, while the rest of `report` presents what came out.
LAYERS = (
    ("errors", "outcome"),
    ("settings", "run", "report.model", "data"),
    ("graph",),
    ("spec", "kernels", "ops"),
    ("bounds",),
    ("tighten",),
    ("attack",),
    ("search",),
    ("proof",),
    ("api",),
    ("batch", "certify"),
    ("training",),
    ("report",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

#: Rooms that must work, and start, without torch.
WITHOUT_TORCH = ("errors", "outcome", "settings", "run", "graph", "spec", "kernels", "api", "batch", "report", "cli")


def module_name(path):
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def room_of(module):
    """The longest listed prefix of a module's name below `verifier`; None where nothing is listed."""
    parts = module.split(".")
    return next((name for k in range(len(parts), 0, -1) if (name := ".".join(parts[:k])) in RANK), None)


def imports(path):
    """(line, module below `verifier`) of every import, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.append(full if full.removeprefix("verifier.") in MODULES else str(node.module))
        yield from ((node.lineno, name.removeprefix("verifier.")) for name in names if name.startswith("verifier."))


def test_every_module_has_a_layer():
    homeless = sorted(name for name in MODULES if name and room_of(name) is None)
    assert homeless == [], "add the room to LAYERS, at the height its imports allow"


def test_imports_point_downwards():
    wrong = []
    for name, path in MODULES.items():
        for line, target in imports(path):
            here, there = room_of(name), room_of(target)
            if name and here != there and (there is None or RANK[there] >= RANK[here]):
                wrong.append(f"{path.relative_to(ROOT.parent)}:{line} imports verifier.{target}")
    assert wrong == []


def test_the_walk_sees_imports_it_should_see():
    seen = {target for _, target in imports(MODULES["cli.verify"])}
    assert "cli.answer" in seen and room_of("report.model") == "report.model" and room_of("report.text") == "report"


def test_start_up_does_not_import_torch():
    names = sorted(f"verifier.{n}" for n in MODULES if n and room_of(n) and room_of(n).split(".")[0] in WITHOUT_TORCH)
    names = [n for n in names if not is_torch_by_nature(MODULES[n.removeprefix("verifier.")])]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-400:]
    for name in ("cli.main", "api", "graph.load", "spec.load", "batch.worker"):
        assert f"verifier.{name}" in names


def is_torch_by_nature(path):
    """Importers of torch modules and the oracle kernels name torch at their top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [n.names[0].name if isinstance(n, ast.Import) else str(n.module) for n in tree.body
             if isinstance(n, (ast.Import, ast.ImportFrom))]  # fmt: skip
    return any(name == "torch" or name.startswith("torch.") for name in named)
