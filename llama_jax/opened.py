"""A trained model in memory: its logits, its continuations, its held-out loss."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from llama_jax.attention import PLATFORMS
from llama_jax.config import Experiment, ModelConfig, UserError
from llama_jax.data import store
from llama_jax.data import tokenizer as vocabularies
from llama_jax.data.cache import ensure
from llama_jax.data.tokenizer import Vocabulary
from llama_jax.evaluation.perplexity import validation_losses
from llama_jax.experiment import validate
from llama_jax.formats import convert, native
from llama_jax.formats.vocabulary import check_size
from llama_jax.generation.completion import Completion, complete
from llama_jax.generation.decoder import mesh_for, to_decode_layout
from llama_jax.generation.sampling import Sampling
from llama_jax.loading import override
from llama_jax.model import Llama
from llama_jax.place import place
from llama_jax.run.checkpoint import check_shape, restore_model
from llama_jax.sharding import make_mesh, mesh_of
from llama_jax.step import make_eval_step, next_token_loss

SAMPLING = Sampling(temperature=0.8, top_p=0.95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model on a mesh of its own, that of `experiment.execution`."""

    experiment: Experiment
    params: Llama
    vocabulary: Vocabulary
    mesh: jax.sharding.Mesh

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, after <s> where the tokenizer has it so."""
        return self.vocabulary.prompt(text)

    def logits(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Return fp32 [B, T, V] of B rows of T tokens, each row one document."""
        tokens_BT = np.asarray(tokens, np.int32)
        rows, ways = len(tokens_BT), self.mesh.size // self.mesh.shape["tensor"]
        tokens_BT = np.pad(tokens_BT, ((0, -rows % ways), (0, 0)))
        positions_BT = np.broadcast_to(
            np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape
        )
        with jax.set_mesh(self.mesh):
            logits = _logits(self.params, tokens_BT, np.ones_like(tokens_BT), positions_BT)
            return np.asarray(logits)[:rows]

    def complete(
        self,
        prompts: Sequence[str],
        max_tokens: int = 100,
        *,
        sampling: Sampling = SAMPLING,
        stops: Sequence[str] = (),
        int8: bool = False,
    ) -> list[Completion]:
        """Return a completion of each prompt. int8: by matrices in eight bits."""
        with jax.set_mesh(self.mesh):
            decoder = to_decode_layout(self.params, int8)
            texts = complete(
                decoder, self.vocabulary, list(prompts), max_tokens, sampling, list(stops)
            )
            (*_, last) = texts
        return last

    def held_out_losses(self) -> dict[str, float]:
        """Return the mean loss in nats a token of each source, held out, of the experiment's data.

        Prepares the token store if it is missing. Raises UserError.
        """
        if ensure(self.experiment.data) != 0:
            raise UserError(f"data.store: {self.experiment.data.store} could not be written")
        store.check_tokenizer(self.experiment.data, self.experiment.model.vocab_size)
        with jax.set_mesh(self.mesh):
            eval_step = make_eval_step(next_token_loss(self.experiment.execution))
            return validation_losses(eval_step, self.params, None, self.experiment, self.mesh)


_logits = jax.jit(Llama.__call__)


def open_model(
    source: str | Path, overrides: Sequence[str] = (), tokenizer: str | Path | None = None
) -> Model:
    """Load WORKDIR[@STEP], or what `llama-jax import` takes, such as a .gguf.

    overrides: "section.field=value" strings for its experiment; by default it lies on as many
    devices as divide it. tokenizer: a tokenizer.model or tokenizer.json, for another framework's
    files without one. Raises UserError.
    """
    if convert.format_of(Path(source)) in (None, "native"):
        if tokenizer:
            raise UserError("tokenizer: belongs to another framework's files; a run has its own")
        return open_trained(str(source), overrides)
    return open_foreign(Path(source), overrides, Path(tokenizer) if tokenizer else None)


