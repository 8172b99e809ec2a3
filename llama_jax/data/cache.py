"""Corpus -> token store: each seqio Task tokenized once, by one process per shard file."""

import concurrent.futures
import dataclasses
import datetime
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from llama_jax.config import DataConfig, UserError
from llama_jax.data import documents, ledger, store, tokenizer
from llama_jax.data.noise import without_noise
from llama_jax.data.spill import Spill
from llama_jax.process import Terminated, child_command, end_with_parent


@dataclasses.dataclass(frozen=True)
class _Job:
    """One part of the corpus that is to become one array of the store."""

    data: DataConfig
    source: str
    split: str
    number: int
    part: documents.Part
    tokenizer_sha256: str

    @property
    def path(self) -> str:
        return store.shard_path(self.source, self.split, self.number)


def ensure(data: DataConfig) -> int:
    """Prepare data.store unless it is there, in a process of its own, as that loads TensorFlow.

    Returns its exit status, 0 if all is there; if not, it has said why on stderr.
    """
    if store.exists(data):
        return 0
    print(f"writing the token store {data.store}, once", file=sys.stderr)
    command = child_command("llama_jax.data.cache")
    request = json.dumps(dataclasses.asdict(data))
    status = subprocess.run(command, input=request, text=True, check=False).returncode
    if status < 0:
        print(f"llama-jax cache: ended by {signal.Signals(-status).name}", file=sys.stderr)
        return 128 - status
    return status


def cache(data: DataConfig, num_workers: int, machine: tuple[int, int] = (0, 1)) -> None:
    """Tokenize every source of the mixture into data.store, a shard file at a time per worker.

    What is already there is verified and kept; what is damaged is made again. The same corpus and
    tokenizer give the same bytes with any number of workers, in one go or in several.

    machine: (i, n): of the shards, counted over the mixture, only each k with k % n == i; whoever
    finds all shards there writes the indices. Raises UserError for a file that cannot be read, and
    for a store that was made from another corpus or tokenizer.
    """
    vocabulary = tokenizer.load(data.tokenizer)
    _check_tokenizer(data.tokenizer)
    tokenizer_sha256 = tokenizer.sha256(data.tokenizer)
    jobs = {
        (source, split): [
            _Job(data, source, split, number, part, tokenizer_sha256)
            for number, part in enumerate(documents.parts(data, source, split))
        ]
        for source, _ in data.mixture
        for split in store.SPLITS
    }
    for (source, split), group in jobs.items():
        known = store.find_split(data.store, store.index_path(source, split))
        if known and [shard.file for shard in known.shards] != [job.part.name for job in group]:
            raise _other_origin(group[0], store.index_path(source, split))
    number, num_machines = machine
    every = [job for group in jobs.values() for job in group]
    shards = _run(every[number::num_machines], num_workers)
    others = {job.path: _find(job) for job in every if job.path not in shards}
    if missing := [path for path, shard in others.items() if shard is None]:
        listed = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        print(
            f"{len(missing)} of {len(every)} shards are not there yet: {listed}; the last of the "
            f"{num_machines} machines to end completes the store"
        )
        return
    shards |= {path: shard for path, shard in others.items() if shard}
    for (source, split), group in jobs.items():
        index = store.Split(
            vocab_size=vocabulary.vocab_size,
            bos_id=vocabulary.bos_id,
            eos_id=vocabulary.eos_ids[0],
            shards=tuple(shards[job.path] for job in group),
        )
        if not index.num_tokens:
            num_train = sum(shards[job.path].num_documents for job in jobs[source, "train"])
            raise _no_text(group[0], num_train)
        store.write_json(data.store, store.index_path(source, split), dataclasses.asdict(index))


def _find(job: _Job) -> store.Shard | None:
    """Return the record of a shard that another machine makes; None if it is not there yet."""
    record = f"{job.path}.json"
    shard = store.find_shard(job.data.store, record)
    made_with = (job.part.name, job.tokenizer_sha256)
    if shard and (shard.file, shard.tokenizer_sha256) != made_with:
        raise _other_origin(job, record)
    return shard


def _no_text(job: _Job, num_train: int) -> UserError:
    part = job.part
    if part.held_out is not None and job.split == "validation":
        return UserError(
            f"data.held_out: got {part.held_out:g}, which holds out none of the {num_train:,} "
            f"documents of source {job.source!r}, which has no validation files; set it higher"
        )
    return UserError(
        f"data.corpus: {part.directory} has no text in its {job.split} files; add some, or take "
        f"source {job.source!r} out of data.mixture"
    )


def _check_tokenizer(path: str) -> None:
    """Raise UserError for a tokenizer that nothing trained could be exported with.

    One that loses text may be wanted all the same, as the models in use that merge spaces are.
    """
    tokenizer.check_kind(tokenizer.read(path), f"data.tokenizer: {path}")
    if losses := tokenizer.losses(tokenizer.load(path)):
        print(
            f"warning: data.tokenizer: {path} loses text, and so will the model: "
            f"{'; '.join(losses)}",
            file=sys.stderr,
        )


