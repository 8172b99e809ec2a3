"""loss.png: the curves of a run."""

import io
import math

from etils import epath

from llama_jax.config import UserError
from llama_jax.run.metrics import read_metrics
from llama_jax.run.workdir import loss_figure_file, metrics_file, write_whole


def plot_losses(workdir: epath.Path) -> epath.Path:
    """Draw the losses in metrics.jsonl against tokens; return WORKDIR/loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not metrics_file(workdir).exists():
        raise UserError(f"workdir: no {metrics_file(workdir)}; it is written by llama-jax train")
    rows = read_metrics(workdir)
    train = [(row["tokens"], row["loss"]) for row in rows if "loss" in row]
    held_out = [(row["tokens"], row) for row in rows if "validation_loss" in row]
    if not train:
        raise UserError(f"workdir: {metrics_file(workdir)} has no step yet")
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(*zip(*train, strict=True), color="0.75", linewidth=0.8, label="training batch")
    if held_out:
        tokens = [t for t, _ in held_out]
        axes.plot(
            tokens,
            [row["validation_loss"] for _, row in held_out],
            "C0o-",
            label="held out, mixture",
        )
        for i, name in enumerate(k for k in held_out[0][1] if k.startswith("validation_loss/")):
            losses = [row.get(name, math.nan) for _, row in held_out]  # the mixture may change
            axes.plot(tokens, losses, f"C{i + 1}", linewidth=0.9, label=name.split("/")[1])
    axes.set(xlabel="tokens trained on", ylabel="loss (nats per token)")
    axes.legend(fontsize=8, ncols=2)
    axes.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    plt.close(figure)
    return write_whole(loss_figure_file(workdir), image.getvalue())
