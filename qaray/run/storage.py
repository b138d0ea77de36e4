"""Files on any file system, written whole or not at all.

A path is local or a URI that pyarrow or fsspec knows. On a local disk a file is written beside its place and renamed;
an object store has no rename, but its objects appear only when the upload is complete.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import re
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from qaray.config import ConfigError

THREADS = 16  # that wait for a store together
SPOOLED = 1 << 26  # bytes of an upload that are kept in memory before a local file takes them
PAUSES = (0.5, 2.0, 8.0)  # seconds before a store that was away for a moment is asked again
# What may be over in a moment. None: object stores give no number; what they refuse for good is asked for in vain.
PASSING = frozenset([
    None, errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EREMOTEIO,
])  # fmt: skip
COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}  # by the ending of a file's name
TEMPORARY = ".tmp-"  # prefix of a file that is being written: never read, removed by the next run

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")


class StoreFailed(OSError):
    """The store went on failing, in a way that says nothing of what it holds."""


def patient(work: Callable[P, T]) -> Callable[P, T]:
    """``work``, done again after a pause where the store failed in a way that may pass. It must be whole or nothing."""

    @functools.wraps(work)
    def again(*args: P.args, **options: P.kwargs) -> T:
        for pause in PAUSES:
            try:
                return work(*args, **options)
            except OSError as error:
                if not passes(error):
                    raise
            time.sleep(pause)
        return work(*args, **options)

    return again


def passes(error: OSError) -> bool:
    """Whether a store that failed so may be in order again in a moment."""
    return error.errno in PASSING and not isinstance(error, (FileNotFoundError, PermissionError, StoreFailed))


class _Steady(io.RawIOBase):
    """A file's bytes at any place. Reads that the store fails are done again, from where they began.

    Raises StoreFailed where it goes on failing, so that this is not taken for damage of the content.
    """

    def __init__(self, place: Location) -> None:
        self._place, self._at = place, 0
        self._file: pa.NativeFile | None = None
        self._size = self._asked(pa.NativeFile.size)

    def _asked(self, question: Callable[[pa.NativeFile], T]) -> T:
        """What the file answers."""

        @patient
        def ask() -> T:
            self._file = self._file or self._place.fs.open_input_file(self._place.path)
            try:
                return question(self._file)
            except OSError:
                self._file = None  # a connection that broke is no use any more
                raise

        try:
            return ask()
        except OSError as error:
            if passes(error):
                raise StoreFailed(f"cannot read {self._place}: {error.strerror or error}") from error
            raise

    def read(self, number: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if number is None or number < 0 else min(number, left)
        content = bytes(self._asked(lambda file: file.read_at(wanted, self._at))) if wanted else b""
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file = None
        super().close()


def in_threads(work: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
    """``work`` of each item, in order, some ahead of the reader: what waits for a store waits together."""
    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque[Future[T]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@dataclass(frozen=True)
class Location:
    """A file system and a path on it. Picklable: tasks carry it to other machines."""

    fs: pafs.FileSystem
    path: str

    @classmethod
    def of(cls, uri: str) -> Location:
        """Raises ConfigError for a URI scheme that neither pyarrow nor fsspec knows."""
        if not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", uri):
            return cls(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri)))
        try:
            return cls(*pafs.FileSystem.from_uri(uri))
        except (pa.ArrowInvalid, NotImplementedError):
            import fsspec

            try:
                fs, path = fsspec.core.url_to_fs(uri)
            except (ValueError, ImportError) as error:
                raise ConfigError(f"cannot open {uri}: {error}") from None
            return cls(pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path)

    def __truediv__(self, name: str) -> Location:
        return Location(self.fs, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @patient
    def info(self) -> pafs.FileInfo:
        return self.fs.get_file_info(self.path)

    def exists(self) -> bool:
        return self.info().type != pafs.FileType.NotFound

    @patient
    def infos(self, suffix: str = "", recursive: bool = False) -> list[pafs.FileInfo]:
        """Files below this folder, sorted by path; hidden, temporary and underscore names left out."""
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        found = [
            info
            for info in self.fs.get_file_info(selector)
            if info.type == pafs.FileType.File
            and info.path.endswith(suffix)
            and not any(p[:1] in "._" for p in info.path[len(self.path) :].split("/") if p)
        ]
        return sorted(found, key=lambda info: str(info.path))

    def files(self, suffix: str = "", recursive: bool = False) -> list[Location]:
        """The same as locations."""
        return [Location(self.fs, info.path) for info in self.infos(suffix, recursive)]

    @patient
    def folders(self, suffix: str = "") -> list[Location]:
        """Folders in this folder whose names end so."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        found = self.fs.get_file_info(selector)
        return [
            Location(self.fs, info.path)
            for info in found
            if info.type == pafs.FileType.Directory and info.path.endswith(suffix)
        ]

    @patient
    def make_folder(self) -> None:
        self.fs.create_dir(self.path, recursive=True)

    @patient
    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_file(self.path)

    def remove_folder(self) -> None:
        """Removes the folder, if there is one, and all that is in it."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_dir(self.path)

    def remove_temporary(self, recursive: bool = False) -> None:
        """Removes what a killed writer left in this folder."""
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        for info in self.fs.get_file_info(selector):
            if info.base_name.startswith(TEMPORARY):
                Location(self.fs, info.path).remove()

    def open_raw(self) -> io.RawIOBase:
        """The file's bytes as they are, at any place. Reading is patient, and raises StoreFailed in the end."""
        return _Steady(self)

    def open(self) -> pa.NativeFile:
        """A stream of the file's bytes, decompressed by its ending, read as patiently."""
        ending = os.path.splitext(self.path)[1].lower()
        return pa.input_stream(self.open_raw(), compression=COMPRESSION.get(ending))

    @contextlib.contextmanager
    def write(self) -> Iterator[IO[bytes]]:
        """A binary stream whose content appears under this path when the block ends without an error."""
        with self._write_local() if self.is_local else self._upload() as stream:
            yield stream

    @contextlib.contextmanager
    def _write_local(self) -> Iterator[IO[bytes]]:
        """Written beside its place, then renamed."""
        folder, name = self.path.rsplit("/", 1)
        beside = Location(self.fs, f"{folder}/{TEMPORARY}{uuid.uuid4().hex}-{name}")
        self.fs.create_dir(folder, recursive=True)
        try:
            with self.fs.open_output_stream(beside.path, compression=None) as stream:
                yield stream
            os.replace(beside.path, self.path)
        except BaseException:
            beside.remove()
            raise

    @contextlib.contextmanager
    def _upload(self) -> Iterator[IO[bytes]]:
        """Written to a local file, then uploaded: an upload cannot be called off once it has begun."""
        with tempfile.SpooledTemporaryFile(max_size=SPOOLED) as spool:
            yield spool
            spool.seek(0)
            with self.fs.open_output_stream(self.path, compression=None) as stream:
                while chunk := spool.read(1 << 22):
                    stream.write(chunk)

    @patient
    def write_table(self, table: pa.Table) -> None:
        """``table`` as a Parquet file (zstd)."""
        with self.write() as stream:
            pq.write_table(table, stream, compression="zstd")

    @patient
    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        with self.fs.open_input_file(self.path) as stream:
            return pq.ParquetFile(stream).read(columns=columns)

    @patient
    def count_rows(self) -> int:
        """Rows of a Parquet file; its data are not read."""
        with self.fs.open_input_file(self.path) as stream:
            return int(pq.ParquetFile(stream).metadata.num_rows)

    @patient
    def write_bytes(self, content: bytes) -> None:
        with self.write() as stream:
            stream.write(content)

    def write_json(self, value: Any) -> None:
        self.write_bytes(json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n")

    @patient
    def read_json(self) -> Any:
        """The file's JSON value, None where there is no file. Raises ValueError on broken JSON."""
        try:
            with self.fs.open_input_stream(self.path, compression=None) as stream:
                return json.loads(stream.read())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{self} is corrupt: {error}") from None


def expand(pattern: str, suffixes: tuple[str, ...]) -> list[Location]:
    """The files that a path, folder, glob or URI names, sorted. Raises FileNotFoundError if there is none."""
    is_uri = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", pattern) is not None
    wild = "*[" if is_uri else "*?["  # a URI's question mark begins its query
    if any(c in pattern for c in wild) and (is_uri or not Location.of(pattern).exists()):
        files = _glob(pattern)
        if not files:
            raise FileNotFoundError(f"no file matches {pattern}")
        return files
    place = Location.of(pattern)
    kind = place.info().type
    if kind == pafs.FileType.File:
        return [place]
    if kind == pafs.FileType.Directory:
        files = [f for f in place.files(recursive=True) if f.path.lower().endswith(suffixes)]
        if not files:
            raise FileNotFoundError(f"no {', '.join(suffixes)} file in the folder {pattern}")
        return files
    raise FileNotFoundError(f"no such file or folder: {pattern}")


def _glob(pattern: str) -> list[Location]:
    """Matches of a glob: its fixed part is listed and filtered. ``*`` stays within a folder, ``**`` does not."""
    from fsspec.utils import glob_translate

    place = Location.of(pattern)
    parts = place.path.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    folder = Location(place.fs, "/".join(parts[:fixed]) or "/")
    wanted = re.compile(glob_translate(place.path))
    return [f for f in folder.files(recursive=True) if wanted.fullmatch(f.path)]
