"""Another framework's files as a workdir that can be sampled, evaluated and exported."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
from etils import epath

from llama_jax.config import (
    DataConfig,
    Experiment,
    OptimizerConfig,
    RunConfig,
    Upkeep,
    UserError,
)
from llama_jax.data import tokenizer as sentencepieces
from llama_jax.experiment import to_json, validate
from llama_jax.formats import gguf, hf, llama2c, meta, vocabulary
from llama_jax.formats.weights import (
    Meter,
    Source,
    from_matrix,
    num_values,
    parameter_shapes,
    places,
)
from llama_jax.run import checkpoint
from llama_jax.run.fingerprint import fingerprint_of

UNFINISHED = ".unfinished"
PADDING = 128  # a model's rows are often made a multiple of this


def open_source(path: Path) -> Source:
    """The model at `path`, by what is there. Raises UserError for what is none."""
    if (path / "config.json").exists():
        return hf.read(path)
    if (path / "params.json").exists():
        return meta.read(path)
    if path.is_file() and path.suffix == ".gguf":
        return gguf.read(path)
    if path.is_file() and path.suffix == ".bin":
        return llama2c.read(path)
    raise UserError(
        f"{path}: is no model; expected a directory with config.json (Hugging Face) or params.json "
        "(Meta), or a file .gguf or .bin (llama2.c)"
    )


def import_model(path: Path, out: Path, tokenizer: Path | None) -> Experiment:
    """Writes the workdir `out` with checkpoint 0, and returns its experiment.

    tokenizer: a SentencePiece model; by default the one that comes with the model. Without either
    there is none at the experiment's data.tokenizer. Raises UserError.
    """
    source = open_source(path)
    if out.exists():
        raise UserError(f"--out: {out} is there already; expected the name of a new workdir")
    model = sentencepieces.find(str(tokenizer)).read_bytes() if tokenizer else source.tokenizer()
    if model is not None:
        where = f"{tokenizer or path}: the tokenizer"
        pieces = sentencepieces.from_bytes(model, where).vocab_size()
        vocabulary.check_size(pieces, source.cfg.vocab_size, where)
        if source.cfg.vocab_size >= pieces + PADDING:
            raise UserError(
                f"{where} has only {pieces} pieces for the model's {source.cfg.vocab_size} rows; "
                "expected the tokenizer that it was trained with; give it with --tokenizer"
            )
    experiment = Experiment(
        model=dataclasses.replace(
            source.cfg, compute_dtype="bfloat16" if source.type == "bf16" else "float32"
        ),
        # What training would need is not in a model; --set, or an experiment of one's own, says it.
        data=DataConfig(
            tokenizer=str(out.absolute() / "tokenizer.model"),
            store=str(out.absolute() / "store"),
            seq_len=source.seq_len,
            batch_size=1,
        ),
        optimizer=OptimizerConfig(peak_lr=1e-5, warmup_steps=0),
        run=RunConfig(num_steps=1),
        upkeep=Upkeep(eval_every=1, eval_rows=32, checkpoint_every=1),
    )
    validate(experiment)
    draft = out.with_name(out.name + UNFINISHED)
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        if model is not None:
            (draft / "tokenizer.model").write_bytes(model)
        _write_checkpoint(source, epath.Path(draft), experiment)
        (draft / "config.json").write_text(to_json(experiment))
        draft.rename(out)
    except OSError as e:
        raise UserError(f"--out: cannot write {out}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return experiment


def _write_checkpoint(source: Source, workdir: epath.Path, experiment: Experiment) -> None:
    cfg = source.cfg
    arrays = checkpoint.create(workdir, experiment, parameter_shapes(cfg))
    fingerprints = dict.fromkeys(arrays, 0)
    meter = Meter(4 * num_values(cfg))
    for place in places(cfg):
        matrix = source.matrix(place).astype(np.float32, copy=False)
        if not np.isfinite([matrix.min(), matrix.max()]).all():  # NaN is both
            raise UserError(
                f"{source.where(place)} has values that are not finite; expected a sound copy of "
                "the model"
            )
        values = from_matrix(matrix, place.name, cfg)
        array = arrays[place.name]
        checkpoint.write(array if place.layer is None else array[place.layer], values)
        fingerprints[place.name] += fingerprint_of(values, (place.layer or 0) * values.size)
        meter.add(values.nbytes, "writing")
    meter.close()
    checkpoint.finish(workdir, experiment, {k: v % 2**32 for k, v in fingerprints.items()})
