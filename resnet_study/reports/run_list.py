"""What lies in a folder of runs: a line for each, read from small files; importing this module imports neither TensorFlow nor Keras."""

import contextlib
import datetime
import stat
from pathlib import Path

from resnet_study.checkpoints import check_checkpoint, latest_checkpoint_in
from resnet_study.errors import UsageError
from resnet_study.files import is_kind, read_json
from resnet_study.run_folder import RunFolder
from resnet_study.strings import as_text, shorten


def list_runs(runs_dir: str) -> list[dict]:
    """The folders of runs, of studies and of tests in `runs_dir`, the one that was used last first.

    Returns:
        For each a dict: name, state (finished, stopped, running, damaged, study, test), detail (such as "step 3 of 10" or what is
        damaged), error (the newest test's, top-1 in %, or None), part (validation or test, of the error), seconds (of training, or
        None), bytes (on the disk), changed (datetime).

    Raises:
        UsageError: there is no such folder.
    """
    place = Path(runs_dir).expanduser()
    if not place.is_dir():
        raise UsageError(f"--runs_dir must be a folder with runs, found none in {place}; train one first")
    rows = []
    for path in place.iterdir():
        stats = _stat_files(path)
        state = _find_state(RunFolder(path)) if stats else None
        if state:
            changed = datetime.datetime.fromtimestamp(max(each.st_mtime for each in stats))
            rows.append(
                {"name": as_text(path.name), **state, "bytes": sum(each.st_size for each in stats), "changed": changed}
            )
    return sorted(rows, key=lambda row: row["changed"], reverse=True)


def _stat_files(folder):
    """The stats of all files; a run that trains meanwhile deletes some."""
    stats = []
    for entry in folder.rglob("*"):
        with contextlib.suppress(OSError):
            stats.append(entry.stat())
    return [each for each in stats if stat.S_ISREG(each.st_mode)]


def _find_state(run):
    """Everything about a folder but its size; None where it is none of ours."""
    row = {"state": "study", "detail": "", "error": None, "part": "", "seconds": None}
    if (run.path / "study.json").is_file():
        return row
    try:
        row |= _read_error(run)
        if not run.holds_run():
            return row | {"state": "test"} if run.result.is_file() else None
        config = read_json(run.config, dict)
        if not {"train_steps", "epochs"} & config.keys():  # of another program
            return row | {"state": "test"} if run.result.is_file() else None
        step = reports = 0
        if run.error_csv.is_file():
            history = run.read_history()
            step, reports = int(history["step"].iloc[-1]), len(history) - 1
            row["seconds"] = float(history["seconds"].iloc[-1])
        # A run of cifar10_main.py counts steps, one of flowers epochs, each with a report.
        is_counted = "train_steps" in config
        trained, planned = (step, config["train_steps"]) if is_counted else (reports, config.get("epochs"))
        # Of a copied run the times of files may be lost.
        has_ended = run.final.is_file() and (trained >= planned or run.has_final())
        state = "running" if run.is_locked() else "finished" if has_ended else "stopped"
        if is_counted and state == "stopped" and (found := latest_checkpoint_in(run.checkpoints)):
            trained = check_checkpoint(found)["step"]  # between two reports, perhaps
        return row | {"state": state, "detail": f"{'step' if is_counted else 'epoch'} {trained:,} of {planned:,}"}
    except (UsageError, TypeError, ValueError) as error:
        return row | {"state": "damaged", "detail": shorten(str(error).partition(";")[0], 120)}


def _read_error(run):
    """The top-1 error of `result.json`, also of an earlier version, without the packages that `evaluation` needs."""
    if not run.result.is_file():
        return {}
    result = read_json(run.result, dict)
    part = result.get("predictions", "test")
    metrics = result.get(part, {"error": result.get("test_error")})
    if not is_kind(metrics, {"error": float}):
        raise UsageError(f"{run.result} holds no error; test the run again")
    return {"error": metrics["error"], "part": part}


def print_runs(runs_dir: str) -> None:
    """Prints `list_runs` as a table."""
    import pandas as pd

    rows = list_runs(runs_dir)
    if not rows:
        print(f"no runs in {runs_dir}")
        return
    cells = {
        "run": [row["name"] for row in rows],
        "state": [row["state"] + (f", {row['detail']}" if row["detail"] else "") for row in rows],
        "error": ["" if row["error"] is None else f"{row['error']:.2f} % ({row['part']})" for row in rows],
        "trained": [
            "" if row["seconds"] is None else str(datetime.timedelta(seconds=round(row["seconds"]))) for row in rows
        ],
        "disk": [f"{row['bytes'] / 1e6:,.1f} MB" for row in rows],
        "changed": [f"{row['changed']:%Y-%m-%d %H:%M}" for row in rows],
    }
    table = pd.DataFrame(cells)
    for name in ("run", "state"):
        table[name] = table[name].str.ljust(table[name].str.len().max())
    print(table.to_string(index=False, justify="left"))
    print(f"{len(rows)} in {runs_dir}, {sum(row['bytes'] for row in rows) / 1e6:,.0f} MB")
