"""A store of objects for tests: real files behind it, signatures checked, and wrong on purpose where it is told to be.

    store = FakeStore(root, keeps_conditions=False, faults={"PUT": ["lost"]})
    store.requests      what was asked, in order: "PUT", "CREATE", "PART" ...
    store.uploads       those that nobody has completed or aborted

Faults, one for each next request of a kind: `cut` (the connection ends before anything is done), `lost` (after it is
done), `torn` (a part is cut, and there with garbage in it), `hang`, `half` (of a body), `slow_down`, `internal`,
`skew`, `expired`, `no_upload`, `error_in_200`, `full`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape, unescape

import crc32c

EMPTY_PART = "\u2400"  # stands on the disk for the empty part of a key with two slashes
ERRORS = {
    "slow_down": (503, "SlowDown"),
    "internal": (500, "InternalError"),
    "skew": (403, "RequestTimeTooSkewed"),
    "expired": (400, "ExpiredToken"),
    "no_upload": (404, "NoSuchUpload"),
    "error_in_200": (200, "InternalError"),
    "odd": (400, "IncompleteBody"),
    "unknown": (400, "InvalidArgument"),
    "full": (507, "InsufficientStorage"),
    "denied": (403, "AccessDenied"),
    "too_many": (429, "TooManyRequests"),
    "conflict": (409, "OperationAborted"),
    "slow": (408, "RequestTimeout"),
}


class FakeStore:
    """One bucket, `bucket`. `root` holds its objects as files."""

    host = "127.0.0.1"
    bucket = "lab"
    access_key, secret_key = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"

    def __init__(
        self,
        root: Path,
        *,
        region: str = "us-east-1",
        keeps_conditions: bool = True,  # on PUT; on Complete with the next one, too
        keeps_complete_conditions: bool | None = None,
        keeps_read_conditions: bool = True,
        sends_ranges: bool = True,
        tags_objects: bool = True,  # in answers that tell their facts
        tags_parts: bool = True,  # with the MD5 of their content
        checks_tags: bool = True,  # of the parts that are completed
        checksums: str = "checked",  # or ignored, refused; on parts, too
        md5: str = "checked",  # or ignored
        keeps_sizes: bool = True,  # x-amz-mp-object-size
        token: str = "",
        page: int = 1000,
        faults: Mapping[str, Sequence[str]] | None = None,
        tls: Any = None,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.region = region
        self.keeps_conditions = keeps_conditions
        self.keeps_complete = keeps_conditions if keeps_complete_conditions is None else keeps_complete_conditions
        self.keeps_read_conditions = keeps_read_conditions
        self.sends_ranges = sends_ranges
        self.tags_objects = tags_objects
        self.tags_parts = tags_parts
        self.checks_tags = checks_tags
        self.checksums = checksums
        self.md5 = md5
        self.damages: set[str] = set()  # kinds of requests whose body comes with a wrong byte
        self.keeps_sizes = keeps_sizes
        self.token = token
        self.page = page
        self.faults = {kind: list(faults_) for kind, faults_ in (faults or {}).items()}
        self.lock = threading.Lock()  # guards what follows, and the files
        self.requests: list[str] = []
        self.heads: list[dict[str, str]] = []  # their headers
        self.refusals: list[str] = []  # of signatures
        self.uploads: dict[str, dict[str, Any]] = {}
        self.kept: dict[str, tuple[str, dict[str, str]]] = {}  # by key: tag of the content, metadata
        self._digests: dict[tuple[Any, ...], str] = {}  # by version of a file
        self.closing = threading.Event()
        self._server = _Server((self.host, 0), type("Handler", (_Handler,), {"store": self}))
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )  # by the first read, in the connection's own thread
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="store")
        self._thread.start()
        self.scheme = "http" if tls is None else "https"

    def settings(self, **more: str) -> dict[str, str]:
        """Return the settings of a server of type s3."""
        return {
            "ENDPOINT": f"{self.scheme}://{self.host}:{self.port}",
            "BUCKET": self.bucket,
            "ACCESS_KEY": self.access_key,
            "SECRET_KEY": self.secret_key,
            **more,
        }

    def close(self) -> None:
        """End it with all its connections."""
        self.closing.set()
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()

    # --- files

    def place(self, key: str) -> Path:
        """Return where an object lies."""
        return self.root.joinpath(*[part or EMPTY_PART for part in key.split("/")])

    def objects(self) -> list[str]:
        """Return all keys."""
        found = [path.relative_to(self.root).parts for path in self.root.rglob("*") if path.is_file()]
        return sorted(("/".join("" if part == EMPTY_PART else part for part in parts) for parts in found), key=_bytes)

    def facts(self, key: str) -> dict[str, str] | None:
        """Return the headers of an object; somebody may have changed its file meanwhile."""
        try:
            place = self.place(key)
            found = place.stat()
            version = (place, found.st_ino, found.st_size, found.st_ctime_ns)
            digest = self._digests.get(version) or f'"{hashlib.md5(place.read_bytes()).hexdigest()}"'
        except OSError:
            return None
        if time.time() - found.st_ctime > 1:  # it may be written again within the same moment
            self._digests[version] = digest
        etag, meta = self.kept.get(key, ("", {}))
        told = meta.get("x-amz-meta-mtime")
        if etag.partition(" ")[0] != digest or (told and int(float(told)) != int(found.st_mtime)):
            etag, meta = digest, {}
        return {
            "content-length": str(found.st_size),
            "etag": etag.rpartition(" ")[2],
            "last-modified": formatdate(found.st_mtime, usegmt=True),
            **meta,
        }

    def keep(self, key: str, content: bytes, meta: dict[str, str], etag: str = "") -> str:
        """Store an object."""
        place = self.place(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = self.root.parent / f"{uuid.uuid4().hex}.new"
        partial.write_bytes(content)
        digest = f'"{hashlib.md5(content).hexdigest()}"'
        if told := meta.get("x-amz-meta-mtime"):
            try:
                os.utime(partial, (float(told), float(told)))
            except OverflowError:
                meta = {name: value for name, value in meta.items() if name != "x-amz-meta-mtime"}
        partial.replace(place)
        self.kept[key] = (f"{digest} {etag}" if etag else digest, meta)
        return etag or digest


def _bytes(key: str) -> bytes:
    return key.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[Any] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def end_connections(self) -> None:
        for connection in list(self.connections):
            try:
                connection.shutdown(2)
            except OSError:
                """It has ended already."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that cuts its connection is no error."""


