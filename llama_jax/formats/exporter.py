"""A checkpoint as another framework's files, which get their name when they are proven."""

import hashlib
import math
import shutil
from pathlib import Path

import jax
import numpy as np

from llama_jax.config import MeshConfig, UserError, to_json
from llama_jax.formats import gguf, hf, litgpt, meta, proof, readers
from llama_jax.formats.weights import TYPES, Checkpoint, Meter, Place, cast, num_values, write_json
from llama_jax.sharding import make_mesh

READERS = {
    "hf": readers.hugging_face,
    "meta": readers.meta,
    "gguf": readers.gguf,
    "litgpt": readers.litgpt,
}
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
    draft = out.with_name(out.name + UNPROVEN)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    passes = 1 + verify * (2 if type == "f32" else 3)
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
    manifest = {
        "format": to,
        "type": type,
        "checkpoint": str(checkpoint.workdir),
        "step": checkpoint.step,
        "experiment_sha256": hashlib.sha256(to_json(checkpoint.experiment).encode()).hexdigest(),
        "verification": verification or "none: --no-verify",
        "sha256": {path.name: _sha256(path) for path in sorted(draft.iterdir())},
    }
    write_json(draft / "export.json", manifest)
    if verification and not verification["passed"]:
        figures = describe(verification["conversion"])
        causes = "; ".join(verification["causes"]) or "none of the usual ones"
        raise WrongExport(
            f"the files in {draft} do not compute what the checkpoint does: {figures}, where "
            f"{verification['tolerance']:.2g} is accepted; likely cause: {causes}"
        )
    draft.rename(out)
    return manifest


def summary(out: Path, manifest: dict) -> list[str]:
    """What was written and how it was proven, for people."""
    num_bytes = sum((out / name).stat().st_size for name in manifest["sha256"])
    lines = [f"wrote {out}: {manifest['format']} {manifest['type']}, {num_bytes / 1e6:,.1f} MB"]
    verification = manifest["verification"]
    if isinstance(verification, str):
        return [*lines, "not verified: nothing says that it computes what the checkpoint does"]
    lines.append(f"verified, read anew: {describe(verification['conversion'])}")
    if manifest["type"] != "f32":
        lines.append(f"what {manifest['type']} costs: {describe(verification['rounding'])}")
    return lines


def describe(figures: dict[str, float]) -> str:
    return (
        f"logits differ by {figures['max_rel']:.2g} of their standard deviation at the most "
        f"({figures['max_abs']:.2g}), KL {figures['kl']:.2g}, greedy agreement "
        f"{figures['greedy_agreement']:.1%}"
    )


def _prove(checkpoint: Checkpoint, draft: Path, to: str, type: str, meter: Meter) -> dict:
    cfg = checkpoint.cfg
    checkpoint.observe = lambda size: meter.add(size, "computing the checkpoint's logits")
    opened = READERS[to](draft)

    def tensor(role: str, layer: int) -> np.ndarray:
        matrix = opened.tensor(role, layer)
        meter.add(4 * matrix.size, "computing the files' logits")
        return matrix

    def rounded(matrix: np.ndarray, place: Place) -> np.ndarray:
        if to == "gguf":
            return gguf.decode(*gguf.encode(matrix, type, place, cfg))
        return cast(matrix, type, place).astype(np.float32)

    files = readers.Files(opened.conventions, tensor)
    tokens_BT = proof.prompts(checkpoint)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices("cpu")[:1])):
        exact = proof.logits_of_checkpoint(checkpoint, tokens_BT, lambda matrix, _: matrix)
        reference = exact
        if type != "f32":
            reference = proof.logits_of_checkpoint(checkpoint, tokens_BT, rounded)
    logits = proof.logits_of_files(files, files.conventions, tokens_BT)
    conversion, tolerance = proof.compare(logits, reference), proof.TOLERANCE
    if conversion["max_rel"] > tolerance:
        in_fp32 = proof.logits_of_files(files, files.conventions, tokens_BT, np.float32)
        rounding = proof.compare(in_fp32, logits)["max_rel"]
        tolerance = max(tolerance, proof.TIMES_ROUNDING * rounding)
    causes = _differences(files.conventions, cfg)
    wrong = conversion["max_rel"] > tolerance
    if wrong and not causes:
        causes = proof.causes(files, cfg, tokens_BT, reference, tolerance)
    return {
        "passed": not wrong and not causes,
        "tolerance": tolerance,
        "tokens": tokens_BT.size,
        "conversion": conversion,  # against the checkpoint's values as this type rounds them
        "rounding": proof.compare(reference, exact),  # what the type itself costs
        "causes": causes,
    }


def _differences(conventions: readers.Conventions, cfg) -> list[str]:
    """What the files' own configuration says otherwise than the checkpoint's."""
    fields = {
        "norm eps": (conventions.norm_eps, cfg.norm_eps),
        "rope base": (conventions.rope_theta, cfg.rope_theta),
        "layers": (conventions.num_layers, cfg.num_layers),
        "heads": (conventions.num_heads, cfg.num_heads),
        "key and value heads": (conventions.kv_heads, cfg.kv_heads),
    }
    return [
        f"{name}: the files say {got:g}, the checkpoint {expected:g}"
        for name, (got, expected) in fields.items()
        if not math.isclose(got, expected, rel_tol=1e-6)  # GGUF keeps them in fp32
    ]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
