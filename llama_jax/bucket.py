"""The files of buckets, gs://, through gcsfs, and those of them that grow."""

import errno
import functools
import logging
from typing import Any

import aiohttp
import fsspec
import fsspec.asyn
from etils import epath
from gcsfs.core import GCSFileSystem

from llama_jax.config import UserError

ANSWER_SECONDS = 10.0  # for a bucket's first answer
REQUEST_SECONDS = 60.0  # for one of several tries, later
PIECE_BYTES = 2**18
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints what it raises, in pages


class Files(GCSFileSystem):
    """gcsfs, which here keeps no listings, since other processes write too, and whose errors are
    OSErrors of one line."""

    def __init__(self, **options):
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        super().__init__(use_listings_cache=False, requests_timeout=timeout, **options)

    def mkdir(self, path: str, *args: Any, **options: Any) -> None:
        """Make nothing: a bucket has no directories, and none of its own is made by mistake."""

    async def _request(self, method: str, path: str, *args: Any, **options: Any):
        where = f"gs://{'/'.join(args)}" if args else path
        try:
            return await super()._request(method, path, *args, **options)
        except FileNotFoundError as e:
            raise FileNotFoundError(errno.ENOENT, "no such bucket or object", where) from e
        except OSError as e:
            head, _, reason = str(e).partition("\n")
            # gcsfs looks for the word, and the reason names the permission that is missing.
            raise OSError(f"Forbidden: {reason}") if head.startswith("Forbidden") else e from e
        except Exception as e:  # of aiohttp, requests, google.auth and gcsfs itself
            reason = (str(e).splitlines() or [type(e).__name__])[0]
            raise OSError(errno.EIO, reason, where) from e


def _get(path: str, name: str, **query: Any) -> None:
    files: Any = fsspec.filesystem("gcs")
    call = files._call, "GET", path, name
    fsspec.asyn.sync(files.loop, *call, timeout=ANSWER_SECONDS, **query)


@functools.cache
def check(name: str, field: str) -> None:
    """Raise UserError unless the bucket lets us list what is in it."""
    try:
        _get("b/{}/o", name, maxResults=1)
    except FileNotFoundError as e:
        raise UserError(f"{field}: there is no bucket gs://{name}; create it first") from e
    except TimeoutError as e:
        late = f"gave no answer within {ANSWER_SECONDS:g} s; is there a network?"
        raise UserError(f"{field}: gs://{name} {late}") from e
    except OSError as e:
        raise UserError(f"{field}: gs://{name} cannot be read: {e.strerror or e}") from e


def check_kind(path: epath.Path) -> None:
    """Raise OSError unless the bucket says of which kind it is: orbax asks before it deletes a
    checkpoint, and not every role that may write may ask (storage.buckets.get)."""
    _get("b/{}", path.parts[2])


class Growing:
    """A file that grows, which none in a bucket can: its pieces are FILE.000000, FILE.000001, ...

    A piece is put anew as it grows, until it has PIECE_BYTES: so a flush sends what is new and at
    the most so much again, however long the file is. A put is whole or not there at all.
    """

    def __init__(self, path: epath.Path):
        self.path, self.number, self.content, self.unsent = path, 0, bytearray(), False

    def write(self, data: str | bytes) -> None:
        self.content += data.encode() if isinstance(data, str) else data
        self.unsent = True

    def flush(self) -> None:
        """Put what was written. Raises OSError."""
        if not self.unsent:
            return
        piece = self.path.with_name(f"{self.path.name}.{self.number:06d}")
        piece.write_bytes(bytes(self.content))
        self.unsent = False
        if len(self.content) >= PIECE_BYTES:
            self.number, self.content = self.number + 1, bytearray()

    close = flush


class EventFiles:
    """How tensorboardX opens files in a bucket."""

    @staticmethod
    def open(path: str) -> Growing:
        return Growing(epath.Path(path))