class _Cut(Exception):
    """Ends the connection."""


class _Refused(Exception):
    def __init__(self, status: int, code: str, **headers: str) -> None:
        super().__init__(code)
        self.status, self.code, self.headers = status, code, headers


class _Handler(BaseHTTPRequestHandler):
    store: FakeStore
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_arguments: Any) -> None:
        """Nothing is printed."""

    def handle(self) -> None:
        try:
            super().handle()
        except (_Cut, ConnectionError, TimeoutError, ValueError, OSError):
            self.close_connection = True
        finally:
            self.server.connections.discard(self.connection)  # type: ignore[attr-defined]

    def _serve(self) -> None:
        path, _, text = self.path.partition("?")
        self.query = dict(parse_qsl(text, keep_blank_values=True))
        self.given = {name.lower(): value for name, value in self.headers.items()}
        self.body = self.rfile.read(int(self.given.get("content-length", 0)))
        if len(self.body) < int(self.given.get("content-length", 0)):
            raise _Cut
        if self.body and self._kind() in self.store.damages:
            self.body = self.body[:-1] + bytes([self.body[-1] ^ 1])
        bucket, _, key = path.removeprefix("/").partition("/")
        self.key = unquote(key)
        store, self.kind = self.store, self._kind()
        with store.lock:
            store.requests.append(self.kind)
            store.heads.append(self.given)
            fault = store.faults[self.kind].pop(0) if store.faults.get(self.kind) else ""
        self.half = fault == "half"
        if fault == "cut":
            raise _Cut
        if fault == "torn":
            self._upload()["parts"][int(self.query["partNumber"])] = os.urandom(len(self.body))
            raise _Cut
        if fault == "hang":
            store.closing.wait(30)
            raise _Cut
        if fault == "garbled":
            self._answer(200, {}, b"<html><p>Welcome!</html>")
            return
        try:
            if fault in ERRORS:
                raise _Refused(*ERRORS[fault])
            self._check_signature(path, text)
            if bucket != store.bucket:
                raise _Refused(404, "NoSuchBucket")
            with store.lock:
                answer = getattr(self, f"_{self.kind.lower()}")()
            if fault == "lost":
                raise _Cut
            self._answer(*answer)
        except _Refused as refusal:
            text = f"<Error><Code>{refusal.code}</Code><Message>as asked for</Message></Error>"
            if "region" in refusal.headers:
                text = text.replace("</Error>", f"<Region>{refusal.headers.pop('region')}</Region></Error>")
            self._answer(refusal.status, refusal.headers, text.encode())

    def _kind(self) -> str:
        asked, method = self.query, self.command
        if method == "PUT":
            if "partNumber" in asked:
                return "PART"
            return "COPY" if "x-amz-copy-source" in self.given else "PUT"
        if method == "POST":
            return "CREATE" if "uploads" in asked else "COMPLETE"
        if method == "DELETE" and "uploadId" in asked:
            return "ABORT"
        if method == "GET" and "uploadId" in asked:
            return "PARTS"
        if method == "GET" and not self.key:
            return "UPLOADS" if "uploads" in asked else "LIST"
        return method

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "content-length" not in headers and status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.half else body)
        if self.half:
            raise _Cut

    def _check_signature(self, path: str, query: str) -> None:
        """Sign the request by ourselves, and compare."""
        store, given = self.store, self.given
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, SignedHeaders=([^,]+), "
            r"Signature=([0-9a-f]{64})",
            given.get("authorization", ""),
        )
        if found is None:
            raise _Refused(403, "AccessDenied")
        access, day, region, names, signature = found.groups()
        if region != store.region:
            raise _Refused(400, "AuthorizationHeaderMalformed", region=store.region)
        if access != store.access_key:
            raise _Refused(403, "InvalidAccessKeyId")
        if store.token != given.get("x-amz-security-token", ""):
            raise _Refused(400, "ExpiredToken")
        payload = given["x-amz-content-sha256"]
        if payload != "UNSIGNED-PAYLOAD" and payload != hashlib.sha256(self.body).hexdigest():
            raise _Refused(400, "XAmzContentSHA256Mismatch")
        lines = [f"{name}:{' '.join(given[name].split())}" for name in names.split(";")]
        form = "\n".join([self.command, path, query, *lines, "", names, payload])
        scope = f"{day}/{region}/s3/aws4_request"
        digest = hashlib.sha256(form.encode()).hexdigest()
        key = f"AWS4{store.secret_key}".encode()
        for part in (day, region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), "sha256").digest()
        text = f"AWS4-HMAC-SHA256\n{given['x-amz-date']}\n{scope}\n{digest}"
        if not hmac.compare_digest(hmac.new(key, text.encode(), "sha256").hexdigest(), signature):
            store.refusals.append(form)
            raise _Refused(403, "SignatureDoesNotMatch")
        if any(name.startswith("x-amz-") and name not in names.split(";") for name in given):
            raise _Refused(403, "AccessDenied")

    # --- objects

    def _facts(self) -> dict[str, str]:
        facts = self.store.facts(self.key)
        if facts is None:
            raise _Refused(404, "NoSuchKey")
        wanted = self.given.get("if-match", facts["etag"])
        if self.store.keeps_read_conditions and wanted != facts["etag"]:
            raise _Refused(412, "PreconditionFailed")
        return facts

    def _told(self) -> dict[str, str]:
        """Return the facts as they are told."""
        return {name: value for name, value in self._facts().items() if name != "etag" or self.store.tags_objects}

    def _head(self) -> tuple[Any, ...]:
        return (200, self._told() if self.key else {})

    def _get(self) -> tuple[Any, ...]:
        facts, place = self._told(), self.store.place(self.key)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.given.get("range", ""))
        if asked and self.store.sends_ranges:
            size_bytes = int(facts["content-length"])
            start, end = int(asked[1]), int(asked[2] or size_bytes - 1) + 1
            facts |= {"content-range": f"bytes {start}-{end - 1}/{size_bytes}", "content-length": str(end - start)}
            with place.open("rb") as file:
                file.seek(start)
                return 206, facts, file.read(end - start)
        return 200, facts, place.read_bytes()

    def _meta(self) -> dict[str, str]:
        kept = ("x-amz-meta-", "x-amz-storage-class", "x-amz-server-side")
        return {name: value for name, value in self.given.items() if name.startswith(kept)}

    def _require_condition(self, *, keeps: bool) -> None:
        if not keeps:
            return
        facts = self.store.facts(self.key)
        if self.given.get("if-none-match") == "*" and facts is not None:
            raise _Refused(412, "PreconditionFailed")
        if wanted := self.given.get("if-match"):
            if facts is None:
                raise _Refused(404, "NoSuchKey")
            if facts["etag"] != wanted:
                raise _Refused(412, "PreconditionFailed")

    def _checked(self) -> dict[str, str]:
        md5 = self.given.get("content-md5")
        if md5 and self.store.md5 == "checked" and md5 != base64.b64encode(hashlib.md5(self.body).digest()).decode():
            raise _Refused(400, "BadDigest")
        told = self.given.get("x-amz-checksum-crc32c")
        if told is None or self.store.checksums == "ignored":
            return {}
        if self.store.checksums == "refused":
            raise _Refused(501, "NotImplemented")
        if told != base64.b64encode(crc32c.crc32c(self.body).to_bytes(4, "big")).decode():
            raise _Refused(400, "BadDigest")
        return {"x-amz-checksum-crc32c": told}

    def _put(self) -> tuple[Any, ...]:
        checked = self._checked()
        self._require_condition(keeps=self.store.keeps_conditions)
        return 200, {"etag": self.store.keep(self.key, self.body, self._meta()), **checked}

    def _copy(self) -> tuple[Any, ...]:
        source = unquote(self.given["x-amz-copy-source"]).removeprefix(f"/{self.store.bucket}/")
        facts = self.store.facts(source)
        if facts is None:
            raise _Refused(404, "NoSuchKey")
        if self.given.get("x-amz-copy-source-if-match", facts["etag"]) != facts["etag"]:
            raise _Refused(412, "PreconditionFailed")
        meta = {name: value for name, value in facts.items() if name.startswith("x-amz-")}
        etag = self.store.keep(self.key, self.store.place(source).read_bytes(), meta)
        return 200, {}, f"<CopyObjectResult><ETag>{escape(etag)}</ETag></CopyObjectResult>".encode()

    def _delete(self) -> tuple[Any, ...]:
        self.store.place(self.key).unlink(missing_ok=True)
        self.store.kept.pop(self.key, None)
        return (204, {})

    # --- uploads

    def _upload(self) -> dict[str, Any]:
        upload = self.store.uploads.get(self.query["uploadId"])
        if upload is None or upload["key"] != self.key:
            raise _Refused(404, "NoSuchUpload")
        return upload

    def _create(self) -> tuple[Any, ...]:
        upload_id = f"{uuid.uuid4().hex}/+="
        self.store.uploads[upload_id] = {"key": self.key, "meta": self._meta(), "parts": {}, "at": time.time()}
        text = f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
        return 200, {}, text.encode()

    def _part(self) -> tuple[Any, ...]:
        upload, number = self._upload(), int(self.query["partNumber"])
        checked = self._checked()
        body = self.body
        if source := self.given.get("x-amz-copy-source"):
            start, end = map(int, self.given["x-amz-copy-source-range"].removeprefix("bytes=").split("-"))
            key = unquote(source).removeprefix(f"/{self.store.bucket}/")
            body = self.store.place(key).read_bytes()[start : end + 1]
        upload["parts"][number] = body
        etag = self._tag(body)
        text = f"<CopyPartResult><ETag>{escape(etag)}</ETag></CopyPartResult>" if source else ""
        return 200, {"etag": etag, **checked}, text.encode()

    def _tag(self, body: bytes) -> str:
        return f'"{hashlib.md5(body if self.store.tags_parts else body + b"!").hexdigest()}"'

    def _complete(self) -> tuple[Any, ...]:
        upload = self._upload()
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", self.body)]
        content = b"".join(upload["parts"][number] for number in numbers)
        tags = [unescape(tag.decode(), {"&quot;": '"'}) for tag in re.findall(rb"<ETag>(.*?)</ETag>", self.body)]
        if self.store.checks_tags and tags != [self._tag(upload["parts"][number]) for number in numbers]:
            raise _Refused(400, "InvalidPart")
        wanted = self.given.get("x-amz-mp-object-size")
        if self.store.keeps_sizes and wanted and int(wanted) != len(content):
            raise _Refused(400, "InvalidRequest")
        if any(len(upload["parts"][number]) < 5 << 20 for number in numbers[:-1]):
            raise _Refused(400, "EntityTooSmall")
        self._require_condition(keeps=self.store.keeps_complete)
        etag = self.store.keep(
            self.key, content, upload["meta"], f'"{hashlib.md5(content).hexdigest()}-{len(numbers)}"'
        )
        del self.store.uploads[self.query["uploadId"]]
        text = f"<CompleteMultipartUploadResult><ETag>{escape(etag)}</ETag></CompleteMultipartUploadResult>"
        return 200, {}, b"\n\n" + text.encode()

    def _abort(self) -> tuple[Any, ...]:
        self._upload()
        del self.store.uploads[self.query["uploadId"]]
        return (204, {})

    # --- listings

    def _list(self) -> tuple[Any, ...]:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        found: list[tuple[str, str]] = []
        for key in self.store.objects():
            if key.startswith(prefix):
                head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                entry = ("Prefix", prefix + head + mark) if mark else ("Key", key)
                if entry not in found:
                    found.append(entry)
        start = int(self.query.get("continuation-token", 0))
        page = found[start : start + min(self.store.page, int(self.query.get("max-keys", 1000)))]
        lines = [
            f"<Contents><Key>{quote(name)}</Key></Contents>"
            if kind == "Key"
            else f"<CommonPrefixes><Prefix>{quote(name)}</Prefix></CommonPrefixes>"
            for kind, name in page
        ]
        if start + len(page) < len(found):
            lines.append(f"<NextContinuationToken>{start + len(page)}</NextContinuationToken>")
        space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        kind = "<EncodingType>url</EncodingType>" if self.query.get("encoding-type") == "url" else ""
        return 200, {}, f"<ListBucketResult {space}>{kind}{''.join(lines)}</ListBucketResult>".encode()

    def _parts(self) -> tuple[Any, ...]:
        parts, behind = self._upload()["parts"], int(self.query.get("part-number-marker", 0))
        numbers = [number for number in sorted(parts) if number > behind]
        page = numbers[: self.store.page]
        text = "".join(
            f"<Part><PartNumber>{one}</PartNumber><ETag>{self._tag(parts[one])}</ETag><Size>{len(parts[one])}</Size></Part>"
            for one in page
        )
        if len(page) < len(numbers):
            text += f"<IsTruncated>true</IsTruncated><NextPartNumberMarker>{page[-1]}</NextPartNumberMarker>"
        return 200, {}, f"<ListPartsResult>{text}</ListPartsResult>".encode()

    def _uploads(self) -> tuple[Any, ...]:
        prefix = self.query.get("prefix", "")
        lines = [
            f"<Upload><Key>{quote(one['key'])}</Key><UploadId>{upload_id}</UploadId></Upload>"
            for upload_id, one in self.store.uploads.items()
            if one["key"].startswith(prefix)
        ]
        text = f"<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{''.join(lines)}"
        return 200, {}, f"<ListMultipartUploadsResult>{text}</ListMultipartUploadsResult>".encode()


def empty(root: Path) -> None:
    """Remove all that is in a folder."""
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


for _method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
    setattr(_Handler, f"do_{_method}", _Handler._serve)
