"""GitHub: rows of BigQuery's dump and checkouts, by licence and by how their lines look."""

import gzip
import json
import subprocess

import pytest

from helpers.paths import ROOT
from helpers.sources import Prepared, cut
from llama_jax.data.sources import github
from llama_jax.data.sources.source import ExactDuplicates

CODE = "import os\n\n\ndef main():\n    print(os.getcwd())\n"
MIT = """MIT License\n\nCopyright (c) 2020 A\n
Permission is hereby granted, free of charge, to any person obtaining a
copy of this software and associated documentation files"""
BSD = """Redistribution and use in source and binary forms, with or without
modification, are permitted{}"""
TEXTS = {
    "Apache-2.0": (ROOT / "LICENSE").read_text(),
    "MIT": MIT,
    "BSD-2-Clause": BSD.format(""),
    "BSD-3-Clause": BSD.format("\n3. Neither the name of the\nholder nor"),
    "BSD-4-Clause": BSD.format("\n3. All advertising materials mentioning"),
    "GPL": "GNU GENERAL PUBLIC LICENSE\nVersion 3. ... under the Apache License, Version 2.0",
    "none": "All rights reserved.",
}


def row(path="a.py", content: str | None = CODE, **more) -> dict:
    return {"repo_name": "o/r", "path": path, "content": content, "license": "mit"} | more


def prepared(path, rows) -> Prepared:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return Prepared(github.SOURCE, path)


# ---- Rows


@pytest.mark.parametrize("name", ["000000000000.json", "000.json.gz", "a.jsonl"])
def test_rows_under_the_paper_s_licences_are_kept(tmp_path, name):
    licences = ["mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "MIT", "gpl-3.0", "mpl-2.0"]
    rows = [row(f"{i}.py", license=licence) for i, licence in enumerate([*licences, None])]
    found = prepared(tmp_path / name, rows)
    assert found.texts == {f"o/r/{i}.py": CODE for i in range(5)}
    assert found.dropped == {f"o/r/{i}.py": "not_permissive" for i in (5, 6, 7)}
    assert [d.licence for d in found.documents.values()] == [
        *("MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT"),
    ]


def test_a_row_has_an_address(tmp_path):
    (document,) = prepared(tmp_path / "a.json", [row(ref="refs/heads/dev")]).documents.values()
    assert document.url == "https://github.com/o/r/blob/dev/a.py"


DROPPED = {
    "of_another_kind": row("data.csv"),
    "long_lines": row(content=CODE + "x" * 1001),
    "long_lines_on_average": row(content=f"{'x' * 101}\n" * 9),
    "few_alphanumeric": row(content="#" * 76 + "x" * 24),
}


@pytest.mark.parametrize("rule", DROPPED)
def test_a_file_is_dropped_for_how_it_looks(tmp_path, rule):
    assert list(prepared(tmp_path / "a.json", [DROPPED[rule]]).dropped.values()) == [rule]


def test_a_file_at_every_limit_is_kept(tmp_path):
    rows = [
        row("1.py", "x" * 1000 + "\ny" * 10),
        row("2.py", f"{'x' * 100}\n" * 9),
        row("Makefile", "#" * 75 + "x" * 25),
    ]
    assert prepared(tmp_path / "a.json", rows).dropped == {}


def test_a_file_that_is_binary_has_no_text(tmp_path):
    assert prepared(tmp_path / "a.json", [row(content=None)]).dropped == {
        "o/r/a.py": "few_alphanumeric"
    }


def test_damaged_rows_are_named_and_the_next_ones_are_read(tmp_path):
    rows = [row("1.py"), {"content": CODE}, {"repo_name": "o/r", "path": "a"}, [1], row("2.py")]
    found = prepared(tmp_path / "a.json.gz", rows)
    assert list(found.texts) == ["o/r/1.py", "o/r/2.py"]
    assert [bad.where for bad in found.bad] == ["row 2", "row 3", "line 4"]
    path = tmp_path / "a.json.gz"
    path.write_bytes(cut(path.read_bytes()))
    assert "EOFError" in Prepared(github.SOURCE, path).reasons


def test_equal_files_are_found_by_the_engine():
    assert github.SOURCE.steps[-1] == ExactDuplicates()


# ---- Checkouts


@pytest.mark.parametrize("licence", TEXTS)
def test_a_licence_is_known_by_its_text(licence):
    known = licence in github.LICENCES.values()
    assert github.licence_of_text(TEXTS[licence]) == (licence if known else None)


def files(folder, contents) -> dict[str, Prepared]:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return {name: Prepared(github.SOURCE, folder / name) for name in contents}


def test_a_checkout_is_under_its_own_licence(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path / "kept"], check=True)
    found = files(
        tmp_path,
        {
            "kept/LICENSE": MIT,
            "kept/src/a.py": CODE,
            "kept/third_party/gpl/COPYING": TEXTS["GPL"],
            "kept/third_party/gpl/b.py": CODE,
            "kept/logo.png": b"\x89PNG\xff",
            "kept/settings.json": '{"a": 1}',
            "kept/latin1.py": "# é".encode("latin-1"),
            "dual/LICENSE-APACHE": TEXTS["Apache-2.0"],
            "dual/LICENSE-MIT": MIT,
            "dual/c.rs": CODE,
            "mixed/COPYING": MIT,
            "mixed/LICENSE": TEXTS["GPL"],
            "mixed/d.py": CODE,
            "none/d.py": CODE,
        },
    )
    assert found["kept/src/a.py"].texts == {"kept/src/a.py": CODE}
    assert found["dual/c.rs"].documents["dual/c.rs"].licence == "Apache-2.0"
    assert found["kept/third_party/gpl/b.py"].dropped == {
        "kept/third_party/gpl/b.py": "not_permissive"
    }
    for name in ("kept/logo.png", "kept/settings.json"):
        assert found[name].dropped == {name: "of_another_kind"}
    for name in ("mixed/d.py", "none/d.py"):
        assert found[name].dropped == {name: "not_permissive"}
    assert "latin1.py: is not UTF-8" in found["kept/latin1.py"].reasons
    for path in (tmp_path / "kept/.git").rglob("*"):
        assert Prepared(github.SOURCE, path).dropped == {}


