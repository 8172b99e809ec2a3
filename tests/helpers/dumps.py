"""Small dumps of sources, and what may be wrong with one."""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path

# A zip archive with one encrypted member, of ten bytes.
ENCRYPTED_ZIP = base64.b64decode(
    "UEsDBBQAAQAAAAAAIQAAAAAAFgAAAAoAAAABAAAAYQABAgMEBQYHCAkKCzAxMjM0NTY3ODlQSwECFAAUAAEAAAAA"
    "ACEAAAAAABYAAAAKAAAAAQAAAAAAAAAAAAAAAAAAAAAAYVBLBQYAAAAAAQABAC8AAAA1AAAAAAA="
)


def c4(path: Path, texts: Sequence[str]) -> Path:
    """Write a file of C4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            record = {
                "text": text,
                "url": f"http://x/{number}",
                "timestamp": "2019-04-25T12:57:54Z",
            }
            file.write(json.dumps(record) + "\n")
    return path


def damaged_c4(folder: Path, texts: Sequence[str]) -> dict[str, str]:
    """Write files of C4, one of each kind of damage; return name -> what has to be said of it.

    All of the texts are in the folder, and can be read, but for the one that was cut.
    """
    whole = gzip.decompress(c4(folder / "whole.json.gz", texts).read_bytes())
    lines = whole.splitlines(keepends=True)
    damage = {
        "cut.json.gz": (gzip.compress(whole[:-1] + b" " * 500_000)[:-300], "EOFError"),
        "latin1.json.gz": (
            gzip.compress('{"text": "café"}\n'.encode("latin-1") + lines[0]),
            "line 1: is not UTF-8: invalid continuation byte at byte 13",
        ),
        "long.json.gz": (
            gzip.compress(b'{"text": "' + b"x" * 50_000_000 + b'"}\n' + lines[1], compresslevel=1),
            "line 1: has 50,000,013 bytes, more than 33,554,432",
        ),
        "empty.json.gz": (b"", "EOFError: the file is empty"),
        "zip.json.gz": (ENCRYPTED_ZIP, "BadGzipFile: Not a gzipped file (b'PK')"),
        "surrogate.json.gz": (gzip.compress(b'{"text": "\\ud800"}\n'), "surrogates not allowed"),
        "list.json.gz": (gzip.compress(b"[1]\n"), "line 1: is no JSON object"),
    }
    for name, (content, _) in damage.items():
        (folder / name).write_bytes(content)
    return {name: said for name, (_, said) in damage.items()}


def wet(path: Path, pages: Sequence[tuple[str, Sequence[str]]]) -> Path:
    """Write a WET file of pages: an address, and lines of which the first is the title."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 10\r\n\r\na: crawl\r\n\r\n")
        for url, lines in pages:
            body = "\n".join(lines)
            file.write(
                f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: {url}\r\n"
                f"WARC-Date: 2019-03-18T00:00:00Z\r\nWARC-Record-ID: <urn:{url}>\r\n"
                f"Content-Length: {len(body.encode())}\r\n\r\n{body}\n\n"
            )
    return path


def unigram_arpa(path: Path, counts: dict[str, int]) -> dict[str, float]:
    """Write a KenLM model of words by their counts; return their log10 probabilities."""
    total = sum(counts.values())
    logs = {word: math.log10(count / total) for word, count in counts.items()}
    words = {"<unk>": -6.0, "<s>": -99.0, **logs}
    unigrams = [f"{log:.6f}\t{word}\t0" for word, log in words.items()]  # backed off to for nothing
    # KenLM wants a bigram, such as no text has.
    lines = ["\\data\\", f"ngram 1={len(words)}", "ngram 2=1", "", "\\1-grams:", *unigrams]
    lines += ["", "\\2-grams:", "-1\t<s> </s>", "", "\\end\\", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return logs


def warc(path: Path, pages: Sequence[tuple[str, int, str, str]], members: bool = True) -> Path:
    """Write a WARC file of responses: address, status, type and body.

    members: whether each record is compressed by itself, as the crawlers have it.
    """
    records = [b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 4\r\n\r\na: b\r\n\r\n"]
    for url, status, kind, body in pages:
        http = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n\r\n{body}".encode()
        head = (
            f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
            f"WARC-Date: 2019-03-18T00:00:00Z\r\nWARC-Record-ID: <urn:{url}>\r\n"
            "Content-Type: application/http;msgtype=response\r\n"
            f"Content-Length: {len(http)}\r\n\r\n"
        )
        records.append(head.encode() + http + b"\r\n\r\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = records if members else [b"".join(records)]
    path.write_bytes(b"".join(map(gzip.compress, parts)))
    return path
