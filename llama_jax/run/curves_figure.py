"""The loss curves of several runs in one picture, labelled by what tells the runs apart."""

import io
from collections.abc import Sequence
from typing import Any

from etils import epath

from llama_jax.config import Experiment, UserError
from llama_jax.experiment import IDENTITY, fields, from_json
from llama_jax.plain_file import plain
from llama_jax.run.metrics import read_metrics
from llama_jax.run.workdir import config_file, metrics_file, write_whole


def runs_in(workdir: epath.Path) -> list[epath.Path]:
    """Return the run at `workdir`, or all that a sweep has begun there. Raise UserError if there is
    none."""
    if metrics_file(workdir).exists():
        return [workdir]
    children = sorted(workdir.iterdir()) if workdir.is_dir() else []
    found = [child for child in children if metrics_file(child).exists()]
    if not found:
        raise UserError(f"workdir: no {metrics_file(workdir)}; it is written by llama-jax train")
    return found


def plot_curves(workdirs: Sequence[epath.Path], out: epath.Path) -> epath.Path:
    """Draw held-out losses against tokens, those of training batches faintly, into `out`, a .png.

    Raise UserError if it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [config_file(workdir) for workdir in workdirs]
    told_apart = varied([from_json(plain(name).read_text(), str(name)) for name in names])
    # Runs that are near in what was swept have colours that are.
    order = sorted(range(len(workdirs)), key=lambda i: [_rank(v) for v in told_apart[i].values()])
    colours = matplotlib.colormaps["viridis"]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for place, i in enumerate(order):
        colour = colours(0.9 * place / max(1, len(order) - 1))
        label = ", ".join(
            f"{field.rpartition('.')[2]} {value}" for field, value in told_apart[i].items()
        )
        rows = read_metrics(workdirs[i])
        train = [(row["tokens"], row["loss"]) for row in rows if "loss" in row]
        held_out = [(r["tokens"], r["validation_loss"]) for r in rows if "validation_loss" in r]
        axes.plot(*zip(*train, strict=True), color=colour, linewidth=0.6, alpha=0.3)
        axes.plot(
            [tokens for tokens, _ in held_out],
            [loss for _, loss in held_out],
            "o-",
            color=colour,
            markersize=3,
            label=label or workdirs[i].name,
        )
    axes.set(xlabel="tokens trained on", ylabel="loss (nats per token), held out")
    axes.legend(fontsize=6, ncols=1 + len(order) // 16)
    axes.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    plt.close(figure)
    try:
        return write_whole(out, image.getvalue())
    except OSError as e:
        raise UserError(f"--out: cannot write {str(out)!r}: {e.strerror or e}") from e


def varied(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """Return, for each experiment, "section.field" -> value of those fields that a result depends
    on and that are not the same in all."""
    rows = [
        {name: value for name, _, value in fields(e) if name.partition(".")[0] in IDENTITY}
        for e in experiments
    ]
    names = [name for name in rows[0] if any(row[name] != rows[0][name] for row in rows)]
    return [{name: row[name] for name in names} for row in rows]


def _rank(value: object) -> tuple[int, float, str]:
    """Order numbers by size, and before all else."""
    if isinstance(value, int | float):
        return 0, value, ""
    return 1, 0.0, str(value)
