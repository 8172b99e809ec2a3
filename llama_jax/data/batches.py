"""Token store -> global batch n, a pure function of (store, DataConfig, n) on any number of hosts.

The text of a source is cut into windows of seq_len tokens. Each epoch of a source visits every
window once, in an order of its own; the mixture interleaves the sources, and batch n is the rows
from n * batch_size on. Grain keeps no state: the position in the data is a number, see schedule.py.
"""

import collections
import fractions
import hashlib
import itertools
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import numpy as np

from llama_jax.config import BATCH_KEYS, DataConfig, UserError
from llama_jax.data import store
from llama_jax.sharding import check_host_memory

log = logging.getLogger(__name__)

Row = dict[str, np.ndarray]  # BATCH_KEYS -> int32 [T]
IGNORE = -1  # the target of a token after which nothing is predicted

BATCHES_AHEAD = 3
READ_THREADS = 16


class Windows:
    """Random access to one split of one source: row k is made of tokens [k * T, k * T + T]."""

    def __init__(self, data: DataConfig, source: str, split: str):
        """Open a split. Raises UserError if it is missing, damaged or shorter than one window."""
        self.tokens = store.Tokens(data, source, split)
        self.num_windows = (len(self.tokens) - 1) // data.seq_len
        if self.num_windows < 1:
            raise UserError(
                f"data.seq_len: got {data.seq_len}, but source {source} holds {len(self.tokens)} "
                f"{split} tokens; expected fewer than that, or more text for the source"
            )
        self.data, self.source, self.index = data, source, self.tokens.index

    def __len__(self) -> int:
        return self.num_windows

    def __getitem__(self, window: int) -> Row:
        """Read a row. Raises UserError naming source and file if the store is damaged there."""
        start = window * self.data.seq_len
        tokens = self.tokens.read(start, start + self.data.seq_len + 1)
        across = self.data.attend_across_documents
        return make_row(tokens.astype(np.int32), self.index.bos_id, self.index.eos_id, across)


def make_row(tokens: np.ndarray, bos_id: int, eos_id: int, attend_across_documents: bool) -> Row:
    """Make BATCH_KEYS -> int32 [T] from T + 1 consecutive tokens.

    segments count the documents of the row from 1 and positions restart in each, unless the whole
    row is to be one segment. A document's first token is given, never a target.
    """
    inputs, targets = tokens[:-1], tokens[1:]
    index = np.arange(len(inputs), dtype=np.int32)
    starts, begins = index == 0, targets == bos_id
    if bos_id == eos_id:
        begins &= inputs == eos_id  # of two that follow each other, the first is an end
    if not attend_across_documents:
        starts[1:] |= begins[:-1]
    return {
        "tokens": inputs,
        "targets": np.where(begins, np.int32(IGNORE), targets),
        "segments": np.cumsum(starts, dtype=np.int32),
        "positions": index - np.maximum.accumulate(np.where(starts, index, 0)),
    }


def padding(data: DataConfig) -> Row:
    """Make a row of segment 0, and with nothing to predict."""
    row = {key: np.zeros(data.seq_len, np.int32) for key in BATCH_KEYS}
    return row | {"targets": np.full(data.seq_len, IGNORE, np.int32)}


class TrainRows:
    """Random access to the endless sequence of training rows, the same on every host."""

    def __init__(self, data: DataConfig):
        """Open the sources. Raises UserError as Windows does."""
        self.data, self.left_out, self.lock = data, 0, threading.Lock()
        self.windows = [Windows(data, source, "train") for source, _ in data.mixture]
        orders = [
            grain.MapDataset.range(len(windows))
            .shuffle(seed=shuffle_seed(data.seed, windows.source))
            .repeat()
            .map(lambda window, windows=windows: (windows, window))
            for windows in self.windows
        ]
        mixture = Interleave([rate for _, rate in data.mixture])
        self.order = grain.MapDataset.select_from_datasets(orders, mixture)

    def locate(self, row: int) -> tuple[str, int]:
        """Return the source and window that training row `row` shows. Reads nothing."""
        windows, window = self._find(row)
        return windows.source, window

    def __getitem__(self, row: int) -> Row:
        """Read a row; one of padding for the first data.damaged_rows that cannot be read."""
        windows, window = self._find(row)
        try:
            return windows[window]
        except UserError as e:
            with self.lock:
                if self.left_out >= self.data.damaged_rows:
                    raise
                self.left_out += 1
                count = f"{self.left_out} of {self.data.damaged_rows} that may be"
            log.warning("row %d of the data is left out (%s): %s", row, count, e)
            return padding(self.data)

    def _find(self, row: int) -> tuple[Windows, int]:
        found = self.order[row]
        assert found is not None  # that would be a filtered row, and nothing is filtered
        return found


def shuffle_seed(seed: int, source: str) -> int:
    """Return the seed of the order of a source's windows."""
    # By hash, because Grain shuffles epoch e with seed + e: seeds 0 and 1 would share their orders.
    return int.from_bytes(hashlib.sha256(f"{seed}/{source}".encode()).digest()[:4], "little")


