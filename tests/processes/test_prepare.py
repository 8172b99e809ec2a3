"""prepare: dumps become documents and a report, whatever is bad, killed, or how many workers."""

import gzip
import html
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers import dumps, fake_slurm
from helpers.paths import ROOT
from helpers.preparing import LONG, PYTHON, WITHOUT, documents, need_environment, prepare
from helpers.processes import environment
from helpers.stores import files_of

TEXTS = [f"The {n}th text, of some words." for n in range(40)]


@pytest.fixture(autouse=True)
def prepared():
    need_environment()


def test_c4_becomes_documents_with_a_report(tmp_path):
    dumps.c4(tmp_path / "dump/en/0.json.gz", TEXTS[:30])
    dumps.c4(tmp_path / "dump/en/1.json.gz", [*TEXTS[30:], " \n"])
    (tmp_path / "dump/README.md").write_text("")
    args = ("--input", tmp_path / "dump", "--output", tmp_path / "corpus")
    done = prepare("c4", *args)
    assert done.returncode == 0, done.stderr
    made = documents(tmp_path / "corpus/c4")
    assert [document["text"] for document in made] == TEXTS
    assert made[0] == {
        "text": TEXTS[0],
        "id": "0.json.gz/row 1",
        "source": "c4",
        "url": "http://x/0",
        "licence": None,
        "date": "2019-04-25T12:57:54Z",
        "provenance": {"file": "dump/en/0.json.gz"},
    }
    report = json.loads((tmp_path / "corpus/c4/report.json").read_text())
    assert report["input"]["files"] == 2 and report["input"]["files_of_other_kinds"] == 1
    (blank,) = report["steps"]
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert (blank["documents_in"], blank["dropped"], blank["documents_out"]) == (41, 1, 40)
    assert (blank["bytes_in"], blank["bytes_out"]) == (num_bytes + 2, num_bytes)
    assert blank["examples"] == [{"id": "1.json.gz/row 11", "url": "http://x/10", "text": " \n"}]
    page = html.unescape((tmp_path / "corpus/c4/report.html").read_text())
    assert TEXTS[0] in page and report["rights"] in page and "blank" in done.stdout
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["c4"]
    again = prepare("c4", *args)
    assert again.returncode == 0 and "is there already" in again.stdout
    dumps.c4(tmp_path / "dump/en/2.json.gz", TEXTS)
    other = prepare("c4", *args)
    assert other.returncode == 2 and "made from other files" in other.stderr
    assert len(documents(tmp_path / "corpus/c4")) == 40


def test_bad_input_is_named_and_the_rest_is_there(tmp_path):
    said = dumps.damaged_c4(tmp_path / "dump", TEXTS)
    args = ("--input", tmp_path / "dump", "--output", tmp_path / "corpus", "--workers", 2)
    done = prepare("c4", *args)
    assert done.returncode == 1
    assert not (tmp_path / "corpus/c4").exists()  # what is too bad does not look whole
    end = done.stderr.splitlines()[-1]
    assert end.startswith("llama-jax prepare: ") and "more than --most-bad 0.01" in end
    assert all(name in end for name in said)
    for name, words in said.items():
        (line,) = [x for x in done.stdout.splitlines() if x.startswith(f"bad: dump/{name}: ")]
        assert words in line
    done = prepare("c4", *args, "--most-bad", 0.5)
    assert done.returncode == 0, done.stderr
    texts = [document["text"] for document in documents(tmp_path / "corpus/c4")]
    assert sorted(set(texts)) == sorted(TEXTS)
    # The whole file, that which was cut but for its last, a line of latin1's and one of long's.
    assert len(texts) == len(TEXTS) + (len(TEXTS) - 1) + 1 + 1
    report = json.loads((tmp_path / "corpus/c4/report.json").read_text())
    assert {*report["bad"]["files"]} == {f"dump/{name}" for name in said}
    assert report["bad"]["pieces"] == len(said)


# All sources together, and evaluation sets

QUESTION = "Which of these seven planets of our sun has the most moons, and how many of them?"


