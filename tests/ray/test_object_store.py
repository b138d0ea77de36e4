"""A run on an object store: a real S3 protocol server, which has no rename and no folders."""

import json
import subprocess
import sys
from urllib.parse import quote

import pyarrow.fs as pafs
import pytest

from tests.commands import free_port, listens, qaray, wait_for
from tests.conftest import make_paper


@pytest.fixture
def bucket(monkeypatch):
    port = free_port()
    for name, value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    line = [sys.executable, "-m", "moto.server", "-p", str(port)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        wait_for(lambda: listens(port))
        place = f"http://127.0.0.1:{port}"
        fs = pafs.S3FileSystem(
            endpoint_override=place,
            access_key="test",
            secret_key="test",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        fs.create_dir("bucket")
        query = f"?endpoint_override={quote(place, safe='')}&region=us-east-1"
        yield fs, lambda path: f"s3://test:test@bucket/{path}{query}"
        server.kill()


def test_a_run_on_s3(bucket):
    fs, uri = bucket
    with fs.open_output_stream("bucket/in/p.json") as stream:
        stream.write(json.dumps([make_paper(i) for i in range(30)]).encode())
    with fs.open_output_stream("bucket/in/q.jsonl") as stream:
        stream.write(json.dumps(make_paper(3)).encode() + b"\n" + json.dumps(make_paper(31)).encode())
    args = ("generate", "--file_path", uri("in"), "--output_dir", uri("run"), "--engine", "echo", "--num_qas", "3")
    for _ in range(2):
        done = qaray(*args)
        assert done.returncode == 0, done.stderr
        assert "test:test" not in done.stderr + done.stdout
        with fs.open_input_stream("bucket/run/manifest.json") as stream:
            counts = json.loads(stream.read())["counts"]
        assert (counts["papers_with_pairs"], counts["rejected"], counts["pairs"]) == (31, 1, 93)
    with fs.open_input_stream("bucket/run/report/papers/000031.html") as stream:
        assert b"compound 31-0" in stream.read()
    names = {info.path for info in fs.get_file_info(pafs.FileSelector("bucket/run"))}
    assert "bucket/run/lease.json" not in names
