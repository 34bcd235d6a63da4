"""The direction of imports: between packages, inside stage 2, and no cycles."""

import ast
from pathlib import Path

import pytest

PACKAGES = ["shared", "data", "stage1_tokenizer", "stage2_unified"]
"""Each may import itself, those before it, and the package's version; `medunifier` itself may import all."""

BELOW = {
    "model": set(),
    "objectives": {"model"},
    "training": {"model", "objectives", "generation", "inference"},
    "generation": {"model"},
    "inference": {"model", "generation"},
    "evaluate": {"model", "generation", "inference"},
    "export": {"model", "generation", "inference"},
    "cli": {"model", "training", "generation", "inference", "evaluate", "export"},
    "app": {"model", "generation", "inference", "evaluate"},
    "train.py": {"model", "objectives", "training", "generation", "inference"},
}
"""Sub-packages of stage 2 and what each may import besides itself."""

MOST_ENTRIES = 10
CATALOGUES = {"data/sources"}  # one adapter a data set: as many entries as data sets


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules of this project that a file imports, as dotted names; without ``lazy`` those at import time alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        skipped = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not skipped and not (typing and not lazy):
            stack += ast.iter_child_nodes(node)
    return {name for name in found if name.split(".")[0] == "medunifier"}


def upward_between_packages(root: Path) -> list[str]:
    """Every import of a later package, as ``file: module``."""
    wrong = []
    for place, package in enumerate(PACKAGES):
        allowed = {*PACKAGES[: place + 1]}
        for path in sorted((root / package).rglob("*.py")):
            for name in sorted(imports(path)):
                parts = name.split(".")
                if len(parts) > 1 and parts[1] in {*PACKAGES, "bench", "gpu_bench", "train", "__main__"} - allowed:
                    wrong.append(f"{path.relative_to(root)}: {name}")
    return wrong


def upward_in_stage2(root: Path) -> list[str]:
    """Every import inside stage 2 that BELOW does not list, as ``file: module``."""
    wrong = []
    for path in sorted((root / "stage2_unified").rglob("*.py")):
        own = path.relative_to(root / "stage2_unified").parts[0]
        if own == "__init__.py":
            continue
        for name in sorted(imports(path)):
            parts = name.split(".")
            if parts[1:2] == ["stage2_unified"] and len(parts) > 2:
                target = parts[2] if parts[2] in BELOW else f"{parts[2]}.py"
                if target in BELOW and target != own and target not in BELOW[own]:
                    wrong.append(f"{path.relative_to(root)}: {name}")
    return wrong


def cycles(root: Path) -> list[list[str]]:
    """Groups of modules that import each other while they are being imported."""
    files = {}
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            dotted = "medunifier." + path.relative_to(root).with_suffix("").as_posix().replace("/", ".")
            files[dotted.removesuffix(".__init__")] = path
    graph = {name: imports(path, lazy=False) & files.keys() - {name} for name, path in files.items()}
    order: list[str] = []
    state: dict[str, int] = {}
    found: list[list[str]] = []

    def visit(name: str) -> None:
        state[name] = 1
        order.append(name)
        for target in sorted(graph[name]):
            if state.get(target) == 1:
                found.append(order[order.index(target) :])
            elif target not in state:
                visit(target)
        order.pop()
        state[name] = 2

    for name in sorted(graph):
        if name not in state:
            visit(name)
    return found


def test_packages_import_downward_only(root):
    assert not upward_between_packages(root)


def test_parts_of_stage_2_import_in_their_order(root):
    known = {path.name for path in (root / "stage2_unified").iterdir()} - {"__init__.py", "__pycache__"}
    assert known == BELOW.keys()
    assert not upward_in_stage2(root)


def test_modules_do_not_import_each_other_in_a_circle(root):
    assert not cycles(root)


@pytest.mark.parametrize(
    ("file", "line", "check"),
    [
        ("shared/errors.py", "from medunifier.data.shards import dataset", upward_between_packages),
        (
            "data/records.py",
            "def f():\n    import medunifier.stage2_unified.model.vocabulary",
            upward_between_packages,
        ),
        ("stage2_unified/model/m.py", "from medunifier.stage2_unified.training.muon import Muon", upward_in_stage2),
        ("stage2_unified/inference/i.py", "from medunifier.stage2_unified.cli import report", upward_in_stage2),
    ],
)
def test_an_upward_import_is_found(file, line, check, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(check(tmp_path)) >= 1 and file in check(tmp_path)[0]


def test_a_cycle_is_found(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.py").write_text("from medunifier.shared import b")
    (tmp_path / "shared" / "b.py").write_text("from medunifier.shared.a import x")
    assert cycles(tmp_path)


def test_packages_stay_small_at_their_top(root):
    wide = {}
    for package in PACKAGES:
        for folder in [root / package, *(root / package).rglob("*")]:
            name = folder.relative_to(root).as_posix()
            if folder.is_dir() and folder.name != "__pycache__" and name not in CATALOGUES:
                entries = {e.name for e in folder.iterdir()} - {"__init__.py", "__pycache__"}
                if len(entries) > MOST_ENTRIES:
                    wide[name] = sorted(entries)
    assert not wide
