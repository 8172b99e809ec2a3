"""Files of PyTorch and transformers, there and back; in processes of their own, for torch."""

import shutil
import subprocess

import numpy as np

from helpers.exports import (
    experiment_of,
    export,
    export_in_child,
    logits_of,
    matrix_fingerprints,
    same_model,
)
from helpers.processes import child, interpreter
from llama_jax.data.tokenizer import EMBEDDED
from llama_jax.formats import hf
from llama_jax.formats.convert import import_model

# In a process of its own, for torch.
REFUSED_META = """
import sys
from helpers.exports import convert, export

def refused(name, **options):
    try:
        export(sys.argv[1], sys.argv[2] + name, "meta", **options)
    except (convert.UserError, convert.WrongExport) as e:
        print(e)

refused("a", shards=8)
shard = convert.meta._shard
convert.meta._shard = lambda values, role, i, shards: (
    shard(values, role, i, shards) + (i if role == "final_norm" else 0))
refused("b", shards=2)
convert.meta._shard = shard
convert.meta.interleave_rope = lambda matrix, *_: matrix
refused("c")
"""


def test_exports_to_meta_are_refused(runs, tmp_path):
    interpreter("meta")
    done = child(REFUSED_META, runs / "gqa", tmp_path / "x")
    split, norms, wrong = done.stdout.splitlines()
    assert split == "--shards: got 8, expected a divisor of model.num_kv_heads=2"
    assert "norm.weight: is not the same in consolidated.01.pth as in the others" in norms
    assert "likely cause: Q/K permutation: the rows of wq and wk" in wrong
    assert {path.name for path in tmp_path.iterdir()} == {"xb.unproven", "xc.unproven"}


META = """
import sys
from helpers.exports import export
from llama_jax.formats.convert import import_model
from pathlib import Path
for dtype in ("f32", "bf16"):
    out = Path(sys.argv[2]) / dtype
    export(sys.argv[1], out, "meta", dtype, shards=4, verify=False)
    import_model(out, out.with_name(dtype + "-back"), None)
"""


def test_four_shards_of_meta_s_and_back_no_bit_changes(runs, tmp_path):
    interpreter("meta")
    done = child(META, runs / "mha", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "bf16").glob("consolidated.0[0-3].pth"))) == 4
    for back in (tmp_path / "f32-back", tmp_path / "bf16-back"):
        assert matrix_fingerprints(back) == matrix_fingerprints(runs / "mha") and same_model(
            back, runs / "mha"
        )


TRANSFORMERS = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
tokens = torch.arange(40)[None] * 7 % 2048
for directory, tied in zip(sys.argv[1:], (True, False)):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=2048, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
                         rope_parameters={"rope_type": "default", "rope_theta": 20000.0},
                         tie_word_embeddings=tied)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="100KB")
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    open(directory + "/logits", "wb").write(model(tokens).logits.detach().numpy().tobytes())
"""


def test_what_transformers_saved_goes_back_to_it(tmp_path):
    python = interpreter("transformers")
    subprocess.run([python, "-c", TRANSFORMERS, tmp_path / "a", tmp_path / "b"], check=True)
    tokens = (np.arange(40, dtype=np.int32)[None] * 7) % 2048
    for made, tied in ((tmp_path / "a", True), (tmp_path / "b", False)):
        workdir, out = made / "run", made / "out"
        import_model(made, workdir, None)
        model = experiment_of(workdir).model
        assert (model.rope_theta, model.tie_embeddings) == (20_000, tied)
        expected = np.fromfile(made / "logits", np.float32).reshape(1, 40, 2048)
        assert np.abs(logits_of(workdir, tokens) - expected).max() < 1e-4 * expected.std()

        shutil.copy(EMBEDDED, workdir / "tokenizer.model")
        export(workdir, out, "hf", "bf16")
        theirs, ours = hf.tensors(made), hf.tensors(out)
        assert theirs.keys() == ours.keys() and len(ours) == 21 - tied
        for name, tensor in theirs.items():
            assert tensor.read().tobytes() == ours[name].read().tobytes(), name


# In a process of its own, for torch. Each case writes what it breaks; the import says what it is.
DAMAGED_META = """
import io, os, sys, torch, zipfile
from pathlib import Path
from llama_jax.config import UserError
from llama_jax.formats.convert import import_model