def test_a_corpus_holds_no_text_twice_and_no_evaluation_set(tmp_path):
    for source, texts in {
        "c4": [*TEXTS[:20], f"He asked: which of these {QUESTION[15:].upper()} Nobody knew."],
        "books": [TEXTS[3], *TEXTS[20:], f"{QUESTION[:40]} is a question."],
    }.items():
        path = dumps.c4(tmp_path / f"corpus/{source}/train-00000.jsonl.gz", texts)
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        fields = [row | {"id": f"{source}-{n}", "source": source} for n, row in enumerate(rows)]
        lines = "".join(json.dumps(row) + "\n" for row in fields)
        path.write_bytes(gzip.compress(lines.encode()))
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": QUESTION, "choices": ["Jupiter", "Saturn"]}) + "\n")
    args = ("corpus", "--input", tmp_path / "corpus", "--output", tmp_path / "clean")
    done = prepare(*args, "--against", exam, "--workers", 2)
    assert done.returncode == 0, done.stderr
    found = {source: documents(tmp_path / "clean" / source) for source in ("c4", "books")}
    texts = [document["text"] for source in found for document in found[source]]
    assert sorted(texts) == sorted([*TEXTS, f"{QUESTION[:40]} is a question."])
    assert {d["source"] for d in found["books"]} == {"books"} and len(found["c4"]) in (19, 20)
    (hit,) = (json.loads(line) for line in (tmp_path / "clean/hits.jsonl").open())
    assert hit["id"] == "c4-20" and hit["evaluation_set"] == "exam.jsonl"
    assert hit["words"] == "which of these seven planets of our sun has the most moons and"
    report = json.loads((tmp_path / "clean/report.json").read_text())
    assert [(step["name"], step["dropped"]) for step in report["steps"]] == [
        ("exact duplicates", 1),
        ("evaluation sets", 1),
    ]
    gone = prepare(*args, "--against", tmp_path / "none.jsonl")
    assert gone.returncode == 2 and f"--against: {tmp_path}/none.jsonl is not there" in gone.stderr


# Paragraphs that occur more than once, and pages of which nothing is left

MENU, QUOTE = "Home | News | 1999", "“A quote”, of 12 words"


def crawl(folder: Path, num_files: int, num_pages: int) -> list[str]:
    """Write WET files of so many pages each. Return the texts that are left of them."""
    own = []
    for number in range(num_files):
        name = chr(ord("a") + number)
        # Letters, because all digits are alike.
        words = ["".join(chr(ord("a") + int(c)) for c in str(n)) for n in range(num_pages)]
        texts = [f"Page {word} of file {name}{LONG}" for word in words]
        pages = [(f"http://{name}/{n}", ["Title", MENU, t, QUOTE]) for n, t in enumerate(texts)]
        for _, lines in pages[:2]:
            lines.append(f"In two pages of {name}")
        pages.append(
            (f"http://{name}/same", ["Title", f"Home | News | {number:04}", f"Same{LONG}"])
        )
        pages.append((f"http://{name}/short", ["Title", f"Short {name}"]))
        dumps.wet(folder / f"{name}.warc.wet.gz", pages)
        own += texts
    return own


