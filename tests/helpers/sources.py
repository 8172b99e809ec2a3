"""What a source makes of one file, alone: its reader, and its rules one after the other."""

import bz2
import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from llama_jax.data.sources.source import Bad, Source


class Prepared:
    """Documents by id, the rule that dropped each other one, and what is bad, in its order."""

    def __init__(self, source: Source, path: Path):
        self.documents, self.dropped, self.bad = {}, {}, []
        rules = [step for step in source.steps if callable(step)]
        try:
            for found in source.read(path):
                if isinstance(found, Bad):
                    self.bad.append(found)
                    continue
                assert found.id not in self.documents | self.dropped
                self.documents[found.id] = found
                for rule in rules:
                    text = rule(found)
                    if text is None:
                        self.dropped[found.id] = rule.__name__
                        del self.documents[found.id]
                        break
                    found.text = text
        except Exception as e:  # which ends a file, and is bad
            self.bad.append(Bad("the rest", f"{type(e).__name__}: {e}"))

    @property
    def texts(self) -> dict[str, str]:
        return {id: document.text for id, document in self.documents.items()}

    @property
    def text(self) -> str:
        """The text of the only document."""
        assert (self.bad, self.dropped) == ([], {})
        (text,) = self.texts.values()
        return text

    @property
    def reasons(self) -> str:
        return "\n".join(f"{bad.where}: {bad.reason}" for bad in self.bad)


def tar(members: Mapping[str, str | bytes | tarfile.TarInfo]) -> bytes:
    """Return a tar of files by name; a TarInfo is a link or the like."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def cut(compressed: bytes) -> bytes:
    """Return what a transfer that broke off leaves."""
    return compressed[: len(compressed) * 2 // 3]


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress}
