"""Sweep files, options that do not go together, and the sweeps of the repository."""

import json
from pathlib import Path

import pytest
from etils import epath

from helpers.sweeps import shipped
from llama_jax.config import Experiment, UserError
from llama_jax.flops import num_params
from llama_jax.scaling.budget import LLAMA
from llama_jax.sweeps import sweep


def test_shards_begin_with_different_runs(make_file, tmp_path, monkeypatch):
    workdir, order = epath.Path(tmp_path), []
    file = make_file(*((16, 4 + i, 512) for i in range(5)))
    runs = sweep.load(str(file), [], workdir)

    def train(run, *_) -> bool:
        order.append(run.name)
        run.directory.mkdir()
        (run.directory / "finished.json").write_text('{"date": "", "git": ""}')
        return True

    monkeypatch.setattr(sweep, "_train", train)
    sweep.work(runs, workdir, (1, 2), 60, lambda _: None)
    assert order == ["16-5", "16-7", "16-4", "16-6", "16-8"]


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x\.py: no get_sweep\(\), .*; one experiment is for llama-jax train"),
        ("def get_sweep(): return {}", "must return a dict of Experiments"),
        ("def get_sweep(): return {'a': 1}", "'a' is a int"),
        ("def get_sweep(): return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, text, message):
    path = tmp_path / "x.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        sweep.load(str(path), [], epath.Path(tmp_path))


def test_experiments_are_checked_and_differ(make_file, tmp_path):
    file = str(make_file((16, 8, 512), (32, 8, 512)))
    with pytest.raises(UserError, match="16-8: model.num_heads: got 3, expected a divisor"):
        sweep.load(file, ["model.num_heads=3"], epath.Path(tmp_path))
    with pytest.raises(UserError, match="32-8 and 16-8 are the same"):
        sweep.load(file, ["model.embed_dim=16"], epath.Path(tmp_path))
    runs = sweep.load(file, [], epath.Path(tmp_path))
    others = sweep.load(file, ["run.seed=1"], epath.Path(tmp_path))
    assert len({run.directory for run in (*runs, *others)}) == 4
    (unset,) = sweep.load(str(make_file((16, 8, 0))), [], epath.Path(tmp_path))
    assert unset.experiment == runs[0].experiment  # with the vocabulary of its tokenizer


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--slice", "v5e:1x1"], "--slice belongs to --dry-run, and --price to --slice"),
        (["--dry-run", "--price", "2"], "--price to --slice"),
        (["--shard", "3/2"], "got '3/2', expected I/N"),
        (["--dry-run", "--shard", "1/2"], "--shard does nothing with --dry-run"),
        (["--dry-run", "--retry"], "--retry does nothing with --dry-run"),
        (["--dry-run", "--expiry", "60"], "--expiry does nothing with --dry-run"),
        (["--slice", "v5e:1x1", "--price", "0"], "--price: got 0, expected a finite number above"),
        (["--workdir", "/proc/none"], "--workdir: cannot write to '/proc/none': No such file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(args, message, cli):
    done = cli("sweep", "experiments/sweeps/cpu_isoflop.py", *args)
    assert done.returncode == 2 and message in done.stderr


def tokens(experiment: Experiment) -> int:
    data = experiment.data
    return experiment.run.num_steps * data.batch_size * data.seq_len


@pytest.mark.parametrize("name", ["isoflop", "cpu_isoflop"])
def test_runs_of_a_budget_cost_the_same(name):
    budgets: dict[float, list[int]] = {}
    for label, experiment in shipped(name).items():
        params, flops = num_params(experiment.model), float(label.rsplit("-", 1)[0])
        assert 6 * params * tokens(experiment) == pytest.approx(flops, rel=0.01)
        budgets.setdefault(flops, []).append(params)
    assert len(budgets) >= 4
    for sizes in budgets.values():
        assert len(sizes) >= 5 and max(sizes) > 3 * min(sizes)


def test_horizons_and_ratios_are_as_they_say():
    by_size: dict[int, list[int]] = {}
    for experiment in shipped("token_ladder").values():
        by_size.setdefault(num_params(experiment.model), []).append(tokens(experiment))
    for horizons in by_size.values():
        assert len(horizons) == 4 and max(horizons) / min(horizons) == pytest.approx(16, rel=0.01)
    for experiment, (params, trained) in zip(
        shipped("llama_small").values(), LLAMA.values(), strict=True
    ):
        ratio = tokens(experiment) / num_params(experiment.model)
        assert ratio == pytest.approx(trained / params, rel=0.01)
    assert len(shipped("lr_batch")) == 20


# What machines that died leave behind


GARBAGE = [b"", b"[]", b"{}", b"\xff\xfe", b"\0" * 64, b"[" * 100_000, b"{{", b'{"reason"']


def finish(run: sweep.Run) -> None:
    """Write what a finished run leaves behind, as far as a sweep reads it."""
    run.directory.mkdir(parents=True)
    steps = run.experiment.run.num_steps
    losses = {f"validation_loss/{source}": 3.0 for source, _ in run.experiment.data.mixture}
    rows = [
        *({"step": n, "tokens": 64 * n, "loss": 3.0, "tokens_per_second": 9.0} for n in (1, steps)),
        {"step": steps, "tokens": 64 * steps, "validation_loss": 3.0, **losses},
    ]
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.directory / "finished.json").write_text('{"date": "", "git": ""}')


@pytest.fixture
def two(make_file, tmp_path) -> tuple[Path, Path, list[sweep.Run]]:
    """A sweep of two finished runs: file, workdir and runs."""
    file, workdir = make_file((16, 4, 512), (16, 6, 512)), tmp_path / "sweep"
    runs = sweep.load(str(file), [], epath.Path(workdir))
    for run in runs:
        finish(run)
    return file, workdir, runs


@pytest.mark.parametrize("name", ["finished.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [*GARBAGE, None], ids=lambda c: str(c and c[:8]))
def test_a_finished_run_that_cannot_be_read_is_named(two, cli, name, content):
    file, workdir, (bad, good) = two
    (bad.directory / name).unlink()
    if content is not None:
        (bad.directory / name).write_bytes(content)
    elif name == "finished.json":
        return  # it is not finished
    done = cli("sweep", file, "--workdir", workdir)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(f"left out: {bad.name}: {bad.directory}/{name}")
    assert f"delete {bad.directory} and it is trained again" in line
    rows = (workdir / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["run", good.name]
    assert cli("sweep", file, "--workdir", workdir, "--dry-run").returncode == 0


@pytest.mark.parametrize("content", GARBAGE, ids=lambda c: str(c[:8]))
def test_a_run_that_failed_without_a_reason_stays_failed(two, cli, content):
    file, workdir, (bad, _) = two
    (bad.directory / "finished.json").unlink()
    (bad.directory / "failed.json").write_bytes(content)
    done = cli("sweep", file, "--workdir", workdir)
    (line,) = done.stderr.splitlines()
    path = bad.directory / "failed.json"
    assert done.returncode == 1 and line.startswith(f"failed: {bad.name}: {path} is damaged: ")