def test_a_dump_inside_of_a_checkout_is_a_dump(tmp_path):
    files(tmp_path, {"LICENSE": MIT})
    assert list(prepared(tmp_path / "a.json", [row()]).texts) == ["o/r/a.py"]


def test_a_link_is_not_followed(tmp_path):
    files(tmp_path, {"r/LICENSE": MIT, "secret.py": CODE})
    (tmp_path / "r/a.py").symlink_to(tmp_path / "secret.py")
    assert Prepared(github.SOURCE, tmp_path / "r/a.py").documents == {}


def test_a_file_of_50_megabytes_is_bad(tmp_path):
    found = files(tmp_path, {"LICENSE": MIT, "a.py": b"x" * 50_000_000})
    assert "a.py: is longer than 1,048,576 bytes" in found["a.py"].reasons


# ---- Headers

HEADER = "Copyright 2020 A. Author <a@author.org>"
HEADERS = {
    "a block": (f"/*\n * {HEADER}\n * Licensed under\n */\n\nint x;\n", "int x;\n"),
    "lines": (f"// {HEADER}\n// All rights reserved.\n\npackage a\n", "package a\n"),
    "beside the preprocessor": (f"// {HEADER}\n#include <a.h>\n", "#include <a.h>\n"),
    "the preprocessor": (f"#define A\n// {HEADER}\n", None),
    "below a first line": (f"#!/bin/sh\n# {HEADER}\n\necho\n", "#!/bin/sh\necho\n"),
    "in PHP": (f"<?php\n/** {HEADER} */\n\nclass A {{}}\n", "<?php\nclass A {}\n"),
    "in HTML": (f"<!-- {HEADER} -->\n<html>\n", "<html>\n"),
    "in SQL": (f"-- {HEADER}\nSELECT 1;\n", "SELECT 1;\n"),
    "by SPDX": ("# SPDX-License-Identifier: MIT\nimport a\n", "import a\n"),
    "a comment about the code": ("# Reads a file.\n\nimport a\n", None),
    "both": (f"/* {HEADER} */\n\n/* Reads. */\nint x;\n", "/* Reads. */\nint x;\n"),
    "a docstring": (f'"""Reads a file.\n\n{HEADER}\n"""\nimport a\n', None),
    "a licence in the code": ('x = "Licensed under MIT"\n', None),
    "further down": (f"import a\n# {HEADER}\n", None),
    "a heading": ("# Title\n\nText, copyright A.\n", None),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_is_removed(tmp_path, case):
    content, expected = HEADERS[case]
    assert prepared(tmp_path / "a.json", [row(content=content)]).text == (expected or content)
