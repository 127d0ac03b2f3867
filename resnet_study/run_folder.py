"""The folder of one run: what lies where, written so that a kill at any instant leaves the old or the new file, never half.

runs/<version>/                 written by
    config.json                 this module: settings
    environment.json            this module, at each start that trains: versions, devices, number format, towers
    data.json                   cifar10_train: class names, image counts, where the data was found (training.tasks, flowers.transfer)
    checkpoints/step-*.npz      checkpoints: the last two
    error.csv                   training.state: one row per report
    tensorboard/                training.tensorboard_log
    best.keras, final.keras     training.user_model: by validation error or loss (without validation, with --sparsity: the newest); at the last step
    teacher.keras, base.keras   training.tasks, flowers.transfer: the teacher of a distillation; a backbone that stays frozen
    result.json, predictions*.npy    evaluation: test metrics; test probabilities, float32 [images, classes]
    calibration.json, calibrated.keras    studies.calibrate
    figures/*.png, *.md         reports.figures, flowers.evaluate
    report.html                 reports.run_page
    predictions*.csv, probabilities*.csv, .npy, explanations/    predict_files, reports.grad_cam: answers for images of one's own
    evaluations/, unlabelled/   new_data: on other images than those of the run
    exported/                   exporting.export
    gradient_norms.csv          studies.degradation

What is being written is called `.aside-*` until it is complete. What a killed process left of these is deleted when the folder is
locked the next time.
"""

import contextlib
import dataclasses
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np

from resnet_study.checkpoints import HISTORY, latest_checkpoint_in, list_checkpoints, step_of
from resnet_study.devices import POLICIES
from resnet_study.errors import UsageError, say_once
from resnet_study.files import ASIDE, holding_lock, is_being_written, read_json, read_text, write_atomically, write_json
from resnet_study.networks import registry
from resnet_study.own_image_settings import OwnImageSettings
from resnet_study.run_changes import PLACES, check_deletion, check_settings, find_longer
from resnet_study.settings import Settings
from resnet_study.shared_settings import SharedSettings
from resnet_study.strings import as_text, shorten
from resnet_study.workers import is_chief


