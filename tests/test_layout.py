"""The shape of the house: imports run one way, and what is heavy stays in its room."""

import ast
import subprocess
import sys
from pathlib import Path

from helpers.paths import ROOT

# A module imports only those on the lines above its own, or none of ours.
FLOORS = [
    ["config"],
    ["sharding", "progress", "hardware"],
    ["attention"],
    ["model", "loss", "optimizer", "flops"],
    ["step"],
    ["data.documents", "data.store"],
    ["data.tokenizer"],
    ["data.tasks", "data.batches"],
    ["data.prepare"],
    ["checkpoint", "metrics"],
    ["int8"],
    ["decoder"],
    ["figures", "sample", "show"],
    ["completion"],
    ["evaluation.perplexity", "evaluation.ngrams", "evaluation.int8"],
    ["evaluation.report", "report"],
    ["train"],
    ["formats.vocabulary"],
    ["formats.weights"],
    ["formats.pth", "formats.readers"],
    ["formats.hf", "formats.meta", "formats.gguf", "formats.llama2c", "formats.proof"],
    ["formats.litgpt"],
    ["formats.exporter", "formats.importer"],
    ["plan.sources", "plan.hlo"],
    ["plan.links"],
    ["plan.estimate", "plan.analytic"],
    ["plan.compile"],
    ["plan.report"],
    ["plan.figure", "plan.search"],
    ["scaling.law", "scaling.results", "scaling.costs"],
    ["scaling.parametric", "scaling.isoflop", "scaling.envelope", "scaling.optimum"],
    ["scaling.fit"],
    ["scaling.budget"],
    ["scaling.figures", "scaling.tables"],
    ["sweeps.ladder", "sweeps.lease"],
    ["sweeps.worker"],
    ["sweeps.sweep"],
    ["sweeps.board"],
    ["cli"],
    ["__main__"],
]


def imported(path: Path) -> set[str]:
    """Modules of llama_jax that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    modules = {module for floor in FLOORS for module in floor}
    return {n.removeprefix("llama_jax.") for n in names if n.startswith("llama_jax.")} & modules


def test_imports_run_one_way():
    floor = {module: number for number, modules in enumerate(FLOORS) for module in modules}
    files = {
        ".".join(path.relative_to(ROOT / "llama_jax").with_suffix("").parts): path
        for path in (ROOT / "llama_jax").rglob("*.py")
        if path.name != "__init__.py" and "corpus" not in path.parts
    }
    assert files.keys() == floor.keys()
    wrong = [
        f"{module} imports {other}"
        for module, path in files.items()
        for other in imported(path)
        if floor[other] >= floor[module]
    ]
    assert wrong == []


def test_experiments_import_the_config_only():
    """Sweeps work out tokens and steps, too."""
    for path in (ROOT / "experiments").rglob("*.py"):
        arithmetic = {"flops", "sweeps.ladder"} if path.parent.name == "sweeps" else set()
        assert imported(path) - arithmetic == {"config"}, path


def test_laws_need_no_run():
    for path in (ROOT / "llama_jax/scaling").glob("*.py"):
        others = {name for name in imported(path) if not name.startswith("scaling")}
        assert others <= {"config", "flops", "hardware", "progress"}, path


def test_nothing_imports_experiments_tests_or_benchmarks():
    for path in (ROOT / "llama_jax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        roots = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not roots & {"experiments", "tests", "benchmarks"}, path


def test_the_command_line_loads_nothing_heavy():
    code = "import sys, llama_jax.cli; print({'jax', 'tensorflow', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
