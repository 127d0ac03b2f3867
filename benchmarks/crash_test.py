"""Kills a training run at the worst instants until it is done, and compares it with a run that nobody killed.

    python benchmarks/crash_test.py --kills 100
    nohup make crash-test > crash-test.log &      # started again, it goes on where it was stopped

The run that nobody kills is a command line in a process of its own. The processes that are killed are forked from one that has
imported TensorFlow and not begun to use it, which saves the import at every start. Each calls `cifar10_main.main([...])` and is ended
by SIGKILL, so that nothing is tidied up. Runs of both kinds must end in the same files, so the fork cannot hide a fault.

The instants. The one with the fewest kills so far has its turn; where exactly it falls is drawn at random:

    random time             at any moment after training began
    beside a file           as soon as an unfinished file is seen in the run folder
    inside a checkpoint     after some of the bytes of a checkpoint
    between arrays          after some of the arrays of a checkpoint
    inside a model          after some of the bytes of a `.keras` file
    half a write            after half the bytes of any other file
    before/after sync, before/after move, before delete       around the n-th such call

A run that is done is compared with the undisturbed one, then the next run is begun, until all kills are spent. The figures go to
`results/reliability.json`.
"""

import argparse
import builtins
import collections
import concurrent.futures
import io
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hyper_parameters import HyperParameters  # noqa: E402
from resnet_study import devices  # noqa: E402
from resnet_study.checkpoints import read_checkpoint  # noqa: E402
from resnet_study.environment import describe_environment  # noqa: E402
from resnet_study.files import ASIDE, read_json, write_json  # noqa: E402
from resnet_study.run_folder import RunFolder  # noqa: E402

INSTANTS = (
    "random time", "beside a file", "inside a checkpoint", "between arrays", "inside a model", "half a write", "before sync",
    "after sync", "before move", "after move", "before delete",
)  # fmt: skip
FLAGS = (
    "--mode=train",
    "--preset=smoke",
    "--towers=2",
    "--precision=float32",
    "--synthetic_images=200",
    "--weight_averaging=0.9",
    "--resume",
)
_STATE = {
    "settings": {"steps": int, "seed": int, "commit": (str, None)},
    "undisturbed": bool,
    "seconds": float,
    "kills": dict,
    "stages": dict,
    "runs": int,
    "resumes": int,
    "mismatches": [str],
}


# The process that is killed


class CutShort(io.FileIO):
    """A file that takes `size` bytes and then kills the process; size 0 = half of the bytes that are written first."""

    def __init__(self, path, size: int):
        super().__init__(path, "w")
        self._left = size

    def write(self, content):
        content = memoryview(content)
        self._left = self._left or len(content) // 2
        if len(content) >= self._left:
            super().write(content[: self._left])
            _die()
        self._left -= len(content)
        return super().write(content)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at(instant: str, count: int, size: int) -> None:
    """Makes this process kill itself.

    Args:
        instant: one of `INSTANTS` that is not a matter of time.
        count: in or at which file, array or call of this kind, 1 = the first.
        size: after how many bytes of a checkpoint or a model.
    """
    calls = itertools.count(1)

    def patch(owner, name, before=lambda *_: None, after=lambda *_: None):
        original = getattr(owner, name)

        def patched(*arguments, **options):
            result = before(*arguments) or original(*arguments, **options)
            after()
            return result

        setattr(owner, name, patched)

    def die_if_it_is_time(*_):
        if next(calls) == count:
            _die()

    def cut_short(path, mode="r", *_):
        kind = {".npz": "inside a checkpoint", ".keras": "inside a model"}.get(Path(str(path)).suffix, "half a write")
        if mode == "wb" and Path(path).name.startswith(ASIDE) and kind == instant and next(calls) >= count:
            return io.BufferedWriter(CutShort(path, size))
        return None

    def die_between_arrays(archive, _name, mode="r", *_):
        if mode == "w" and archive.filename.endswith(".npz"):
            archive.fp.flush()
            die_if_it_is_time()

    if instant == "between arrays":
        patch(zipfile.ZipFile, "open", die_between_arrays)
    elif instant.startswith(("before", "after")):
        when, what = instant.split()
        owner, name = {"sync": (os, "fsync"), "move": (Path, "replace"), "delete": (Path, "unlink")}[what]
        patch(owner, name, **{when: die_if_it_is_time})
    else:
        patch(io, "open", cut_short)  # the one of pathlib
        patch(builtins, "open", cut_short)


