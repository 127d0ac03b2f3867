"""Files that are written whole or not at all, and what is said when they cannot be written."""

import errno
import os
import stat
from pathlib import Path

import conftest
import pytest

from resnet_study import files
from resnet_study.errors import UsageError, run_command
from resnet_study.files import write_atomically


def test_a_file_is_on_the_disk_before_it_is_moved_into_place_and_its_folder_afterwards(tmp_path, monkeypatch):
    done, move = [], files.move
    monkeypatch.setattr(files, "_force_to_disk", conftest.FORCE_TO_DISK)
    monkeypatch.setattr(files.os, "fsync", lambda handle: done.append(stat.S_ISDIR(os.fstat(handle).st_mode)))
    monkeypatch.setattr(files, "move", lambda *given: (done.append("moved"), move(*given)))
    write_atomically(tmp_path / "a.txt", "text")
    assert done == ([False, "moved"] if os.name == "nt" else [False, "moved", True])
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_file_system_that_cannot_force_folders_to_the_disk_is_written_to(tmp_path, monkeypatch):
    def refuse(number):
        def force(path):
            if path.is_dir():
                raise OSError(number, os.strerror(number))

        monkeypatch.setattr(files, "_force_to_disk", force)

    refuse(errno.EINVAL)
    write_atomically(tmp_path / "a.txt", "text")
    refuse(errno.EIO)
    with pytest.raises(UsageError, match="could not write"):
        write_atomically(tmp_path / "b.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


@pytest.fixture
def held(monkeypatch):
    """Has moves refused, as Windows does while another program has the file open: call it with how many."""
    waited, replace = [], Path.replace

    def hold(count):
        def refuse(path, target):
            if len(waited) < count:
                raise PermissionError(13, "The process cannot access the file", str(path), 32, str(target))
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", refuse)
        monkeypatch.setattr(files.time, "sleep", waited.append)
        return waited

    return hold


def test_a_file_that_another_program_holds_open_is_waited_for(held, tmp_path):
    path = tmp_path / "error.csv"
    write_atomically(path, "old")
    waited = held(3)
    write_atomically(path, "new")
    assert path.read_text() == "new" and len(waited) == 3 and list(tmp_path.iterdir()) == [path]


def test_a_file_that_stays_open_is_one_line_after_two_seconds(held, tmp_path):
    path = tmp_path / "error.csv"
    write_atomically(path, "old")
    waited = held(99)
    with pytest.raises(UsageError, match="cannot access the file"):
        write_atomically(path, "new")
    assert 1.5 < sum(waited) < 3 and path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "words", "others"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), ["/a/b", "No space", "make room"], ["rights"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b"), ["make room"], ["rights"]),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), ["/a/b", "rights"], ["make room"]),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), ["may use"], ["make room"]),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/a/b", None, "/c"),
            ["/a/b and /c", "check the name"],
            ["make room"],
        ),
        (OSError("strange\nthing"), ["strange thing", "another file"], ["make room", "memory"]),
        (MemoryError("cannot allocate"), ["out of memory", "cannot allocate", "smaller batches"], ["make room"]),
    ],
)
def test_what_failed_chooses_the_advice(capsys, monkeypatch, error, words, others):
    def fail():
        raise error

    monkeypatch.delenv("RESNET_STUDY_DEBUG", raising=False)
    assert run_command(fail) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and len(printed.splitlines()) == 1
    assert all(word in printed for word in words) and not any(word in printed for word in others)
    monkeypatch.setenv("RESNET_STUDY_DEBUG", "1")
    assert run_command(fail) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and "Traceback" in printed and "in fail" in printed


def test_the_traceback_of_a_refusal_is_shown_to_who_asks(capsys, monkeypatch):
    def fail():
        raise UsageError("expected this")

    monkeypatch.setenv("RESNET_STUDY_DEBUG", "1")
    assert run_command(fail) == 2
    assert "in fail" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_says_why(monkeypatch, tmp_path):
    for number, words in ((errno.ENOSPC, "make room"), (errno.EROFS, "may use")):

        def refuse(path, content, number=number):
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(Path, "write_bytes", refuse)
        with pytest.raises(UsageError, match=words):
            write_atomically(tmp_path / "x", "content")
