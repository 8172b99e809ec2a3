"""Google Cloud Storage on loopback, in memory: what the libraries here ask of its JSON API.

    https://cloud.google.com/storage/docs/json_api/v1

The package gcp-storage-emulator knows no preconditions on an object's generation, on which
TensorStore's checkpoints rest, refuses nothing and counts nothing.
"""

import contextlib
import dataclasses
import datetime
import email
import email.policy
import itertools
import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

REASONS = {
    HTTPStatus.NOT_FOUND: "The specified bucket does not exist.",
    HTTPStatus.FORBIDDEN: "me@x.iam.gserviceaccount.com does not have access.",
}
PAGE = 100  # names in an answer to a list, so that readers have to turn pages


@dataclasses.dataclass(frozen=True)
class Object:
    content: bytes
    generation: int
    updated: str


@dataclasses.dataclass(frozen=True)
class Upload:
    """A request that brought an object."""

    name: str
    size: int


class Refused(Exception):
    """Ends a request with a status."""

    def __init__(self, status: HTTPStatus):
        self.status = status


class Withheld(Exception):
    """Ends a request without an answer, for as long as its client waits for one."""


class StorageEmulator(ThreadingHTTPServer):
    """Serves the buckets that it is made with until its block ends."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *buckets: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets: dict[str, dict[str, Object]] = {name: {} for name in buckets}
        self.forbidden: set[str] = set()  # buckets whose every request is refused
        self.read_only: set[str] = set()  # those that can only be read
        self.nameless: set[str] = set()  # those whose objects are open, but not what they are
        self.uploads: list[Upload] = []
        self.held: str | None = None  # a part of a name: its upload is neither done nor answered
        self.reached = threading.Event()  # by such an upload
        self.sessions: dict[str, tuple[str, dict[str, str], bytes]] = {}  # resumable uploads
        self.generations = itertools.count(1)
        self.lock = threading.RLock()

    def __enter__(self) -> "StorageEmulator":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.shutdown()
        self.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that lead the libraries of a process here, without credentials."""
        url = f"http://127.0.0.1:{self.server_port}"
        return {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

    def put(self, bucket: str, name: str, content: bytes) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self.lock:
            self.buckets[bucket][name] = Object(content, next(self.generations), now)

    def copy_in(self, bucket: str, prefix: str, directory: Path) -> None:
        """Put all files of a local directory."""
        for file in filter(Path.is_file, directory.rglob("*")):
            self.put(bucket, f"{prefix}/{file.relative_to(directory)}", file.read_bytes())

    def handle_error(self, request, client_address) -> None:
        """Say nothing of clients that were killed in the middle of a request."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet, or each waits 40 ms for an acknowledgement

    @property
    def storage(self) -> StorageEmulator:
        assert isinstance(self.server, StorageEmulator)
        return self.server

    def log_message(self, format: str, *args) -> None:
        pass

    def do(self) -> None:
        """Answer one request."""
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query, True).items()}
        self.body = self._read_body()
        try:
            with self.storage.lock:
                self._route([unquote(part) for part in url.path.strip("/").split("/")])
        except Refused as e:
            message = REASONS.get(e.status, e.status.phrase)
            error = {"error": {"code": e.status, "message": message}}
            self._answer(json.dumps(error).encode(), e.status)
        except Withheld:
            self.close_connection = True
            self.connection.recv(1)  # returns when the client is gone

    do_GET = do_POST = do_PUT = do_DELETE = do

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, parts: list[str]) -> None:
        """Find what a path asks for: [upload|download/]storage/v1/b/BUCKET/o[/NAME[/VERB/...]]."""
        sending = parts[0] == "upload"
        if sending or parts[0] == "download":
            parts = parts[1:]
        if parts[:3] != ["storage", "v1", "b"] or len(parts) < 4:
            raise Refused(HTTPStatus.NOT_IMPLEMENTED)
        bucket = parts[3]
        if bucket in self.storage.forbidden:
            raise Refused(HTTPStatus.FORBIDDEN)
        if bucket in self.storage.read_only and self.command != "GET":
            raise Refused(HTTPStatus.FORBIDDEN)
        if bucket not in self.storage.buckets:
            raise Refused(HTTPStatus.NOT_FOUND)
        match [self.command, *parts[4:]]:
            case ["GET"] if bucket in self.storage.nameless:
                raise Refused(HTTPStatus.FORBIDDEN)
            case ["GET"]:
                self._answer_json({"kind": "storage#bucket", "name": bucket})
            case ["POST", "o"] if sending:
                self._insert(bucket)
            case ["PUT" | "POST", "o", session] if sending:
                self._continue(session)
            case ["GET", "o"]:
                self._list(bucket)
            case ["GET", "o", name]:
                self._get(bucket, name)
            case ["DELETE", "o", name]:
                self._found(bucket, name)
                del self.storage.buckets[bucket][name]
                self._answer(b"", HTTPStatus.NO_CONTENT)
            case ["POST", "o", name, "moveTo", "o", target]:
                found = self._found(bucket, name)
                self._put(bucket, target, found.content, {})
                del self.storage.buckets[bucket][name]
                self._answer_json(self._metadata(bucket, target))
            case ["POST", "o", name, "rewriteTo", "b", other, "o", target]:
                self._put(other, target, self._found(bucket, name).content, self.query)
                self._answer_json({"done": True, "resource": self._metadata(other, target)})
            case _:
                raise Refused(HTTPStatus.NOT_IMPLEMENTED)

    # Writing

    def _insert(self, bucket: str) -> None:
        """Take an object, whole or the announcement of one."""
        name, content = self.query.get("name", ""), self.body
        if self.query["uploadType"] == "multipart":
            kind = self.headers["Content-Type"].encode()
            message = email.message_from_bytes(
                b"Content-Type: " + kind + b"\n\n" + self.body, policy=email.policy.HTTP
            )
            about, _ = message.iter_parts()
            name = json.loads(about.get_content())["name"]
            content = _second_part(self.body, message.get_boundary() or "")
        elif self.query["uploadType"] == "resumable":
            name = name or json.loads(self.body)["name"]
            session = f"session-{next(self.storage.generations)}"
            self.storage.sessions[session] = (name, self.query, b"")
            host = self.headers["Host"]
            location = f"http://{host}/upload/storage/v1/b/{bucket}/o/{session}?bucket={bucket}"
            self._answer(b"", HTTPStatus.OK, {"Location": location})
            return
        self._put(bucket, name, content, self.query)
        self._answer_json(self._metadata(bucket, name))

    def _continue(self, session: str) -> None:
        """Take the next bytes of a resumable upload: the object is there when it has all."""
        if session not in self.storage.sessions:
            raise Refused(HTTPStatus.NOT_FOUND)
        name, query, content = self.storage.sessions[session]
        content += self.body
        total = self.headers.get("Content-Range", "/*").rpartition("/")[2]
        if total == "*" or len(content) < int(total):
            self.storage.sessions[session] = (name, query, content)
            sent = {"Range": f"bytes=0-{len(content) - 1}"} if content else {}
            self._answer(b"", HTTPStatus.PERMANENT_REDIRECT, sent)
            return
        del self.storage.sessions[session]
        self._put(self.query["bucket"], name, content, query)
        self._answer_json(self._metadata(self.query["bucket"], name))

    def _put(self, bucket: str, name: str, content: bytes, query: dict[str, str]) -> None:
        self._check_generation(self.storage.buckets[bucket].get(name), query)
        if self.storage.held and self.storage.held in name:
            self.storage.reached.set()
            raise Withheld
        self.storage.put(bucket, name, content)
        self.storage.uploads.append(Upload(name, len(content)))

    def _check_generation(self, found: Object | None, query: dict[str, str]) -> None:
        generation = found.generation if found else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise Refused(HTTPStatus.PRECONDITION_FAILED)
        if int(query.get("ifGenerationNotMatch", -1)) == generation:
            reading = self.command == "GET"
            raise Refused(HTTPStatus.NOT_MODIFIED if reading else HTTPStatus.PRECONDITION_FAILED)

    # Reading

    def _found(self, bucket: str, name: str) -> Object:
        found = self.storage.buckets[bucket].get(name)
        if found is None:
            raise Refused(HTTPStatus.NOT_FOUND)
        self._check_generation(found, self.query)
        return found

    def _get(self, bucket: str, name: str) -> None:
        found = self._found(bucket, name)
        if self.query.get("alt") != "media":
            self._answer_json(self._metadata(bucket, name))
            return
        headers = {"x-goog-generation": str(found.generation)}
        content, size = found.content, len(found.content)
        asked = self.headers.get("Range")
        if asked is None:
            self._answer(content, HTTPStatus.OK, headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._answer(content[start:stop], HTTPStatus.PARTIAL_CONTENT, headers)

    def _list(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        start, end = self.query.get("startOffset", ""), self.query.get("endOffset")
        entries = {}  # an object's name, or what many begin with -> whether it is an object
        for name in self.storage.names(bucket, prefix):
            if name >= start and (not end or name < end):
                cut = name.find(delimiter, len(prefix)) if delimiter else -1
                entries[name if cut < 0 else name[: cut + 1]] = cut < 0
        after = self.query.get("pageToken", "")
        left = [name for name in entries if name > after]
        page = left[: min(PAGE, int(self.query.get("maxResults", PAGE)))]
        answer: dict = {
            "kind": "storage#objects",
            "items": [self._metadata(bucket, name) for name in page if entries[name]],
            "prefixes": [name for name in page if not entries[name]],
        }
        if len(page) < len(left):
            answer["nextPageToken"] = page[-1]
        self._answer_json(answer)

    def _metadata(self, bucket: str, name: str) -> dict[str, str]:
        found = self.storage.buckets[bucket][name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(found.content)),
            "generation": str(found.generation),
            "metageneration": "1",
            "updated": found.updated,
            "timeCreated": found.updated,
            "contentType": "application/octet-stream",
        }

    def _answer_json(self, value: dict) -> None:
        self._answer(
            json.dumps(value).encode(), HTTPStatus.OK, {"Content-Type": "application/json"}
        )

    def _answer(self, content: bytes, status: HTTPStatus, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            self.wfile.write(content)


def _second_part(body: bytes, boundary: str) -> bytes:
    """Return the content of the second part of a multipart message, byte for byte."""
    _, _, second, *_ = body.split(b"--" + boundary.encode())
    for end in (b"\r\n", b"\n"):
        head, found, content = second.partition(end + end)
        if found:
            return content.removesuffix(end)
    raise Refused(HTTPStatus.BAD_REQUEST)


@contextlib.contextmanager
def refusing(emulator: StorageEmulator, bucket: str) -> Iterator[None]:
    """Refuse to write to a bucket in a block."""
    emulator.read_only.add(bucket)
    try:
        yield
    finally:
        emulator.read_only.discard(bucket)
