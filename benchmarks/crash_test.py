"""Kills a training run at the worst instants until it is done, and compares it with a run that nobody killed.

    python benchmarks/crash_test.py --kills 100            # about a quarter of an hour on two cores
    make crash-test

Every start is the command line of a user, `cifar10_main.main([...])`, in a process of its own that is ended by SIGKILL, so that
nothing is tidied up. The instants, drawn at random:

    random time        at any moment after training began
    beside a file      as soon as an unfinished file is seen in the run folder
    half a write       after half the bytes of a file (also of a member of a `.keras` archive)
    before/after sync, before/after move, before delete       around the n-th such call

A run that is done is compared with the undisturbed one, then the next run is begun, until all kills are spent. The figures go to
`results/reliability.json`.
"""

import argparse
import collections
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hyper_parameters import HyperParameters  # noqa: E402
from resnet_study import devices  # noqa: E402
from resnet_study.checkpoints import read_checkpoint  # noqa: E402
from resnet_study.files import read_json, write_json  # noqa: E402
from resnet_study.run_folder import RunFolder  # noqa: E402

CALLS = ("half a write", "before sync", "after sync", "before move", "after move", "before delete")
INSTANTS = ("random time", "beside a file", *CALLS)
FLAGS = (
    "--mode=train",
    "--preset=smoke",
    "--deterministic",
    "--precision=float32",
    "--synthetic_images=200",
    "--weight_averaging=0.9",
    "--resume",
)
_STOP = "ready\n"


# The process that is killed


