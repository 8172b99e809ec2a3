"""Models that come back from other formats as they went, and files that are refused."""

import dataclasses
import json
import resource
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
from etils import epath
from exports import (
    GQA,
    ROOT,
    SHARED,
    child,
    experiment_of,
    export,
    export_in_child,
    interpreter,
    logits_of,
    main,
)

from llama_jax.config import ModelConfig, UserError
from llama_jax.data.tokenizer import EMBEDDED, MUST_SURVIVE
from llama_jax.experiment import load
from llama_jax.formats import hf, meta, native, vocabulary
from llama_jax.formats.convert import import_model
from llama_jax.formats.parameters import NAMES, shapes
from llama_jax.run import checkpoint
from llama_jax.run.workdir import steps


def fingerprints(workdir: Path) -> dict[str, int]:
    """Return the fingerprint of each matrix: the same, or not, to the bit."""
    meta = checkpoint.read_meta(epath.Path(workdir), 0)
    return {role: meta.fingerprints[NAMES[role]] for role in shapes(meta.experiment.model)}


def same_model(a: Path, b: Path) -> bool:
    models = [experiment_of(workdir).model for workdir in (a, b)]
    fields = (*checkpoint.SHAPE_FIELDS, "norm_eps", "rope_theta")
    return all(getattr(models[0], field) == getattr(models[1], field) for field in fields)


@pytest.fixture(scope="module")
def good(runs, tmp_path_factory) -> Path:
    """Export one model, for tests to import, or to damage copies of."""
    directory = tmp_path_factory.mktemp("good")
    export(runs / "gqa", directory / "hf", "hf", shard_bytes=300_000, verify=False)
    export(runs / "gqa", directory / "gguf", "gguf", verify=False)
    export(runs / "gqa", directory / "q4_0", "gguf", "q4_0", verify=False)
    return directory


# There and back


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    "to, file, options", [("hf", "", {"shard_bytes": 300_000}), ("gguf", "model.gguf", {})]
)
def test_there_and_back_no_bit_changes(runs, tmp_path, to, file, options, dtype):
    """The weights of these runs are exact in bf16."""
    back = tmp_path / "back"
    export(runs / "gqa", tmp_path / "out", to, dtype, verify=False, **options)
    import_model(tmp_path / "out" / file, back, None)
    assert fingerprints(back) == fingerprints(runs / "gqa") and same_model(back, runs / "gqa")
    experiment = experiment_of(back)
    assert experiment.model.compute_dtype == {"f32": "float32", "bf16": "bfloat16"}[dtype]
    assert experiment.data.seq_len == 256  # the quickstart's


