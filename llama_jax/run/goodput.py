"""What became of a run's wall time: the share of it that went into steps that count.

After "goodput" of ML Productivity Goodput (Google Cloud, 2024), from the run's own files alone.
"""

import dataclasses
import io
import json
import math
from typing import Any

from etils import epath
from rich.table import Table

from llama_jax.config import UserError
from llama_jax.plain_file import plain
from llama_jax.progress import duration
from llama_jax.run.attempt import PHASES
from llama_jax.run.workdir import attempts_dir, goodput_figure_file, write_whole

SHARES = {
    "step": "steps that count",
    "lost": "steps that were lost, and computed again",
    "start": "start, until there is a state",
    "compile": "compilation",
    "input": "devices waiting for a batch",
    "evaluate": "evaluation",
    "save": "saves, until the state is copied",
    "down": "between attempts",
}
COLOURS = ("C2", "C3", "C0", "C9", "C1", "C4", "C5", "0.85")  # of SHARES


@dataclasses.dataclass(frozen=True)
class Record:
    """What attempt.py wrote; times are Unix's, in seconds."""

    began: float
    written: float
    first_step: int
    step: int
    lost_steps: int
    lost_seconds: float
    seconds: dict[str, float]
    events: list[dict[str, Any]]


def read_attempts(workdir: epath.Path) -> list[Record]:
    """Return the attempts at a run, the first first. Raises UserError for a damaged file."""
    directory = attempts_dir(workdir)
    if not directory.exists():
        return []
    paths = (path for path in directory.glob("*.json") if path.stem.isdecimal())
    return [_read(path) for path in sorted(paths, key=lambda path: int(path.stem))]


def _read(path: epath.Path) -> Record:
    try:
        record = Record(**json.loads(plain(path).read_bytes()))
        numbers = (record.began, record.written, record.lost_seconds, *record.seconds.values())
        whole = record.seconds.keys() == {*PHASES} and math.isfinite(sum(numbers))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read as the times of a run: {e}; delete it") from e
    if not whole:
        raise UserError(f"{path}: has other phases than {', '.join(PHASES)}; delete it")
    return record


def goodput(attempts: list[Record]) -> dict[str, float]:
    """Return the seconds of each of SHARES; they sum up to those from first to last."""
    seconds = {phase: sum(a.seconds[phase] for a in attempts) for phase in PHASES}
    # What was lost may have been written to the metrics after the attempt's last record.
    lost = min(sum(a.lost_seconds for a in attempts), seconds["step"])
    total = attempts[-1].written - attempts[0].began
    seconds |= {"step": seconds["step"] - lost, "lost": lost}
    seconds["down"] = max(0.0, total - sum(seconds.values()))
    return {name: seconds[name] for name in SHARES}


def goodput_table(attempts: list[Record]) -> Table:
    """Return the shares, each with a bar, and what did not go as it should."""
    seconds = goodput(attempts)
    total = sum(seconds.values())
    title = (
        f"wall time: {duration(total)} in {len(attempts)} attempt{'s' * (len(attempts) > 1)}, "
        f"goodput {seconds['step'] / total:.1%}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("went into")
    table.add_column("share", justify="right")
    table.add_column("time", justify="right")
    table.add_column("")
    for name, meaning in SHARES.items():
        share = seconds[name] / total
        table.add_row(meaning, f"{share:.1%}", duration(seconds[name]), "█" * round(24 * share))
    lost = sum(a.lost_steps for a in attempts)
    table.caption = f"{lost} steps were computed again" if lost else None
    return table


def plot_goodput(workdir: epath.Path) -> epath.Path:
    """Draw each attempt, one below the other, and what it was made of. Return its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    attempts = read_attempts(workdir)
    total = goodput(attempts)
    begin, whole = attempts[0].began, sum(total.values())
    unit, name = (3600, "hours") if whole > 2 * 3600 else (60, "minutes")
    figure, axes = plt.subplots(
        figsize=(7, min(8.0, 2.2 + 0.22 * len(attempts))), layout="constrained"
    )
    for row, (attempt, after) in enumerate(zip(attempts, [*attempts[1:], None], strict=True)):
        lost = min(after.lost_seconds if after else 0.0, attempt.seconds["step"])
        parts = attempt.seconds | {"lost": lost, "step": attempt.seconds["step"] - lost}
        parts["down"] = max(0.0, after.began - attempt.written) if after else 0.0
        left = attempt.began - begin
        order = ("start", "compile", "evaluate", "save", "input", "step", "lost", "down")
        for part in order:
            colour = COLOURS[list(SHARES).index(part)]
            axes.barh(row, parts[part] / unit, left=left / unit, color=colour, height=0.8)
            left += parts[part]
    for part, colour in zip(SHARES, COLOURS, strict=True):
        axes.barh(0, 0, color=colour, label=f"{part} {total[part] / whole:.1%}")
    axes.set(xlabel=f"{name} since the beginning", ylabel="attempt")
    axes.set_yticks(range(len(attempts)), [str(i + 1) for i in range(len(attempts))])
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    plt.close(figure)
    return write_whole(goodput_figure_file(workdir), image.getvalue())
