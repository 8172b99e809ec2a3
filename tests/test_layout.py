"""The shape of the house: imports run one way, and no file, function or trunk grows too long."""

import ast
import collections
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

from helpers.paths import ROOT
from llama_jax.plan.sources import import_closure

PACKAGE = ROOT / "llama_jax"
# A room -> the rooms it may use. A directory is a room; a file of the top level is in `core`, or
# in the room that TOP names.
ROOMS = {
    "core": set(),
    "data": {"core"},
    "run": {"core", "data"},
    "generation": {"core", "data"},
    "evaluation": {"core", "data", "generation", "run"},
    "guards": {"core", "data", "evaluation", "run"},
    "train": {"core", "data", "evaluation", "guards", "run"},
    "loading": {"core", "data"},
    "formats": {"core", "data", "loading", "run"},
    "opened": {"core", "data", "evaluation", "formats", "generation", "loading", "run"},
    "plan": {"core", "loading", "run"},
    "scaling": {"core"},
    "sweeps": {"core", "data", "guards", "loading", "opened", "plan", "pods", "run", "train"},
    "pods": {"core", "loading", "run"},
    "commands": {
        *("core", "data", "evaluation", "formats", "generation", "guards", "loading", "opened"),
        *("plan", "pods", "run", "scaling", "sweeps", "train"),
    },
    "door": {"core", "commands"},
}
TOP = {
    **{"train": "train", "opened": "opened", "loading": "loading"},
    **{"cli": "door", "__main__": "door"},
}
CORE = {
    *(
        "config",
        "experiment",
        "hardware",
        "progress",
        "sharding",
        "collectives",
        "attention",
    ),
    *("loss", "model", "optimizer", "step", "flops", "layout", "process", "plain_file", "hosts"),
    *("place", "bucket"),
}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py" and "corpus" not in path.parts
}


def room(module: str) -> str:
    first, _, rest = module.partition(".")
    return first if rest else TOP.get(first, "core")


def imported(path: Path) -> set[str]:
    """Modules of llama_jax that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {n.removeprefix("llama_jax.") for n in names if n.startswith("llama_jax.")} & {*FILES}


GRAPH = {module: imported(path) for module, path in FILES.items()}


# Imports


def test_every_file_has_a_room():
    top = {module for module in FILES if "." not in module}
    assert top == CORE | TOP.keys()
    assert {room(module) for module in FILES} == ROOMS.keys()


def test_a_room_uses_only_those_it_may():
    wrong = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if room(other) != room(module) and room(other) not in ROOMS[room(module)]
    ]
    assert wrong == []


def test_neither_files_nor_rooms_import_in_a_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names the circle
    graphlib.TopologicalSorter(ROOMS).prepare()


def test_experiments_import_the_config_only():
    """Sweeps work out tokens and steps, too."""
    for path in (ROOT / "experiments").rglob("*.py"):
        arithmetic = {"flops", "sweeps.ladder"} if path.parent.name == "sweeps" else set()
        assert imported(path) - arithmetic == {"config"}, path


def test_laws_need_no_run():
    for module, others in GRAPH.items():
        if room(module) == "scaling":
            others = {name for name in others if room(name) != "scaling"}
            assert others <= {"config", "flops", "hardware", "plain_file", "progress"}, module


def test_nothing_imports_experiments_tests_or_benchmarks():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        roots = {(n.module or "").split(".")[0] for n in froms}
        assert not roots & {"experiments", "tests", "benchmarks"}, path


# Lengths


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def length(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_file_is_over_450_lines_and_no_function_over_80():
    tests = (ROOT / "tests").rglob("*.py")
    assert {str(p): num_lines(p) for p in (*FILES.values(), *tests) if num_lines(p) > 450} == {}
    long = {
        f"{module}.{function.name}": length(function)
        for module, path in FILES.items()
        for function in functions(path)
        if length(function) > 80
    }
    assert long.pop("train.train_from_newest", 0) <= 90  # which wires
    assert long == {}


def test_the_trunk_is_read_in_an_afternoon():
    """All that training is made of, but for the table of chips, the public names, the reading of
    experiment files, which only these import, buckets, what hides orbax and the hosts' disks, the
    guards, which watch it, and what tells of its time afterwards."""
    trunk = {path: num_lines(path) for path in import_closure("llama_jax.train")}
    apart = {"hardware.py", "__init__.py", "loading.py", "place.py", "bucket.py", "goodput.py"}
    apart |= {"managers.py", "local_checkpoints.py"}
    read = {p: n for p, n in trunk.items() if p.name not in apart and p.parent.name != "guards"}
    assert 20 < len(read) < 30
    assert sum(read.values()) <= 4_200


# Names


def test_a_name_is_of_one_thing():
    """But a reader in proofs/ has the name of its format, and a verb that of its room."""
    places = collections.defaultdict(list)
    for module in FILES:
        *rooms, name = module.split(".")
        if rooms != ["formats", "proofs"]:
            places[name].append(module)
    different = {
        name: modules
        for name, modules in places.items()
        if len([m for m in modules if not m.startswith("commands.")]) > 1
    }
    assert different == {}


def test_docstrings_of_functions_begin_with_a_verb():
    wrong = [
        f"{module}.{function.name}: {doc.splitlines()[0]}"
        for module, path in FILES.items()
        for function in functions(path)
        if (doc := ast.get_docstring(function))
        and re.match(r"(Of|As|By|The|Those|For|A|An)\b|\(", doc)
    ]
    assert wrong == []