META = """
import sys
from exports import export
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
        assert fingerprints(back) == fingerprints(runs / "mha") and same_model(back, runs / "mha")


def test_eight_bits_come_back_as_they_are(runs, tmp_path):
    """q8_0 loses something on the way there, and nothing on the way back."""
    export(runs / "gqa", tmp_path / "a", "gguf", "q8_0", verify=False)
    import_model(tmp_path / "a/model.gguf", tmp_path / "back", None)
    assert fingerprints(tmp_path / "back") != fingerprints(runs / "gqa")
    export(tmp_path / "back", tmp_path / "b", "gguf", "q8_0", verify=False)
    import_model(tmp_path / "b/model.gguf", tmp_path / "again", None)
    assert fingerprints(tmp_path / "again") == fingerprints(tmp_path / "back")


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


def test_imported_stories_are_told_as_they_were_published(stories):
    done = main("sample", stories, "--prompt", "", "--temperature", 0, "--max-tokens", 256)
    assert done.returncode == 0, done.stderr
    expected = (SHARED / "weights/stories260K_greedy_expected.txt").read_text()
    assert done.stdout.strip() == expected.strip()


def test_one_command_goes_from_a_model_to_text(runs, tmp_path):
    """The same text as of the run that was exported; WORKDIR and --from are not for both."""
    export(runs / "gqa", tmp_path / "hf", "hf", verify=False)
    options = ("--prompt", "Once", "--temperature", 0, "--max-tokens", 20)
    fp32 = ("--set", "model.compute_dtype=float32")
    expected = main("sample", runs / "gqa", *options, *fp32)
    done = main("sample", "--from", tmp_path / "hf", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.stdout and done.stdout.startswith("Once")
    both = main("sample", runs / "gqa", "--from", tmp_path / "hf", *options)
    assert both.returncode == 2 and "either WORKDIR or --from" in both.stderr


TOKENIZERS = [EMBEDDED, *(SHARED / "tokenizers").glob("[lm]*.model")]


@pytest.mark.parametrize("transformers5", [False, True])
@pytest.mark.parametrize("path", TOKENIZERS, ids=lambda path: path.name)
def test_a_tokenizer_json_gives_the_ids_of_the_tokenizers_package(path, transformers5):
    tokenizers = pytest.importorskip("tokenizers")
    written = vocabulary.hugging_face(vocabulary.parse(path.read_bytes()))
    if transformers5:
        written |= {"normalizer": None, "pre_tokenizer": vocabulary.METASPACE}
    theirs = tokenizers.Tokenizer.from_str(json.dumps(written))
    theirs.encode_special_tokens = True  # "<s>" in a text is text
    ours = sentencepiece.SentencePieceProcessor(
        model_proto=vocabulary.from_hugging_face(written, bos_id=1, eos_id=2)
    )
    for text in (*MUST_SURVIVE, "x" + "x".join(MUST_SURVIVE), Path(__file__).read_text()):
        if not (transformers5 and text.startswith(" ")):
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text


def test_a_directory_with_tokenizer_json_alone_has_its_tokenizer(good, tmp_path):
    copy = shutil.copytree(good / "hf", tmp_path / "hf")
    (copy / "tokenizer.model").unlink()
    import_model(copy, tmp_path / "run", None)
    ours, expected = (
        sentencepiece.SentencePieceProcessor(model_file=str(path))
        for path in (tmp_path / "run/tokenizer.model", EMBEDDED)
    )
    for text in MUST_SURVIVE:
        assert ours.encode(text) == expected.encode(text)
    shutil.rmtree(tmp_path / "run")
    whole = json.loads((copy / "tokenizer.json").read_text())
    for model, match in (
        ({"byte_fallback": False}, "its model is not BPE with byte_fallback"),
        ({"merges": whole["model"]["merges"][:-1]}, "its merges leave out some"),
        ({"vocab": whole["model"]["vocab"] | {"x": 9999}}, "the ids of its tokens are not"),
    ):
        written = whole | {"model": whole["model"] | model}
        (copy / "tokenizer.json").write_text(json.dumps(written))
        refused(copy, tmp_path, f"hf/tokenizer.json: cannot be made a SentencePiece model: {match}")
    for field, value in (("normalizer", {"type": "NFC", "normalizers": []}), ("pre_tokenizer", {})):
        (copy / "tokenizer.json").write_text(json.dumps(whole | {field: value}))
        refused(copy, tmp_path, "its normalizer or pre_tokenizer is not LLaMA's; .* --tokenizer")
    import_model(copy, tmp_path / "run", EMBEDDED)


def test_a_workdir_that_was_moved_has_its_tokenizer(good, tmp_path):
    import_model(good / "hf", tmp_path / "run", None)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert experiment_of(moved).data.tokenizer == str(moved / "tokenizer.model")


# In a process of its own. What the code and its libraries take is known from a small vocabulary.
MEMORY = """
import struct, sys
from pathlib import Path
from llama_jax.formats.convert import import_model

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

for vocab_size in (2048, 160_000):
    file = Path(sys.argv[1]) / f"{vocab_size}.bin"
    file.write_bytes(struct.pack("<7i", 512, 64, 1, 8, 8, -vocab_size, 16))
    with open(file, "r+b") as opened:
        values = 2 * vocab_size * 512 + 4 * 512**2 + 3 * 64 * 512 + 3 * 512 + 16 * 64
        opened.truncate(28 + 4 * values)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = status("VmRSS")
    import_model(file, file.with_suffix(""), None)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")
