"""``hekaton download`` against a server on this machine that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_aSecretThatNobodyMaySee"
REPO = "someone/Tiny-1B"


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


FILES = {
    "README.md": b"# Tiny\n",
    "config.json": b'{"model_type": "llama"}\n',
    "generation_config.json": b"{}\n",
    "model-00001-of-00002.safetensors": noise(3_000_000, 1),
    "model-00002-of-00002.safetensors": noise(100_000, 2),
    "model.safetensors.index.json": b'{"weight_map": {}}\n',
    "original/consolidated.00.pth": noise(1_000, 3),
    "original/tokenizer.model": noise(2_000, 4),
    "tokenizer.json": b'{"model": {}}\n',
    "tokenizer_config.json": b"",
}
LFS = (".safetensors", ".pth", ".model")
KINDS = {
    "tokenizer": ["original/tokenizer.model", "tokenizer.json", "tokenizer_config.json"],
    "config": ["config.json", "generation_config.json"],
    "index": ["model.safetensors.index.json"],
    "safetensors": [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ],
}


class Hub(ThreadingHTTPServer):
    """The few answers of the Hub that a download asks for, and its bad days."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files = dict(FILES)
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        """Method, path and headers (by lower-case name) of each request."""
        self.drop_after: list[int] = []
        """Bytes of a large file after which its connection is cut, once for each number."""
        self.gated = self.broken = self.moved = False
        self.forged: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self, name: str) -> list[str | None]:
        """The ``Range`` of each GET of a file."""
        return [
            headers.get("range")
            for method, path, headers in self.asked
            if method == "GET" and path.endswith(name)
        ]


class Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        hub = self.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not path.startswith(("/api/models/", f"/{REPO}/", "/elsewhere/")):
            return self.say(404, b"")  # what huggingface_hub asks for its own ends
        hub.asked.append((self.command, path, headers))
        if hub.broken:
            return self.say(500, b"")
        if headers.get("authorization") == "Bearer wrong":
            return self.say(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        if headers.get("authorization") == "Bearer narrow":
            return self.say(403, b"", {"X-Error-Message": "The token has no scope for this repository"})
        if path.startswith("/api/models/"):
            return self.list_files(path.removeprefix("/api/models/"))
        if path.startswith("/elsewhere/"):
            return self.send_file(path.removeprefix("/elsewhere/"), {})
        if hub.gated and headers.get("authorization") != f"Bearer {TOKEN}":
            return self.say(401, b"", {"X-Error-Code": "GatedRepo"})
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        data = hub.files[name]
        known = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if hub.moved and name.endswith(LFS):
            # Another name of this machine, as the Hub sends large files to another host.
            elsewhere = f"http://localhost:{hub.server_port}/elsewhere/{name}"
            return self.say(302, b"", known | {"Location": elsewhere, "X-Linked-Size": str(len(data))})
        return self.send_file(name, known)

    def list_files(self, asked: str) -> None:
        repo, _, revision = asked.partition("/revision/")
        if repo != REPO:
            return self.say(404, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("", "main", "v1", COMMIT):
            return self.say(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for name, data in self.server.files.items():
            sibling = {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            }
            if name.endswith(LFS):
                sha256 = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        listing = {"id": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        return self.say(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def send_file(self, name: str, headers: dict[str, str]) -> None:
        data = self.server.forged.get(name, self.server.files[name])
        asked = self.headers.get("Range")
        if asked is not None:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            place = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.say(206, data[start:], headers | {"Content-Range": place})
        return self.say(200, data, headers)

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if len(body) > 500_000 and self.server.drop_after:
            self.wfile.write(body[: self.server.drop_after.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


Download = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def download(hub: Hub, tmp_path: Path) -> Download:
    """Run ``hekaton download WORDS`` in an empty folder."""
    (tmp_path / "run").mkdir()

    def run(
        *words: str, largest_file: int = resource.RLIM_INFINITY, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
        }
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **variables}

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

        return subprocess.run(
            [sys.executable, "-m", "hekaton", "download", *words],
            cwd=tmp_path / "run",
            env=environment,
            preexec_fn=limit,
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "run" / "assets" / "hf" / "Tiny-1B"


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kinds", ["tokenizer", "config", "index", "safetensors", "tokenizer,config"])
def test_the_files_of_a_kind_come_and_no_others(kinds: str, download: Download, place: Path) -> None:
    done = download(REPO, "--assets", kinds)
    assert done.returncode == 0, done.stderr
    expected = {name for kind in kinds.split(",") for name in KINDS[kind]}
    assert files_in(place) == {name: FILES[name] for name in expected}
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{len(expected)} file")
    assert lines[0].endswith(" in assets/hf/Tiny-1B:")
    assert {line.split()[0] for line in lines if line.startswith("  ")} >= expected
    assert lines[-2:] == ["  [model]", '  hf_assets_path = "assets/hf/Tiny-1B"']
    assert done.stderr == ""


def test_everything_of_a_revision_to_another_folder(hub: Hub, download: Download, tmp_path: Path) -> None:
    done = download(REPO, "--all", "--revision", "v1", "--local_dir", str(tmp_path / "there"))
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "there" / "Tiny-1B") == FILES
    assert f'hf_assets_path = "{tmp_path}/there/Tiny-1B"' in done.stdout
    assert hub.asked[0][1] == f"/api/models/{REPO}/revision/v1"


SPELLINGS = [
    ["--repo_id", REPO, "--assets", "index"],
    ["--repo_id", REPO, "--assets", "index", "--hf_token=" + TOKEN],  # as in torchtitan's documentation
    ["--repo-id=" + REPO, "--assets=index", "--hf-token", TOKEN],
    ["--assets", "index", REPO],
    ["--additional_patterns", "*.index.json", "--repo_id", REPO],
]


@pytest.mark.parametrize("words", SPELLINGS)
def test_every_spelling_of_the_arguments_is_accepted(
    words: list[str], download: Download, place: Path
) -> None:
    done = download(*words)
    assert done.returncode == 0, done.stderr
    assert files_in(place) == {name: FILES[name] for name in KINDS["index"]}


def test_a_pattern_that_matches_no_file_is_an_error(download: Download) -> None:
    done = download("--repo_id", REPO, "--additional_patterns", "*.absent")
    assert done.returncode == 2
    assert f"error: '{REPO}' has no file of the kind *.absent\n" in done.stderr


def test_patterns_add_to_kinds(download: Download, place: Path) -> None:
    done = download("--repo_id", REPO, "--assets", "config", "--additional_patterns", "*.md", "*.pth")
    assert done.returncode == 0, done.stderr
    names = [*KINDS["config"], "README.md", "original/consolidated.00.pth"]
    assert files_in(place) == {name: FILES[name] for name in names}


LARGE = "model-00001-of-00002.safetensors"


def test_a_broken_connection_is_resumed(hub: Hub, download: Download, place: Path) -> None:
    # huggingface_hub hands what comes to the file in pieces of 10 MiB: the whole ones are kept.
    piece = DOWNLOAD_CHUNK_SIZE
    hub.files[LARGE] = noise(2 * piece + 12_345, 5)
    hub.drop_after = [piece + 500_000]
    done = download(REPO, "--assets", "safetensors")
    assert done.returncode == 0, done.stderr
    assert hub.ranges(LARGE) == [None, f"bytes={piece}-"]
    assert files_in(place)[LARGE] == hub.files[LARGE]


def test_a_stopped_download_is_resumed(hub: Hub, download: Download, place: Path) -> None:
    stopped = download(REPO, "--assets", "safetensors", largest_file=1_234_567)
    assert stopped.returncode == 2
    assert stopped.stderr.startswith("error: cannot write: File too large\n")
    assert "what was downloaded is kept: the same command resumes the download" in stopped.stderr
    (kept,) = files_in(place).values()
    assert len(kept) == 1_234_567
    done = download(REPO, "--assets", "safetensors")
    assert done.returncode == 0, done.stderr
    assert hub.ranges(LARGE) == [None, "bytes=1234567-"]
    assert files_in(place) == {name: FILES[name] for name in KINDS["safetensors"]}


def test_a_part_that_is_longer_than_the_whole_is_not_resumed(
    hub: Hub, download: Download, place: Path
) -> None:
    download(REPO, "--assets", "safetensors", largest_file=1_234_567)
    (part,) = place.iterdir()
    part.write_bytes(bytes(4_000_000))
    assert download(REPO, "--assets", "safetensors").returncode == 0
    assert files_in(place) == {name: FILES[name] for name in KINDS["safetensors"]}


def test_files_that_are_there_are_not_asked_for_again_and_changed_ones_are(
    hub: Hub, download: Download, place: Path
) -> None:
    download(REPO, "--assets", "config,tokenizer")
    hub.asked.clear()
    (place / "config.json").write_bytes(b"X" + FILES["config.json"][1:])
    done = download(REPO, "--assets", "config", "tokenizer")
    assert done.returncode == 0, done.stderr
    assert [path for method, path, _ in hub.asked if method == "GET"] == [
        f"/api/models/{REPO}",
        f"/{REPO}/resolve/{COMMIT}/config.json",
    ]
    assert files_in(place) == {name: FILES[name] for kind in ("config", "tokenizer") for name in KINDS[kind]}


@pytest.mark.parametrize("name", [LARGE, "config.json"])
def test_what_is_not_of_the_listed_checksum_is_refused(
    name: str, hub: Hub, download: Download, place: Path
) -> None:
    hub.forged = {name: bytes(len(FILES[name]))}
    done = download(REPO, "--assets", "safetensors,config")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the download of '{name}' is damaged: its checksum differs")
    assert name not in files_in(place)
    hub.forged = {}
    assert download(REPO, "--assets", "safetensors,config").returncode == 0
    assert files_in(place)[name] == FILES[name]


@pytest.mark.parametrize("way", ["flag", "variable", "login"])
def test_a_gated_repository_is_read_with_a_token_from_anywhere(
    way: str, hub: Hub, download: Download, place: Path, tmp_path: Path
) -> None:
    hub.gated = True
    words, variables = ["--hf_token", TOKEN] if way == "flag" else [], {}
    if way == "variable":
        variables = {"HF_TOKEN": TOKEN}
    if way == "login":
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text(TOKEN)
    done = download(REPO, "--assets", "config", *words, **variables)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert files_in(place).keys() == set(KINDS["config"])


@pytest.mark.parametrize(
    ("way", "token"),
    [
        ("flag", "hf_secret\xe4"),
        ("flag", "hf_secret x"),
        ("flag", "hf_secret\r\nX-More: 1"),
        ("variable", "hf_secret\xe4"),
        ("variable", "hf_secret x"),
    ],
)
def test_a_token_that_cannot_be_one_is_refused_without_printing_it(
    way: str, token: str, download: Download
) -> None:
    words, variables = (["--hf_token", token], {}) if way == "flag" else ([], {"HF_TOKEN": token})
    done = download(REPO, "--assets", "config", *words, **variables)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the token for the Hub has characters that no token has\n")
    assert "hf_secret" not in done.stdout + done.stderr


def test_the_token_stays_with_the_server_that_it_is_for(hub: Hub, download: Download, place: Path) -> None:
    hub.gated = hub.moved = True
    done = download(REPO, "--assets", "safetensors", "--hf_token", TOKEN)
    assert done.returncode == 0, done.stderr
    elsewhere = [headers for _, path, headers in hub.asked if path.startswith("/elsewhere/")]
    assert len(elsewhere) == 2
    assert all("authorization" not in headers for headers in elsewhere)
    assert files_in(place)[LARGE] == FILES[LARGE]


def test_a_kind_without_files_gives_a_notice(hub: Hub, download: Download, place: Path) -> None:
    del hub.files["model.safetensors.index.json"]
    done = download(REPO, "--assets", "config,index")
    assert done.returncode == 0
    assert done.stderr == f"notice: {REPO} has no files of the kind 'index'\n"
    assert files_in(place).keys() == set(KINDS["config"])


def gate(hub: Hub) -> None:
    hub.gated = True


def fail(hub: Hub) -> None:
    hub.broken = True


def strip(hub: Hub) -> None:
    hub.files = {"README.md": b"x"}


def escape(hub: Hub) -> None:
    hub.files["../../tokenizer.json"] = b"x"


def nothing(hub: Hub) -> None:
    pass


FAILURES = {
    "gated": (gate, [], {}, f"'{REPO}' is gated: it may be read once its owner has agreed\n  ask on http"),
    "gated for this token": (gate, ["--hf_token", "hf_other"], {}, f"'{REPO}' is gated: it may be read"),
    "bad token": (nothing, ["--hf_token", "wrong"], {}, "http://127.0.0.1:{port} refuses access to " f"'{REPO}' (401)"),
    "a token without the right": (nothing, ["--hf_token", "narrow"], {}, "http://127.0.0.1:{port} refuses access to " f"'{REPO}' (403)"),
    "no such revision": (nothing, ["--revision", "v7"], {}, f"'{REPO}' has no revision 'v7'\n"),
    "offline": (nothing, [], {"HF_HUB_OFFLINE": "1"}, "nothing can be downloaded while HF_HUB_OFFLINE is set"),
    "unreachable": (nothing, [], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach http://127.0.0.1:9: "),
    "broken": (fail, [], {}, "http://127.0.0.1:{port} failed for " f"'{REPO}' (500)"),
    "no such files": (strip, [], {}, f"'{REPO}' has no file of the kind tokenizer\n  it has: README.md"),
    "a name that leads out": (escape, [], {}, f"'{REPO}' lists a file '../../tokenizer.json', which"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_every_failure_is_one_error(case: str, hub: Hub, download: Download, tmp_path: Path) -> None:
    prepare, words, variables, message = FAILURES[case]
    prepare(hub)
    done = download(REPO, "--assets", "tokenizer", *words, **variables)
    assert done.returncode == 2
    errors = done.stderr.partition("error: ")[2]
    assert errors.startswith(message.replace("{port}", str(hub.server_port))), done.stderr
    assert "Traceback" not in done.stderr
    assert "hf_other" not in done.stdout + done.stderr
    assert not any(path.is_file() for path in (tmp_path / "run").rglob("*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["someone/Absent", "--all"], "there is no model 'someone/Absent' on http://127.0.0.1:"),
        (["a/b/c", "--all"], "'a/b/c' is not the name of a repository\n  it is OWNER/NAME"),
        ([REPO], "choose what to download: --assets or --all\n  usage: "),
        ([REPO, "--all", "--assets", "index"], "choose what to download: --assets or --all\n"),
        ([REPO, "--assets", "tokeniser"], "unknown kind of files 'tokeniser'\n  did you mean 'tokenizer'?"),
        (["--all"], "name one repository: OWNER/NAME, or --repo_id OWNER/NAME\n  usage: "),
        ([REPO, "--repo_id", REPO, "--all"], "name one repository: OWNER/NAME, or --repo_id OWNER/NAME\n"),
        ([REPO, "--asets", "index"], "hekaton download: unrecognized arguments: --asets index"),
    ],
)
def test_wrong_arguments_are_refused(words: list[str], message: str, download: Download) -> None:
    done = download(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}"), done.stderr


def test_a_disk_without_room_is_known_before_anything_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hekaton_hf import download as module

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3_000_000}))
    weights = module.RemoteFile("model.safetensors", 5_000_000, "0" * 64, is_lfs=True)
    with pytest.raises(module.DownloadError) as error:
        module._check_space([weights], tmp_path / "absent" / "Tiny")
    assert str(error.value).startswith("5.00 MB remain to be downloaded, and the disk of ")
    (tmp_path / "model.safetensors.000000000000.incomplete").write_bytes(bytes(2_000_000))
    module._check_space([weights], tmp_path)
