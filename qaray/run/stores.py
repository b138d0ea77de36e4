"""Opens object stores by their URIs: what is missing or cannot be reached is one line, in seconds."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs as pafs

from qaray.config import ConfigError
from qaray.run.errors import RunError
from qaray.run.waiting import waiting

URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
GOOGLE = re.compile(r"(?:gs|gcs)://")
GOOGLE_SECONDS = 15  # that Arrow retries a request; by default 15 minutes, without a sign
TRIES, PAUSE = 2, 2.0  # to reach a store when it is opened, and seconds between them
# Of Arrow's errors: what another try would not change.
DENIED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET", "PERMISSION_DENIED")
_reached: set[str] = set()  # stores that have answered this process


def open_store(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI and the path on it, once the store has answered.

    Raises ConfigError if no installed library supports the scheme or access is denied, RunError if it does not answer.
    """
    name = without_secrets(uri)
    limited = GOOGLE.match(uri) and "retry_limit_seconds=" not in uri
    full = f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={GOOGLE_SECONDS}" if limited else uri
    with _errors(name), waiting(name):
        try:
            fs, path = pafs.FileSystem.from_uri(full)
        except (pa.ArrowInvalid, NotImplementedError) as error:
            fs, path = _by_fsspec(uri, name, error)
    _reach(fs, path, name)
    return fs, path


def without_secrets(uri: str) -> str:
    """A URI without the user, the password and the query that it may hold."""
    return re.sub(r"//[^/@]*@", "//", uri.partition("?")[0])


def _by_fsspec(uri: str, name: str, reason: Exception) -> tuple[pafs.FileSystem, str]:
    """The file system of a scheme that is not Arrow's, or of a URI that it does not understand, for ``reason``."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        unknown = "Unrecognized filesystem type" in str(reason)
        also = "" if unknown else f"{' '.join(without_secrets(str(reason)).split())}; or: "
        raise ConfigError(f"cannot open {name}: {also}{error}") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path


def _reach(fs: pafs.FileSystem, path: str, name: str) -> None:
    """Asks a store that has not answered yet for the path."""
    store = "/".join(name.split("/")[:3])
    if isinstance(fs, pafs.LocalFileSystem) or store in _reached:
        return
    with _errors(name), waiting(f"{store} to answer"):
        for left in reversed(range(1 if isinstance(fs, pafs.GcsFileSystem) else TRIES)):  # Arrow retries by itself
            try:
                fs.get_file_info(path)
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if not left or any(word in str(error) for word in DENIED):
                    raise
            time.sleep(PAUSE)
    _reached.add(store)


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turns what a store's client raises, of any type, into one line."""
    try:
        yield
    except (ConfigError, RunError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "libjvm" in reason or "libhdfs" in reason:
            raise ConfigError(
                f"cannot open {name}: HDFS needs Java and Hadoop's libhdfs (JAVA_HOME, HADOOP_HOME)"
            ) from None
        if isinstance(error, PermissionError) or any(word in reason for word in DENIED):
            raise ConfigError(f"cannot open {name}: {reason}") from None
        raise RunError(f"cannot reach {name}: {reason}; check the network and the credentials, then rerun") from None
