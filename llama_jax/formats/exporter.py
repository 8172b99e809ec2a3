"""A checkpoint as another framework's files, which get their name when they are proven."""

import dataclasses
import hashlib
import math
import shutil
from pathlib import Path

import jax
import numpy as np

from llama_jax.config import MeshConfig, UserError
from llama_jax.data.tokenizer import MUST_SURVIVE
from llama_jax.experiment import identity
from llama_jax.formats import gguf, hf, litgpt, meta, proof, readers
from llama_jax.formats.weights import TYPES, Checkpoint, Meter, Place, cast, num_values, write_json
from llama_jax.run.checkpoint import read_meta
from llama_jax.sharding import make_mesh

READERS = {
    "hf": readers.hugging_face,
    "meta": readers.meta,
    "gguf": readers.gguf,
    "litgpt": readers.litgpt,
}
EXTRA_SPACES = (
    "note: the tokenizer removes extra spaces, which llama.cpp does not: a text with repeated, "
    "leading or trailing spaces becomes other tokens there"
)
UNPROVEN = ".unproven"  # behind the name of a directory that is not finished, or was refused


class WrongExport(Exception):
    """Files that do not compute what their checkpoint does."""


def export(
    checkpoint: Checkpoint,
    out: Path,
    to: str,
    type: str,
    shard_bytes: int,
    shards: int,
    verify: bool,
) -> dict:
    """Writes the directory `out`, and returns what its export.json says.

    to: a key of READERS; type: of the numbers; shard_bytes: of a file of hf; shards: of meta.
    Raises UserError; or WrongExport, and leaves the files under another name, if their logits are
    not the checkpoint's.
    """
    if to != "gguf" and type not in TYPES:
        raise UserError(f"--type: got {type} for {to}, expected one of {', '.join(TYPES)}")
    if out.exists():
        raise UserError(f"--out: {out} is there already; expected the name of a new directory")
    trained = read_meta(checkpoint.workdir, checkpoint.step).experiment.model
    for field, value in dataclasses.asdict(trained).items():
        if (got := getattr(checkpoint.cfg, field)) != value:
            raise UserError(
                f"--set: got model.{field}={got}, but the checkpoint is of {value}; expected no "
                "change of what is exported"
            )
    draft = out.with_name(out.name + UNPROVEN)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    passes = 1 + verify * (3 if type == "f32" else 4)
    meter = Meter(passes * 4 * num_values(checkpoint.cfg))
    checkpoint.observe = lambda size: meter.add(size, "writing")
    try:
        if to == "hf":
            hf.write(checkpoint, draft, type, shard_bytes)
        elif to == "meta":
            meta.write(checkpoint, draft, type, shards)
        elif to == "gguf":
            gguf.write(checkpoint, draft, type)
        else:
            litgpt.write(checkpoint, draft, type)
        checkpoint.check()
        verification = _prove(checkpoint, draft, to, type, meter) if verify else None
    except UserError:
        shutil.rmtree(draft)
        raise
    finally:
        meter.close()
    notes = [EXTRA_SPACES] if to == "gguf" and _drops_spaces(checkpoint) else []
    manifest = {
        "format": to,
        "type": type,
        "checkpoint": str(checkpoint.workdir),
        "step": checkpoint.step,
        "experiment_sha256": identity(checkpoint.experiment),
        "verification": verification or "none: --no-verify",
        "notes": notes,
        "sha256": {path.name: _sha256(path) for path in sorted(draft.iterdir())},
    }
    write_json(draft / "export.json", manifest)
    if verification and not verification["passed"]:
        raise WrongExport(
            f"the files in {draft} do not compute what the checkpoint does: "
            f"{_reasons(verification)}"
        )
    draft.rename(out)
    return manifest


def summary(out: Path, manifest: dict) -> list[str]:
    """What was written and how it was proven, for people."""
    num_bytes = sum((out / name).stat().st_size for name in manifest["sha256"])
    lines = [f"wrote {out}: {manifest['format']} {manifest['type']}, {num_bytes / 1e6:,.1f} MB"]
    lines += manifest["notes"]
    verification = manifest["verification"]
    if isinstance(verification, str):
        return [*lines, "not verified: nothing says that it computes what the checkpoint does"]
    lines.append(f"verified, read anew: {describe(verification['conversion'])}")
    if manifest["type"] != "f32":
        lines.append(f"what {manifest['type']} costs: {describe(verification['rounding'])}")
    return lines