class Interleave(grain.transforms.DatasetSelectionMap):
    """Row g of a mixture -> (source, number of earlier rows of that source).

    The rule of grain.MapDataset.mix, in exact arithmetic: mix() rounds 0.7/0.2/0.07/0.03 to
    multiples of a hundredth of the smallest. Of any g rows, a source has g * rate give or take
    about one.
    """

    def __init__(self, rates: Sequence[float]):
        exact = [fractions.Fraction(str(rate)) for rate in rates]  # 0.045 is 45/1000
        unit = math.lcm(*(rate.denominator for rate in exact))
        self.weights = [int(rate * unit) for rate in exact]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> tuple[int, int]:
        total = sum(self.weights)
        rows, rows_and_this = row, row + 1  # of the sources not looked at yet
        for source, weight in enumerate(self.weights):
            others = rows * (total - weight) // total
            others_and_this = rows_and_this * (total - weight) // total
            if others == others_and_this:
                return source, rows - others
            rows, rows_and_this, total = others, others_and_this, total - weight
        raise AssertionError(row)


def describe(data: DataConfig, number: int) -> list[str]:
    """Return a line per row of a global batch: where its text is in the store."""
    rows = TrainRows(data)
    lines = []
    for r in range(data.batch_size):
        source, window = rows.locate(number * data.batch_size + r)
        start = window * data.seq_len
        lines.append(f"row {r}: {source} window {window}, tokens {start}..{start + data.seq_len}")
    return lines


def train_batches(
    data: DataConfig,
    micro_batches: int,
    sharding: jax.sharding.Sharding,
    numbers: Iterable[int],
) -> Iterator[dict[str, jax.Array]]:
    """Yield the global batches with these numbers: BATCH_KEYS -> int32 [A, B, T].

    A is micro_batches, B is data.batch_size // A; row r of the batch is at [r // B, r % B]. Each
    process reads the rows of its own devices, a few batches ahead in a thread that ends with the
    iterator. Raises UserError if the store is missing, damaged or too short for data.seq_len.
    """
    rows = TrainRows(data)
    shape = (micro_batches, data.batch_size // micro_batches, data.seq_len)
    first_rows = (number * data.batch_size for number in numbers)
    return _read_ahead(rows.__getitem__, first_rows, shape, sharding)


def validation_batches(
    data: DataConfig, source: str, max_rows: int, batch_size: int, sharding: jax.sharding.Sharding
) -> Iterator[dict[str, jax.Array]]:
    """Yield a source's first max_rows held-out windows: BATCH_KEYS -> int32 [batch_size, T].

    The last batch is filled up with rows of segment 0 and targets -1. Raises as train_batches.
    """
    windows = Windows(data, source, "validation")
    num_rows = min(max_rows, len(windows))

    def read(row: int) -> Row:
        return windows[row] if row < num_rows else padding(data)

    first_rows = iter(range(0, num_rows, batch_size))
    return _read_ahead(read, first_rows, (batch_size, data.seq_len), sharding)


def check_held_out(data: DataConfig, max_rows: int) -> None:
    """Read what evaluation will. Raises UserError if it is missing, damaged or too short."""
    with ThreadPoolExecutor(READ_THREADS) as readers:
        for source, _ in data.mixture:
            windows = Windows(data, source, "validation")
            rows = range(min(max_rows, len(windows)))
            collections.deque(readers.map(windows.__getitem__, rows), maxlen=0)


def _read_ahead(
    read: Callable[[int], Row],
    first_rows: Iterator[int],
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
) -> Iterator[dict[str, jax.Array]]:
    num_bytes = BATCHES_AHEAD * len(BATCH_KEYS) * 4 * math.prod(shape)
    check_host_memory(num_bytes, f"data.batch_size: {BATCHES_AHEAD} batches of {shape} tokens")
    readers, builder = ThreadPoolExecutor(READ_THREADS), ThreadPoolExecutor(1)

    def build(first_row: int) -> dict[str, jax.Array]:
        indices = sharding.addressable_devices_indices_map(shape).values()
        here = [index for index in indices if index is not None]  # as JAX types them
        batch = read_slices(shape, here, lambda r: read(first_row + r), readers)
        return {
            key: jax.make_array_from_callback(shape, sharding, array.__getitem__)
            for key, array in batch.items()
        }

    pending: collections.deque = collections.deque()
    try:
        while True:
            wanted = itertools.islice(first_rows, BATCHES_AHEAD - len(pending))
            pending.extend(builder.submit(build, first_row) for first_row in wanted)
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        builder.shutdown(cancel_futures=True)
        readers.shutdown()


def read_slices(
    shape: tuple[int, ...],
    indices: Iterable[tuple[slice, ...]],
    read: Callable[[int], Row],
    readers: ThreadPoolExecutor,
) -> Row:
    """Return BATCH_KEYS -> int32 `shape` [..., T], with the rows that `indices` touch.

    The other rows belong to other processes: they are zero pages that cost no memory.
    """
    row_numbers = np.arange(math.prod(shape[:-1])).reshape(shape[:-1])
    needed = np.unique(np.concatenate([row_numbers[index[:-1]].ravel() for index in indices]))
    batch = {key: np.zeros((row_numbers.size, shape[-1]), np.int32) for key in BATCH_KEYS}
    for number, row in zip(needed, readers.map(read, needed.tolist()), strict=True):
        for key in BATCH_KEYS:
            batch[key][number] = row[key]
    return {key: array.reshape(shape) for key, array in batch.items()}