class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)

directory = Path(sys.argv[1])
names = ["consolidated.00.pth", "consolidated.01.pth"]
first, second = ({k: v for k, v in torch.load(directory / n).items()} for n in names)
wq = "layers.1.attention.wq.weight"
legacy = io.BytesIO()
torch.save(second, legacy, _use_new_zipfile_serialization=False)
def again(tensors, method=zipfile.ZIP_STORED, **changes):
    # A .pth that was unpacked and zipped again. changes: of its records; None leaves one out.
    saved, zipped = io.BytesIO(), io.BytesIO()
    torch.save(tensors, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(zipped, "w", method) as new:
        for entry in old.infolist():
            record = entry.filename.partition("/")[2]
            values = changes.get(record.replace("/", "_"), old.read(entry))
            if values is not None:
                new.writestr("consolidated.01/" + record, values)
    return zipped.getvalue()

torch.save(first, directory / names[0])
(directory / names[1]).write_bytes(again(second))
import_model(directory, Path(sys.argv[2]), None)  # which torch reads as well
Path(sys.argv[2]).rename(directory / "sound")

cases = [
    (first, second | {"x": Evil()}),
    (first, second | {"x": 3}),
    (first, [1, 2]),
    (first, b"PK"),
    (first, legacy.getvalue()),
    (first, second | {wq: second[wq] / 0}),
    (first, second | {wq: second[wq].int()}),
    (first, second | {wq: second[wq][:, :-1].clone()}),
    (first, second | {wq: second[wq].T.contiguous().T}),
    (first, {k: v for k, v in second.items() if k != wq}),
    (first, second | {5: second[wq]}),
    (first, second | {"norm.weight": second["norm.weight"].to("meta")}),
    (first, again(second, method=zipfile.ZIP_DEFLATED)),
    (first, again(second, byteorder=b"big")),
    (first, again(second, data_3=None)),
    (first, again(second, data_0=b"1234")),
    (first, second | {"norm.weight": second["norm.weight"] + 1}),
    (first, None),
    (None, second),
]
for case in cases:
    for name, tensors in zip(names, case):
        if tensors is None:
            (directory / name).unlink()
        elif isinstance(tensors, bytes):
            (directory / name).write_bytes(tensors)
        else:
            torch.save(tensors, directory / name)
    try:
        import_model(directory, Path(sys.argv[2]), None)
    except UserError as e:
        print(e)
    assert not list(Path(sys.argv[2]).parent.glob("run*")) and not Path("evil").exists()
"""


def test_damaged_meta_files_are_named_and_nothing_else_is_unpickled(runs, tmp_path):
    interpreter("meta")
    meta = tmp_path / "meta"
    job = dict(workdir=runs / "gqa", out=meta, to="meta", shards=2, verify=False)
    assert export_in_child([job]).returncode == 0
    done = child(DAMAGED_META, meta, tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert matrix_fingerprints(meta / "sound") == matrix_fingerprints(runs / "gqa")
    second, wq = f"{meta}/consolidated.01.pth: ", "tensor layers.1.attention.wq.weight"
    expected = (
        f"{second}cannot be read as tensors; it is damaged or holds other things",
        f"{second}x is a int, expected a tensor",
        f"{second}holds a list, expected tensors by name",
        f"{second}is truncated, or not the zip file that torch.save writes since PyTorch 1.6",
        f"{second}is truncated, or not the zip file that torch.save writes since PyTorch 1.6",
        f"{meta}: {wq} has values that are not finite",
        f"{second}{wq} is of type torch.int32, expected torch.float32",
        f"{second}{wq} has shape (32, 63), expected (32, 64)",
        f"{second}{wq} is not stored row by row",
        f"{second[:-2]}: has no {wq}",
        f"{second}holds 5, expected tensors by name",
        f"{second}tensor norm.weight is without values, or sparse",
        f"{second}its record consolidated.01/data.pkl is compressed; load it with torch",
        f"{second}its numbers are big-endian; load it with torch, and save it again",
        f"{second}cannot be read as tensors; it is damaged or holds other things: Pytorch",
        f"{second}tensor tok_embeddings.weight takes 266240 bytes, and its record has 4",
        f"{second}tensor norm.weight is not the same as in consolidated.00.pth",
        f"{meta}: has 1 shards, but tensor layers.0.attention.wq.weight of consolidated.00.pth",
        f"{meta}/consolidated.00.pth: is missing, but consolidated.01.pth is there",
    )
    for line, start in zip(done.stdout.splitlines(), expected, strict=True):
        assert line.startswith(start), line


# In a process of its own, for torch. Each mutation is made after the files were written; what the
# proof says of it is printed.
MUTATED = """
import dataclasses, json, sys, torch, yaml
from pathlib import Path
from helpers.exports import export
from llama_jax.formats import convert

def edit_json(name, **fields):
    def mutate(out):
        (out / name).write_text(json.dumps(json.loads((out / name).read_text()) | fields))
    return mutate

def edit_yaml(**fields):
    def mutate(out):
        path = out / "model_config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | fields))
    return mutate

def edit_tensors(name, change):
    def mutate(out):
        tensors = torch.load(out / name)
        change(tensors)
        torch.save(tensors, out / name)
    return mutate

def cut(name):
    return lambda out: (out / name).write_bytes((out / name).read_bytes()[:-40])

shard, lit, extra = "consolidated.00.pth", "lit_model.pth", torch.zeros(4)
half = lambda name: lambda tensors: tensors.update({name: tensors[name].half()})
mutations = {
    "meta": [
        edit_json("params.json", use_scaled_rope=True),
        edit_json("params.json", multiple_of=64),
        edit_json("params.json", n_layers="3"),
        edit_json("params.json", norm_eps=None),
        edit_tensors(shard, lambda tensors: tensors.update({"output.bias": extra})),
        edit_tensors(shard, half("norm.weight")),
        cut("tokenizer.model"),
        cut(shard),
    ],
    "litgpt": [
        edit_yaml(rope_condense_ratio=2),
        edit_yaml(sliding_window_size=16),
        edit_json("config.json", eos_token_id=5),
        edit_tensors(lit, lambda tensors: tensors.update({"lm_head.bias": extra})),
        edit_tensors(lit, half("lm_head.weight")),
        cut("model_config.yaml"),
    ],
}
for to, changes in mutations.items():
    form = convert.FORMATS[to]
    for i, mutate in enumerate(changes):
        def write(weights, out, dtype, **options):
            form.write(weights, out, dtype, **options)
            mutate(out)
        convert.FORMATS[to] = dataclasses.replace(form, write=write)
        try:
            export(sys.argv[1], f"{sys.argv[2]}{to}{i}", to)
        except convert.WrongExport as e:
            print(str(e).partition("do not compute what the checkpoint does: ")[2])
"""


def test_every_mutation_of_files_of_pytorch_is_refused(runs, tmp_path):
    interpreter("meta")
    done = child(MUTATED, runs / "gqa", tmp_path / "x")
    assert done.returncode == 0, done.stderr
    expected = (
        "use_scaled_rope is True in params.json, expected nothing",
        "the width by multiple_of and ffn_dim_multiplier is 192 in params.json, expected",
        "n_layers is '3' in params.json, expected the checkpoint's 3",
        "the files cannot be read: TypeError: float()",
        "output.bias: is a tensor in consolidated.00.pth that no model of this shape has",
        "norm.weight: is of type torch.float16, expected torch.float32",
        "tokenizer.model: is not the checkpoint's",
        "the files cannot be read: RuntimeError: PytorchStreamReader",
        "rope_condense_ratio is 2 in model_config.yaml, expected nothing",
        "sliding_window_size is 16 in model_config.yaml, expected nothing",
        "eos_token_id is 5 in config.json, expected the checkpoint's 2",
        "lm_head.bias: is a tensor in lit_model.pth that no model of this shape has",
        "lm_head.weight: is of type torch.float16, expected torch.float32",
        "the files cannot be read: ",
    )
    for line, said in zip(done.stdout.splitlines(), expected, strict=True):
        assert said in line, line
