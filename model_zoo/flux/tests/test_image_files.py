"""Images in tar shards and folders: what is read of them, how it is resized and cropped, and what is refused."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from hekaton.errors import DataError
from hekaton_flux import folder, shards
from hekaton_flux.decoding import Unusable, pixels_of
from hekaton_flux.encoders import TrialEncoders
from hekaton_flux.images import StoredImage
from hekaton_flux.rows import ImageEncoder
from hekaton_flux.settings import FlowMatchingSection

SECTION = FlowMatchingSection(image_size=32, text_length=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEKATON_CACHE", str(tmp_path / "cache"))


def png(color, *, width=40, height=40):
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def tar(path, members):
    with tarfile.open(path, "w") as written:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            written.addfile(header, io.BytesIO(data))
    return path


def two_shards(path):
    path.mkdir()
    tar(
        path / "0.tar",
        {"a.png": png("red"), "a.txt": b"red\n", "a.json": b"{}", "b.PNG": png("lime"), "b.txt": b"lime"},
    )
    tar(
        path / "1.tar",
        {"x/c.json": json.dumps({"caption": "blue"}).encode(), "x/c.png": png("blue"), "notes.md": b"-"},
    )
    return path


def decoded(image):
    return pixels_of(image, size=32, enlarge=False)


def test_samples_of_shards_are_images_with_their_captions(tmp_path):
    found = shards.build(SECTION, str(two_shards(tmp_path / "shards")))
    assert len(found) == 3
    images = found.fetch([2, 0, 1])
    assert [image.text for image in images] == ["blue", "red", "lime"]
    assert [decoded(image)[0, 0].tolist() for image in images] == [[0, 0, 255], [255, 0, 0], [0, 255, 0]]
    assert images[0].where.endswith("1.tar: x/c.png")
    again = shards.build(SECTION, str(tmp_path / "shards"))  # from the index in the cache
    assert again.fingerprint == found.fingerprint
    assert again.fetch([1]) == [images[2]]


def test_a_file_that_is_replaced_is_another_dataset(tmp_path):
    path = two_shards(tmp_path / "shards")
    before = shards.build(SECTION, str(path))
    tar(path / "1.tar", {"c.png": png("blue"), "c.txt": b"navy"})
    assert shards.build(SECTION, str(path)).fingerprint != before.fingerprint
    with pytest.raises(DataError, match="changed since the run started"):
        before.fetch([2])


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda data: data[:700], "no whole tar file: unexpected end of data"),
        (lambda data: data[: 512 + 512 + 512 + 512], "cut short"),  # between two members
        (lambda data: data[:100], "no whole tar file"),
        (lambda data: data[:2048] + b"x" * 512 + data[2560:], "damaged"),
        (lambda data: b"\x1f\x8b" + data, "no whole tar file"),
    ],
)
def test_a_tar_that_is_cut_short_or_damaged_is_rejected(cut, message, tmp_path):
    path = tar(
        tmp_path / "0.tar", {"a.txt": b"red", "a.png": png("red"), "b.txt": b"lime", "b.png": png("lime")}
    )
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(DataError, match=message) as error:
        shards.build(SECTION, str(path))
    assert "0.tar" in str(error.value)


def test_images_without_captions_are_named_before_a_run(tmp_path):
    path = tar(tmp_path / "0.tar", {f"{i}.png": png("red") for i in range(7)} | {"6.txt": b"red"})
    with pytest.raises(
        DataError, match=r"6 image\(s\) without a caption: 0.png, .*4.png and 1 more"
    ) as error:
        shards.build(SECTION, str(path))
    assert "flow_matching.max_bad_images = 0" in str(error.value)
    some = SECTION.model_copy(update={"max_bad_images": 6})
    assert [image.text for image in shards.build(some, str(path)).fetch([0])] == ["red"]


def test_images_of_a_folder_have_captions_beside_them_or_in_one_file(tmp_path):
    (tmp_path / "in").mkdir()
    for name, color in {"b.png": "blue", "in/a.jpg": "red", "c.png": "lime"}.items():
        (tmp_path / name).write_bytes(png(color))
    (tmp_path / "b.txt").write_text("blue\n")
    lines = [{"file_name": "in/a.jpg", "text": "red"}, {"file_name": "c.png", "text": "lime"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = folder.build(SECTION, str(tmp_path))
    assert [image.text for image in found.fetch(range(3))] == ["blue", "lime", "red"]
    (tmp_path / "b.txt").write_text("navy")
    assert folder.build(SECTION, str(tmp_path)).fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is no image"),
        ({"a.png": b""}, r"1 image\(s\) without a caption: a.png"),
        (
            {"a.png": b"", "metadata.jsonl": b'{"file_name": "a.png"}'},
            "line 1: an object with file_name and text",
        ),
        (
            {"a.png": b"", "metadata.jsonl": b'{"file_name": "b.png", "text": ""}'},
            "b.png' has a caption .* not there",
        ),
    ],
)
def test_a_folder_that_is_no_dataset_is_rejected(files, message, tmp_path):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        folder.check(SECTION, str(tmp_path))
        folder.build(SECTION, str(tmp_path))


def test_datasets_say_what_is_missing(tmp_path):
    for module in (shards, folder):
        with pytest.raises(DataError, match="needs dataset_path"):
            module.check(SECTION, None)
        module.check(SECTION, None, here=False)
        with pytest.raises(DataError, match="is no folder"):
            module.check(SECTION, str(tmp_path / "missing"))
    (tmp_path / "0.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"there is no .tar file .*\n  compressed tar files are not read"):
        shards.check(SECTION, str(tmp_path))


def test_the_middle_of_an_image_is_cut_out_once_its_shorter_side_fits():
    # Stripes of 16 columns: what is left of 96 by 64 pixels are those from 16 to 79.
    colors = np.repeat(np.arange(6, dtype=np.uint8) * 40, 16)
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(colors[None, :, None], (64, 96, 3)).copy()).save(file, "PNG")
    image = StoredImage(file.getvalue(), "", "x")
    assert np.array_equal(pixels_of(image, size=64, enlarge=False)[10, :, 0], colors[16:80])
    # Half the size: the middle of each stripe keeps its value.
    assert pixels_of(image, size=32, enlarge=False)[5, 4::8, 1].tolist() == [40, 80, 120, 160]
    with pytest.raises(Unusable, match="it has 96 by 64 pixels, fewer than 128 by 128"):
        pixels_of(image, size=128, enlarge=False)
    assert pixels_of(image, size=128, enlarge=True).shape == (128, 128, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_other_kinds_become_red_green_and_blue(mode):
    file = io.BytesIO()
    Image.new(mode, (32, 32)).save(file, "JPEG" if mode == "CMYK" else "PNG")
    pixels = decoded(StoredImage(file.getvalue(), "", "x"))
    assert pixels.shape == (32, 32, 3)
    if mode == "RGBA":  # transparent is white
        assert (pixels == 255).all()


def test_bad_images_are_skipped_up_to_a_limit_and_named(caplog):
    good, torn = StoredImage(png("red"), "red", "good.png"), StoredImage(png("red")[:60], "red", "torn.png")
    text, small = StoredImage(b"<html>", "", "page.jpg"), StoredImage(png("red", width=8), "", "small.png")
    section = SECTION.model_copy(update={"max_bad_images": 2})
    encoder = ImageEncoder(TrialEncoders(4), section)
    parts = [next(encoder.cut(image)) for image in (good, torn, text, torn)]
    with caplog.at_level("WARNING", logger="hekaton"):
        assert [len(one.ids) for one in encoder.encode(parts)] == [1, 0, 0, 0]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "skipping torn.png", "skipping page.jpg",
    ]  # fmt: skip
    with pytest.raises(
        DataError, match=r"small.png: it has 8 by 40 pixels(.|\n)*torn.png(.|\n)*max_bad_images = 2"
    ):
        encoder.encode([next(encoder.cut(small))])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda one, other: one + other, "goes on after its end at byte 2,048"),
        (lambda one, other: one[:1024] + bytes(512) + one[1536:], "goes on after its end at byte 1,024"),
    ],
)
def test_what_stands_after_the_end_of_a_tar_is_not_lost(damage, message, tmp_path):
    one = tar(tmp_path / "0", {"a.txt": b"red", "a.png": png("red")}).read_bytes()
    other = tar(tmp_path / "1", {"b.txt": b"lime", "b.png": png("lime")}).read_bytes()
    (tmp_path / "0.tar").write_bytes(damage(one, other))
    with pytest.raises(DataError, match=message):
        shards.build(SECTION, str(tmp_path))


def test_a_file_that_a_tar_has_twice_is_rejected(tmp_path):
    tar(tmp_path / "0.tar", {"a.png": png("red"), "a.txt": b"red"})
    with tarfile.open(tmp_path / "0.tar", "a") as written:
        header = tarfile.TarInfo("a.png")
        header.size = len(png("blue"))
        written.addfile(header, io.BytesIO(png("blue")))
    with pytest.raises(DataError, match=r"0.tar' has 'a.png' twice"):
        shards.build(SECTION, str(tmp_path))


@pytest.mark.parametrize("content", [b"{}", b'{"caption": null}', b"["])
def test_objects_without_a_caption_are_found_before_a_run_and_can_be_skipped(content, tmp_path):
    path = tar(
        tmp_path / "0.tar", {"a.json": content, "a.png": png("red"), "b.txt": b"lime", "b.png": png("lime")}
    )
    with pytest.raises(DataError, match=r"1 image\(s\) without a caption: a.png"):
        shards.build(SECTION, str(path))
    some = SECTION.model_copy(update={"max_bad_images": 1})
    assert [image.text for image in shards.build(some, str(path)).fetch([0])] == ["lime"]


def test_links_to_files_that_are_gone_are_not_left_out(tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / "a.txt").write_text("red")
    for name in ("b.png", "b.tar"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    (tmp_path / "b.txt").write_text("blue")
    for module in (folder, shards):
        with pytest.raises(DataError, match=r"cannot read '.*/b\.(png|tar)': No such file"):
            module.build(SECTION, str(tmp_path))


def test_a_file_of_captions_has_any_text_once_for_each_image(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png("red"))
    rows = ['{"file_name": "a.png", "text": "one\u2028and\x85two"}', '{"file_name": "b.png", "text": "b"}']
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    images = folder.build(SECTION, str(tmp_path)).fetch([0, 1])
    assert [image.text for image in images] == ["one\u2028and\x85two", "b"]
    metadata.write_text("\n".join([*rows, rows[0]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata.jsonl, line 3: 'a.png' has a caption already"):
        folder.build(SECTION, str(tmp_path))
    metadata.unlink()
    os.mkfifo(metadata)  # of which reading would wait for a writer
    with pytest.raises(DataError, match=r"cannot read '.*metadata.jsonl': it is no regular file"):
        folder.check(SECTION, str(tmp_path))


def test_gray_images_of_16_bits_are_not_cut_off_at_8():
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32), 128 << 8, np.uint16)).save(file, "PNG")
    assert decoded(StoredImage(file.getvalue(), "", "x"))[0, 0].tolist() == [128, 128, 128]


def test_a_very_long_image_is_cut_before_it_is_scaled_up(monkeypatch):
    file = io.BytesIO()
    long = np.zeros((1, 9_999, 3), np.uint8)
    long[:, 4_999] = 255
    Image.fromarray(long).save(file, "PNG")
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *a: sizes.append(size) or resize(image, size, *a)
    )
    found = pixels_of(StoredImage(file.getvalue(), "", "x"), size=32, enlarge=True)
    assert max(sizes[0]) <= 10 * 32
    assert found[16, 16].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(9))
def test_images_are_upright_as_their_exif_data_says(orientation):
    given = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    given.save(file, "PNG", exif=exif)
    file.seek(0)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    assert np.array_equal(decoded(StoredImage(file.getvalue(), "", "x")), expected)


@pytest.mark.parametrize("kind", ["EPS", "TIFF"])
def test_what_an_image_is_not_is_not_opened_by_what_pillow_has_for_it(kind, tmp_path, monkeypatch):
    program = tmp_path / "gs"  # which Pillow runs on EPS
    program.write_text(f"#!/bin/sh\necho run >> {tmp_path / 'was_run'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, kind)
    with pytest.raises(Unusable, match="it is none of JPEG, PNG, WEBP, GIF, BMP"):
        decoded(StoredImage(file.getvalue(), "", "photo.jpg"))
    assert not (tmp_path / "was_run").exists()


def test_captions_in_json_have_no_lone_surrogates(tmp_path):
    content = {"a.json": b'{"caption": "red\\ud800 "}', "a.png": png("red")}
    images = shards.build(SECTION, str(tar(tmp_path / "0.tar", content)))
    assert [image.text for image in images.fetch([0])] == ["red?"]
