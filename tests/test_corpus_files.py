"""The files of a corpus: each kind gives its rows, in bounded memory, and damage is named."""

import gzip
import io

import numpy as np
import pyarrow as pa
import pytest

from helpers.published import KINDS, ROWS, arrow_file, arrow_stream, corpus, parquet, read, write
from llama_jax.config import UserError
from llama_jax.data import documents


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_its_rows(tmp_path, kind):
    ending, make = KINDS[kind]
    write(tmp_path / f"mine/train.{ending}", make(ROWS))
    write(tmp_path / f"mine/validation.{ending}", make(ROWS[:1]))
    data = corpus(tmp_path, ("mine", "mine", "text"))
    assert read(data) == [(row["text"], row["id"]) for row in ROWS]
    assert read(data, split="validation") == [(ROWS[0]["text"], "doc-0")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_is_named_by_its_way(tmp_path, kind):
    ending, make = KINDS[kind]
    rows = [
        {"n": i, "meta": {"raw": {"body": row["text"]}, "url": f"u{i}"}}
        for i, row in enumerate(ROWS)
    ]
    rows[1]["meta"]["raw"]["body"] = None
    rows[2]["meta"]["raw"] = None
    write(tmp_path / f"x.{ending}", make(rows))
    data = corpus(tmp_path, ("mine", f"x.{ending}", "meta.raw.body"), held_out=1e-9)
    texts = ["" if i in (1, 2) else row["text"] for i, row in enumerate(ROWS)]
    assert read(data) == [(text, f"u{i}") for i, text in enumerate(texts)]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_an_id_are_called_by_their_number(tmp_path, kind):
    ending, make = KINDS[kind]
    write(tmp_path / f"x.{ending}", make([{"content": "a"}, {"content": "b"}]))
    data = corpus(tmp_path, ("mine", f"x.{ending}", "content"), held_out=1e-9)
    assert read(data) == [("a", f"x.{ending}:1"), ("b", f"x.{ending}:2")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_not_there_is_named_beside_those_that_are(tmp_path, kind):
    ending, make = KINDS[kind]
    write(tmp_path / f"x.{ending}", make([{"content": "a", "meta": {"url": "u"}, "n": 3}]))
    there = "content, meta.url, n: name"
    with pytest.raises(UserError, match=rf'x.{ending}:1: .*has no "text"; it has {there}'):
        read(corpus(tmp_path, ("mine", f"x.{ending}", "text")))
    with pytest.raises(UserError, match=rf'x.{ending}:1: .*"n" is of type int'):
        read(corpus(tmp_path, ("mine", f"x.{ending}", "n")))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "JSON lines"])
@pytest.mark.parametrize("kept", [0.0, 0.7, 1.0])
def test_a_file_that_is_cut_is_an_error(tmp_path, kind, kept):
    ending, make = KINDS[kind]
    whole = make([row | {"text": row["text"] * 300} for row in ROWS])
    write(tmp_path / f"x.{ending}", whole[: min(int(len(whole) * kept), len(whole) - 1)])
    with pytest.raises(UserError, match=rf"x.{ending}: cannot be read after row \d") as error:
        read(corpus(tmp_path, ("mine", f"x.{ending}", "text")))
    assert "\n" not in str(error.value)


def test_an_arrow_stream_that_is_cut_between_two_batches_is_an_error(tmp_path):
    """pyarrow takes it for whole."""
    short = arrow_stream(ROWS[:2])
    cut = short[: -len(documents.columnar.STREAM_END)]
    assert pa.ipc.open_stream(cut).read_all().num_rows == 2
    write(tmp_path / "x.arrow", cut)
    with pytest.raises(UserError, match="x.arrow: cannot be read after row 0; the end of the"):
        read(corpus(tmp_path, ("mine", "x.arrow", "text")))


@pytest.mark.parametrize("make", [parquet, arrow_stream, arrow_file])
def test_a_text_that_is_no_utf_8_is_named_by_its_row(tmp_path, make):
    ending = "parquet" if make is parquet else "arrow"
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    content = make(ROWS, **(plain if make is parquet else {}))
    # Where ï is two bytes. Arrow's buffers may hold the next row's text, too.
    at = content.rindex("Text 4: naïve".encode()) + len(b"Text 4: na")
    write(tmp_path / f"x.{ending}", content[:at] + b"\xff\xfe" + content[at + 2 :])
    with pytest.raises(UserError, match=rf"x.{ending}:5: expected a text in UTF-8 .*0xff"):
        read(corpus(tmp_path, ("mine", f"x.{ending}", "text")))


def test_arrow_offsets_that_lead_out_of_the_file_are_an_error(tmp_path):
    table = pa.table({"text": pa.array(["aaaa", "bbbb"])})
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    offsets = np.array([0, 4, 8], np.int32).tobytes()
    damaged = np.array([0, 4, 2**30], np.int32).tobytes()
    assert out.getvalue().count(offsets) == 1
    write(tmp_path / "x.arrow", out.getvalue().replace(offsets, damaged))
    with pytest.raises(UserError, match="x.arrow: cannot be read after row 0; .*ffset"):
        read(corpus(tmp_path, ("mine", "x.arrow", "text")))


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_an_encrypted_parquet_is_an_error(tmp_path, plaintext_footer):
    import pyarrow.parquet.encryption as pe

    class Keys(pe.KmsClient):
        def __init__(self, _):
            super().__init__()

        def wrap_key(self, key_bytes, master_key_identifier):
            return key_bytes.hex()

        def unwrap_key(self, wrapped_key, master_key_identifier):
            return bytes.fromhex(wrapped_key)

    settings = pe.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=plaintext_footer
    )
    properties = pe.CryptoFactory(Keys).file_encryption_properties(
        pe.KmsConnectionConfig(), settings
    )
    write(tmp_path / "x.parquet", parquet(ROWS, encryption_properties=properties))
    with pytest.raises(UserError, match=r"x.parquet: cannot be read after row 0; .*crypt"):
        read(corpus(tmp_path, ("mine", "x.parquet", "text")))


def test_a_folder_of_text_files_is_a_document_a_file(tmp_path):
    for number in range(documents.TEXTS + 1):
        write(tmp_path / f"notes/{number // 100}/{number:04d}.txt", f"note {number}\n".encode())
    write(tmp_path / "notes/readme.txt.gz", gzip.compress(b"of an archive"))
    data = corpus(tmp_path, ("mine", "notes/**/*.txt*", "text"), held_out=1e-9)
    found = read(data)
    assert ("note 7\n", "0007.txt") in found and ("of an archive", "readme.txt.gz") in found
    assert len(found) == len(set(found)) == documents.TEXTS + 2
    assert [len(part.paths) for part in documents.parts(data, "mine", "train")] == [1000, 2]
    write(tmp_path / "notes/latin.txt", "naïve".encode("latin-1"))
    with pytest.raises(UserError, match=r"notes/latin.txt:1: expected a text in UTF-8"):
        read(data)
