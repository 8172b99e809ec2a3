"""The lines of dumps: each is read, or is bad, and what follows it is read all the same."""

import bz2
import gzip
import lzma
import tracemalloc

import pytest

from llama_jax.data.sources.lines import LONGEST_LINE, lines, open_binary
from llama_jax.data.sources.source import Bad


@pytest.mark.parametrize(
    ("ending", "compress"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_a_file_is_decompressed_as_its_ending_says(tmp_path, ending, compress):
    (tmp_path / f"a.json{ending}").write_bytes(compress("é\nb".encode()))
    with open_binary(tmp_path / f"a.json{ending}") as file:
        assert [*lines(file)] == [(1, "é\n"), (2, "b")]


def test_what_is_wrong_with_a_line_is_said_and_the_next_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"caf\xe9\n" + b"x" * (LONGEST_LINE + 10) + b"\nlast")
    with open_binary(tmp_path / "a") as file:
        first, second, third = lines(file)
    assert first == Bad("line 1", "is not UTF-8: invalid continuation byte at byte 3")
    assert second == Bad("line 2", "has 33,554,443 bytes, more than 33,554,432")
    assert third == (3, "last")


def test_a_long_line_takes_no_more_memory_than_the_longest(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        for _ in range(8):
            file.write(b"x" * LONGEST_LINE)
    tracemalloc.start()
    with open_binary(tmp_path / "a") as file:
        (bad,) = lines(file)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(bad, Bad) and most < 3 * LONGEST_LINE


def test_an_empty_file_is_no_dump(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"")
    with pytest.raises(EOFError, match="the file is empty"):
        open_binary(tmp_path / "a.gz")