def _reasons(verification: dict) -> str:
    causes = "; ".join(verification["causes"]) or "none of the usual ones"
    if "conversion" not in verification:
        return causes
    reasons = [
        f"{describe(verification['conversion'])} ({verification['tolerance']:.2g} is accepted)",
        f"likely cause: {causes}",
    ]
    if wrong := verification["tensors"]:
        reasons.append(wrong[0] + f", and {len(wrong) - 1} more tensors do" * (len(wrong) > 1))
    return "; ".join(reasons)


def describe(figures: dict[str, float | None]) -> str:
    if None in figures.values():
        return "logits are not finite"
    return (
        f"logits differ by {figures['max_rel']:.2g} of their standard deviation at the most "
        f"({figures['max_abs']:.2g}), KL {figures['kl']:.2g}, greedy agreement "
        f"{figures['greedy_agreement']:.1%}"
    )


@np.errstate(over="ignore", invalid="ignore")  # figures say what is not finite
def _prove(checkpoint: Checkpoint, draft: Path, to: str, type: str, meter: Meter) -> dict:
    checkpoint.observe = lambda size: meter.add(size, "reading the checkpoint")
    try:
        opened = READERS[to](draft, checkpoint)
        wrong = proof.wrong_tensors(checkpoint, opened, type)
    except readers.Unreadable as e:
        return {"passed": False, "causes": [str(e)]}
    texts = _texts(checkpoint, to)
    tokens = proof.wrong_tokens(checkpoint, opened.encode, texts)

    def tensor(role: str, layer: int) -> readers.Tensor:
        found = opened.tensor(role, layer)
        meter.add(4 * math.prod(found.shape), "computing the files' logits")
        return found

    def rounded(matrix: np.ndarray, place: Place) -> np.ndarray:
        if to == "gguf":
            return gguf.decode(*gguf.encode(matrix, type, place, cfg))
        return cast(matrix, type, place).astype(np.float32)

    cfg, files = checkpoint.cfg, dataclasses.replace(opened, tensor=tensor)
    checkpoint.observe = lambda size: meter.add(size, "computing the checkpoint's logits")
    tokens_BT = proof.prompts(checkpoint)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices("cpu")[:1])):
        exact = proof.logits_of_checkpoint(checkpoint, tokens_BT, lambda matrix, _: matrix)
        reference = exact
        if type != "f32":
            reference = proof.logits_of_checkpoint(checkpoint, tokens_BT, rounded)
    rounding = proof.compare(reference, exact)
    del exact
    logits = proof.logits_of_files(files, cfg, files.conventions, tokens_BT)
    conversion, tolerance = proof.compare(logits, reference), proof.TOLERANCE
    if not proof.within(conversion, tolerance):
        in_fp32 = proof.logits_of_files(files, cfg, files.conventions, tokens_BT, np.float32)
        noise = proof.compare(in_fp32, logits)["max_rel"] or 0.0
        tolerance = max(tolerance, proof.TIMES_ROUNDING * noise)
    close = proof.within(conversion, tolerance)
    causes = opened.differences + tokens
    if not close and not causes and conversion["max_rel"] is not None:
        causes = proof.causes(files, cfg, tokens_BT, reference, tolerance)
    return {
        "passed": close and not causes and not wrong,
        "tolerance": tolerance,
        "tokens": tokens_BT.size,
        "conversion": conversion,  # against the checkpoint's values as this type rounds them
        "rounding": rounding,  # what the type itself costs
        "causes": causes,
        "tensors": wrong,
        "texts": len(texts),  # that both tokenizers were given
    }


def _drops_spaces(checkpoint: Checkpoint) -> bool:
    return checkpoint.vocabulary.normalizer_spec.remove_extra_whitespaces


def _texts(checkpoint: Checkpoint, to: str) -> list[str]:
    """Those of which the files' tokenizer has to make the checkpoint's tokens."""
    if to == "gguf" and _drops_spaces(checkpoint):
        return [without_extra_spaces(text) for text in MUST_SURVIVE]
    return list(MUST_SURVIVE)


def without_extra_spaces(text: str) -> str:
    return " ".join(filter(None, text.split(" ")))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
