"""Files of a dataset that could have been meant as images or captions, and are not read, are counted and said."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from hekaton.cli import main
from hekaton.errors import DataError
from hekaton_flux import folder, shards
from hekaton_flux.settings import FlowMatchingSection

FILE = str(Path(__file__).parents[1] / "train_configs/debug_model.toml")
SECTION = FlowMatchingSection(image_size=32, text_length=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEKATON_CACHE", str(tmp_path / "cache"))


def png(color):
    file = io.BytesIO()
    Image.new("RGB", (40, 40), color).save(file, "PNG")
    return file.getvalue()


def add(tar, name, data=b"", **fields):
    header = tarfile.TarInfo(name)
    header.size = len(data)
    for field, value in fields.items():
        setattr(header, field, value)
    tar.addfile(header, io.BytesIO(data))


def said(caplog):
    return sorted(record.getMessage().partition(": ")[2] for record in caplog.records)


def test_those_of_tar_shards_also_when_their_index_is_in_the_cache(tmp_path, caplog):
    data = tmp_path / "data"
    data.mkdir()
    with tarfile.open(data / "0.tar", "w") as tar:
        for name in ("a.png", "b.GIF", "c.v2.png", "d.png", "d.jpg"):
            add(tar, name, png("red"))
        for name in ("a.txt", "b.txt", "c.txt", "d.txt", "e.txt", "a.json", "notes.md"):
            add(tar, name, b"red")
        add(tar, "f.png", type=tarfile.SYMTYPE, linkname="a.png")
    (data / "1.tar.gz").write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (data / "more").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level("WARNING", logger="hekaton"):
            assert len(shards.build(SECTION, str(data))) == 2
        assert said(caplog) == [
            "leaving out 1 captions without an image: 0.tar: e.txt",
            "leaving out 1 images of other kinds than .jpg, .jpeg, .png, .webp: 0.tar: b.GIF",
            "leaving out 1 images with a second dot in the name (a sample is named by what stands before the "
            "first): 0.tar: c.v2.png",
            "leaving out 1 links that are not followed: 0.tar: f.png",
            "leaving out 1 second images of a sample: 0.tar: d.png",
        ]
    assert shards.check(SECTION, str(data)).notices == [
        f"{data}: leaving out 1 links that are not followed: more",
        f"{data}: leaving out 1 compressed tar files (unpack them with gunzip, images are compressed already): 1.tar.gz",
    ]


def test_hard_links_in_a_tar_are_the_files_that_they_name(tmp_path, caplog):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "./a.png", png("red"))
        add(tar, "a.txt", b"red")
        add(tar, "b.png", type=tarfile.LNKTYPE, linkname="a.png")
        add(tar, "b.txt", b"also red")
        add(tar, "c.png", type=tarfile.LNKTYPE, linkname="gone.png")
    with caplog.at_level("WARNING", logger="hekaton"):
        first, second = shards.build(SECTION, str(tmp_path)).fetch([0, 1])
    assert (first.data, second.data) == (png("red"), png("red"))
    assert second.text == "also red"
    assert said(caplog) == ["leaving out 1 links that are not followed: 0.tar: c.png"]


def test_a_file_with_holes_in_a_tar_is_rejected(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        sparse = {"GNU.sparse.size": "1024", "GNU.sparse.map": "0,512"}
        add(tar, "a.png", bytes(512), pax_headers=sparse)
    with pytest.raises(DataError, match=r"0.tar' has 'a.png' with holes, which is not read"):
        shards.build(SECTION, str(tmp_path))


def test_those_of_a_folder_are_said_before_a_run(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.png", "b.gif", "c.d.png"):
        (data / name).write_bytes(png("red"))
    for name in ("a.txt", "b.txt", "c.d.txt", "e\n.txt", "notes.md"):
        (data / name).write_text("red")
    (tmp_path / "elsewhere").mkdir()
    (data / "more").symlink_to(tmp_path / "elsewhere")
    words = [FILE, "--training.dataset", "image_folder", "--training.dataset_path", str(data)]
    for verb, out in ((["config", "check"], []), (["flux", "preprocess"], ["--out", str(tmp_path / "out")])):
        assert main([*verb, *words, *out, "--flow_matching.image_size", "32"]) == 0
        lines = "".join(capsys.readouterr())
        assert f"{data}: leaving out 1 captions without an image: e?.txt\n" in lines
        assert "leaving out 1 images of other kinds than .jpg, .jpeg, .png, .webp: b.gif\n" in lines
        assert "leaving out 1 links that are not followed: more\n" in lines


def test_a_dataset_of_nothing_else_says_what_it_has(tmp_path):
    (tmp_path / "a.gif").write_bytes(png("red"))
    other = (
        r"there is no image \(.jpg, .*\) in '.*': it has images of other kinds than .* \((0.tar: )?a.gif\)"
    )
    with pytest.raises(DataError, match=other):
        folder.build(SECTION, str(tmp_path))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "a.gif", png("red"))
    with pytest.raises(DataError, match=other):
        shards.build(SECTION, str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.gif", "text": "red"}')
    (tmp_path / "b.png").write_bytes(png("red"))
    with pytest.raises(DataError, match=r"a.gif' has a caption in metadata.jsonl, and is none of .jpg"):
        folder.build(SECTION, str(tmp_path))
