"""A model from one format into another: read, write, prove, and then give it its name.

To add a format, write its module, which ends with a FORMAT, and a line of FORMATS.
"""

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

from llama_jax.config import Experiment, UserError
from llama_jax.data import tokenizer as vocabularies
from llama_jax.formats import gguf, hf, litgpt, llama2c, meta, native, vocabulary
from llama_jax.formats.format import Format
from llama_jax.formats.parameters import check_known, num_values
from llama_jax.formats.proofs import client as clients
from llama_jax.formats.proofs.compare import accepted, describe
from llama_jax.formats.proofs.prove import loses_spaces, passes, prove
from llama_jax.formats.weights import Weights, write_json
from llama_jax.progress import Meter

FORMATS: dict[str, Format] = {  # a path is of the first that says so
    "native": native.FORMAT,
    "hf": hf.FORMAT,
    "meta": meta.FORMAT,
    "gguf": gguf.FORMAT,
    "litgpt": litgpt.FORMAT,
    "llama2c": llama2c.FORMAT,
}
EXTRA_SPACES = (
    "note: the tokenizer removes extra spaces, which llama.cpp does not: a text with repeated, "
    "leading or trailing spaces becomes other tokens there"
)
UNPROVEN = ".unproven"  # behind the name of a directory that is not finished, or was refused
PADDING = 128  # a model's rows are often made a multiple of this


class WrongExport(Exception):
    """Files that do not compute what they were made of."""


def export_formats() -> dict[str, Format]:
    """Return the formats of other frameworks that can be written, and proven."""
    return {name: form for name, form in FORMATS.items() if form.write and form.open_files}


def export_dtypes() -> list[str]:
    """Return the types of numbers that any of them can be written in."""
    return list(dict.fromkeys(d for form in export_formats().values() for d in form.dtypes))


def check_option(to: str, option: str, flag: str) -> None:
    """Raise UserError, naming the flag, unless the format takes an option."""
    if option not in FORMATS[to].options:
        takers = " or ".join(name for name, form in FORMATS.items() if option in form.options)
        raise UserError(f"{flag} belongs to --to {takers}; got --to {to}")


def format_of(path: Path) -> str | None:
    """Return the key of FORMATS for what is at `path`, None for what cannot be read."""
    return next((name for name, form in FORMATS.items() if form.is_it(path)), None)


def open_source(path: str | Path, tokenizer: str | Path | None = None) -> Weights:
    """Open the model at `path`, by what is there. Raise UserError for what is none.

    tokenizer: a tokenizer.model or tokenizer.json to take in place of the one that comes with it.
    """
    path = Path(path)
    name = format_of(path)
    read = FORMATS[name].read if name else None
    if read is None:
        raise UserError(
            f"{path}: is no model; expected a directory with config.json (Hugging Face), "
            "params.json (Meta) or model.gguf, or a file .gguf or .bin (llama2.c)"
        )
    for file in path.iterdir() if path.is_dir() else ():
        if file.exists() and not file.is_file() and not file.is_dir():  # a FIFO would never end
            raise UserError(
                f"{file}: is neither a file nor a directory; expected a copy of a model"
            )
    weights = read(path)

    def read_tokenizer() -> bytes | None:
        model = vocabularies.read(str(tokenizer)) if tokenizer else weights.tokenizer
        if model is not None:
            _check_tokenizer(model, weights.cfg.vocab_size, f"{tokenizer or path}: the tokenizer")
        return model

    return dataclasses.replace(weights, read_tokenizer=read_tokenizer)


def _check_tokenizer(model: bytes, vocab_size: int, where: str) -> None:
    """Raise UserError unless it can be the one that the model was trained with."""
    pieces = vocabularies.from_bytes(model, where).vocab_size
    vocabulary.check_size(pieces, vocab_size, where)
    if vocab_size >= pieces + PADDING:
        raise UserError(
            f"{where} has only {pieces} pieces for the model's {vocab_size} rows; "
            "expected the tokenizer that it was trained with; give it with --tokenizer"
        )


def import_model(path: Path, out: Path, tokenizer: Path | None) -> Experiment:
    """Write the workdir `out` with checkpoint 0, and return its experiment. Raise UserError.

    tokenizer: a tokenizer.model or tokenizer.json; by default the one that comes with the model.
    Without either there is none at the experiment's data.tokenizer.
    """
    source = open_source(path, tokenizer)
    experiment = native.experiment_of(source, out)
    convert(source, "native", out, "f32", dict(experiment=experiment))
    return experiment


