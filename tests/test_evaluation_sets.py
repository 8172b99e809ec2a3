"""Evaluation sets: what is looked for in documents, and in which it is found."""

import gzip
import json

import pytest

from helpers.paths import SHARED
from llama_jax.config import UserError
from llama_jax.data.sources.evaluation_sets import hit, sequences, texts

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"
EIGHT = "a short question has only eight words here"


def test_thirteen_words_in_a_row_are_found_whatever_their_case_and_punctuation(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"a": [{"b": f"zero {THIRTEEN}"}, 7, None], "c": EIGHT}) + "\n\n")
    paths = (path,)
    assert {size: len(found) for size, found in sequences(paths).items()} == {13: 2, 8: 1}
    assert hit(f"Before. One, two; {THIRTEEN[8:].upper()}!", paths) == (THIRTEEN, "set.jsonl")
    assert hit(f"x {EIGHT} y", paths) == (EIGHT, "set.jsonl")
    assert hit(THIRTEEN.removesuffix(" thirteen"), paths) is None
    assert hit(EIGHT.replace("only", "just"), paths) is None
    assert hit("", paths) is None


def test_a_text_of_fewer_than_eight_words_is_not_looked_for(tmp_path):
    path = tmp_path / "set.txt"
    path.write_text("seven words are too few to mean\n")
    assert sequences((path,)) == {}


@pytest.mark.parametrize("ending", [".json", ".csv", ".tsv", ".txt", ".jsonl.gz"])
def test_each_kind_of_file_is_read(tmp_path, ending):
    content = {
        ".json": json.dumps([{"question": THIRTEEN, "answer": EIGHT}]),
        ".csv": f'id,question\n1,"{THIRTEEN}"\n2,{EIGHT}\n',
        ".tsv": f"id\tquestion\n1\t{THIRTEEN}\n2\t{EIGHT}\n",
        ".txt": f"{THIRTEEN}\n{EIGHT}\n",
        ".jsonl.gz": "\n".join(map(json.dumps, (THIRTEEN, EIGHT))),
    }[ending].encode()
    path = tmp_path / f"set{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    assert {THIRTEEN, EIGHT} <= {text.strip() for text in texts(path)}


@pytest.mark.parametrize(
    "name, content",
    [
        ("cut.jsonl.gz", gzip.compress(b'{"a": "b"}\n' * 1000)[:-20]),
        ("bad.jsonl", b'{"a": \n'),
        ("latin1.csv", "caf\u00e9".encode("latin-1")),
        ("empty.txt", b""),
    ],
)
def test_a_set_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"--against: .*{name} cannot be read: "):
        list(texts(tmp_path / name))


@pytest.mark.skipif(not SHARED.exists(), reason="../shared has the published sets")
def test_published_sets_are_found_in_a_document_that_quotes_them():
    paths = tuple(sorted((SHARED / "eval").iterdir()))
    questions = [json.loads(line)["question"] for line in (SHARED / "eval/gsm8k_test.jsonl").open()]
    found = hit(f"A page. {questions[7]} And more.", paths)
    assert found is not None and found[1] == "gsm8k_test.jsonl"
    assert hit("A page on the history of lace in a town that no set asks about.", paths) is None
