"""An experiment file of a placement that a search has found."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from etils import epath

from llama_jax.config import Experiment, MeshConfig, UserError
from llama_jax.layout import with_execution
from llama_jax.plan.plan import Plan
from llama_jax.plan.text import lines
from llama_jax.run.workdir import write_whole


def write_experiment(path: Path, plan: Plan, experiment: Experiment) -> None:
    """Write an experiment file of the placement; its docstring says by which figures it was
    chosen."""
    experiment = with_execution(experiment, slice=plan.slice)
    values = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(Experiment)}
    init = values.pop("init")
    used = (*values.values(), experiment, experiment.execution.mesh)
    classes = sorted(type(section).__name__ for section in used)
    text = "\n".join(
        [
            f'"""{lines(plan)[0]}.',
            "",
            "Chosen by llama-jax plan --search; estimates, nothing of it was measured:",
            "",
            *lines(plan)[1:],
            "",
            f"llama-jax train {path}",
            '"""',
            "",
            "from llama_jax.config import (",
            *(f"    {name}," for name in classes),
            ")",
            "",
            "",
            "def get_experiment() -> Experiment:",
            "    return Experiment(",
            *(line for name, section in values.items() for line in _section(name, section)),
            *([f"        init={_source(init)},"] if init else []),
            "    )",
            "",
        ]
    )
    try:
        write_whole(epath.Path(path), text)
    except OSError as e:
        raise UserError(f"--out: cannot write {str(path)!r}: {e.strerror or e}") from e


def _section(name: str, section: Any) -> list[str]:
    """Return the source of one section, without the fields that have their default."""
    fields = [
        f"            {f.name}={_source(getattr(section, f.name))},"
        for f in dataclasses.fields(section)
        if getattr(section, f.name) != f.default
    ]
    return [f"        {name}={type(section).__name__}(", *fields, "        ),"]


def _source(value: object) -> str:
    """Return a value as ruff formats it, but for the breaks of long lines."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_source, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, MeshConfig):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        named = (f"{k}={v!r}" for k, v in given.items() if v != getattr(MeshConfig(), k))
        return f"MeshConfig({', '.join(named)})"
    return repr(value)
