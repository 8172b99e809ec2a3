"""Training that starts from given weights: of a run, of an import, of another framework's files."""

import dataclasses
import shutil
from pathlib import Path

import jax
import pytest
from etils import epath

from helpers.exports import export
from llama_jax.config import Experiment, UserError
from llama_jax.data import tokenizer
from llama_jax.formats.convert import import_model
from llama_jax.loading import override
from llama_jax.model import by_name
from llama_jax.opened import initial_params
from llama_jax.run import checkpoint
from llama_jax.run.fingerprint import fingerprints
from llama_jax.sharding import make_mesh
from llama_jax.train import train


def changed(experiment: Experiment, *changes: str) -> Experiment:
    for change in changes:
        experiment = override(experiment, change)
    return experiment


def model_of(workdir: Path, step: int) -> dict[str, int]:
    """Return the fingerprints of a checkpoint's parameters, without the optimizer's arrays."""
    meta = checkpoint.read_meta(epath.Path(workdir), step)
    return {name: n for name, n in meta.fingerprints.items() if not name[0].isdigit()}


# Few steps, each kept.
SHORT = ("run.num_steps=3", "upkeep.checkpoint_every=1", "upkeep.eval_every=3")


def test_a_run_starts_from_anothers_weights_and_reads_them_once(trained, experiment, tmp_path):
    source = shutil.copytree(trained, tmp_path / "source")
    experiment = changed(experiment, *SHORT, f"init={source}@6")
    workdir = epath.Path(tmp_path / "run")
    train(experiment, workdir, accept_changes=False, load_init=initial_params)
    started_from = model_of(trained, 6)
    origin = checkpoint.read_meta(workdir, 3).origin
    assert origin.init == checkpoint.weights_digest(started_from)

    last = model_of(tmp_path / "run", 3)
    shutil.rmtree(workdir / "checkpoints/3")
    shutil.rmtree(source)
    train(experiment, workdir, accept_changes=False, load_init=initial_params)
    assert model_of(tmp_path / "run", 3) == last
    assert checkpoint.read_meta(workdir, 3).origin == origin
    with pytest.raises(UserError, match="was begun with another experiment: init: '.*@6' -> None"):
        train(dataclasses.replace(experiment, init=None), workdir, accept_changes=False)


def test_an_imported_model_is_trained_where_it_was_put_if_that_is_accepted(
    trained, experiment, tmp_path
):
    export(trained, tmp_path / "hf", "hf", verify=False)
    import_model(tmp_path / "hf", tmp_path / "run", None)
    workdir, weights = epath.Path(tmp_path / "run"), model_of(trained, 12)
    experiment = changed(experiment, *SHORT)
    with pytest.raises(UserError, match=f"imported model; .* --set init={workdir} and another"):
        train(experiment, workdir, accept_changes=False)
    train(experiment, workdir, accept_changes=True)
    assert checkpoint.read_meta(workdir, 3).origin.init == checkpoint.weights_digest(weights)
    with jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices())):
        params = initial_params(changed(experiment, f"init={tmp_path / 'hf'}"))
        assert fingerprints(by_name(params)) == weights


@pytest.mark.parametrize(
    "changes, message",
    [
        (("init=nowhere",), "init: got 'nowhere', expected a run, WORKDIR.* no checkpoint in"),
        (("init=TRAINED@7",), "init: got '.*@7', .* there are 6, 9, 12"),
        (
            ("init=TRAINED", "model.num_layers=3"),
            "model.num_layers: got 3, but checkpoint .*/checkpoints/12 has 2; expected the same",
        ),
        (
            ("init=TRAINED", "data.tokenizer=embedded"),
            f"data.tokenizer: {tokenizer.EMBEDDED} is not the tokenizer of init=.*/trained; ",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(trained, experiment, changes, message):
    experiment = changed(experiment, *(c.replace("TRAINED", str(trained)) for c in changes))
    with (
        jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices())),
        pytest.raises(UserError, match=message) as e,
    ):
        initial_params(experiment)
    assert "\n" not in str(e.value)


def test_other_constants_than_the_weights_are_said(trained, experiment, capsys):
    experiment = changed(experiment, f"init={trained}", "model.rope_theta=500.0")
    with jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices())):
        initial_params(experiment)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"init: {trained} has rope_theta 10000.0, model.rope_theta is 500.0"
