"""The files of a path, folder, glob or URI.

In a local folder, each file counts once, however many links lead to it, and each folder is searched once.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator

import pyarrow.fs as pafs

from qaray.config import ConfigError
from qaray.run.storage import Location, patient
from qaray.run.stores import URI

_HIDDEN = (".", "_")  # names that begin so are skipped in folders


def expand(pattern: str, suffixes: tuple[str, ...]) -> list[Location]:
    """The files of a path, folder, glob or URI, sorted; ``suffixes`` filter a folder's files.

    Raises FileNotFoundError if there is none, ConfigError if a file cannot be read by its name or from its server.
    """
    _named_in_utf8([pattern])
    is_uri = URI.match(pattern) is not None
    wildcards = "*[" if is_uri else "*?["  # in a URI, a question mark starts the query
    if any(c in pattern for c in wildcards) and (is_uri or not Location.of(pattern).exists()):
        files = _matches(Location.of(pattern))
        if not files:
            raise FileNotFoundError(f"no file matches {pattern}")
        return files
    place = Location.of(pattern)
    kind = place.info().type
    if kind == pafs.FileType.File:
        if pattern.startswith(("http://", "https://")):
            _check_ranges(place)
        return [place]
    if kind == pafs.FileType.Directory:
        everything = _files(place)
        paths = [path for path in everything if path.lower().endswith(suffixes)]
        if not paths:
            there = sorted({os.path.splitext(path)[1] or os.path.basename(path) for path in everything})
            found = f"it has {', '.join(map(_shown, there[:8]))} files" if there else "it has no files"
            formats = ", ".join(suffix for suffix in suffixes if suffix.count(".") == 1)
            raise FileNotFoundError(f"nothing to read in the folder {pattern}: {found}, and {formats} are read")
        return _locations(place, paths)
    raise FileNotFoundError(f"no such file or folder: {pattern}")


def _locations(place: Location, paths: list[str]) -> list[Location]:
    _named_in_utf8(paths)
    return [Location(place.fs, path) for path in paths]


def _named_in_utf8(paths: Iterable[str]) -> None:
    """Raises ConfigError for a path that neither Arrow nor JSON can hold."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{_shown(path)}: the name is not valid UTF-8: rename the file or its folder") from None


def _shown(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _check_ranges(place: Location) -> None:
    """Raises ConfigError unless the server sends parts of the file: fingerprints and retries need them."""
    try:
        with place.fs.open_input_file(place.path) as stream:
            stream.read_at(1, max(0, stream.size() - 1))
    except (OSError, ValueError, TypeError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{place}: the server cannot send parts of the file ({problem}): download the file and pass its path"
        ) from None


def _matches(place: Location) -> list[Location]:
    """Files that match a glob, sorted. ``*`` matches within a folder, ``**`` across folders."""
    from fsspec.utils import glob_translate

    parts = place.path.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    folder = Location(place.fs, "/".join(parts[:fixed]) or "/")
    wanted = re.compile(glob_translate(place.path))
    if not place.is_local:
        return [file for file in folder.files(recursive=True) if wanted.fullmatch(file.path)]
    # Folders are searched across by our own walk, which ends whatever the links; the other parts name single folders.
    across = next((i for i, part in enumerate(parts) if "**" in part), len(parts))
    tops = sorted(glob.glob("/".join(parts[:across]) or "/"))
    found = tops if across == len(parts) else _walk(top for top in tops if os.path.isdir(top))
    paths = [path for path in found if wanted.fullmatch(path) and not _is_hidden(path, folder.path)]
    return _locations(place, _distinct(paths))


def _is_hidden(path: str, folder: str) -> bool:
    return any(part.startswith(_HIDDEN) for part in path[len(folder.rstrip("/")) + 1 :].split("/"))


def _files(place: Location) -> list[str]:
    """The files in a folder and the folders below it, sorted."""
    if not place.is_local:
        return [file.path for file in place.files(recursive=True)]
    return _distinct(_listed(place.path))


@patient
def _listed(folder: str) -> list[str]:
    return list(_walk([folder]))


def _walk(folders: Iterable[str]) -> Iterator[str]:
    """The entries of the folders and of those below that are not folders. A folder is searched once, links last."""
    waiting = deque(folders)
    seen: set[str] = set()
    while waiting:
        for folder, below, names in os.walk(waiting.popleft(), onerror=_unless_gone):
            real = os.path.realpath(folder)
            below[:] = [] if real in seen else sorted(name for name in below if not name.startswith(_HIDDEN))
            if real not in seen:
                seen.add(real)
                waiting += [path for name in below if os.path.islink(path := os.path.join(folder, name))]
                yield from (os.path.join(folder, name) for name in names if not name.startswith(_HIDDEN))


def _unless_gone(error: OSError) -> None:
    """Raises the error of a folder that cannot be read, unless it was removed or its links lead in a circle."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        raise error


def _distinct(paths: Iterable[str]) -> list[str]:
    """The paths of regular files, sorted; of several that lead to one file, one without links, else the first."""
    found: dict[str, str] = {}
    for path in sorted(paths):
        if os.path.isfile(path):
            real = os.path.realpath(path)
            found[real] = path if real == path else found.get(real, path)
    return sorted(found.values())
