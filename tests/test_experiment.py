"""Experiments, --set, identity, and what is refused."""

import json
import re
import sys

import pytest

from helpers.paths import EXPERIMENTS
from llama_jax import config
from llama_jax import experiment as experiments
from llama_jax.config import Experiment, UserError
from llama_jax.experiment import differences, from_json, identity, to_json
from llama_jax.loading import load, override
from llama_jax.model import param_shapes
from llama_jax.run.curves_figure import varied

FILES = sorted(EXPERIMENTS.glob("*.py"))

QUICKSTART = str(FILES[-1].with_name("quickstart.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_experiment_is_valid_and_documented(path):
    experiment = load(str(path))
    assert from_json(to_json(experiment)) == experiment
    assert "llama-jax train " + f"experiments/{path.name}" in path.read_text()


def test_the_papers_hyperparameters():
    """Table 2 and section 2.3 of the paper."""
    for size, rate, tokens, shape in [
        ("7b", 3e-4, 1.0e12, config.LLAMA_7B),
        ("13b", 3e-4, 1.0e12, config.LLAMA_13B),
        ("33b", 1.5e-4, 1.4e12, config.LLAMA_33B),
        ("65b", 1.5e-4, 1.4e12, config.LLAMA_65B),
    ]:
        e = load(QUICKSTART.replace("quickstart", f"llama_{size}"))
        optimizer = e.optimizer
        assert e.model == shape and e.execution.attention == "splash"
        assert (optimizer.peak_lr, optimizer.warmup_steps) == (rate, 2000)
        assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.95, 0.1)
        assert (optimizer.clip_norm, optimizer.final_lr_ratio) == (1.0, 0.1)
        assert e.data.seq_len * e.data.batch_size == 2**22
        assert 0 <= e.run.num_steps * 2**22 - tokens < 2**22
        assert dict(e.data.mixture)["commoncrawl"] == 0.67


def test_the_vocabulary_is_the_tokenizers_unless_set(tiny_data):
    of_another = ["data.tokenizer=" + tiny_data.tokenizer]
    assert load(QUICKSTART).model.vocab_size == 2048  # of the embedded one
    assert load(QUICKSTART, of_another).model.vocab_size == 512
    assert load(QUICKSTART, [*of_another, "model.vocab_size=640"]).model.vocab_size == 640
    with pytest.raises(UserError, match="data.tokenizer: no file 'nowhere.model'"):
        load(QUICKSTART, ["data.tokenizer=nowhere.model"])
    with pytest.raises(UserError, match="model.vocab_size: got 0"):
        param_shapes(config.ModelConfig(num_layers=1, embed_dim=8, num_heads=2))


def test_set_is_typed():
    experiment = load(
        QUICKSTART,
        [
            "model.num_layers=8",
            "optimizer.peak_lr=1",
            "upkeep.keep_every=100",
            "model.num_kv_heads=none",
            "execution.mesh.sequence_parallel=true",
            "data.store=123",
            "data.mixture=(('c4', 0.5), ('books', 0.5))",
        ],
    )
    assert experiment.model.num_layers == 8
    assert type(experiment.optimizer.peak_lr) is float
    assert experiment.upkeep.keep_every == 100
    assert experiment.model.num_kv_heads is None
    assert experiment.execution.mesh.sequence_parallel is True
    assert experiment.data.store == "123"
    assert experiment.data.mixture == (("c4", 0.5), ("books", 0.5))


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.layers=8", "model.layers: no such field; model has num_layers, embed_dim"),
        (
            "modle.num_layers=8",
            "no section 'modle'; there are model, data, optimizer, run, init, execution, upkeep",
        ),
        ("num_layers=8", "--set num_layers=8: expected SECTION.FIELD=VALUE"),
        ("model.num_layers", "--set model.num_layers: expected SECTION.FIELD=VALUE"),
        ("model.num_layers=1.5", "model.num_layers: got '1.5', expected int"),
        ("model.num_layers=many", "model.num_layers: got 'many', expected int"),
        ("model.num_layers=True", "model.num_layers: got 'True', expected int"),
        ("model.num_layers=0", "model.num_layers: got 0, expected more than 0"),
        (
            "execution.mesh.sequence_parallel=1",
            "execution.mesh.sequence_parallel: got '1', expected bool",
        ),
        ("optimizer.peak_lr=nan", "optimizer.peak_lr: got 'nan', expected float"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay: got -1.0, expected 0 or more"),
        ("data.mixture=('c4', 1.0)", "data.mixture: got \"('c4', 1.0)\", expected tuple"),
        ("data.mixture=(('c4', 0.4),)", "data.mixture: got rates that sum to 0.4, expected 1"),
        ("data.sources=(('c5', 'c5', 'text'),)", "data.sources: got 'c5', expected one of common"),
        ("data.sources=(('c4', 'c4'),)", "data.sources: got \"(('c4', 'c4'),)\", expected tuple["),
        (
            "data.sources=(('c4', 'a', 'text'), ('c4', 'b', 'text'))",
            "data.sources: got ['c4', 'c4'], expected each source once",
        ),
        ("data.held_out=0", "data.held_out: got 0.0, expected more than 0"),
        ("data.held_out=1", "data.held_out: got 1.0, expected less than 1"),
        ("model.num_heads=5", "model.num_heads: got 5, expected a divisor of model.embed_dim="),
        ("model.num_kv_heads=3", "model.num_kv_heads: got 3, expected a divisor of model.num_head"),
        ("model.embed_dim=4", "expected an even head_dim"),
        (
            "execution.remat=none_of_it",
            "execution.remat: got 'none_of_it', expected one of nothing,",
        ),
        ("model.compute_dtype=float8", "expected one of bfloat16, float32"),
        (
            "execution.micro_batches=3",
            "data.batch_size: got 8, expected a multiple of execution.mesh",
        ),
        ("execution.mesh.fsdp=16", "data.batch_size: got 8, expected a multiple of execution.mesh"),
        (
            "execution.mesh.tensor=3",
            "model.num_kv_heads: got 4, expected a multiple of execution.mesh.tensor=3",
        ),
        ("optimizer.warmup_steps=100000", "expected less than run.num_steps="),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(override, message):
    with pytest.raises(UserError, match=re.escape(message)) as e:
        load(QUICKSTART, [override])
    assert "\n" not in str(e.value)


def test_differences_name_the_fields():
    old = load(QUICKSTART)
    new = override(override(old, "optimizer.peak_lr=1e-5"), "run.seed=3")
    assert differences(old, old) == []
    rate = old.optimizer.peak_lr
    assert differences(old, new) == [
        f"optimizer.peak_lr: {rate} -> 1e-05",
        "run.seed: 0 -> 3",
    ]


def test_mlp_width_is_the_papers_rule_unless_overridden():
    widths = [c.mlp_dim for c in (config.LLAMA_7B, config.LLAMA_13B, config.LLAMA_33B)]
    assert widths == [11_008, 13_824, 17_920] and config.LLAMA_65B.mlp_dim == 22_016
    open_llama_3b = config.ModelConfig(
        num_layers=26, embed_dim=3200, num_heads=32, mlp_dim_override=8640
    )
    assert open_llama_3b.mlp_dim == 8640 and open_llama_3b.head_dim == 100


def test_remat_policies_name_what_the_model_names():
    import inspect

    from llama_jax import attention, model

    sources = inspect.getsource(model) + inspect.getsource(attention)
    for remat in config.REMAT_POLICIES.values():
        for name in remat.save + remat.offload:
            assert f'"{name}"' in sources, name


def changed(*changes: str) -> Experiment:
    return load(QUICKSTART, changes)


@pytest.mark.parametrize(
    "change",
    [
        "execution.mesh.fsdp=8",
        "execution.micro_batches=2",
        "execution.remat=linear",
        "execution.attention=splash",
        "execution.compiler_options=(('flag', 'true', 'a reason'),)",
        "execution.slice=v5p:4x4x4",
        "upkeep.keep_last=4",
        "upkeep.eval_every=7",
        "upkeep.wandb_project=mine",
        "data.corpus=elsewhere",
        "data.sources=(('c4', 'c4/en/c4-{split}.*.json.gz', 'text'),)",
        "data.held_out=0.01",
        "data.tokenizer=elsewhere/tokenizer.model",
        "data.store=elsewhere/store",
    ],
)
def test_how_and_where_and_what_is_kept_are_not_what_is_computed(change):
    before, after = changed(), override(changed(), change)
    assert after != before
    assert identity(after) == identity(before)
    assert differences(before, after) == []


@pytest.mark.parametrize(
    "change",
    [
        "model.norm_eps=1e-5",
        "data.seed=1",
        "data.batch_size=16",
        "optimizer.peak_lr=1e-4",
        "run.num_steps=751",
        "run.gradient_dtype=bfloat16",
        "run.seed=1",
    ],
)
def test_what_a_result_depends_on_is_its_identity(change):
    assert identity(changed(change)) != identity(changed())
    assert len(differences(changed(), changed(change))) == 1


def test_a_run_moves_between_the_slices_of_its_file_and_to_no_other():
    path = QUICKSTART.replace("quickstart", "llama_7b")
    default, v5p = load(path), load(path, slice_name="v5p:4x4x4")
    assert (default.execution.slice, v5p.execution.slice) == ("v4:4x4x4", "v5p:4x4x4")
    assert default.execution.micro_batches == 8 and v5p.execution.micro_batches == 4
    assert identity(default) == identity(v5p)
    message = (
        "names no slice 'v6e:16x16'; it has v4:4x4x4, v5e:8x8, v5p:4x4x4, v6e:8x8; "
        f"for another, llama-jax plan {path} --search --slice v6e:16x16 finds a layout"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        load(path, slice_name="v6e:16x16")
    by_hand = load(path, ["execution.mesh.fsdp=256"], "v6e:16x16").execution
    assert (by_hand.slice, by_hand.mesh.fsdp) == ("v6e:16x16", 256)
    # A file that names no slice goes on any.
    assert load(QUICKSTART, slice_name="v5e:2x2").execution.slice == "v5e:2x2"


@pytest.mark.parametrize(
    "schema, message",
    [
        (
            99,
            "run/config.json: written by a newer llama_jax, in schema 99; this one reads schema 1",
        ),
        (None, "run/config.json: has schema None, expected 1"),
        ("1", "run/config.json: has schema '1', expected 1"),
    ],
)
def test_another_schema_is_named(schema, message):
    written = json.loads(to_json(changed())) | {"schema": schema}
    with pytest.raises(UserError, match=re.escape(message)):
        from_json(json.dumps(written), "run/config.json")


@pytest.mark.parametrize(
    "override, message",
    [
        ("execution.mesh=8", "execution.mesh: expected one of its fields, execution.mesh.FIELD"),
        ("execution.mesh.fspd=8", "execution.mesh.fspd: no such field; execution.mesh has replica"),
        ("run.seed.x=8", "run.seed.x: no such field; run.seed has no fields"),
    ],
)
def test_fields_within_fields(override, message):
    assert changed("execution.mesh.fsdp=8").execution.mesh.fsdp == 8
    with pytest.raises(UserError, match=re.escape(message)):
        changed(override)


@pytest.mark.parametrize(
    "value",
    [
        *("(" * 10_000, "-" * 10_000 + "1", "9" * 400, "0x" + "f" * 5_000, "{[]: 1}", "1is", "\\d"),
        *("1e999", "nan", "-inf", "None", "[]", "b''", "...", "1j", "", "9" * 5_000, "'\\ud800'"),
    ],
    ids=lambda value: value[:10],
)
def test_any_text_is_a_value_or_refused_in_a_line(value, recwarn):
    default = load(QUICKSTART)
    for name, hint, _ in experiments.fields(default):
        try:
            changed = load(QUICKSTART, [f"{name}={value}"])
        except UserError as e:
            assert name in str(e) and len(str(e)) < 500
        else:
            new = dict((n, v) for n, _, v in experiments.fields(changed))[name]
            assert type(new) is str or new is None or "seed" in name, (name, hint)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("def get_experiment(): raise BaseException('no')", "BaseException: no"),
        ("def get_experiment(): return get_experiment()", "RecursionError"),
        ("def get_experiment(a): return a", "TypeError"),
        ("def get_experiment(): return 7", "returned int; it must return a llama_jax.config.Exp"),
        ("get_experiment = 3", "TypeError"),
        ("", "no get_experiment(), which returns an Experiment"),
        ("def get_experiment(:", "SyntaxError"),
        ("\0", "null bytes"),
        ("\udcff", "SyntaxError"),
        ("{}data = None))", "data: got None, expected DataConfig"),
        ("{}optimizer = 3))", "optimizer: got 3, expected OptimizerConfig"),
        ("{}execution = None))", "execution: got None, expected Execution"),
        ("{}))\nSLICES = [1]", "must be a dict of Executions"),
        ("{}))\nSLICES = {{'v5e:2x2': 1}}", "must be a dict of Executions"),
        ("{}))\nSLICES = {{'v5e:2x2': Execution(mesh=1)}}", "execution.mesh: got 1, expected Mesh"),
        (
            "{}data = replace(base.data, store='a\\0b')))",
            "data.store: got 'a\\x00b', expected text",
        ),
        ("{}data = replace(base.data, corpus='\\udc80')))", "data.corpus: got '\\udc80', expected"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(tmp_path, text, message):
    path = tmp_path / "x.py"
    base = (
        "from dataclasses import replace\nfrom llama_jax.config import *\n"
        "from llama_jax.loading import load\n"
        f"base = load({QUICKSTART!r})\ndef get_experiment(): return replace(base, **dict("
    )
    path.write_bytes(text.format(base).encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=re.escape(message)):
        load(str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\xfa",
        b"[" * 100_000,
        b"",
        b"[]",
        b"null",
        b'{"schema": 1}',
        b'{"schema": 1, "model": null}',
        b'{"schema": "' + b"x" * 9_000 + b'"}',
    ],
    ids=lambda content: str(content[:12]),
)
def test_a_config_that_is_none_is_refused(content):
    with pytest.raises(UserError, match="^there: ") as e:
        from_json(content, "there")
    assert len(str(e.value)) < 500


def test_a_config_of_other_types_is_refused():
    text = to_json(load(QUICKSTART)).replace('"num_layers": 4', '"num_layers": "4"')
    with pytest.raises(UserError, match="there: .* model.num_layers: got '4', expected int"):
        from_json(text, "there")


def test_what_is_not_the_same_in_all_of_a_sweep():
    runs = [
        changed(),
        changed("optimizer.peak_lr=1e-4"),
        changed("run.seed=1", "run.num_steps=800"),
    ]
    runs[0] = changed("execution.micro_batches=2", "upkeep.eval_every=7")  # of no result
    rows = [(2e-3, 750, 0), (1e-4, 750, 0), (2e-3, 800, 1)]
    names = ("optimizer.peak_lr", "run.num_steps", "run.seed")
    assert varied(runs) == [dict(zip(names, row, strict=True)) for row in rows]
    assert varied([changed(), changed()]) == [{}, {}]


# Where files are


def test_the_experiments_that_come_with_it_go_by_their_names(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("quickstart") == changed()
    done = cli("sweep", "sweeps/cpu_isoflop", "--dry-run")
    assert done.returncode == 0 and "all: 24 runs" in done.stdout
    done = cli("show", "quikstart")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no file 'quikstart'" in line and "these do: llama_13b, llama_33b, " in line
    (tmp_path / "quickstart").write_text("")  # a file comes first
    with pytest.raises(UserError, match="'quickstart' is not a Python file"):
        load("quickstart")


def test_a_file_imports_those_beside_it_and_leaves_no_trace(tmp_path):
    """Two directories may have files of the same name."""
    before = list(sys.path), set(sys.modules)
    for rate in (1e-3, 2e-3):
        directory = tmp_path / str(rate)
        directory.mkdir()
        base = (
            (EXPERIMENTS / "quickstart.py").read_text().replace("peak_lr=2e-3", f"peak_lr={rate}")
        )
        (directory / "base.py").write_text(base)
        (directory / "mine.py").write_text("from base import get_experiment")
        assert load(str(directory / "mine.py")).optimizer.peak_lr == rate
        (directory / "broken.py").write_text("from base import nothing")
        with pytest.raises(UserError, match="ImportError: cannot import name 'nothing'"):
            load(str(directory / "broken.py"))
    assert (list(sys.path), set(sys.modules)) == before
