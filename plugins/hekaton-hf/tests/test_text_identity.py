"""Data is what its bytes are: a cache never outlives them, and a resumed run knows others from them."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hekaton.data import identity
from hekaton.errors import DataError
from hekaton_hf import index
from hekaton_hf.sections import TextDatasetSection
from hekaton_hf.text import Texts, build


def documents(path: str, **section: object) -> Texts:
    return build(TextDatasetSection.model_validate(section), path)


def read(path: str) -> list[str]:
    found = documents(path)
    return found.fetch(range(len(found)))


def write(path: Path, texts: list[str]) -> Path:
    """Files of all formats have the same size for texts of the same lengths, but for compression."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, compression="none", use_dictionary=False)
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("how", ["in place", "another file", "copied as rsync -t does", "moved"])
def test_other_content_with_the_same_size_and_times_is_read(here: Path, suffix: str, how: str) -> None:
    path = write(here / f"a{suffix}", ["one", "two"])
    before = path.stat()
    first = documents(path.name)
    assert first.fetch([0, 1]) == ["one", "two"]
    other = write(here / "other" / f"a{suffix}", ["111", "two"])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    if how == "in place":
        path.write_bytes(other.read_bytes())
    elif how == "another file":
        path.unlink()
        path.write_bytes(other.read_bytes())
    elif how == "copied as rsync -t does":
        shutil.copy2(other, here / ".a.tmp")
        (here / ".a.tmp").replace(path)
    else:
        other.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = documents(path.name)
    assert second.fetch([0, 1]) == ["111", "two"]
    assert second.fingerprint != first.fingerprint


