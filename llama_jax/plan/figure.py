"""A picture of plans: the HBM budget and the step's time, one bar a slice."""

import io
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from llama_jax.config import UserError
from llama_jax.hardware import GIB
from llama_jax.plan.plan import Plan
from llama_jax.run.workdir import write_whole

SUFFIXES = (".png", ".svg")


def check_name(path: Path) -> None:
    """Raise UserError for a name that `draw` cannot write to; before the minutes of a compile."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--figure: got {str(path)!r}, expected a name in {' or '.join(SUFFIXES)}")


def draw(plans: Sequence[Plan], path: Path) -> None:
    """Write the picture. Raise UserError if the file cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (memory, times) = plt.subplots(
        1, 2, figsize=(11, 1.8 + 0.7 * len(plans)), layout="constrained", sharey=True
    )
    rows = [f"{plan.experiment}\n{plan.slice}" for plan in plans]
    _bars(memory, [{k: v / GIB for k, v in plan.hbm_bytes.items()} for plan in plans])
    for row, plan in enumerate(plans):
        limit = plan.hbm_limit_bytes / GIB
        memory.plot([limit, limit], [row - 0.45, row + 0.45], "k--", linewidth=1.2)
    memory.set(xlabel="GiB a device (dashed: the limit)", title="HBM", yticks=range(len(rows)))
    memory.set_yticklabels(rows)
    memory.invert_yaxis()
    _bars(times, [plan.breakdown for plan in plans])
    times.set(xlabel="seconds (estimated, not measured)", title="one step")
    try:
        image = io.BytesIO()
        figure.savefig(image, dpi=150, format=path.suffix.removeprefix("."))
        write_whole(epath.Path(path), image.getvalue())
    except OSError as e:
        raise UserError(f"--figure: cannot write {str(path)!r}: {e.strerror or e}") from e
    finally:
        plt.close(figure)


def _bars(axes, rows: list[dict[str, float]]) -> None:
    """Draw stacked bars, one a row; the legend is above."""
    left = [0.0] * len(rows)
    for name in dict.fromkeys(name for row in rows for name in row):
        widths = [row.get(name, 0.0) for row in rows]
        axes.barh(range(len(rows)), widths, left=left, height=0.6, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.12))
    axes.grid(axis="x", alpha=0.3)
