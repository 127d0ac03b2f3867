"""Whether the README.md of a folder of results is the index that this library writes, or somebody else's; imports little, for the benchmarks."""

from pathlib import Path

from resnet_study.errors import UsageError
from resnet_study.files import read_text

INDEX_HEAD = "Made from the JSON files of this folder"


def check_index(results: Path) -> None:
    """Raises UsageError where the index would replace somebody's README.md."""
    index = results / "README.md"
    if index.is_file() and INDEX_HEAD not in read_text(index):
        raise UsageError(f"{index} must be an index of results, received another text; give another --results_dir")