def test_content_is_compared_on_file_systems_without_change_times(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal states: then samples tell files apart, from the first byte to the last."""
    stat = os.stat(here)
    monkeypatch.setattr(identity.FileState, "of", lambda _: identity.FileState(1, 1_000_000, 2, 3))
    monkeypatch.setattr(os, "fstat", lambda _: stat)
    lines = "".join(f'{{"text": "{number:07}"}}\n' for number in range(50_000))
    fingerprints = set()
    for place in (0, 20 * 25_000, 20 * 50_000 - 20):  # the first line, one in the middle, and the last
        changed = lines[:place] + lines[place:].replace('"0', '"9', 1)
        (here / "a.jsonl").write_text(changed)
        found = documents("a.jsonl")
        fingerprints.add(found.fingerprint)
    assert len(fingerprints) == 3


def test_a_change_outside_the_sample_is_noticed(here: Path) -> None:
    """In the middle of a large file, of the same size, with the times set back."""
    path = write(here / "a.jsonl", [f"{number:07}" for number in range(50_000)])
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    first = documents("a.jsonl")
    content = path.read_bytes()
    place = 20 * 1000 + 10  # between the first two samples, 67 kB apart
    path.write_bytes(content[:place] + b"9" + content[place + 1 :])
    os.utime(path, ns=times)
    second = documents("a.jsonl")
    assert (first.fingerprint, second.fetch([1000])) != (second.fingerprint, ["0001000"])
    assert second.fetch([1000]) == ["9001000"]
    assert second.fingerprint != first.fingerprint


def test_the_fingerprint_is_of_the_content_and_its_order(here: Path) -> None:
    def fingerprint(path: str, **section: object) -> str:
        return documents(path, **section).fingerprint

    write(here / "1/a.jsonl", ["one", "two"])
    write(here / "1/b/c.jsonl", ["three"])
    first = fingerprint("1")
    shutil.copytree(here / "1", here / "2")
    (here / "2/a.jsonl").rename(here / "2/0.jsonl")
    (here / "2/empty.jsonl").touch()
    os.utime(here / "2/0.jsonl", (1, 1))
    assert fingerprint("2") == first  # another place, other names and times
    assert fingerprint("1/b/c.jsonl,1/a.jsonl") != first
    write(here / "2/0.jsonl", ["two", "one"])  # lines swapped
    assert fingerprint("2") != first
    write(here / "2/0.jsonl", ["one", "twO"])  # the same size
    assert fingerprint("2") != first
    write(here / "2/0.jsonl", ["one", "two"])
    assert fingerprint("2") == first
    (here / "x.txt").write_text("x\ny")
    assert len({fingerprint("x.txt", txt_documents=kind) for kind in ("file", "line", "paragraph")}) == 3
    shutil.copy(here / "1/a.jsonl", here / "same.txt")
    assert fingerprint("same.txt", txt_documents="line") != fingerprint("1/a.jsonl", txt_documents="line")
    (here / "keys.jsonl").write_text('{"a": "one", "b": "two"}\n')
    assert fingerprint("keys.jsonl", text_column="a") != fingerprint("keys.jsonl", text_column="b")


def test_a_second_start_reads_nothing_but_samples(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "a.jsonl", ["one"])
    write(here / "b.parquet", ["two"])
    first = documents("*")
    monkeypatch.setattr(index, "read_file", None)
    second = documents("*")
    assert second.fetch([1, 0]) == ["two", "one"]
    assert second.fingerprint == first.fingerprint


@pytest.mark.parametrize("damage", ["documents", "texts", "files.json", "garbage", "list", "deep"])
def test_a_damaged_index_is_rebuilt(here: Path, damage: str) -> None:
    write(here / "a.parquet", ["one", "two"])
    read("*")
    (entry,) = [folder for folder in (index.cache_folder() / "text").iterdir() if folder.is_dir()]
    if damage == "garbage":
        (entry / "files.json").write_text('{"files": [{"content": 3}], "sizes": []}')
    elif damage == "list":
        (entry / "files.json").write_text("[]")
    elif damage == "deep":
        (entry / "files.json").write_text("[" * 100_000)
    else:
        (entry / damage).write_bytes((entry / damage).read_bytes()[:-1])
    assert read("*") == ["one", "two"]


def test_a_change_while_a_run_reads(here: Path) -> None:
    path = write(here / "a.jsonl", ["one", "two"])
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    found = documents("a.jsonl")
    assert found.fetch([0]) == ["one"]
    path.chmod(0o600)  # its state alone changes
    assert found.fetch([1]) == ["two"]
    path.replace(here / "old")
    shutil.copy(here / "old", path)
    assert documents("a.jsonl").fetch([0]) == ["one"]
    write(path, ["111", "two"])
    os.utime(path, ns=times)
    fresh = documents("a.jsonl")
    write(path, ["222", "two"])
    os.utime(path, ns=times)
    with pytest.raises(DataError, match=r"'.*a.jsonl' changed since the run started"):
        fresh.fetch([1])
    write(path, ["222", "longer"])
    with pytest.raises(DataError, match=r"'.*a.jsonl' changed since the run started"):
        fresh.fetch([1])


def test_an_equal_copy_in_its_place_does_not_end_a_run(here: Path) -> None:
    path = write(here / "a.jsonl", ["one", "two"])
    found = documents("a.jsonl")
    shutil.copy(path, here / "b")
    (here / "b").replace(path)
    assert found.fetch([1]) == ["two"]


def test_a_file_that_goes_away_while_a_run_reads(here: Path) -> None:
    path = write(here / "a.jsonl", ["one", "two"])
    found = documents("a.jsonl")
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read '.*a.jsonl': No such file or directory"):
        found.fetch([1])


def test_a_file_that_changes_while_it_is_read_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(here / "a.jsonl", ["one", "two"])
    real = index.read_file

    def read_and_change(*arguments: object, **options: object) -> None:
        real(*arguments, **options)  # type: ignore[arg-type]
        path.write_text(path.read_text() + "\n")

    monkeypatch.setattr(index, "read_file", read_and_change)
    with pytest.raises(DataError, match=r"'.*a.jsonl' changed while it was read"):
        documents("a.jsonl")


def test_many_files_and_few_that_are_open_at_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    texts = [f"text {number}" for number in range(200)]
    for number, text in enumerate(texts):
        write(here / f"{number:03}.jsonl", [text])
    before = len(os.listdir("/proc/self/fd"))
    found = documents("*.jsonl")
    assert found.fetch(range(200)) == texts
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    assert found.fetch(range(199, -1, -1)) == texts[::-1]
    del found
    assert len(os.listdir("/proc/self/fd")) <= before


def test_files_in_several_groups(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "GROUP_BYTES", 60)
    texts = [f"text {number}" for number in range(20)]
    for number, text in enumerate(texts):
        write(here / f"{number:02}.{'jsonl' if number % 3 else 'parquet'}", [text])
    found = documents("*")
    assert found.fetch([*range(20), 3, 19, 0]) == [*texts, texts[3], texts[19], texts[0]]
    assert len([entry for entry in (index.cache_folder() / "text").iterdir() if entry.is_dir()]) > 5


def test_an_index_that_no_run_used_for_long_is_removed(here: Path) -> None:
    write(here / "a.jsonl", ["one"])
    write(here / "b.jsonl", ["two"])
    read("a.jsonl")
    cache = index.cache_folder() / "text"
    old = list(cache.iterdir())
    for entry in old:
        os.utime(entry, (time.time() - 31 * 86400,) * 2)
    assert read("b.jsonl") == ["two"]
    assert not set(old) & set(cache.iterdir())
    assert read("a.jsonl") == ["one"]


def test_an_index_that_a_long_run_uses_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "a.jsonl", ["one"])
    found = documents("a.jsonl")
    (entry,) = [folder for folder in (index.cache_folder() / "text").iterdir() if folder.is_dir()]
    os.utime(entry, (time.time() - 29 * 86400,) * 2)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * 86400)
    found.fetch([0])
    assert time.time() - entry.stat().st_mtime < 60


def test_a_cache_that_cannot_be_written_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "a.jsonl", ["one"])
    (here / "file").touch()
    monkeypatch.setenv("HEKATON_CACHE", str(here / "file"))
    with pytest.raises(DataError, match=r"cannot write the index of the data in '.*file/text'") as e:
        documents("a.jsonl")
    assert "set the environment variable HEKATON_CACHE" in e.value.hint


def test_a_full_disk_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "a.parquet", ["one" * 10_000])
    opened = Path.open

    def full(self: Path, mode: str = "r", *arguments: object, **options: object):  # type: ignore[no-untyped-def]
        full_one = self.name == "texts" and "w" in mode
        return opened(Path("/dev/full") if full_one else self, mode, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DataError, match=r"cannot write the index of the data in .*: No space left on device"):
        documents("a.parquet")
    assert [entry for entry in (index.cache_folder() / "text").iterdir() if entry.is_dir()] == []


def test_the_location_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEKATON_CACHE", "~/mine")
    assert index.cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("HEKATON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert index.cache_folder() == Path("/caches/hekaton")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert index.cache_folder() == Path.home() / ".cache/hekaton"


def test_what_a_killed_process_left_does_no_harm(here: Path) -> None:
    """Killed while it writes its index: the next one takes over the lock and removes what was left."""
    write(here / "a.parquet", ["one", "two"])
    code = (
        "import os\n"
        "from hekaton_hf import index\n"
        "from hekaton_hf.sections import TextDatasetSection\n"
        "from hekaton_hf.text import build\n"
        "index.read_file = lambda *arguments, **options: os._exit(9)\n"
        "build(TextDatasetSection(), 'a.parquet')"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 9
    cache = index.cache_folder() / "text"
    assert any(".unfinished-" in entry.name for entry in cache.iterdir())
    assert read("a.parquet") == ["one", "two"]
    assert not any(".unfinished-" in entry.name for entry in cache.iterdir())


def test_processes_that_start_together_share_the_reading(here: Path) -> None:
    """Each file is read by one of them, and all see the same documents."""
    for number in range(6):
        write(here / f"{number}.jsonl", [f"text {number}"] * 2000)
    code = (
        "import os, pathlib, time\n"
        "from hekaton_hf import index\n"
        "from hekaton_hf.sections import TextDatasetSection\n"
        "from hekaton_hf.text import build\n"
        "index.GROUP_BYTES = 1\n"
        "real = index.read_file\n"
        "def slow(file, path, *arguments, **options):\n"
        "    time.sleep(0.5)\n"
        "    print(path.name)\n"
        "    real(file, path, *arguments, **options)\n"
        "index.read_file = slow\n"
        "pathlib.Path(f'ready-{os.getpid()}').touch()\n"
        "while len(list(pathlib.Path().glob('ready-*'))) < 3:\n"
        "    time.sleep(0.01)\n"
        "documents = build(TextDatasetSection(), '*.jsonl')\n"
        "print(len(documents), documents.fetch([11_999])[0], documents.fingerprint)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=100) for process in running]
    assert [errors for _, errors in outputs] == [""] * 3
    files = [line for output, _ in outputs for line in output.splitlines()[:-1]]
    assert sorted(files) == [f"{number}.jsonl" for number in range(6)]
    assert max(len(output.splitlines()) for output, _ in outputs) < 7  # none did it all
    (last,) = {output.splitlines()[-1] for output, _ in outputs}
    assert last.startswith("12000 text 5 ")


def test_progress_is_logged(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="hekaton")
    write(here / "a.jsonl", ["one"])
    monkeypatch.setattr(index.Progress, "SECONDS", -1.0)
    documents("a.jsonl")
    assert "reading the data for the first time: 0.0 of 0.0 GB" in caplog.text
