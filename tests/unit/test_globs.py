"""The files of a folder or a glob: each once, whatever the links and the names."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qaray.config import ConfigError
from qaray.run.globs import expand

SUFFIXES = (".json",)


@pytest.fixture
def tree(tmp_path):
    """Two folders and four files, with links to files and folders, in circles, and to nothing."""
    root = tmp_path / "root"
    for name in ("real/a.json", "real/sub/b.json", "other/c.json", "z.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("[]")
    for name, target in {
        "real/up": "..", "real/self": ".", "a_link": "real", "broken.json": "nothing", "link.json": "z.json",
        "circle": "circle", "round.json": "round.json", "other/again": "../real/sub",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    return root


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("", ["other/c.json", "real/a.json", "real/sub/b.json", "z.json"]),
        ("*.json", ["z.json"]),
        ("*/*.json", ["other/c.json", "real/a.json"]),
        ("**/*.json", ["other/c.json", "real/a.json", "real/sub/b.json", "z.json"]),
        ("a_*/*.json", ["a_link/a.json"]),
        ("a_link/*.json", ["a_link/a.json"]),
        ("r*/**/b.json", ["real/sub/b.json"]),
        ("link.json", ["link.json"]),
        ("other", ["other/again/b.json", "other/c.json"]),
    ],
)
def test_each_real_file_once(tree, pattern, files):
    assert [file.path for file in expand(str(tree / pattern), SUFFIXES)] == [str(tree / name) for name in files]


@pytest.mark.parametrize("pattern", ["broken.json", "round.json", "circle", "bro*.json", "roun?.json"])
def test_links_to_nothing(tree, pattern):
    with pytest.raises(FileNotFoundError, match="no (such file|file matches)"):
        expand(str(tree / pattern), SUFFIXES)


def test_a_folder_is_searched_once(tree, monkeypatch):
    """Forty links to the folder itself would be as many names of each file, and each of these again."""
    for number in range(40):
        (tree / "real" / f"self{number}").symlink_to(".")
    searched = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: searched.append(os.fspath(path)) or scandir(path))
    assert len(expand(str(tree / "**/*.json"), SUFFIXES)) == 4
    assert len(searched) < 60


@pytest.mark.parametrize("pattern", ["", "*.json", "**/*.json", os.fsdecode(b"caf\xe9.json")])
def test_a_name_that_is_not_utf8_has_a_reason(tree, pattern):
    with open(os.fsencode(tree) + b"/caf\xe9.txt", "w"):
        assert len(expand(str(tree / ""), SUFFIXES)) == 4  # a file that is not read may have any name
    with open(os.fsencode(tree) + b"/caf\xe9.json", "w"):
        with pytest.raises(ConfigError, match=r"caf\\udce9.json: the name is not valid UTF-8: rename") as error:
            expand(os.path.join(tree, pattern), SUFFIXES)
    str(error.value).encode()


class Server(BaseHTTPRequestHandler):
    """A file of ten bytes. ``parts``: whether the server sends parts of it."""

    parts = False

    def do_HEAD(self):
        self._send(b"")

    def do_GET(self):
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        first, last = int(asked[0] or 0), int(asked[2] or 9)
        self._send(b"[] \n \n \n \n"[:10][first : last + 1] if self.parts and asked[1] else b"[] \n \n \n \n"[:10])

    def _send(self, body):
        partial = self.parts and "Range" in self.headers
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(len(body) or 10))
        if self.parts:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("parts", [True, False])
def test_a_server_that_sends_no_parts_of_a_file_is_named(monkeypatch, parts):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(Server, "parts", parts)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/p.json"
        try:
            if parts:
                assert [file.path for file in expand(url, SUFFIXES)] == [url]
            else:
                with pytest.raises(ConfigError, match="cannot send parts of the file .*: download the file"):
                    expand(url, SUFFIXES)
        finally:
            server.shutdown()