def convert(
    source: Weights,
    to: str,
    out: Path,
    dtype: str,
    options: dict[str, Any] | None = None,
    verify: bool = True,
    client: str | None = None,
) -> dict:
    """Write the directory `out`, and return what its export.json says, if the format has one.

    to: a key of FORMATS; dtype: of the numbers; options: of the format, in place of its defaults;
    verify: where the format has an independent reader; client: a Python that has the program which
    the format is for, to compute the same, too. Raise UserError; or WrongExport, and leave the
    files under another name, if their logits are not the source's.
    """
    check_known(source.cfg)
    out, form = Path(out), FORMATS.get(to)
    if form is None or form.write is None:
        written = ", ".join(name for name, other in FORMATS.items() if other.write)
        raise UserError(f"--to: got {to!r}, expected one of {written}")
    if dtype not in form.dtypes:
        raise UserError(f"--type: got {dtype} for {to}, expected one of {', '.join(form.dtypes)}")
    if out.exists():
        raise UserError(f"--out: {out} is there already; expected the name of a new directory")
    proven = verify and form.open_files is not None
    notes = [EXTRA_SPACES] if form.open_files and loses_spaces(source, form) else []
    draft = out.with_name(out.name + UNPROVEN)
    if draft.exists():
        raise UserError(
            f"--out: {draft} is there already, of an export that was refused or cut short; remove "
            "it, or give another name"
        )
    program = _find_client(to, client, verify) if client is not None else None
    meter = Meter((1 + proven * passes(dtype)) * 4 * num_values(source.cfg))
    try:
        metered = source.observed(lambda num_bytes: meter.add(num_bytes, "writing"))
        try:
            draft.mkdir(parents=True)
            form.write(metered, draft, dtype, **(form.options | (options or {})))
        except OSError as e:
            raise UserError(f"--out: cannot write {out}: {_unwritten(draft, e)}") from e
        source.verify()
        verification = prove(source, draft, form, dtype, meter, program) if proven else None
        manifest = {
            "format": to,
            "type": dtype,
            **source.provenance,
            "verification": verification or "none: --no-verify",
            "notes": notes,
            "sha256": {p.name: _sha256(p) for p in sorted(draft.iterdir()) if p.is_file()},
        }
        if form.open_files:
            write_json(draft / "export.json", manifest)
    except BaseException:  # nothing that is not whole is left
        shutil.rmtree(draft, ignore_errors=True)
        raise
    finally:
        meter.close()
    if verification and not verification["passed"]:
        raise WrongExport(
            f"the files in {draft} do not compute what the checkpoint does: "
            f"{_reasons(verification)}"
        )
    draft.rename(out)
    return manifest


def _find_client(to: str, python: str, verify: bool) -> clients.Client:
    """Return the program that a format is for. Raise UserError if there is none to be asked."""
    packages = FORMATS[to].client
    if not packages:
        takers = " or ".join(name for name, form in FORMATS.items() if form.client)
        raise UserError(f"--client belongs to --to {takers}; got --to {to}")
    if not verify:
        raise UserError("--client compares with what --no-verify leaves out; give one of the two")
    return clients.find(packages, python)


def _unwritten(draft: Path, error: OSError) -> str:
    """Return which file could not be written, and why; numpy and gguf do not say either."""
    last = max(draft.glob("*"), key=lambda path: path.stat().st_mtime_ns, default=draft)
    reason = error.strerror or f"written in part, as on a full disk ({error})"
    return f"{Path(error.filename or last).name}: {reason}"


def summary(out: Path, manifest: dict) -> list[str]:
    """Return what was written and how it was proven, for people."""
    num_bytes = sum((out / name).stat().st_size for name in manifest["sha256"])
    lines = [f"wrote {out}: {manifest['format']} {manifest['type']}, {num_bytes / 1e6:,.1f} MB"]
    lines += manifest["notes"]
    verification = manifest["verification"]
    if isinstance(verification, str):
        return [*lines, "not verified: nothing says that it computes what the checkpoint does"]
    lines.append(f"verified, read anew: {describe(verification['conversion'])}")
    if asked := verification.get("client"):
        line = f"verified in {_name(asked)}: {describe(asked['logits'])}"
        rounds = f" ({accepted(asked['limits'])}, since it rounds activations)"
        lines.append(line + rounds * ("kl" in asked["limits"]))
    if manifest["type"] != "f32":
        lines.append(f"what {manifest['type']} costs: {describe(verification['rounding'])}")
    return lines


def _name(asked: dict) -> str:
    return f"{asked['name']} {asked['version']}"


def _reasons(verification: dict) -> str:
    if asked := verification.get("client"):  # which is only asked about files that are proven
        return f"in {_name(asked)}, {'; '.join(asked['causes'])}"
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


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