def _kill_at(instant: str, count: int) -> None:
    """Makes this process kill itself at the `count`-th call of a kind."""
    calls = itertools.count(1)

    def die_if_it_is_time():
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def patch(owner, name):
        original = getattr(owner, name)

        def patched(*arguments, **options):
            if instant.startswith("before"):
                die_if_it_is_time()
            result = original(*arguments, **options)
            if instant.startswith("after"):
                die_if_it_is_time()
            return result

        setattr(owner, name, patched)

    if instant.endswith("sync"):
        patch(os, "fsync")
    elif instant.endswith("move"):
        patch(Path, "replace")
    elif instant.endswith("delete"):
        patch(Path, "unlink")
    else:
        import zipfile

        def in_halves(original):
            def write(self, target, content, *rest, **options):
                if next(calls) == count:
                    original(self, target, content[: len(content) // 2], *rest, **options)
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(self, target, content, *rest, **options)

            return write

        def write_bytes(path, content):
            with path.open("wb") as file:
                if next(calls) == count:
                    file.write(content[: len(content) // 2])
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                return file.write(content)

        Path.write_bytes = write_bytes
        zipfile.ZipFile.writestr = in_halves(zipfile.ZipFile.writestr)


def _child() -> int:
    """Loads everything, waits for its orders (a line of JSON) and runs the command line."""
    import cifar10_main

    devices.import_tensorflow()
    import cifar10_train  # noqa: F401

    print(_STOP, end="", flush=True)
    orders = json.loads(sys.stdin.readline())
    if orders["instant"] in CALLS:
        _kill_at(orders["instant"], orders["count"])
    return cifar10_main.main(orders["flags"])


# The process that kills


class Child:
    """A process that has everything loaded and waits for its orders, so that one can load while another trains."""

    def __init__(self):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read after the process has ended
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child"], stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip

    def run(self, run: RunFolder, flags, instant=None, count=0, seconds=0.0) -> tuple[bool, str]:
        """Runs the command line and kills it. Returns whether it was killed and what it printed."""
        orders = {"flags": [*flags, f"--runs_dir={run.path.parent}", f"--version={run.path.name}"], "instant": instant,
                  "count": count}  # fmt: skip
        process = self._process
        process.stdin.write(json.dumps(orders) + "\n")
        process.stdin.close()
        seen = 0
        while instant in ("random time", "beside a file") and process.poll() is None:
            if instant == "beside a file":
                # Each unfinished file seen counts, so that other files than the first are met as well.
                seen += any(run.path.rglob(".aside-*"))
                time.sleep(0.0005)
            elif "images/s" in self._output() or "going on after" in self._output():
                time.sleep(seconds)
                seen = count
            if seen >= count:
                process.kill()
                break
        code = process.wait(timeout=600)
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(
                f"expected a run that ends well or is killed, received exit code {code}:\n{self._output()}"
            )
        return code != 0, self._output()

    def stop(self):
        self._process.kill()
        self._process.wait()

    def _output(self) -> str:
        return os.pread(self._log.fileno(), 1 << 20, 0).decode()


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
    """Trains, kills and compares until `kills` kills are spent.

    Args:
        folder: where the runs go.
        kills: how many processes to kill.
        steps: length of a run; there is a report every second step.
        seed: of the instants.
        instants: kinds to draw from, each in its turn.

    Returns:
        {"kills": {instant: count}, "stages": {"training" or "testing and drawing": count}, "runs": count, "resumes": count, "mismatches": [text]}
    """
    rng = random.Random(seed)
    flags = [*FLAGS, f"--train_steps={steps}", "--report_freq=2"]
    undisturbed = RunFolder(folder / "undisturbed")
    child, waiting = Child(), Child()
    child.run(undisturbed, flags)
    done = {"kills": collections.Counter(), "stages": collections.Counter(), "runs": 0, "resumes": 0, "mismatches": []}
    turns = itertools.cycle(instants)
    try:
        while sum(done["kills"].values()) < kills:
            run = RunFolder(folder / f"killed-{done['runs'] + 1}")
            killed = True
            while killed:
                child, waiting = waiting, Child()
                spent = sum(done["kills"].values()) >= kills
                instant = None if spent else next(turns)
                # A start writes some four files for a report and eight at the end of a run; up to ten reports are survived.
                killed, output = child.run(run, flags, instant, rng.randint(1, 40), rng.uniform(0, 3))
                done["resumes"] += "going on after" in output
                if killed:
                    done["kills"][instant] += 1
                    stage = "testing and drawing" if run.final.exists() else "training"
                    done["stages"][stage] += 1
                    print(f"kill {sum(done['kills'].values()):>3}: {instant}, while {stage}", flush=True)
            done["runs"] += 1
            done["mismatches"] += [f"{run}: {difference}" for difference in compare(undisturbed, run)]
            print(f"run {done['runs']} done, mismatches so far: {len(done['mismatches'])}", flush=True)
    finally:
        waiting.stop()
    return done


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60, help="length of a run; a report every second step [60]")
    parser.add_argument("--seed", type=int, default=0, help="of the instants [0]")
    parser.add_argument("--results_dir", type=Path, default=ROOT / "results")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        return _child()
    from resnet_study import devices

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done = crash(Path(folder), options.kills, steps=options.steps, seed=options.seed)
    environment = devices.describe_environment("float32")
    common = {
        "experiment": "reliability",
        "dataset": "synthetic",
        "model": "resnet8",
        "preset": "smoke",
        "std": None,
        "runs": done["runs"],
        "published": None,
        "published_source": None,
        "command": f"python benchmarks/crash_test.py --kills {options.kills} --steps {options.steps} --seed {options.seed}",
        "images_seen": done["runs"] * options.steps * 32,
        "wall_seconds": round(time.monotonic() - started),
        "hardware": f"{environment['processor']}, {environment['cores']} cores, float32",
        "commit": environment["commit"],
        "run": None,
    }
    numbers = {"kills survived": sum(done["kills"].values()), "resumes": done["resumes"]}
    numbers |= {f"kills, {instant}": count for instant, count in sorted(done["kills"].items())}
    numbers |= {f"kills while {stage}": count for stage, count in sorted(done["stages"].items())}
    rows = [common | {"metric": name, "unit": "kills", "value": value} for name, value in numbers.items()]
    rows[1]["unit"] = "starts"
    rows.append(
        common | {"metric": "differences from undisturbed runs", "unit": "files", "value": len(done["mismatches"])}
    )
    write_json(options.results_dir / "reliability.json", rows)
    from resnet_study.reports.results import (
        write_table,  # with TensorFlow, which the killing process does not need before
    )

    write_table(options.results_dir)
    print(*done["mismatches"], *(f"{row['metric']}: {row['value']} {row['unit']}" for row in rows), sep="\n")
    return 1 if done["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
