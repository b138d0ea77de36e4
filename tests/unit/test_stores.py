"""Stores that are unknown, unreachable or closed to the user: one line, and no secret of the URI in it."""

import pyarrow.fs as pafs
import pytest

from qaray.config import ConfigError
from qaray.run import stores
from qaray.run.errors import RunError
from qaray.run.storage import Location


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("foo://x", "cannot open foo://x: Protocol not known: foo"),
        ("s3a://u:SECRET@b/x?key=SECRET", "cannot open s3a://b/x: Install s3fs"),
        ("s3://u:SECRET@b/x?nonsense=1", "cannot open s3://b/x: Unexpected query parameter"),
        ("abfs://c/x", "Install adlfs"),
    ],
)
def test_a_scheme_without_a_library_names_the_package(monkeypatch, uri, words):
    monkeypatch.setattr(stores, "_reached", set())
    with pytest.raises(ConfigError, match=words) as refused:
        Location.of(uri)
    assert "SECRET" not in str(refused.value)


class Store:
    """A file system whose requests fail."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.asked = 0

    def get_file_info(self, path):
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize(
    ("errors", "raised", "asked"),
    [
        ([], None, 1),
        ([OSError("curlCode: 6")], None, 2),
        ([OSError("curlCode: 6")] * 2, RunError, 2),
        ([OSError("AWS Error ACCESS_DENIED during HeadObject")] * 2, ConfigError, 1),
        ([PermissionError("no")] * 2, ConfigError, 2),
        ([ZeroDivisionError("of a client library")], RunError, 1),
        ([FileNotFoundError("x")], None, 1),
    ],
)
def test_a_store_is_asked_twice_before_it_is_used(monkeypatch, errors, raised, asked):
    store = Store(*errors)
    monkeypatch.setattr(stores, "PAUSE", 0.0)
    monkeypatch.setattr(stores, "_reached", set())
    if raised:
        with pytest.raises(raised, match="s3://b/x: "):
            stores._reach(store, "b/x", "s3://b/x")
    else:
        stores._reach(store, "b/x", "s3://b/x")
        stores._reach(store, "b/y", "s3://b/y")  # has answered
    assert store.asked == asked


def test_google_is_not_waited_for_a_quarter_of_an_hour(monkeypatch):
    opened = []

    def from_uri(uri):
        opened.append(uri)
        return pafs.LocalFileSystem(), "/x"

    monkeypatch.setattr(stores.pafs, "FileSystem", type("FileSystem", (), {"from_uri": staticmethod(from_uri)}))
    for uri in ("gs://b/x", "gcs://b/x?project_id=p", "gs://b/x?retry_limit_seconds=99", "s3://b/x"):
        stores.open_store(uri)
    assert opened == [
        "gs://b/x?retry_limit_seconds=15",
        "gcs://b/x?project_id=p&retry_limit_seconds=15",
        "gs://b/x?retry_limit_seconds=99",
        "s3://b/x",
    ]
