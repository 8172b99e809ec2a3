"""Tables of results: columns, runs, and what is refused."""

import numpy as np
import pytest

from helpers.laws import isoflop_table, ladder, write
from llama_jax.config import UserError
from llama_jax.scaling import results
from llama_jax.scaling.fit import (
    fit,
)
from llama_jax.scaling.results import Columns

# Tables


def test_any_two_of_three_columns_will_do(tmp_path):
    table = isoflop_table(0.003, 0)
    for names in (("N", "D"), ("N", "C"), ("D", "C")):
        found = results.read(write(tmp_path / "t.csv", table, (*names, "loss")), Columns())
        for field in ("params", "tokens", "flops", "loss", "run"):
            assert getattr(found, field) == pytest.approx(getattr(table, field))


def test_a_run_ends_with_its_row_of_most_tokens(tmp_path):
    table = ladder(0.003, 0)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    final = results.read(write(tmp_path / "t.csv", shuffled), Columns()).final()
    assert len(final) == 48
    assert sorted(final.tokens) == pytest.approx(sorted(table.tokens[19::20]))
    assert len(results.read(tmp_path / "t.csv", Columns(run="no such")).final()) == len(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'loss'; there are none"),
        ("N;D;loss\n1;2;3\n", "no column 'loss'; .*; expected ',' between columns, and found ';'"),
        ("N,D,loss\n", "no row is left: 0 rows"),
        (
            "N,D,loss,run\n1e7,1e9,3,a\n1e8,1e9,2.5,a\n",
            "column 'run': the rows of 'a' have from 1e\\+07 to 1e\\+08 parameters, expected one "
            "model a run; give --run",
        ),
        ("N,D,C\n1,2,12\n", "no column 'loss'; there are N, D, C"),
        ("N,size,loss\n1,2,3\n", "two of parameters, tokens and FLOPs are needed"),
        (
            "N,D,loss\n70,1400,3\n1000,20000,2\n",
            "column 'N' goes from 70 to 1000; expected parameters, tokens and FLOPs, not millions",
        ),
        ("N,D,loss\n7e7,1.4,3\n", "column 'D' goes from 1.4 to 1.4; expected parameters, tokens"),
        (
            "N,D,C,loss\n7e7,1.4e9,0.588,3\n",  # in exaFLOPs
            "C is 1e-18 times 6 N D, in the first row 0.588 for 6 \\* 7e\\+07 \\* 1.4e\\+09; exp",
        ),
        ("N,D,loss\n1,2,3\n1,2,nan\n", "line 3, column 'loss': got 'nan', expected a number"),
        ("N,D,loss\n1,2,3\n1,-2,3\n", "line 3, column 'D': got '-2', expected a number above 0"),
        ("N,D,loss\n1,2\n", "line 2, column 'loss': got None"),
        ("N,D,loss\n" + 9 * "1e8,2e9,3\n", "9 runs of 1 sizes of model are left"),
        ("N,D,loss\n1e7,1e9,3\n1e8,1e9,2.5\n1e9,1e9,2\n", "3 runs of 3 sizes of model are left"),
        (
            "N,D,loss,run\n" + "".join(f"1e{n},{d}e9,3,{n}\n" for n in (7, 8, 9) for d in (1, 2)),
            "3 runs of 3 sizes .* at the least; --run says which of the 6 rows are one run",
        ),
    ],
)
def test_a_table_that_will_not_do_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        fit(results.read(path, Columns()), str(path), bootstraps=2, seed=0)
    assert "\n" not in str(error.value) and "results.csv" in str(error.value)


def test_a_table_of_which_no_row_is_left_is_refused(tmp_path):
    path = write(tmp_path / "t.csv", isoflop_table(0, 0))
    with pytest.raises(UserError, match="35 rows, none with 1e\\+06 tokens per .*--min-tokens"):
        results.read(path, Columns(), min_tokens_per_param=1e6)


def test_a_byte_order_mark_is_no_part_of_a_columns_name(tmp_path):
    path = write(tmp_path / "t.csv", isoflop_table(0, 0))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(results.read(path, Columns())) == 35


def test_a_missing_table_or_column_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read '.*nothing\.csv': No such file"):
        results.read(tmp_path / "nothing.csv", Columns())
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"picture\.csv' is no CSV text"):
        results.read(tmp_path / "picture.csv", Columns())
    path = write(tmp_path / "t.csv", isoflop_table(0, 0))
    with pytest.raises(UserError, match="no column 'params'; there are N, D, C, loss, run"):
        results.read(path, Columns(params="params"))


def test_flops_need_not_be_exactly_6nd(tmp_path):
    """Attention counts, and embeddings may not."""
    path = tmp_path / "t.csv"
    path.write_text("N,D,C,loss\n" + "".join(f"{n}e5,1e9,1.2e16,3\n" for n in (1, 2, 4)))
    assert list(results.read(path, Columns()).flops) == [1.2e16] * 3