class RunFolder:
    """Paths and files of one run. Making the object touches nothing."""

    def __init__(self, path):
        self.path = Path(path).expanduser()
        self.config = self.path / "config.json"
        self.environment = self.path / "environment.json"
        self.data = self.path / "data.json"
        self.error_csv = self.path / "error.csv"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best.keras"
        self.final = self.path / "final.keras"
        self.teacher = self.path / "teacher.keras"
        self.result = self.path / "result.json"
        self.predictions = self.path / "predictions.npy"
        self.gradient_norms = self.path / "gradient_norms.csv"
        self.figures = self.path / "figures"
        self.page = self.path / "report.html"
        self.tensorboard = self.path / "tensorboard"
        self._begins_anew = False

    def __str__(self):
        return str(self.path)

    @contextlib.contextmanager
    def locked(self):
        """Holds the folder for one writer, and deletes what a killed one had not finished writing.

        Raises:
            UsageError: another process holds it, or the folder cannot be written to.
        """
        taken = f"another process is training in {self}; wait for it or give another --version"
        # What a killed process had started, such as git, may hold the lock a moment longer.
        with holding_lock(self.path / ".lock", 1, taken):
            for aside in list(self.path.rglob(f"{ASIDE}*")):
                if is_being_written(aside):  # by a test or an export, which need no lock
                    continue
                name = re.fullmatch(rf"{re.escape(ASIDE)}\d+(?:-[0-9a-f]{{8}})?-old-(.+)", aside.name)
                if name and not aside.with_name(name[1]).exists():  # an export that was killed between two renames
                    aside.rename(aside.with_name(name[1]))
                elif aside.is_dir() and not aside.is_symlink():
                    shutil.rmtree(aside)
                else:
                    aside.unlink(missing_ok=True)
            yield

    def is_locked(self) -> bool:
        """Whether a process writes in it now."""
        path = self.path / ".lock"
        if not path.is_file():
            return False
        try:
            with filelock.FileLock(path, timeout=0):
                return False
        except filelock.Timeout:
            return True
        except OSError:  # a folder that may only be read: nobody writes here with our rights
            return False

    def holds_run(self) -> bool:
        """Whether a run was begun in it."""
        return self.config.is_file()

    def goes_on(self) -> bool:
        """Whether a run that was begun in it goes on, as far as is known: `check` may tell that it is to be overwritten."""
        return not self._begins_anew and self.holds_run()

    def _entries(self) -> list[Path]:
        """What the folder holds, but for the lock and what was being written when a process was killed."""
        return [entry for entry in self.path.iterdir() if not entry.name.startswith((".lock", ASIDE))]

    def check(self, config: Settings, *, resume: bool, overwrite: bool) -> None:
        """Raises UsageError if a run with these settings cannot be begun or resumed here; writes nothing.

        Of several machines only the chief, which writes, checks; all take what the folder holds as gone if it is to be overwritten.
        """
        if resume and overwrite:
            raise UsageError("resume and overwrite exclude each other, received both; give one of them")
        self._begins_anew = overwrite
        if not is_chief(config.strategy):
            return
        if not self.path.exists():
            # Better known before the images are read than after.
            place = next(folder for folder in self.path.absolute().parents if folder.exists())
            if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
                raise UsageError(
                    f"{place} must be a folder to write to, received a file or one that may only be read; give another --runs_dir"
                )
            return
        if not self.holds_run():
            if self._entries():
                raise UsageError(f"{self} must be empty or hold a run, received other files; give another --version")
        elif overwrite:
            check_deletion(self, config)
        elif resume:
            check_settings(self, config)
        else:
            raise UsageError(
                f"{self} already holds a run; use --resume to go on with it, --overwrite to start again, or another "
                "--version; in Python train(config, resume=True) or overwrite=True"
            )

    def begin(self, config: Settings, *, resume: bool, overwrite: bool) -> None:
        """Checks as `check` does, empties the folder if it is to be overwritten, and writes `config.json` where there is none."""
        self.check(config, resume=resume, overwrite=overwrite)
        if overwrite:
            # The table goes first, see `latest_checkpoint`, then the checkpoints, and the settings last: what a kill leaves is a run that
            # can be begun again.
            order = (self.error_csv, self.checkpoints)
            for entry in sorted(
                self._entries(), key=lambda entry: (entry == self.config, *(entry != one for one in order))
            ):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        self._begins_anew = False
        if not self.holds_run():
            write_atomically(self.config, config.to_json() + "\n")

    def check_same_settings(self, config: Settings) -> None:
        """Raises UsageError where settings with which the run is read differ from its own: with another split, images it was trained on would be
        tested.
        """
        stored = self.read_config(type(config))
        if changed := config.flags_beside(stored):
            raise UsageError(
                f"{self} was trained with {' '.join(stored.flags_beside(config))}, received {' '.join(changed)}; leave that out, or in Python "
                "give the same settings"
            )

    def check_not_longer(self, config: SharedSettings) -> None:
        """Raises UsageError where the settings make the training longer than it was; to be called where patience ends it all the same."""
        stored = self.read_config(type(config))
        if find_longer(self, stored, config):
            ended = getattr(stored, config.LENGTH)
            raise UsageError(
                f"--patience has ended {self}, and would again, received a longer training; "
                + ("" if config.extend == ended else f"add --extend={ended} to begin the schedule anew, or ")
                + "go on from its weights in another run"
            )

    def keep_changes(self, config: Settings) -> None:
        """Writes into `config.json` what a resumed run may change: a longer training, the place of its images."""
        stored = self.read_config(type(config))
        changed = (*find_longer(self, stored, config), *(name for name in PLACES if hasattr(config, name)))
        longer = dataclasses.replace(stored, **{name: getattr(config, name) for name in changed})
        if longer != stored:
            write_atomically(self.config, longer.to_json() + "\n")

    def has_final(self) -> bool:
        """Whether `final.keras` is of the newest checkpoint, so that the training has ended with it."""
        found = list_checkpoints(self.checkpoints)
        if not self.final.is_file() or not found:
            return self.final.is_file()
        starts = self.read_starts()
        if any("final_step" in start for start in starts):
            # The last start: that of a longer training that was killed at once has no step.
            return starts[-1].get("final_step") == step_of(found[-1])
        # Runs of earlier versions note no step; copies of them may have lost the times of their files.
        return self.final.stat().st_mtime >= found[-1].stat().st_mtime

    def read_config(self, settings: type[Settings]):
        """The settings of the run, of the class `settings`. Raises UsageError if there are none."""
        if not self.holds_run():
            if (self.path / "study.json").is_file():
                raise UsageError(
                    f"expected a run in {self}, found the summary of several; give the name of one of them as --version=NAME"
                )
            raise UsageError(
                f"expected a run in {self}, found no config.json; train it first, or give its name as --version=NAME"
            )
        return settings.from_json(read_text(self.config), str(self.config))

    def as_begun(self, config: OwnImageSettings):
        """The settings with JPEG files decoded as the run was begun with, where it has begun."""
        if not self.goes_on():
            return config
        begun = dataclasses.replace(config, jpeg_size=self.read_config(type(config)).jpeg_size)
        if begun.reading() != config.reading():
            say_once(f"{self} was begun with --jpeg_size={begun.jpeg_size}, so it goes on with that")
        return begun

    def told(self, name: str):
        """What `data.json` of a run that goes on says of `name`; None where it says nothing, or the run begins."""
        return None if self._begins_anew or not self.data.is_file() else read_json(self.data, {}).get(name)

    def keeps_last(self) -> bool:
        """Whether the run holds out no image that is the last of a class; of several labels, runs of before did."""
        return bool(self.told("keeps_last")) or not self.told("several")

    def read_starts(self) -> list[dict]:
        """What `environment.json` notes of each start; runs of the first versions have no such file."""
        return read_json(self.environment, [dict]) if self.environment.is_file() else []

    def earlier_ends(self, config: SharedSettings) -> list[int]:
        """Where a run that was extended several times had ended before, but for the last time, which `config` knows; old runs did not note it."""
        return sorted({start.get("extend", 0) for start in self.read_starts()} - {0, config.extend})

    def has_presets(self) -> bool:
        """Whether the run is one of `cifar10_main.py`; those of `flowers` have no presets."""
        return "preset" in read_json(self.config, dict)

    def note_start(self, environment: dict) -> None:
        """Adds a start of the run to `environment.json`."""
        write_json(self.environment, [*self.read_starts(), environment])

    def note_final(self, step: int) -> None:
        """Adds to the last start in `environment.json` the step of `final.keras`, which ends it."""
        if starts := self.read_starts():
            write_json(self.environment, [*starts[:-1], starts[-1] | {"final_step": step}])

    def stored_policy(self) -> str | None:
        """The Keras dtype policy of the last start; None for a run that begins, or of a version that did not note it.

        Raises:
            UsageError: `environment.json` is damaged or names something else.
        """
        policy = (self._last_start() or {}).get("dtype_policy")
        if policy is not None and policy not in POLICIES.values():
            raise UsageError(
                f"{self.environment} must name a dtype_policy of {', '.join(POLICIES.values())}, received {shorten(str(policy), 50)}; restore "
                "it or start a new run"
            )
        return policy

    def stored_towers(self) -> int | None:
        """The number of towers that the run was begun with; None for a run that begins. A run of a version without towers has one.

        Raises:
            UsageError: `environment.json` is damaged or names something else.
        """
        start = self._last_start()
        if start is None:
            return None
        towers = start.get("towers", 1)
        if type(towers) is not int or towers < 1:
            raise UsageError(
                f"{self.environment} must name a number of towers, received {shorten(str(towers), 50)}; restore it or start a new run"
            )
        return towers

    def _last_start(self) -> dict | None:
        """What the last start noted in `environment.json`, which runs of the first versions lack; None for a run that begins."""
        if not self.goes_on():
            return None
        if not self.environment.exists():
            return {} if list_checkpoints(self.checkpoints) else None
        return (self.read_starts() or [{}])[-1]

    def read_history(self):
        """The rows of `error.csv` as a pandas table. Raises UsageError if it is missing or damaged."""
        import pandas as pd

        text = read_text(self.error_csv)
        try:
            history = pd.read_csv(io.StringIO(text))
            validated = [name for name in ("validation_loss", "validation_error") if name in history]
            values = history[[*HISTORY, *validated]].to_numpy(float)
        except (ValueError, KeyError) as error:
            raise UsageError(
                f"{self.error_csv} is damaged ({shorten(str(error))}); go on with the training (--resume), which writes it anew"
            ) from error
        steps = values[:, HISTORY.index("step")]
        if not len(steps) or not np.isfinite(values).all() or steps[0] < 0 or (np.diff(steps) <= 0).any():
            raise UsageError(
                f"{self.error_csv} must hold errors at rising steps, received others; go on with the training (--resume), which writes it anew"
            )
        return history

    def last_step(self) -> int:
        """The step of the last report. Raises UsageError as `read_history`."""
        return int(self.read_history()["step"].iloc[-1])

    def read_predictions(self, shape: tuple[int, int]) -> np.ndarray:
        """`predictions.npy`, float32 of a shape. Raises UsageError if it is missing, damaged or of another shape."""
        expected = f"expected probabilities of shape {shape} in {self.predictions}"
        try:
            probabilities = np.load(io.BytesIO(self.predictions.read_bytes()), allow_pickle=False)
        except Exception as error:  # a damaged header can raise nearly anything
            raise UsageError(f"{expected}, received {shorten(str(error))}; test the run first") from error
        if probabilities.shape != shape or probabilities.dtype != np.float32 or not np.isfinite(probabilities).all():
            raise UsageError(f"{expected}, received {probabilities.dtype} {probabilities.shape}; test the run first")
        return probabilities

    def read_class_names(self, head: str = "") -> list[str]:
        """Class names of the data set, or of one head of a model that has several; [] for a head that the model does not have."""
        facts = read_json(self.data, {"class_names": [str]})
        names = facts["class_names"]
        if head:
            names = facts["heads"].get(head, []) if isinstance(facts.get("heads"), dict) else []
            names = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
        return [as_text(name) for name in names]

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that can be read; None if there is none at all. A damaged one is named and passed over.

        Raises:
            UsageError: there are checkpoints, but none can be read; or there are none any more.
        """
        path = latest_checkpoint_in(self.checkpoints)
        if (
            path is None and self.error_csv.exists()
        ):  # which is written after the first checkpoint, and deleted before the last
            raise UsageError(
                f"expected a checkpoint in {self.checkpoints} to go on from, found none, though the run has made reports; restore them, or "
                "start again with --overwrite or another --version"
            )
        return path


def run_folder_of(config) -> RunFolder:
    """The folder of a run with the settings of either program. Raises UsageError for what is no settings."""
    if not hasattr(config, "run_name"):
        raise UsageError(
            f"config must be HyperParameters or FlowerParameters, received {type(config).__name__}; make one, such as "
            "hyper_parameters.from_preset('demo')"
        )
    return RunFolder(f"{config.runs_dir}/{config.run_name}")


def run_around(path: str) -> RunFolder | None:
    """The run that a path leads to: its folder, a file in it, a checkpoint or an exported file. None where no `data.json` of a run is
    found, and for the name of shipped weights."""
    if path in registry.SHIPPED:
        return None
    place = Path(path).expanduser()
    runs = (RunFolder(folder) for folder in (place, *list(place.parents)[:3]))
    return next((run for run in runs if run.data.is_file() and (run.holds_run() or _tells_classes(run.data))), None)


def begun_run_around(path: str) -> RunFolder | None:
    """As `run_around`, but only a run whose settings are known."""
    run = run_around(path)
    return run if run is not None and run.holds_run() else None


def _tells_classes(data: Path) -> bool:
    """Whether a `data.json` without settings beside it is of a run; others may have a file of this name."""
    with contextlib.suppress(UsageError):
        return "class_names" in read_json(data, dict)
    return False


def find_run(make: Callable, flags: dict, naming: tuple[str, ...]) -> RunFolder:
    """The run folder that a command line means; what it holds is not looked at.

    Args:
        make: makes settings from flags, {name: value}.
        flags: only those on the command line.
        naming: the settings that the name of the folder follows from; the others are judged with what the run has stored.

    Returns:
        RunFolder.
    """
    return run_folder_of(make({name: flags[name] for name in naming if name in flags}))


def find_settings(
    run: RunFolder, settings: type[Settings], make: Callable, flags: dict, *, goes_on: bool, begins: bool
):
    """The settings that a command line means: those a run has stored, changed by the flags that were given, or new ones.

    Args:
        run: see `find_run`.
        settings: class of the settings.
        make, flags: see `find_run`.
        goes_on: whether a run that exists is meant.
        begins: whether it may be missing, because it is begun then. Otherwise the run is only read.

    Returns:
        Settings of the class `settings`.

    Raises:
        UsageError: the run is missing and may not be, or is only read and a flag would change what it computes: with another
            split, images it was trained on would be tested.
    """
    if not goes_on or (begins and not run.holds_run()):
        config = make(flags)
        if goes_on:
            print(f"there is no run in {run} yet, so --resume begins one")
        return config
    stored = run.read_config(settings)
    # The folder may have been moved since, or come from a stranger: where to write is never taken from its settings.
    place = {"runs_dir": settings.__dataclass_fields__["runs_dir"].default} | flags
    config = dataclasses.replace(stored, **place | {"version": run.path.name, "test_ckpt_path": ""})
    if not begins:
        run.check_same_settings(config)
    return config
