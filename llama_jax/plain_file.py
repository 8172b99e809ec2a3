"""Files that a user names: none is opened on which a reader would wait for ever."""

import os
from typing import TypeVar

from llama_jax.config import UserError

AnyPath = TypeVar("AnyPath", bound=os.PathLike)


def plain(path: AnyPath) -> AnyPath:
    """Return the path. Raise UserError if a FIFO, a socket or a device is there."""
    found = os.fspath(path)  # etils takes all these for files
    if os.path.exists(found) and not (os.path.isfile(found) or os.path.isdir(found)):
        raise UserError(f"{path}: is neither a file nor a directory; expected a file")
    return path
