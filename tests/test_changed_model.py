"""A model.py with one parameter more: right everywhere, or refused by the parameter's name."""

from pathlib import Path

import pytest
from etils import epath
from flax import nnx

from llama_jax import model
from llama_jax.flops import model_flops_per_token, num_params
from llama_jax.loading import load
from llama_jax.model import Attention, RMSNorm
from llama_jax.run.metrics import read_metrics
from llama_jax.train import train


class NormedAttention(Attention):
    def __init__(self, cfg, rngs):
        super().__init__(cfg, rngs)
        self.out_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps)

    def __call__(self, *args):
        return self.out_norm(super().__call__(*args))


class BiasedAttention(Attention):
    def __init__(self, cfg, rngs):
        super().__init__(cfg, rngs)
        self.bq_GRK = nnx.Param(0 * self.wq_DGRK[0])


@pytest.fixture
def change(monkeypatch):
    """Put another class in the place of one of model.py's."""

    def put(name: str, changed: type) -> None:
        monkeypatch.setattr(model, name, changed)
        model.param_shapes.cache_clear()

    yield put
    model.param_shapes.cache_clear()


def test_a_changed_model_is_right_or_refused(change, cli, experiment_file, trained, tmp_path):
    plain = load(str(experiment_file)).model
    num_plain, flops_plain = num_params(plain), model_flops_per_token(plain, 64)
    change("Attention", NormedAttention)
    added = plain.num_layers * plain.embed_dim

    # Counted, trained and evaluated with it.
    assert num_params(plain) == num_plain + added
    assert model_flops_per_token(plain, 64) == flops_plain  # a vector multiplies no matrix
    assert f"{num_plain + added:,}" in cli("show", experiment_file).stdout
    workdir = tmp_path / "run"
    train(load(str(experiment_file)), epath.Path(workdir), accept_changes=False)
    rows = read_metrics(epath.Path(workdir))
    done = cli("evaluate", workdir)
    assert done.returncode == 0, done.stderr
    assert f"{rows[-1]['validation_loss']:.3f}" in done.stdout

    # Refused, by its name, by whatever computes the model or reads its files in a way of its own.
    sample = ("sample", workdir, "--prompt", "x", "--max-tokens", 8)
    assert_refused(cli(*sample), "generation/decoder.py")
    assert_refused(cli(*sample, "--int8"), "generation/decoder.py")
    for form in ("hf", "gguf"):
        out = tmp_path / form
        assert_refused(cli("export", workdir, "--to", form, "--out", out), "formats/parameters.py")
        assert not out.exists()

    # And so is either model with the other's checkpoints, which are left where they are.
    lacks = (
        f"only llama_jax/model.py has parameter layers/attn/out_norm/scale_D; checkpoint {trained}"
    )
    assert_refused(cli("train", experiment_file, "--workdir", trained), lacks)
    assert_refused(cli("evaluate", trained), lacks)
    change("Attention", Attention)
    lacks = "only the checkpoint has parameter layers/attn/out_norm/scale_D"
    assert_refused(cli("train", experiment_file, "--workdir", workdir), lacks)
    assert not (workdir / "damaged").exists()


def assert_refused(done, where: str) -> None:
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "parameter layers/attn/out_norm/scale_D" in line and where in line


def test_a_foreign_model_is_not_read_into_a_changed_one(change, cli, good: Path, tmp_path):
    change("Attention", NormedAttention)
    for path in (good / "hf", *(good / "gguf").glob("*.gguf")):
        done = cli("import", path, "--out", tmp_path / "run")
        assert_refused(done, "formats/parameters.py")
        assert_refused(
            cli("sample", "--from", path, "--prompt", "x", "--max-tokens", 8),
            "formats/parameters.py",
        )
    assert not (tmp_path / "run").exists()


def test_flops_of_an_unknown_matrix_are_not_guessed(change, cli, experiment_file):
    change("Attention", BiasedAttention)
    done = cli("show", experiment_file)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the FLOPs of parameter layers/attn/bq_GRK (2, 4, 1, 8) are not known" in line
    assert "llama_jax/flops.py" in line
