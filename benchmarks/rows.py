"""What the benchmarks write: the numbers of a row, what all rows of a measurement have in common, and the list among the results."""

import statistics
import time
from pathlib import Path

from resnet_study.errors import UsageError

# What is measured here is compared with nothing that was published, trains nothing and has no run.
OF_NO_RUN = {"published": None, "published_source": None, "images_seen": 0, "run": None}


def summarise(values) -> dict:
    """Median as `value`, minimum, maximum, sample standard deviation `std` (None for one value) and number `runs`."""
    values = list(values)
    return {
        "value": round(statistics.median(values), 4),
        "minimum": round(min(values), 4),
        "maximum": round(max(values), 4),
        "std": round(statistics.stdev(values), 4) if len(values) > 1 else None,
        "runs": len(values),
    }


def describe_measurement(dataset: str, command: str, start: float, note: str = "") -> dict:
    """What all rows of a measurement have in common; `start`: what `time.monotonic` said when it began."""
    from resnet_study.environment import describe_environment

    environment = describe_environment("")
    return {
        "dataset": dataset,
        "command": command,
        "wall_seconds": round(time.monotonic() - start),
        "hardware": f"{environment['processor']}, {environment['cores']} cores",
        "commit": environment["commit"],
        "note": note,
    }


def check_place(path: Path, command: str) -> None:
    """Raises UsageError, before an hour of measuring, where the rows would replace others, or the index somebody's README.md."""
    from resnet_study.files import read_json
    from resnet_study.reports.results_index import check_index

    check_index(path.parent)
    held = {row["command"] for row in read_json(path, [{"command": str}])} if path.is_file() else {command}
    if held - {command}:
        raise UsageError(f"{path} holds what another command has measured; give another --results_dir")


def write_rows(rows: list[dict], results_dir: Path) -> None:
    """Writes `<results_dir>/<experiment>.json`, by the experiment of the rows, and the tables of the folder; says so."""
    from resnet_study.files import write_json
    from resnet_study.reports.results import write_table

    path = results_dir / f"{rows[0]['experiment']}.json"
    write_json(path, rows)
    print(f"written: {path}, {write_table(results_dir)}")
