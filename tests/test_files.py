"""Files that are written whole or not at all, and what is said when they cannot be written."""

from pathlib import Path

import pytest

from resnet_study import files
from resnet_study.errors import UsageError
from resnet_study.files import write_atomically


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