def _train(log: int, flags: list[str], instant: str | None, count: int, size: int) -> None:
    """What a forked process does: the command line of a user, with its output in the file of the descriptor `log`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # which `start` blocked
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import cifar10_main

    if instant not in (None, "random time", "beside a file"):
        _kill_at(instant, count, size)
    sys.exit(cifar10_main.main(flags))


# The process that kills


def start(run: RunFolder, flags, instant=None, *, count=0, size=0, seconds=0.0) -> tuple[bool, str]:
    """Begins a run or goes on with it in a process of its own, until it is done or killed.

    Args:
        run: where.
        flags: of the command line.
        instant: one of `INSTANTS`, None = it is not killed.
        count, size: see `_kill_at`; "beside a file" takes `count`, too: the how manieth look that sees a file.
        seconds: of training before a kill at a random time.

    Returns:
        Whether it was killed, and what it printed.

    Raises:
        SystemExit: it ended by itself with an error.
    """
    with tempfile.TemporaryFile() as log:

        def output():
            return os.pread(log.fileno(), 1 << 20, 0).decode()

        arguments = (log.fileno(), flags_of(run, flags), instant, count, size)
        process = multiprocessing.get_context("fork").Process(target=_train, args=arguments)
        # Until it is among the children, `_stop` would not find it, and it would train on alone.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        try:
            seen = 0
            while instant in ("random time", "beside a file") and process.is_alive():
                if instant == "beside a file":
                    # Each look that sees an unfinished file counts, so that other files than the first are met as well.
                    seen += any(run.path.rglob(f"{ASIDE}*"))
                    time.sleep(0.0005)
                elif "images/s" in output() or "going on after" in output():
                    time.sleep(seconds)
                    seen = count
                if seen >= count:
                    break
            else:
                process.join(600)
                if process.is_alive():
                    raise SystemExit(
                        f"expected a run that ends or is killed within ten minutes, received one that goes on:\n{output()}"
                    )
        finally:
            process.kill()
            process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            raise SystemExit(
                f"expected a run that ends well or is killed, received exit code {process.exitcode}:\n{output()}"
            )
        return process.exitcode != 0, output()


def flags_of(run: RunFolder, flags) -> list[str]:
    return [*flags, f"--runs_dir={run.path.parent}", f"--version={run.path.name}"]


def compare(undisturbed: RunFolder, killed: RunFolder) -> list[str]:
    """What differs between two finished runs of the same settings, one line each; nothing but times may."""
    devices.import_tensorflow()
    import keras
    import numpy as np
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from resnet_study.saved_models import load_model

    differences = []

    def check(what, same):
        if not same:
            differences.append(what)

    def same_arrays(first, second):
        return len(first) == len(second) and all(map(np.array_equal, first, second))

    runs = (undisturbed, killed)
    (arrays, facts), (other_arrays, other_facts) = (read_checkpoint(run.latest_checkpoint()) for run in runs)
    check("names in the last checkpoint", list(arrays) == list(other_arrays))
    check("weights and optimizer", same_arrays(arrays.values(), other_arrays.values()))
    check("step", facts["step"] == other_facts["step"])
    for name in ("best", "final"):
        models = [load_model(str(getattr(run, name))) for run in runs]
        check(f"{name}.keras", same_arrays(*(model.get_weights() for model in models)))
        keras.backend.clear_session()
    tables = [run.read_history() for run in runs]
    check("error.csv", tables[0].drop(columns=["seconds", "examples_per_sec"]).equals(
        tables[1].drop(columns=["seconds", "examples_per_sec"])))  # fmt: skip
    check("seconds in error.csv", tables[1]["seconds"].is_monotonic_increasing)
    results = [read_json(run.result, dict) | {"weights": ""} for run in runs]
    check("result.json", results[0] == results[1])
    check("predictions.npy", same_arrays(*(np.load(run.predictions) for run in runs)))
    check("settings", [run.read_config(HyperParameters).train_steps for run in runs] == [facts["step"]] * 2)
    events = []
    for run in runs:
        accumulator = EventAccumulator(str(run.tensorboard), size_guidance={"tensors": 0})
        accumulator.Reload()
        events.append({tag: [(event.step, event.tensor_proto.SerializeToString()) for event in accumulator.Tensors(tag)]
                       for tag in accumulator.Tags()["tensors"]})  # fmt: skip
    check("TensorBoard", events[0] == events[1])
    check("steps in TensorBoard", [step for step, _ in events[1]["val_loss"]] == tables[1]["step"].tolist())
    files = [sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()
                    and path.parent != run.tensorboard and path.name != ".lock") for run in runs]  # fmt: skip
    check(f"names of files ({set(files[0]) ^ set(files[1])})", files[0] == files[1])
    for path in undisturbed.figures.glob("*.png"):
        check(path.name, (killed.figures / path.name).read_bytes() == path.read_bytes())
    return differences


def crash(folder: Path, kills: int, *, steps: int, seed: int = 0, instants=INSTANTS) -> dict:
    """Trains, kills and compares until `kills` kills are spent. What an earlier call in `folder` did counts.

    Args:
        folder: where the runs go, and `state.json`, which holds what is returned. It is left there.
        kills: how many processes to kill.
        steps: length of a run; there is a report every second step.
        seed: of the instants.
        instants: kinds of instants.

    Returns:
        A dict: kills {instant: count}, stages {"training" or "testing and drawing": kills}, runs (that were compared), resumes,
        mismatches [text], seconds, settings, undisturbed (whether that run is done).

    Raises:
        SystemExit: the folder holds something else, a run ended with an error, or an instant is never reached.
    """
    state_file = folder / "state.json"
    settings = {"steps": steps, "seed": seed, "commit": describe_environment("float32")["commit"]}
    state = {"settings": settings, "undisturbed": False, "seconds": 0.0, "kills": dict.fromkeys(instants, 0), "stages": {},
             "runs": 0, "resumes": 0, "mismatches": []}  # fmt: skip
    if state_file.exists():
        state = read_json(state_file, _STATE)
    elif folder.exists() and any(folder.iterdir()):
        raise SystemExit(
            f"error: {folder} must be empty or hold a crash test, received other files; give another --folder"
        )
    if (state["settings"], list(state["kills"])) != (settings, list(instants)):
        raise SystemExit(f"error: {folder} holds a crash test with {state['settings']}, expected {settings}; delete it")
    last = time.monotonic()

    def save():
        nonlocal last
        now = time.monotonic()
        state["seconds"] += now - last
        last = now
        write_json(state_file, state)

    flags = [*FLAGS, f"--train_steps={steps}", "--report_freq=2"]
    undisturbed = RunFolder(folder / "undisturbed")
    if not state["undisturbed"]:
        save()
        shutil.rmtree(undisturbed.path, ignore_errors=True)  # begun when this was stopped
        command = [sys.executable, str(ROOT / "cifar10_main.py"), *flags_of(undisturbed, flags)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"expected a run that ends well, received exit code {done.returncode}:\n{done.stderr}")
        state["undisturbed"] = True
        save()
    sizes = {"inside a checkpoint": undisturbed.latest_checkpoint().stat().st_size,
             "inside a model": undisturbed.final.stat().st_size}  # fmt: skip
    # A start writes some four files for a report and eight at the end of a run; up to ten reports are survived.
    counts = collections.defaultdict(
        lambda: min(40, 2 * steps), {"inside a checkpoint": min(6, steps // 2), "inside a model": 2}
    )
    counts["between arrays"] = counts["inside a checkpoint"] * len(
        zipfile.ZipFile(undisturbed.latest_checkpoint()).namelist()
    )
    missed = collections.Counter()
    while (spent := sum(state["kills"].values())) < kills or (folder / f"killed-{state['runs'] + 1}").exists():
        run = RunFolder(folder / f"killed-{state['runs'] + 1}")
        rng = random.Random(f"{seed} {spent} {missed.total()}")
        instant = min(instants, key=state["kills"].get) if spent < kills else None
        began = time.monotonic()
        killed, output = start(run, flags, instant, count=rng.randint(1, counts[instant]),
                               size=rng.randint(1, sizes.get(instant, 1)) * (instant in sizes),
                               seconds=rng.uniform(0, 3))  # fmt: skip
        state["resumes"] += "going on after" in output
        if killed:
            state["kills"][instant] += 1
            stage = "testing and drawing" if run.final.exists() else "training"
            state["stages"][stage] = state["stages"].get(stage, 0) + 1
            line = f"kill {spent + 1:>3}: {instant}, while {stage}, after {time.monotonic() - began:.1f} s"
        else:
            missed[instant] += instant is not None
            if missed[instant] > 5 + state["kills"].get(instant, 0):
                raise SystemExit(f"error: {missed[instant]} runs ended without a kill '{instant}'")
            # In a process of its own: it uses TensorFlow, and after that this one could not be forked any more.
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
                differences = pool.submit(compare, undisturbed, run).result()
            state["mismatches"] += [f"{run}: {difference}" for difference in differences]
            state["runs"] += 1
            line = f"run {state['runs']} done, mismatches so far: {len(state['mismatches'])}"
        save()
        print(line, flush=True)
    return state


def _write_report(state: dict, kills: int, results_dir: Path) -> list[dict]:
    """Writes `reliability.json` and the tables of `results_dir`; returns the rows."""
    from resnet_study.reports.results import write_table

    settings = state["settings"]
    environment = describe_environment("float32")
    common = {
        "experiment": "reliability",
        "dataset": "synthetic",
        "model": "resnet8",
        "preset": "smoke",
        "std": None,
        "runs": state["runs"],
        "published": None,
        "published_source": None,
        "command": f"python benchmarks/crash_test.py --kills {kills} --steps {settings['steps']} --seed {settings['seed']}",
        "images_seen": state["runs"] * settings["steps"] * 32,
        "wall_seconds": round(state["seconds"]),
        "hardware": f"{environment['processor']}, {environment['cores']} cores, float32, 2 towers",
        "commit": settings["commit"],
        "run": None,
    }
    numbers = {"kills survived": sum(state["kills"].values())}
    numbers |= {f"kills, {instant}": count for instant, count in sorted(state["kills"].items())}
    numbers |= {f"kills while {stage}": count for stage, count in sorted(state["stages"].items())}
    rows = [common | {"metric": name, "unit": "kills", "value": value} for name, value in numbers.items()]
    rows.insert(1, common | {"metric": "resumes", "unit": "starts", "value": state["resumes"]})
    count = len(state["mismatches"])
    rows.append(common | {"metric": "differences from undisturbed runs", "unit": "files", "value": count})
    write_json(results_dir / "reliability.json", rows)
    write_table(results_dir)
    return rows


def _stop(*_):
    """Ends this process and the one that trains at once: what counts is on the disk. An exception could be lost within a fork."""
    for process in multiprocessing.active_children():
        process.kill()
        process.join()  # while it dies it holds the lock of its run
    os._exit(128 + signal.SIGTERM)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60, help="length of a run; a report every second step [60]")
    parser.add_argument("--seed", type=int, default=0, help="of the instants [0]")
    parser.add_argument("--instants", nargs="+", choices=INSTANTS, default=INSTANTS, help="[all]", metavar="INSTANT")
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "runs" / "crash-test",
        help="where the runs go; deleted at the end unless something differs [runs/crash-test]",
    )
    parser.add_argument("--results_dir", type=Path, default=ROOT / "results")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that has found a GPU cannot be forked
    # What every forked process would import.
    devices.import_tensorflow()
    import cifar10_main  # noqa: F401
    import cifar10_train  # noqa: F401
    from resnet_study.reports import figures  # noqa: F401

    state = crash(options.folder, options.kills, steps=options.steps, seed=options.seed, instants=options.instants)
    rows = _write_report(state, options.kills, options.results_dir)
    print(*state["mismatches"], *(f"{row['metric']}: {row['value']} {row['unit']}" for row in rows), sep="\n")
    if state["mismatches"]:
        return 1
    shutil.rmtree(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