def test_an_import_holds_one_copy_of_a_large_embedding(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # or glibc keeps what each thread has freed
    done = child(MEMORY, tmp_path)
    assert done.returncode == 0, done.stderr
    embedding = 4 * 160_000 * 512
    assert int(done.stdout) < 1.9 * embedding


# What is not finished


def test_an_import_cut_short_is_no_checkpoint_and_one_without_fingerprints_is_damaged(tmp_path):
    workdir, cfg = epath.Path(tmp_path), ModelConfig(num_layers=1, embed_dim=8, num_heads=2)
    experiment = load(str(ROOT / "experiments/quickstart.py"))
    experiment = dataclasses.replace(experiment, model=cfg)
    for array in native.create(workdir, experiment).values():
        array.write(0).result()
    assert steps(workdir) == []
    native.finish(workdir, experiment, {})
    assert steps(workdir) == [0]
    with pytest.raises(checkpoint.DamagedCheckpoint, match="embed_VD is not what was saved"):
        logits_of(tmp_path, np.zeros((1, 4), np.int32))


# Files that are refused


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path: Path, old: str, new: str) -> None:
    data = path.read_bytes()
    assert old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode(), 1))


def change(directory: Path, **fields) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


def move(path: Path, to: Callable[[int, int], list[int]]) -> None:
    """Put other offsets for the first tensor into a header of safetensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first = header[next(name for name in header if name != "__metadata__")]
    first["data_offsets"] = to(*first["data_offsets"])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def second(directory: Path) -> Path:
    return sorted(directory.glob("*.safetensors"))[1]


NAN = struct.pack("<f", float("nan"))
DAMAGED_HF = {
    "truncated": (
        lambda d: truncate(second(d)),
        r"model-00002-\S+.safetensors: is truncated: tensor model.layers.\S+ ends at byte \d+",
    ),
    "header truncated": (
        lambda d: second(d).write_bytes(second(d).read_bytes()[:100]),
        r"model-00002-\S+.safetensors: is truncated or not safetensors",
    ),
    "shard missing": (
        lambda d: second(d).unlink(),
        r"model-00002-\S+: is missing, .*index.json says it holds tensor model.layers",
    ),
    "no weights": (
        lambda d: [p.unlink() for p in d.glob("model*")],
        "has neither model.safetensors.index.json nor model.safetensors",
    ),
    "architecture": (
        lambda d: replace(d / "config.json", '"llama"', '"gpt_neox"'),
        "config.json: model_type is 'gpt_neox', and llama_jax knows 'llama' only",
    ),
    "rope scaling": (
        lambda d: replace(d / "config.json", '"default"', '"linear"'),
        "config.json: rope_type is 'linear'",
    ),
    "bias": (
        lambda d: replace(d / "config.json", '"mlp_bias": false', '"mlp_bias": true'),
        "config.json: mlp_bias is True",
    ),
    "field missing": (
        lambda d: replace(d / "config.json", '"rms_norm_eps"', '"eps"'),
        "config.json: rms_norm_eps is None, expected a number above 0",
    ),
    "config is no JSON": (lambda d: truncate(d / "config.json"), "config.json: cannot be read"),
    "shape": (
        lambda d: replace(d / "config.json", '"intermediate_size": 160', '"intermediate_size": 96'),
        r"safetensors: tensor model.layers.0.mlp.gate_proj.weight has shape \(160, 64\), expected "
        r"\(96, 64\)",
    ),
    "vocabulary": (
        lambda d: replace(d / "config.json", '"vocab_size": 2080', '"vocab_size": 2000'),
        r"tensor model.embed_tokens.weight has shape \(2080, 64\), expected \(2000, 64\)",
    ),
    "tensor missing": (
        lambda d: replace(d / "config.json", '"num_hidden_layers": 3', '"num_hidden_layers": 4'),
        "has no tensor model.layers.3.input_layernorm.weight",
    ),
    "tensor not known": (
        lambda d: replace(d / "config.json", '"num_hidden_layers": 3', '"num_hidden_layers": 2'),
        "tensor model.layers.2.input_layernorm.weight is of no LLaMA",
    ),
    "index is wrong": (
        lambda d: replace(d / hf.INDEX, "model.layers.1.mlp.up_proj", "model.layers.9.mlp.up_proj"),
        "has no tensor model.layers.9.mlp.up_proj.weight, but",
    ),
    "type": (
        lambda d: replace(second(d), '"F32"', '"I32"'),
        r"tensor \S+ is of type I32, expected F32, BF16, F16",
    ),
    "layers are no integer": (
        lambda d: change(d, num_hidden_layers=3.0),
        "config.json: num_hidden_layers is 3.0, expected a whole number above 0",
    ),
    "heads are text": (
        lambda d: change(d, num_key_value_heads="2"),
        "config.json: num_key_value_heads is '2', expected a whole number above 0",
    ),
    "more heads than dimensions": (
        lambda d: change(d, num_attention_heads=128),
        "config.json: num_attention_heads is 128, expected a divisor of hidden_size, 64",
    ),
    "heads in no equal groups": (
        lambda d: change(d, num_key_value_heads=3),
        "config.json: num_key_value_heads is 3, expected a divisor of num_attention_heads, 4",
    ),
    "rope is no object": (
        lambda d: change(d, rope_parameters="x"),
        "config.json: rope_parameters is 'x', expected an object",
    ),
    "rope base": (
        lambda d: change(d, rope_parameters={"rope_theta": float("inf")}),
        "config.json: rope_theta is inf, expected a number above 0",
    ),
    "rope on a part of a head": (
        lambda d: change(d, partial_rotary_factor=0.5),
        "config.json: partial_rotary_factor is 0.5, and llama_jax knows 1 only",
    ),
    "ties": (
        lambda d: change(d, tie_word_embeddings="no"),
        "config.json: tie_word_embeddings is 'no', and llama_jax knows False or True only",
    ),
    "three offsets": (
        lambda d: move(second(d), lambda start, end: [start, end, end]),
        r"model-00002-\S+.safetensors: is truncated or not safetensors",
    ),
    "offsets below zero": (
        lambda d: move(second(d), lambda start, end: [start - end, 0]),
        r"model-00002-\S+: tensor model.layers.\S+ has data_offsets -\d+ to 0, expected \d+ bytes",
    ),
    "offsets reversed": (
        lambda d: move(second(d), lambda start, end: [end, start]),
        r"model-00002-\S+: tensor model.layers.\S+ has data_offsets \d+ to 0, expected \d+ bytes",
    ),
    "no number": (
        lambda d: second(d).write_bytes(second(d).read_bytes()[:-4] + NAN),
        r"model-00002-\S+: tensor model.layers.\S+ has values that are not finite",
    ),
}


def refused(source: Path, tmp_path: Path, match: str, tokenizer: Path | None = None) -> None:
    with pytest.raises(UserError, match=match) as e:
        import_model(source, tmp_path / "run", tokenizer)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize("damage", DAMAGED_HF)
def test_damaged_hugging_face_directories_are_named(good, tmp_path, damage):
    copy = shutil.copytree(good / "hf", tmp_path / "hf")
    hurt, match = DAMAGED_HF[damage]
    hurt(copy)
    refused(copy, tmp_path, match)


def test_a_tokenizer_of_another_model_is_refused(good, tmp_path):
    copy = shutil.copytree(good / "hf", tmp_path / "hf")
    other = SHARED / "tokenizers/llama_tokenizer.model"
    if not other.exists():
        pytest.skip("the tokenizer is not here (../shared/data)")
    match = "llama_tokenizer.model: the tokenizer has 32000 pieces, but the model 2080 rows"
    refused(copy, tmp_path, match, other)
    shutil.copy(other, copy / "tokenizer.model")
    refused(copy, tmp_path, "hf: the tokenizer has 32000 pieces")
    shutil.copy(SHARED / "weights/tok512.model", copy / "tokenizer.model")
    refused(copy, tmp_path, "hf: the tokenizer has only 512 pieces for the model's 2080 rows")
    (copy / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # as tiktoken's are
    refused(copy, tmp_path, "hf: the tokenizer is not a SentencePiece model")
    refused(copy, tmp_path, "no file .*nowhere.model", tmp_path / "nowhere.model")


def test_damaged_ggufs_are_named(good, tmp_path):
    whole = (good / "gguf/model.gguf").read_bytes()
    file, heads = tmp_path / "x.gguf", b"llama.attention.head_count"
    for data, match in (
        (whole[: len(whole) // 2], r"x.gguf: is truncated: tensor blk.\S+ ends at byte"),
        (whole[:5000], "x.gguf: is truncated or no GGUF"),
        (b"GGML" + whole[4:], "x.gguf: is truncated or no GGUF: GGUF magic invalid"),
        (whole.replace(b"llama", b"qwen9", 1), "general.architecture is 'qwen9'"),
        (
            whole.replace(heads + struct.pack("<2I", 4, 4), heads + struct.pack("<2I", 4, 0)),
            "llama.attention.head_count is 0, expected a whole number above 0",
        ),
        (whole[:-4] + NAN, "tensor output.weight has values that are not finite"),
        (whole.replace(b"blk.1.attn_k.w", b"blk.1.attn_z.w"), "has no tensor blk.1.attn_k.weight"),
        (
            (good / "q4_0/model.gguf").read_bytes(),
            r"tensor blk.0.attn_q.weight is of type Q4_0, expected F32, F16, BF16 or Q8_0",
        ),
    ):
        file.write_bytes(data)
        refused(file, tmp_path, match)


def test_what_cannot_be_written_is_named_and_leaves_nothing(good, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"")
    for out in (Path("/proc/run"), file / "run"):
        with pytest.raises(UserError, match=f"--out: cannot write {out}: "):
            import_model(good / "hf", out, None)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a full disk, to TensorStore
    try:
        refused(good / "hf", tmp_path, f"--out: cannot write {tmp_path}/run: .*: File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    monkeypatch.setattr(native, "write_array", lambda array, values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        import_model(good / "hf", tmp_path / "run", None)
    assert list(tmp_path.iterdir()) == [file]


def test_shards_of_meta_s_divide_the_vocabulary(tmp_path):
    cfg = dataclasses.replace(GQA, vocab_size=513)
    with pytest.raises(UserError, match="got 2, expected a divisor of model.vocab_size=513"):
        meta.write(SimpleNamespace(cfg=cfg), tmp_path, "f32", shards=2)  # type: ignore[arg-type]


def test_damaged_llama2c_files_are_named(tmp_path):
    file = tmp_path / "x.bin"
    header = struct.pack("<7i", 8, 16, 1, 2, 2, 10, 4)
    for data, match in (
        (b"abc", "x.bin: is truncated: 3 bytes"),
        (header + bytes(400), "x.bin: is truncated: tensor layers/attn/wq_DGRK ends at byte"),
        (bytes(100), "x.bin: is no model of llama2.c"),
        (header + bytes(10_000), "x.bin: has 10028 bytes, and its header asks for"),
    ):
        file.write_bytes(data)
        refused(file, tmp_path, match)
    refused(tmp_path / "nothing", tmp_path, "nothing: is no model; expected a directory with")


# In a process of its own, for torch. Each case writes what it breaks; the import says what it is.
DAMAGED_META = """
import io, os, sys, torch
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
        f"{meta}: has no {wq}",
        f"{meta}: has 1 shards, but tensor layers.0.attention.wq.weight of consolidated.00.pth",
        f"{meta}/consolidated.00.pth: is missing, but consolidated.01.pth is there",
    )
    for line, start in zip(done.stdout.splitlines(), expected, strict=True):
        assert line.startswith(start), line