def open_trained(text: str, overrides: Sequence[str]) -> Model:
    """Load the checkpoint WORKDIR[@STEP], see open_model."""
    workdir, step, experiment = native.open_run(text, overrides)
    vocabulary = vocabularies.load(experiment.data.tokenizer)
    check_size(vocabulary.vocab_size, experiment.model.vocab_size, experiment.data.tokenizer)
    experiment, mesh = _laid_out(experiment, overrides)
    with jax.set_mesh(mesh):
        params = restore_model(workdir, step, experiment)
    return Model(experiment=experiment, params=params, vocabulary=vocabulary, mesh=mesh)


def open_foreign(path: Path, overrides: Sequence[str], tokenizer: Path | None) -> Model:
    """Load another framework's files, see open_model."""
    weights = convert.open_source(path, tokenizer)
    if weights.tokenizer is None:
        raise UserError(f"{path}: comes without a tokenizer; give --tokenizer")
    vocabulary = vocabularies.from_bytes(weights.tokenizer, f"{tokenizer or path}: the tokenizer")
    experiment = native.experiment_of(weights, path)
    for change in overrides:
        experiment = override(experiment, change)
    validate(experiment)
    check_shape(str(path), weights.cfg, experiment.model)
    experiment, mesh = _laid_out(experiment, overrides)
    with jax.set_mesh(mesh):
        params = native.to_params(weights, experiment)
    return Model(experiment=experiment, params=params, vocabulary=vocabulary, mesh=mesh)


def initial_params(experiment: Experiment) -> Llama:
    """Return the weights that experiment.init names, on the mesh of jax.set_mesh.

    Says on stderr which constants of theirs the experiment changes. Raises UserError if there are
    none, if they have other shapes, or if they were trained with another tokenizer.
    """
    assert experiment.init is not None
    try:
        cfg, model, read = _open_initial(experiment.init)
    except UserError as e:
        raise UserError(
            f"init: got {experiment.init!r}, expected a run, WORKDIR[@STEP], or what `llama-jax "
            f"import` takes; {e}"
        ) from e
    given = experiment.data.tokenizer
    if model is not None and not vocabularies.same(
        vocabularies.from_bytes(model, f"init: {experiment.init}: its tokenizer"),
        vocabularies.load(given),
    ):
        raise UserError(
            f"data.tokenizer: {vocabularies.find(given)} is not the tokenizer of "
            f"init={experiment.init}; expected that one, and a data.store made with it"
        )
    for field in ("norm_eps", "rope_theta"):
        has, got = getattr(cfg, field), getattr(experiment.model, field)
        if has != got:
            print(
                f"init: {experiment.init} has {field} {has}, model.{field} is {got}",
                file=sys.stderr,
            )
    return read(experiment)


def _open_initial(
    source: str,
) -> tuple[ModelConfig, bytes | None, Callable[[Experiment], Llama]]:
    """Return a model's configuration, its tokenizer if there is one, and what reads its weights."""
    if convert.format_of(Path(source)) in (None, "native"):
        workdir, step, own = native.open_run(source, ())
        path = own.data.tokenizer
        there = path == "embedded" or place(path, "data.tokenizer").exists()
        model = vocabularies.read(path) if there else None
        return own.model, model, functools.partial(restore_model, workdir, step)
    weights = convert.open_source(Path(source))

    def read(experiment: Experiment) -> Llama:
        check_shape(source, weights.cfg, experiment.model)
        return native.to_params(weights, experiment)

    return weights.cfg, weights.tokenizer, read


def _laid_out(
    experiment: Experiment, overrides: Sequence[str]
) -> tuple[Experiment, jax.sharding.Mesh]:
    """Return the experiment as it can be executed here, and its mesh."""
    execution, devices = experiment.execution, jax.devices()
    if any(text.startswith("execution.mesh.") for text in overrides):
        mesh = mesh_of(experiment, devices)
    else:
        cfg = mesh_for(experiment.model, len(devices))
        mesh = make_mesh(cfg, devices[: cfg.fsdp * cfg.tensor])
        execution = dataclasses.replace(execution, mesh=cfg)
    elsewhere = PLATFORMS.get(execution.attention) not in (None, jax.default_backend())
    attention = "reference" if elsewhere else execution.attention
    execution = dataclasses.replace(execution, attention=attention)
    return dataclasses.replace(experiment, execution=execution), mesh
