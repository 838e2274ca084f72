"""Streams from web servers, some of which say little of their files or give them as a whole only."""

from __future__ import annotations

import _socket
import gzip
import http.server
import io
import json
import os
import socket
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hekaton.errors import DataError
from hekaton_hf.sections import StreamDatasetSection
from hekaton_hf.stream import documents
from hekaton_hf.stream.documents import build

TEXTS = [f"text {number} " + "x" * (number * 7 % 50) for number in range(40)]
SECTION = StreamDatasetSection(shuffle_buffer=1)


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet(texts):
    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), out)
    return out.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of this folder on this machine."""
    pytest.importorskip("aiohttp", reason="http needs it")
    monkeypatch.setattr(socket.socket, "connect", _socket.socket.connect)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        """Like many simple servers it gives whole files only, whatever part is asked for."""

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass

        def send_header(self, name, value):
            if name != "Content-Length" or "unknown" not in self.path:
                super().send_header(name, value)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}"
        finally:
            serving.shutdown()
            thread.join()


def test_files_of_a_web_server(server, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS[:20]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS[20:])))
    found = build(SECTION, f"{server}/a.jsonl, {server}/b.jsonl.gz")
    assert [text for part in found.fetch([0, 1]) for text in part.texts()] == TEXTS
    with pytest.raises(DataError, match=r"cannot read '.*nothing.jsonl': FileNotFoundError"):
        build(SECTION, f"{server}/nothing.jsonl")


def test_a_web_server_that_gives_whole_files_only(server, tmp_path, monkeypatch, caplog):
    http_files = pytest.importorskip(
        "fsspec.implementations.http", reason="http needs aiohttp"
    ).HTTPFileSystem
    opened = http_files._open

    def of_small_blocks(*words, block_size, **options):
        return opened(*words, block_size=99 if block_size is None else block_size, **options)

    monkeypatch.setattr(http_files, "_open", of_small_blocks)
    monkeypatch.setattr(documents, "BLOCK", 200)
    for name, content in (("a.jsonl", jsonl(TEXTS)), ("a.parquet", parquet(TEXTS))):
        (tmp_path / name).write_bytes(content)
        found = build(SECTION, f"{server}/{name}")
        assert list(found.fetch([0])[0].texts()) == TEXTS
        assert f"a.{name[2:]}' is read from its beginning" in caplog.text


def test_what_a_web_server_says_of_a_file_counts(server, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl(TEXTS))
    prints = [build(SECTION, f"{server}/{name}").fingerprint for name in ("a.jsonl", "*.jsonl")]
    os.utime(file, (10**9, 10**9))
    prints += [build(SECTION, f"{server}/{name}").fingerprint for name in ("a.jsonl", "*.jsonl")]
    assert prints[:2] == prints[:1] * 2
    assert prints[2:] == prints[2:3] * 2
    assert prints[0] != prints[2]
    (tmp_path / "unknown.jsonl").write_bytes(jsonl(TEXTS))
    with pytest.raises(DataError, match=r"unknown.jsonl': its size is not known, so that an end too soon"):
        build(SECTION, f"{server}/unknown.jsonl")
