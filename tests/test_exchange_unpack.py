"""Unpacking: archives of strangers are checked before they are read, and never leave the folder."""

import io
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from manybeam.errors import ManybeamError, NotFound, TooLarge, UnreadableFile
from manybeam.zoo.exchange.unpack import UnpackLimits, files_of, unpack

Fill = Callable[[zipfile.ZipFile], None]
SMALL = UnpackLimits(total_bytes=100_000, entries=5, ratio=50.0)


def packed(path: Path, fill: Fill) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        fill(archive)
    return path


def named(*names: str) -> Fill:
    def fill(archive: zipfile.ZipFile) -> None:
        for name in names:
            # The name as it stands: ZipInfo would tidy it away.
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            archive.writestr(entry, b"content")

    return fill


def linked(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("passwords")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc/passwd")


def twice(archive: zipfile.ZipFile) -> None:
    archive.writestr("Card.md", "one")
    archive.writestr("card.md", "two")


def a_bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("weights.safetensors", bytes(90_000_000))


def test_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    path = packed(tmp_path / "good.zip", named("manifest.json", "members/00/weights.safetensors"))
    out = tmp_path / "out"
    out.mkdir()
    assert unpack(path, out, SMALL) == ["manifest.json", "members/00/weights.safetensors"]
    assert (out / "members/00/weights.safetensors").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("fill", "error", "word"),
    [
        pytest.param(named("../out.txt"), UnreadableFile, "leads out of the folder", id="parent"),
        pytest.param(
            named("a/../../out.txt"), UnreadableFile, "leads out of the folder", id="deep"
        ),
        pytest.param(
            named("/etc/cron.d/x"), UnreadableFile, "leads out of the folder", id="absolute"
        ),
        pytest.param(named("C:\\x.txt"), UnreadableFile, "leads out of the folder", id="drive"),
        pytest.param(named("..\\x.txt"), UnreadableFile, "leads out of the folder", id="backslash"),
        pytest.param(
            named("a\nb.json"), UnreadableFile, "leads out of the folder", id="line-break"
        ),
        pytest.param(
            named("a" * 300), UnreadableFile, "leads out of the folder", id="300-characters"
        ),
        pytest.param(linked, UnreadableFile, "link", id="link"),
        pytest.param(twice, UnreadableFile, "twice", id="twice"),
        pytest.param(
            named("a", "a/b"), UnreadableFile, "a file as its folder", id="file-as-folder"
        ),
        pytest.param(named("weights.pkl"), UnreadableFile, "pickle", id="pickle"),
        pytest.param(named("x/model.PT"), UnreadableFile, "pickle", id="torch-pickle"),
        pytest.param(named(*"abcdef"), TooLarge, "more than 5 entries", id="entries"),
        pytest.param(a_bomb, TooLarge, "90,000,000 bytes", id="total"),
    ],
)
def test_a_bad_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, fill: Fill, error: type[ManybeamError], word: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(error, match=word):
        unpack(packed(tmp_path / "bad.zip", fill), out, SMALL)
    assert list(out.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip", "out"]


def test_a_bomb_below_the_limit_is_known_by_how_tightly_it_is_packed(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="too high a compression"):
        unpack(packed(tmp_path / "bomb.zip", a_bomb), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def patched(path: Path, place: int, form: str, value: int) -> Path:
    """Change one number in the first entry of an archive's list of contents, and in its header."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.index(b"PK\x01\x02") + place, value)
    path.write_bytes(content)
    return path


def test_two_declared_gigabytes_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "large.zip", named("weights.safetensors"))
    with pytest.raises(TooLarge, match="2,147,483,648 bytes"):
        unpack(patched(path, 24, "<I", 2**31), tmp_path / "out")


def test_more_bytes_than_declared_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "liar.zip", lambda a: a.writestr("manifest.json", bytes(5000)))
    with pytest.raises(UnreadableFile, match=r"manifest\.json"):
        unpack(patched(path, 24, "<I", 10), tmp_path / "out")


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "locked.zip", named("manifest.json"))
    with pytest.raises(UnreadableFile, match="encrypted"):
        unpack(patched(path, 8, "<H", 1), tmp_path / "out")


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "overlap.zip", named("a"))
    with pytest.raises(UnreadableFile, match="overlap"):
        unpack(patched(path, 20, "<I", 90_000), tmp_path / "out")


def test_a_long_list_of_contents_is_refused_unread(tmp_path: Path) -> None:
    path = packed(tmp_path / "list.zip", named("a"))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\x05\x06") + 12, 2**31)
    path.write_bytes(content)
    with pytest.raises(TooLarge, match="list of contents"):
        unpack(path, tmp_path / "out")


def zip64_record(size: int, start: int) -> bytes:
    """Return Zip64's record of the list of contents: its length, and where it begins."""
    return struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, start)


def zip64_end(locates: int, says: int) -> bytes:
    """Return what ends a Zip64: where its record is, and the old record with another length."""
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, locates, 1)
    return locator + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, says, 0xFFFFFFFF, 0)


