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
from etils import epath

from llama_jax.config import DataConfig, UserError
from llama_jax.data import documents, store, tokenizer
from llama_jax.data.noise import without_noise
from llama_jax.process import Terminated, child_command, end_with_parent


@dataclasses.dataclass(frozen=True)
class _Job:
    """One shard file of the corpus that is to become one array of the store."""

    data: DataConfig
    source: str
    split: str
    number: int
    file: epath.Path
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


def cache(data: DataConfig, num_workers: int) -> None:
    """Tokenize every source of the mixture into data.store, a shard file at a time per worker.

    What is already there is verified and kept; what is damaged is made again. The same corpus and
    tokenizer give the same bytes with any number of workers, in one go or in several. The tokens
    of one shard file must fit in memory. Raises UserError for a file that cannot be read, and for
    a store that was made from another corpus or tokenizer.
    """
    vocabulary = tokenizer.load(data.tokenizer)
    _check_tokenizer(data.tokenizer)
    tokenizer_sha256 = tokenizer.sha256(data.tokenizer)
    jobs = {
        (source, split): [
            _Job(data, source, split, number, file, tokenizer_sha256)
            for number, file in enumerate(documents.files(data, source, split))
        ]
        for source, _ in data.mixture
        for split in store.SPLITS
    }
    for (source, split), group in jobs.items():
        known = store.find_split(data.store, store.index_path(source, split))
        if known and [shard.file for shard in known.shards] != [job.file.name for job in group]:
            raise _other_origin(group[0], store.index_path(source, split))
    shards = _run([job for group in jobs.values() for job in group], num_workers)
    for (source, split), group in jobs.items():
        index = store.Split(
            vocab_size=vocabulary.vocab_size,
            bos_id=vocabulary.bos_id,
            eos_id=vocabulary.eos_ids[0],
            shards=tuple(shards[job.path] for job in group),
        )
        if not index.num_tokens:
            raise UserError(
                f"data.corpus: {group[0].file.parent} has no text in its {split} files; add some, "
                f"or take source {source!r} out of data.mixture"
            )
        store.write_json(data.store, store.index_path(source, split), dataclasses.asdict(index))


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
    start, sizes = time.monotonic(), {job.path: job.file.stat().length for job in jobs}
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
    origin = (job.file.name, _sha256(job.file), job.tokenizer_sha256)
    record = f"{job.path}.json"
    shard = store.find_shard(job.data.store, record)
    if shard:
        if (shard.file, shard.file_sha256, shard.tokenizer_sha256) != origin:
            raise _other_origin(job, record)
        if _is_whole(job, shard):
            return job, shard, "verified"
    tokens, num_documents, num_blank = _tokenize(job)
    sha256 = store.write_tokens(job.data.store, job.path, tokens)
    shard = store.Shard(*origin, num_documents, len(tokens), sha256)
    store.write_json(job.data.store, record, dataclasses.asdict(shard))
    note = f"{len(tokens) / (time.monotonic() - start):,.0f} tokens/s"
    return job, shard, note + (f", {num_blank:,} blank left out" if num_blank else "")


def _tokenize(job: _Job) -> tuple[np.ndarray, int, int]:
    """Return a shard file's token ids, its documents in a random, fixed order, their number, and
    that of the blank ones."""
    from llama_jax.data import tasks  # not needed, and slow to import, if all is there already

    dtype = np.uint16 if tokenizer.load(job.data.tokenizer).vocab_size <= 2**16 else np.uint32
    found, num_blank = tasks.tokenize(job.data, job.source, job.file, dtype)
    # Ordered by hash: unlike a generator's, this order is the same with every version of numpy.
    keys = [hashlib.sha256(f"{job.path}/{i}".encode()).digest() for i in range(len(found))]
    order = sorted(range(len(found)), key=keys.__getitem__)
    tokens = np.concatenate([np.zeros(0, dtype), *(found[i] for i in order)])
    return tokens, len(found), num_blank


def _is_whole(job: _Job, shard: store.Shard) -> bool:
    try:
        arrays = [
            store.open_array(job.data.store, path) for path in (job.path, f"{job.path}.crc32")
        ]
        tokens, checksums = (array.result().read().result() for array in arrays)
    except ValueError:
        return False
    same = np.array_equal(store.block_checksums(tokens), checksums)
    return same and hashlib.sha256(checksums.data).hexdigest() == shard.sha256


def _other_origin(job: _Job, path: str) -> UserError:
    return UserError(
        f"data.store: {job.data.store}/{path} was not made from {job.file.parent} as it is now "
        f"with data.tokenizer={job.data.tokenizer!r}; set data.store to another directory, or "
        "delete this one"
    )


def _sha256(path: epath.Path) -> str:
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                hasher.update(block)
    except OSError as e:
        raise UserError(f"{path}: cannot be read; {e.strerror or e}") from e
    return hasher.hexdigest()


def main() -> None:
    """Prepare the store of the DataConfig that stdin holds as JSON."""
    end_with_parent(int(sys.argv[1]))
    fields = json.load(sys.stdin)
    mixture = tuple((source, rate) for source, rate in fields.pop("mixture"))
    try:
        with without_noise():
            cache(DataConfig(mixture=mixture, **fields), num_workers=1)
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
