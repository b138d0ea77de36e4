"""Files on any file system, written atomically.

A path is local or a URI that pyarrow or fsspec supports. A local file is written under a temporary name in the same
folder, synced to disk and renamed; an object store has no rename, but an object appears only when its upload is
complete. Parquet files carry checksums of their pages, which are verified when they are read.
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

from qaray.run.errors import Damaged
from qaray.run.stores import URI, open_store

THREADS = 16  # concurrent storage requests
LONGEST_JSON = 1 << 28  # bytes of a JSON file of a run
ROW_GROUP = 1 << 28  # bytes of a row group, about: pyarrow cannot read nested strings of more than 2 GiB back
SPOOLED = 1 << 26  # bytes of an upload that are kept in memory; a larger one goes to a local temporary file
PAUSES = (0.5, 2.0, 8.0)  # seconds to wait before each retry of a storage request
# Error numbers that may be transient. None: object stores set no number, so their permanent errors are retried too.
PASSING = frozenset([
    None, errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EREMOTEIO,
])  # fmt: skip
COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}  # by file extension
BROKEN = re.compile("thrift|parquet|corrupt|checksum|crc|end of stream|decompress|zstd|flatbuffers", re.IGNORECASE)
TEMPORARY = ".tmp-"  # prefix of files that are being written: never read, removed by the next run

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")


class StoreFailed(OSError):
    """Storage kept failing. Says nothing about the content of the file."""


class NotJson(ValueError):
    """A file of ours has no valid JSON."""

    def __init__(self, file: Location, why: str) -> None:
        self.why = why
        super().__init__(f"{file} is corrupt: {why}")


class NoExclusiveCreate(Exception):
    """The file system cannot create a file only where there is none."""


def patient(work: Callable[P, T]) -> Callable[P, T]:
    """Decorator: retries ``work`` after transient storage errors, with PAUSES between attempts. It must be atomic."""

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
    """Whether a storage error may be transient."""
    return error.errno in PASSING and not isinstance(error, (FileNotFoundError, PermissionError, StoreFailed))


class _RetryingFile(io.RawIOBase):
    """Random access to a file's bytes. Failed reads are retried from their start.

    Raises StoreFailed if a read keeps failing, so that this is not mistaken for damaged content.
    """

    def __init__(self, place: Location) -> None:
        self._place, self._at = place, 0
        self._file: pa.NativeFile | None = None
        self._size = self._call(pa.NativeFile.size)

    def _call(self, operation: Callable[[pa.NativeFile], T]) -> T:
        """The result of ``operation`` on the open file, retried."""

        @patient
        def attempt() -> T:
            self._file = self._file or self._place.fs.open_input_file(self._place.path)
            try:
                return operation(self._file)
            except OSError:
                self._file = None  # the connection is broken: reopen
                raise

        try:
            return attempt()
        except OSError as error:
            if passes(error):
                raise StoreFailed(f"cannot read {self._place}: {error.strerror or error}") from error
            raise

    def read(self, number: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if number is None or number < 0 else min(number, left)
        content = bytes(self._call(lambda file: file.read_at(wanted, self._at))) if wanted else b""
        self._at += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

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
    """Yields ``work(item)`` in order. Threads work ahead of the consumer, so that storage requests overlap."""
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
    """A file system and a path on it. Picklable, for tasks on other machines."""

    fs: pafs.FileSystem
    path: str

    @classmethod
    def of(cls, uri: str) -> Location:
        """A local path or a URI, whose store must answer. Raises what ``open_store`` raises."""
        if not URI.match(uri):
            return cls(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri)))
        return cls(*open_store(uri))

    def __truediv__(self, name: str) -> Location:
        return Location(self.fs, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def within(self, folder: Location) -> str:
        """The path of a file in ``folder`` relative to it."""
        return self.path[len(folder.path.rstrip("/")) + 1 :]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @patient
    def info(self) -> pafs.FileInfo:
        return self.fs.get_file_info(self.path)

    def exists(self) -> bool:
        return self.info().type != pafs.FileType.NotFound

    @patient
    def listing(self, recursive: bool = False) -> list[pafs.FileInfo]:
        """All entries of this folder, hidden ones too, sorted by path; none if there is no folder."""
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        return sorted(self.fs.get_file_info(selector), key=lambda info: str(info.path))

    @patient
    def infos(self, suffix: str = "", recursive: bool = False) -> list[pafs.FileInfo]:
        """Files in this folder with names ending in ``suffix``, sorted by path. Skips names starting with . or _."""
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
        """The files of ``infos``, as locations."""
        return [Location(self.fs, info.path) for info in self.infos(suffix, recursive)]

    @patient
    def folders(self, suffix: str = "") -> list[Location]:
        """Subfolders whose names end in ``suffix``."""
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

    @patient
    def move_to(self, target: Location) -> None:
        """Moves the file; on an object store it is copied and removed."""
        self.fs.create_dir(target.path.rsplit("/", 1)[0], recursive=True)
        with contextlib.suppress(FileNotFoundError):
            self.fs.move(self.path, target.path)

    def remove_folder(self) -> None:
        """Removes the folder and its content, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_dir(self.path)

    def remove_temporary(self, recursive: bool = False) -> None:
        """Removes temporary files that killed writers left in this folder."""
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        for info in self.fs.get_file_info(selector):
            if info.base_name.startswith(TEMPORARY):
                Location(self.fs, info.path).remove()

    def open_raw(self) -> io.RawIOBase:
        """Opens the file for random access, without decompression. Reads are retried, then raise StoreFailed."""
        return _RetryingFile(self)

    def open(self) -> pa.NativeFile:
        """Opens the file as a stream, decompressed by its extension. Reads are retried, then raise StoreFailed."""
        ending = os.path.splitext(self.path)[1].lower()
        return pa.input_stream(self.open_raw(), compression=COMPRESSION.get(ending))

    @contextlib.contextmanager
    def write(self) -> Iterator[IO[bytes]]:
        """Opens a binary stream; the file appears under this path when the block ends without an error."""
        with self._write_local() if self.is_local else self._upload() as stream:
            yield stream

    @contextlib.contextmanager
    def _write_local(self) -> Iterator[IO[bytes]]:
        """Writes a temporary file in the same folder, then renames it."""
        folder, name = self.path.rsplit("/", 1)
        temporary = Location(self.fs, _temporary(folder, name))
        self.fs.create_dir(folder, recursive=True)
        try:
            with self.fs.open_output_stream(temporary.path, compression=None) as stream:
                yield stream
            _sync(temporary.path)
            try:
                os.replace(temporary.path, self.path)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    raise  # the temporary file is gone
                raise OSError(error.errno, error.strerror, self.path) from None
            _sync(folder)
        except BaseException:
            temporary.remove()
            raise

    def create(self, content: bytes) -> bool:
        """Writes the file whole; False if it exists. Raises NoExclusiveCreate where a store cannot tell."""
        if self.is_local:
            return self._create_local(content)
        handler = getattr(self.fs, "handler", None)
        if not isinstance(handler, pafs.FSSpecHandler):
            raise NoExclusiveCreate
        try:
            handler.fs.pipe_file(self.path, content, mode="create")
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError, ValueError):  # an fsspec store without this mode
            raise NoExclusiveCreate from None
        return True

    def _create_local(self, content: bytes) -> bool:
        """A hard link fails if the name exists, on network file systems too, and shows only a whole file."""
        folder, name = self.path.rsplit("/", 1)
        os.makedirs(folder, exist_ok=True)
        temporary = _temporary(folder, name)
        try:
            with open(temporary, "wb") as stream:
                stream.write(content)
            _sync(temporary)
            try:
                os.link(temporary, self.path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                try:
                    with open(self.path, "xb") as stream:
                        stream.write(content)
                except FileExistsError:
                    return False
                _sync(self.path)
            _sync(folder)
        finally:
            Location(self.fs, temporary).remove()
        return True

    @contextlib.contextmanager
    def _upload(self) -> Iterator[IO[bytes]]:
        """Writes to a local buffer, then uploads it: an upload cannot be cancelled once it has begun."""
        with tempfile.SpooledTemporaryFile(max_size=SPOOLED) as spool:
            yield spool
            spool.seek(0)
            with self.fs.open_output_stream(self.path, compression=None) as stream:
                while chunk := spool.read(1 << 22):
                    stream.write(chunk)

    @patient
    def write_table(self, table: pa.Table) -> None:
        """Writes ``table`` as a Parquet file (zstd)."""
        rows = None if table.nbytes <= ROW_GROUP else max(1, table.num_rows * ROW_GROUP // table.nbytes)
        with self.write() as stream:
            pq.write_table(table, stream, compression="zstd", write_page_checksum=True, row_group_size=rows)

    @patient
    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        """The table of a Parquet file of ours. Raises Damaged if it is none, or if a checksum differs."""
        with self._parquet() as file:
            table = file.read(columns=columns)
            lacking = [name for name in columns or () if name not in table.schema.names]
            if lacking:
                raise pa.ArrowInvalid(f"it has no column {lacking[0]!r}")
            return table

    @patient
    def count_rows(self) -> int:
        """Number of rows of a Parquet file, from its metadata. Raises Damaged."""
        with self._parquet() as file:
            return int(file.metadata.num_rows)

    @contextlib.contextmanager
    def _parquet(self) -> Iterator[pq.ParquetFile]:
        with self.fs.open_input_file(self.path) as stream:
            try:
                yield pq.ParquetFile(stream, page_checksum_verification=True)
            except (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowTypeError, KeyError) as error:
                raise Damaged(self, f"is damaged ({_first_line(error)})") from None
            except OSError as error:
                # pyarrow's errors of a broken page or footer have no number, nor have those of an object store.
                if error.errno is None and BROKEN.search(str(error)):
                    raise Damaged(self, f"is damaged ({_first_line(error)})") from None
                raise

    @patient
    def write_bytes(self, content: bytes) -> None:
        with self.write() as stream:
            stream.write(content)

    def write_json(self, value: Any) -> None:
        self.write_bytes(json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n")

    @patient
    def read_json(self) -> Any:
        """The file's JSON value, None if there is no file. Raises NotJson if it is none, or too long."""
        info = self.info()
        if info.type == pafs.FileType.Unknown or (info.size or 0) > LONGEST_JSON:
            raise NotJson(self, f"it is not a regular file of at most {LONGEST_JSON:,} bytes")
        try:
            with self.fs.open_input_stream(self.path, compression=None) as stream:
                return json.loads(stream.read())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise NotJson(self, str(error)) from None


def _temporary(folder: str, name: str) -> str:
    """A new path for a file that is being written, valid for any valid ``name``."""
    return f"{folder}/{TEMPORARY}{uuid.uuid4().hex}-{name[-50:]}"


def _sync(path: str) -> None:
    """Waits until a local file or folder is on disk: what is renamed or listed before may be lost by a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # a file system that cannot sync folders
            raise
    finally:
        os.close(handle)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
