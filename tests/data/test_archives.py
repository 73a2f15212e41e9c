"""Zips of every system are unpacked, and none of them writes outside its folder."""

import zipfile

import pytest
from own_files import draw_photos, write_zip

from helpers.data import archives, unpack_archive
from helpers.files import UsageError


def names(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def zipped(path, *entries, **about):
    with zipfile.ZipFile(path, "w") as archive:
        for name in entries:
            entry = zipfile.ZipInfo(name)
            for field, value in about.items():
                setattr(entry, field, value)
            archive.writestr(entry, b"x")
    return path


def test_names_of_windows_macos_and_linux(tmp_path):
    draw_photos(tmp_path / "data", ["a/1.png"])
    path = write_zip(tmp_path / "w.zip", tmp_path / "data", lambda name: name.replace("/", "\\"))
    assert names(unpack_archive(path, tmp_path / "w")) == ["a/1.png"]
    # UTF-8 that does not say so, as macOS writes it, and an old code page
    for encoding in ("utf-8", "cp437"):
        name = "größe.txt".encode(encoding)
        packed = zipped(tmp_path / f"{encoding}.zip", "#" * len(name))
        packed.write_bytes(packed.read_bytes().replace(b"#" * len(name), name))
        assert names(unpack_archive(packed, tmp_path / encoding)) == ["größe.txt"]


def test_files_of_the_system_are_left_out(tmp_path):
    path = zipped(tmp_path / "a.zip", "__MACOSX/._1.png", ".DS_Store", "d/Thumbs.db", "d/1.png")
    assert names(unpack_archive(path, tmp_path / "out")) == ["d/1.png"]


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "C:\\evil", "a/../../evil", "..\\evil", "C:evil"]
)
def test_nothing_is_written_outside_the_folder(tmp_path, name):
    path = zipped(tmp_path / "a.zip", "good", name)
    with pytest.raises(UsageError, match=r"a\.zip: the entry .*evil.* outside the folder"):
        unpack_archive(path, tmp_path / "deep" / "out")
    assert names(tmp_path) == ["a.zip"]


def test_links_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", "link", external_attr=0o120777 << 16)
    with pytest.raises(UsageError, match="'link' is a link"):
        unpack_archive(path, tmp_path / "out")


def test_what_would_fill_the_disk_is_refused_in_words(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(3_000_000))
    monkeypatch.setattr(archives, "LARGEST_GB", 0.001)
    with pytest.raises(UsageError, match=r"takes 0\.0 GB when it is unpacked, and 0\.001 GB is"):
        unpack_archive(path, tmp_path / "out")
    monkeypatch.setattr(archives, "_check_size", lambda *_: None)  # a header that lies
    with pytest.raises(UsageError, match="takes more than"):
        unpack_archive(path, tmp_path / "out")
    assert names(tmp_path) == ["bomb.zip"]


def test_two_files_of_one_name_and_what_is_no_zip_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", "a.png", "A.png")
    with pytest.raises(UsageError, match=r"holds two files 'A\.png'"):
        unpack_archive(path, tmp_path / "out")
    (tmp_path / "b.zip").write_bytes(b"no zip")
    with pytest.raises(UsageError, match=r"b\.zip: not a zip file"):
        unpack_archive(tmp_path / "b.zip", tmp_path / "out")


def test_an_archive_is_unpacked_once_and_another_of_its_name_again(tmp_path, artifacts):
    first = unpack_archive(zipped(tmp_path / "a.zip", "one"))
    assert unpack_archive(tmp_path / "a.zip") == first
    second = unpack_archive(zipped(tmp_path / "a.zip", "two"))
    assert (names(first), names(second)) == (["one"], ["two"])