def _run(jobs: list[_Job], num_workers: int) -> dict[str, store.Shard]:
    """Return the finished shards by path, and print a line about each as it is done."""
    start, sizes = time.monotonic(), {job.path: job.part.num_bytes() for job in jobs}
    shards: dict[str, store.Shard] = {}
    for job, shard, note in _results(jobs, num_workers):
        shards[job.path] = shard
        done_bytes = sum(sizes[path] for path in shards)
        rate = (time.monotonic() - start) / max(done_bytes, 1)
        left = datetime.timedelta(seconds=round(rate * (sum(sizes.values()) - done_bytes)))
        total = sum(shard.num_tokens for shard in shards.values())
        print(
            f"{job.path}: {shard.num_documents:,} documents, {shard.num_tokens:,} tokens, {note}; "
            f"{len(shards)}/{len(jobs)} shards, {total:,} tokens, {left} left",
            flush=True,
        )
    return shards


def _results(jobs: list[_Job], num_workers: int) -> Iterator[tuple[_Job, store.Shard, str]]:
    if num_workers == 1:
        yield from map(_cache_shard, jobs)
        return
    spawn = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    pool = concurrent.futures.ProcessPoolExecutor(
        min(num_workers, len(jobs)), spawn, initializer=end_with_parent, initargs=(os.getpid(),)
    )
    try:
        futures = [pool.submit(_cache_shard, job) for job in jobs]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except concurrent.futures.BrokenExecutor as e:
        raise UserError(
            f"cache: one of the {num_workers} workers was killed, perhaps for lack of memory; "
            "finished shards are kept: run it again with fewer workers"
        ) from e
    except (KeyboardInterrupt, Terminated):
        for worker in multiprocessing.active_children():  # or the end would wait for their shards
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _cache_shard(job: _Job) -> tuple[_Job, store.Shard, str]:
    """Make one shard unless it is there and whole; return a note for the progress line, too."""
    start = time.monotonic()
    origin = (job.part.name, job.part.sha256(), job.tokenizer_sha256)
    record = f"{job.path}.json"
    shard = store.find_shard(job.data.store, record)
    if shard:
        if (shard.file, shard.file_sha256, shard.tokenizer_sha256) != origin:
            raise _other_origin(job, record)
        if _is_whole(job, shard):
            return job, shard, "verified"
    shard, num_blank = _write_shard(job, origin)
    store.write_json(job.data.store, record, dataclasses.asdict(shard))
    note = f"{shard.num_tokens / (time.monotonic() - start):,.0f} tokens/s"
    return job, shard, note + (f", {num_blank:,} blank left out" if num_blank else "")


def _write_shard(job: _Job, origin: tuple[str, str, str]) -> tuple[store.Shard, int]:
    """Write a shard's tokens and documents; return its record, and the number of blank documents.

    Both lie in files without a name until they are written in their order: in memory are a piece
    of the store and a few numbers of each document.
    """
    from llama_jax.data import tasks  # not needed, and slow to import, if all is there already

    dtype = np.dtype("u2" if tokenizer.load(job.data.tokenizer).vocab_size <= 2**16 else "u4")
    num_read = 0

    def texts() -> Iterator[tuple[documents.Document, str]]:
        nonlocal num_read
        for text in documents.read_places(job.part):
            num_read += 1
            yield text

    with Spill(dtype) as tokens, Spill(np.dtype("u1")) as labels:
        for document in tasks.tokenize(job.data, job.source, texts()):
            tokens.append(document.tokens)
            labels.append(np.frombuffer(ledger.label(document.place, document.id), np.uint8))
        lengths, label_lengths = tokens.lengths(), labels.lengths()
        num_tokens, order = int(lengths.sum()), _order(job.path, len(lengths))
        pieces = tokens.pieces(order, store.FILE_TOKENS)
        sha256 = store.write_pieces(job.data.store, job.path, num_tokens, dtype, pieces)
        pieces = labels.pieces(order, store.FILE_TOKENS)
        documents_sha256 = ledger.write(
            job.data, job.path, lengths[order], label_lengths[order], pieces
        )
    shard = store.Shard(*origin, len(lengths), num_tokens, sha256, documents_sha256)
    return shard, num_read - len(lengths)


def _order(path: str, num_documents: int) -> np.ndarray:
    """Return the random, fixed order of a shard's documents: int64 [num_documents].

    By hash: unlike a generator's, it is the same with every version of numpy.
    """
    keys = np.empty(num_documents, ">u8")  # the first 8 bytes order as all 32 do
    for i in range(num_documents):
        keys[i] = int.from_bytes(hashlib.sha256(f"{path}/{i}".encode()).digest()[:8])
    return np.argsort(keys, kind="stable")


def _is_whole(job: _Job, shard: store.Shard) -> bool:
    arrays = {job.path: shard.sha256, ledger.documents_path(job.path): shard.documents_sha256}
    return all(store.is_whole(job.data.store, path, sha256) for path, sha256 in arrays.items())


def _other_origin(job: _Job, path: str) -> UserError:
    return UserError(
        f"data.store: {job.data.store}/{path} was not made from {job.part.directory} as it is now "
        f"with data.tokenizer={job.data.tokenizer!r}; set data.store to another directory, or "
        "delete this one"
    )


def main() -> None:
    """Prepare the store of the DataConfig that stdin holds as JSON."""
    end_with_parent(int(sys.argv[1]))
    fields = json.load(sys.stdin)
    fields |= {name: tuple(map(tuple, fields[name])) for name in ("mixture", "sources")}
    try:
        with without_noise():
            cache(DataConfig(**fields), num_workers=1)
    except UserError as e:
        print(f"llama-jax cache: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:  # a disk that fills up
        print(f"llama-jax cache: {e}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:  # the parent says so
        sys.exit(130)


if __name__ == "__main__":
    main()