def empty_file(number: int) -> bytes:
    """Return what a list of contents says of an empty file."""
    name = b"%06d" % number
    fixed = (b"PK\x01\x02", *(0,) * 11, len(name), *(0,) * 6)
    return struct.pack("<4s4B4H3I5H2I", *fixed) + name


def test_the_length_in_the_record_of_zip64_is_the_one_that_counts(tmp_path: Path) -> None:
    lists = b"".join(map(empty_file, range(250_000)))
    path = tmp_path / "long.zip"
    path.write_bytes(lists + zip64_record(len(lists), 0) + zip64_end(len(lists), says=100))
    with pytest.raises(TooLarge, match="a list of contents of 13,000,000 bytes"):
        unpack(path, tmp_path / "out")


def test_a_second_record_of_zip64_hides_nothing(tmp_path: Path) -> None:
    lists = empty_file(1)
    records = zip64_record(13_000_000, 0) + zip64_record(len(lists), 0)
    path = tmp_path / "two.zip"
    path.write_bytes(lists + records + zip64_end(len(lists), says=100))
    with pytest.raises(TooLarge, match="a list of contents of 13,000,000 bytes"):
        unpack(path, tmp_path / "out")


def test_a_sound_archive_in_zip64_is_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "good.zip", named("a"))
    content = path.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
    record = zip64_record(end - start, start)
    path.write_bytes(content[:end] + record + zip64_end(end, says=0xFFFFFFFF))
    assert unpack(path, tmp_path / "out", SMALL) == ["a"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_an_archive_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    whole = packed(tmp_path / "whole.zip", named("a", "b")).read_bytes()
    path = tmp_path / "cut.zip"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableFile, match="cut short"):
        unpack(path, tmp_path / "out")


def test_a_byte_that_changed_is_noticed(tmp_path: Path) -> None:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("a", b"0123456789" * 10)
    content = bytearray(stored.getvalue())
    content[60] ^= 1
    path = tmp_path / "changed.zip"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="cannot be unpacked"):
        unpack(path, tmp_path / "out")


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.zip"):
        unpack(tmp_path / "none.zip", tmp_path)


def test_a_folder_with_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(UnreadableFile, match="link"):
        files_of(tmp_path)


def test_a_folder_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(200_000))
    with pytest.raises(TooLarge, match="200,000"):
        files_of(tmp_path, SMALL)


def test_a_folder_is_not_looked_through_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        (tmp_path / f"{number:03d}").mkdir()
    looked: list[object] = []
    scandir = os.scandir

    def counted(path: str) -> object:
        looked.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    with pytest.raises(TooLarge, match="more than 5 entries"):
        files_of(tmp_path, SMALL)
    assert len(looked) == 1


def test_the_files_of_a_folder_come_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2", "c", "a", "b/1"):
        (tmp_path / name).touch()
    assert files_of(tmp_path) == ["a", "b/1", "b/2", "c"]
