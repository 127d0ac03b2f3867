"""Where a training stands, as checkpoints keep it: the step, the reports so far, the unfinished interval, the time it took."""

import time
from pathlib import Path

import pandas as pd

from resnet_study import workers
from resnet_study.checkpoints import checkpoint_of, read_checkpoint, save_checkpoint, step_of
from resnet_study.errors import UsageError
from resnet_study.files import write_atomically
from resnet_study.run_folder import RunFolder
from resnet_study.training.machine import Machine
from resnet_study.training.run_log import name_columns, smooth
from resnet_study.training.tensorboard_log import event_sizes


class TrainingState:
    """What a resumed run takes up again, beside the variables.

    Attributes:
        step: batches trained so far.
        history: rows of `error.csv`, one for each report.
        interval: sums since the last report: images, seconds, and what the training step returns, such as loss and wrong.
    """

    def __init__(self):
        self.step = 0
        self.history = []
        self.interval = {"images": 0, "wrong": 0.0, "loss": 0.0, "seconds": 0.0}
        self._seconds_before = 0.0  # of earlier starts of the run
        self._started = 0.0

    def start_clock(self):
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time that the run has taken, all its starts together."""
        return self._seconds_before + time.monotonic() - self._started

    def add_batch(self, images: int, sums: dict[str, float]) -> None:
        """Adds a batch that was trained to the interval: its images, and the sums over them by name."""
        for name, value in {"images": images, **sums}.items():
            self.interval[name] = self.interval.get(name, 0.0) + value

    def add_report(self, measured: dict, task, config) -> dict:
        """Makes a row of `error.csv` of the interval, with which a new one begins; returns it.

        Args:
            measured: columns of validation and test.
            task: tells the learning rate of the last step and how many training images there are.
            config: settings; uses train_batch_size, train_ema_decay.
        """
        interval = self.interval
        trained = name_columns("train", interval, interval["images"])
        errors = [*(row["train_error"] for row in self.history), trained["train_error"]]
        row = {
            "step": self.step,
            "epoch": round(self.step * config.train_batch_size / len(task.training), 4),
            "train_error": trained["train_error"],
            "train_error_smoothed": smooth(errors, config.train_ema_decay),
            "train_loss": trained["train_loss"],
            **measured,
            "learning_rate": task.learning_rate(max(0, self.step - 1)),
            "examples_per_sec": round(interval["images"] / interval["seconds"], 1) if interval["seconds"] else 0.0,
            "seconds": round(self.seconds, 1),
        }
        self.history.append(row | trained)  # which also has those of further heads
        self.interval = dict.fromkeys(interval, 0.0) | {"images": 0}
        return self.history[-1]

    def reports(self) -> list[tuple[int, dict]]:
        """(epoch, logs) of each report for a Keras callback: its number, that of the untrained network is 0, and its columns."""
        # Keras adds the epoch itself.
        return [
            (number, {name: row[name] for name in row if name != "epoch"}) for number, row in enumerate(self.history)
        ]

    def write(self, run: RunFolder, stage) -> None:
        """Writes a checkpoint of a `Stage`."""
        state = {
            "step": self.step,
            "history": self.history,
            "interval": self.interval,
            "seconds": self.seconds,
            "tensorboard": event_sizes(run.tensorboard),
        }
        save_checkpoint(run.checkpoints, self.step, stage.variables, state | stage.facts)

    def write_table(self, run: RunFolder) -> None:
        """Writes `error.csv`."""
        write_atomically(run.error_csv, pd.DataFrame(self.history).to_csv(index=False))

    def read(self, path: Path, stage, model_name: str) -> dict:
        """Sets the state and the variables of a `Stage` from a checkpoint; returns its facts.

        Raises:
            UsageError: the checkpoint is damaged or of another network or optimizer.
        """
        (arrays, facts), variables = read_checkpoint(path), stage.variables
        received = {name: array.shape for name, array in arrays.items()}
        if received != {name: tuple(variable.shape) for name, variable in variables.items()}:
            raise UsageError(
                f"{path} is a checkpoint of another network or optimizer: expected {len(variables)} arrays for {model_name}, "
                f"received {len(received)} for {facts.get('net', {}).get('model')}; give another --version"
            )
        for name, variable in variables.items():
            variable.assign(arrays[name])
        self.step, self.history, self.interval = facts["step"], facts["history"], facts["interval"]
        self._seconds_before = facts["seconds"]
        return facts


def find_checkpoint(run: RunFolder, machine: Machine) -> Path | None:
    """The checkpoint that all machines go on from, which the chief chooses; None for a new run.

    Raises:
        UsageError: this machine cannot see what the chief chose.
    """
    checkpoint = run.latest_checkpoint() if machine.is_chief else None
    chosen = -1 if checkpoint is None else step_of(checkpoint)
    chosen = int(workers.from_chief(machine.strategy, [chosen])[0])
    if machine.is_chief or chosen < 0:
        return checkpoint
    path = checkpoint_of(run.checkpoints, chosen)
    if not path.is_file():
        raise UsageError(
            f"expected {path}, from which the chief goes on, found no such file; --runs_dir must be a folder that all machines share"
        )
    return path
