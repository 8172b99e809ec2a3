"""loss.png: the curves of a run."""

from etils import epath

from llama_jax.config import UserError
from llama_jax.metrics import metrics_path, read_metrics


def plot_losses(workdir: epath.Path) -> epath.Path:
    """Draws the losses in metrics.jsonl against tokens; returns WORKDIR/loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not metrics_path(workdir).exists():
        raise UserError(f"workdir: no {metrics_path(workdir)}; it is written by llama-jax train")
    rows = read_metrics(workdir)
    train = [(row["tokens"], row["loss"]) for row in rows if "loss" in row]
    held_out = [(row["tokens"], row) for row in rows if "validation_loss" in row]
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
            losses = [row[name] for _, row in held_out]
            axes.plot(tokens, losses, f"C{i + 1}", linewidth=0.9, label=name.split("/")[1])
    axes.set(xlabel="tokens trained on", ylabel="loss (nats per token)")
    axes.legend(fontsize=8, ncols=2)
    axes.grid(alpha=0.3)
    path, part = workdir / "loss.png", workdir / "loss.png.tmp"
    with part.open("wb") as file:
        figure.savefig(file, dpi=150, format="png")
    plt.close(figure)
    return part.replace(path)
