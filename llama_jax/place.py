"""Places that a user names: a local path, or gs://BUCKET/PATH, whose bucket has to answer.

Through bucket.py, wherever this is imported: etils would load TensorFlow for gs://.
"""

import os
import re

import fsspec
from etils import epath

from llama_jax.config import UserError

# https://cloud.google.com/storage/docs/buckets#naming
IN_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(/.*)?")
os.environ["EPATH_USE_TF"] = "false"  # etils reads it when it first meets gs://
fsspec.register_implementation("gcs", "llama_jax.bucket.Files", clobber=True)


def place(text: str, field: str) -> epath.Path:
    """Return the path that `text` names. Raise UserError, which begins with `field`, for an address
    of another kind, and for a bucket that is not there or does not answer."""
    if "://" not in text and not text.startswith("gs:"):
        return epath.Path(text)
    match = IN_BUCKET.fullmatch(text)
    if match is None:
        raise UserError(
            f"{field}: got {text!r}, expected a local path, or gs://BUCKET/PATH with your bucket"
        )
    try:
        from llama_jax import bucket  # whose packages only gs:// needs
    except ImportError as e:
        raise UserError(
            f"{field}: got {text!r}, but gcsfs is not installed ({e}); run `pip install gcsfs`"
        ) from e
    bucket.check(match[1], field)
    return epath.Path(text)


def in_bucket(path: os.PathLike | str) -> bool:
    return os.fspath(path).startswith("gs://")


def absolute(path: epath.Path) -> epath.Path:
    """Return the path from the root on, which one in a bucket is already."""
    return path if in_bucket(path) else path.resolve()