def session(leader: int) -> list[int]:
    """Return the processes of a session that are there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until(true, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_documents_are_the_same_from_two_workers_and_after_a_kill(tmp_path):
    texts = crawl(tmp_path / "dump", 4, 2000)
    args = ("--input", tmp_path / "dump", "--task-mb", 0, *WITHOUT)
    done = prepare("commoncrawl", *args, "--output", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert [document["text"] for document in documents(tmp_path / "one/commoncrawl")] == texts
    report = json.loads((tmp_path / "one/commoncrawl/report.json").read_text())
    short, repeated = report["steps"]
    assert (short["dropped"], repeated["dropped"]) == (4, 4)
    assert repeated["changed"] == len(texts) and report["output"]["files"] == 4

    args = (*args, "--output", tmp_path / "two", "--workers", 2)
    command = [PYTHON, "-m", "llama_jax", "prepare", "commoncrawl", *map(str, args)]
    running = subprocess.Popen(command, env=environment(), cwd=ROOT, start_new_session=True)
    work = tmp_path / "two/commoncrawl.unfinished"
    wait_until(lambda: any(work.rglob("*.part")) and any(work.rglob("completions/*")))
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    wait_until(lambda: not session(running.pid))
    assert not (tmp_path / "two/commoncrawl").exists()
    done_before = {path: path.stat().st_mtime_ns for path in work.rglob("completions/*")}
    assert done_before and len(done_before) < 9
    done = prepare("commoncrawl", *args)
    assert done.returncode == 0, done.stderr
    assert files_of(str(tmp_path / "one")) == files_of(str(tmp_path / "two"))


def test_slurm_makes_documents_in_jobs_that_wait_for_each_other(tmp_path, monkeypatch):
    texts = crawl(tmp_path / "dump", 1, 3)
    args = ("--input", tmp_path / "dump", *WITHOUT, "--output", tmp_path, "--executor", "slurm")
    for option in ("partition=cpu", "time=1:00:00", "mem-per-cpu=4G"):
        args = (*args, "--sbatch", option)
    (tmp_path / "jobs").mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "jobs"))
    fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    done = prepare("commoncrawl", *args)
    assert done.returncode == 0 and "submitted as jobs 100 102 104; when" in done.stdout, done
    scripts = [path.read_text() for path in sorted((tmp_path / "jobs").iterdir())][::2]
    assert all("#SBATCH --array=0-0%1\n" in script for script in scripts)
    assert "--dependency=afterok:102" in scripts[2]
    for option in ("partition=cpu", "time=1:00:00", "mem-per-cpu=4G"):
        assert f"#SBATCH --{option}\n" in scripts[0]
    monkeypatch.setenv("FAKE_SLURM_RUNNING", "104")
    done = prepare("commoncrawl", *args)
    assert done.returncode == 2 and "jobs 104 of Slurm are still at it" in done.stderr
    monkeypatch.delenv("FAKE_SLURM_RUNNING")
    done = prepare("commoncrawl", *args)
    assert done.returncode == 0 and "wrote" in done.stdout, done.stderr
    made = [document["text"] for document in documents(tmp_path / "commoncrawl")]
    assert made == [*texts, f"Same{LONG}"]  # which is in one file only


# Documents that are equal, or nearly

COMPARE = """
import dataclasses, sys
from pathlib import Path
from llama_jax.data.pipeline import executors, prepare
from llama_jax.data.sources import c4
from llama_jax.data.sources.source import ExactDuplicates, NearDuplicates

if __name__ == "__main__":
    dump, corpus, workers = sys.argv[1:]
    source = dataclasses.replace(c4.SOURCE, steps=(ExactDuplicates(), NearDuplicates(0.9)))
    plan = prepare.plan(source, [Path(dump)], Path(corpus), None, set(), 0)
    with prepare.working(plan):
        executors.run_locally(prepare.stages(plan), plan.work, int(workers))
        prepare.finish(plan)
"""


def test_duplicates_and_texts_that_overlap_by_nine_tenths_go(tmp_path):
    rng = random.Random(0)
    words = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(26 * 26)]
    books = [rng.choices(words, k=2000) for _ in range(6)]

    def changed(book: list[str], share: float) -> str:
        """Replace the last share of it."""
        kept = book[: round(len(book) * (1 - share))]
        return " ".join(kept + rng.choices(words, k=len(book) - len(kept)))

    first = [" ".join(book) for book in books]
    dumps.c4(tmp_path / "dump/0.json.gz", first)
    dumps.c4(tmp_path / "dump/1.json.gz", [first[0], first[1].upper(), changed(books[2], 0.02)])
    dumps.c4(tmp_path / "dump/2.json.gz", [changed(books[3], 0.3), changed(books[4], 0.5)])
    for workers in (1, 2):
        subprocess.run(
            [PYTHON, "-c", COMPARE, tmp_path / "dump", tmp_path / str(workers), str(workers)],
            **{"env": environment(), "check": True},
        )
    made = [document["text"] for document in documents(tmp_path / "1/c4")]
    assert sum(text in made for text in first) >= 4  # of two either may be the one that is kept
    assert made.count(first[0]) == 1  # equal
    assert len(made) == 6 + 2  # another case of the second, and 98% of the third
    assert files_of(str(tmp_path / "1")) == files_of(str(tmp_path / "2"))
