"""Stock Keras callbacks in this library's loop: which of them run, and what they are told and shown.

A callback sees the model as users get it: raw pixels 0..255 to probabilities, whole, in float32, with the averaged weights where
there are any. It is brought up to date before training begins, at each report and at the end; between reports it is that of the
last one. One Keras "epoch" is one report interval.
"""

import math
import operator
import types
from pathlib import Path

import keras

from resnet_study.errors import UsageError

# What this library does itself, and the setting that does it.
_REFUSED = {
    "LearningRateScheduler": "the learning rate is that of the settings; use --lr_schedule",
    "ReduceLROnPlateau": "the learning rate is that of the settings; use --lr_schedule=plateau",
    "BackupAndRestore": "every report writes a checkpoint; use --resume",
    "SwapEMAWeights": "averages are kept and tested with a setting; use --weight_averaging",
    "OrbaxCheckpoint": "every report writes a checkpoint; use --resume, or ModelCheckpoint for files of your own",
}

# What `run_log.callback_logs` tells that can be the better or the worse, and where the better lies.
_DIRECTIONS = {"loss": "min", "accuracy": "max", "val_loss": "min", "val_accuracy": "max"}


def check_callbacks(callbacks) -> list:
    """The callbacks as a list. Raises UsageError for one that cannot do its job here; the message names the setting that does it."""
    if isinstance(callbacks, keras.callbacks.Callback):
        raise UsageError(f"callbacks must be a list, received a {type(callbacks).__name__}; put it into [ ]")
    callbacks = list(callbacks or ())  # stock `fit` takes None
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise UsageError(f"callbacks must be objects of keras.callbacks.Callback, received {callback!r}; make one")
        for kind in type(callback).__mro__:
            if kind.__name__ in _REFUSED and kind.__module__.startswith("keras."):
                raise UsageError(f"{_REFUSED[kind.__name__]}; received the callback {type(callback).__name__}")
        if isinstance(callback, keras.callbacks.ModelCheckpoint) and callback.save_freq != "epoch":
            raise UsageError(
                "the model that callbacks see changes at reports; expected ModelCheckpoint with save_freq='epoch', received "
                f"{callback.save_freq!r}; use --report_freq"
            )
        if _finds_direction(callback) and callback.monitor not in _DIRECTIONS:
            raise UsageError(
                f"{type(callback).__name__} must monitor {', '.join(_DIRECTIONS)}, received {callback.monitor!r}; name one of them, or give "
                "mode='min' or 'max'"
            )
    return callbacks


def make_callback_list(callbacks, model, *, epochs: int, steps: int) -> keras.callbacks.CallbackList:
    """A `CallbackList` whose callbacks know the direction of every metric that `run_log.callback_logs` tells.

    Args:
        callbacks: checked by `check_callbacks`.
        model: see the head of this file.
        epochs: reports of the whole training.
        steps: batches between reports.
    """
    for callback in callbacks:
        # Keras looks for the direction in the compiled metrics of a model; this loop compiles none.
        if _finds_direction(callback):
            callback.mode = _DIRECTIONS[callback.monitor]
    return keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epochs, steps=steps, verbose=1)


def _finds_direction(callback) -> bool:
    """Whether Keras' callback is to find out by itself which values of what it monitors are better."""
    watches = isinstance(callback, keras.callbacks.EarlyStopping) or getattr(callback, "save_best_only", False)
    return watches and getattr(callback, "mode", None) == "auto"


class KeepBest(keras.callbacks.ModelCheckpoint):
    """Keras' ModelCheckpoint for the weights that a run keeps.

    Its epochs, as those of `Patience`, are all reports of the run; epoch 0 is that of the untrained network, which any later one replaces: where
    classes are weighed, its loss may be the lowest of all.
    """

    def __init__(self, path: Path, monitor: str | None, save):
        """Writes nothing yet.

        Args:
            path: file that it writes, again and again.
            monitor: column of `error.csv` whose lowest value decides; None = the newest weights are kept.
            save: function of a path that writes the model; a kill must leave the old file or the new one.
        """
        # Keras fills in the braces of a path.
        path = str(path).replace("{", "{{").replace("}", "}}")
        super().__init__(path, monitor=monitor, mode="min", save_best_only=monitor is not None)
        self.monitor_op = operator.lt  # that of Keras compares in float32
        self.set_model(types.SimpleNamespace(save=lambda path, overwrite: save(path)))

    def go_on(self, reports: list[tuple[int, dict]], step: int) -> None:
        """Brings it to its state after the reports of a run that goes on after `step`: (epoch, columns of `error.csv`).

        What the report of this very step keeps is written again: a kill may have come before.
        """
        earlier = [columns for _, columns in reports if columns["step"] < step]
        trained = [columns[self.monitor] for columns in earlier if columns["step"]] if self.save_best_only else []
        self.best = min(trained, default=None)
        if len(earlier) < len(reports):
            self.on_epoch_end(*reports[-1])

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if epoch == 0:
            self.best = None


class Patience(keras.callbacks.EarlyStopping):
    """Keras' EarlyStopping by the lowest value of a column, whose patience counts from an epoch on.

    The lowest value is that of all epochs from the first on, also of those before, but where the schedule begins anew.
    """

    def __init__(self, monitor: str, patience: int, first_epoch: int, begins=()):
        """Epochs up to and with `first_epoch` never stop the training. `begins`: from these steps on it counts anew."""
        super().__init__(monitor=monitor, mode="min", patience=patience)
        self.monitor_op = operator.lt  # that of Keras compares in float32
        self._first_epoch, self._begins, self._before = first_epoch, begins, 0

    def on_epoch_end(self, epoch, logs=None):
        begins = epoch > self._first_epoch and _begins_anew(self._begins, self._before, logs)
        self._before = logs.get("step", epoch)
        if epoch <= self._first_epoch or begins:
            self.wait = -1  # to which Keras adds one
        if epoch:  # not of the untrained network, see `KeepBest`
            super().on_epoch_end(epoch, logs)
        if begins:
            self.best = None  # where the learning rate rises, so does the error

    def go_on(self, reports: list[tuple[int, dict]]) -> None:
        """Brings it to its state after the reports of a run that goes on; that may be to stop."""
        self.on_train_begin()
        self._before = 0
        for report in reports:
            self.model.stop_training = False  # a run that went on after a report had not ended there
            self.on_epoch_end(*report)
        if self._before in self._begins:
            self.model.stop_training = False


class Plateau(keras.callbacks.Callback):
    """The plateau schedule: lowers the learning rate where the lowest value of a column stays what it was.

    Attributes:
        lowered: how often it was lowered so far.
    """

    def __init__(self, monitor: str, patience: int, begins=()):
        """At the steps `begins` the schedule begins anew."""
        super().__init__()
        self._monitor, self._patience, self._begins = monitor, patience, begins
        self.go_on([])

    def on_epoch_end(self, epoch, logs):
        if not epoch:
            return
        value = logs[self._monitor]
        self._wait = 0 if value < self._best else self._wait + 1
        self._best = min(self._best, value)
        if self._wait >= self._patience:
            self.lowered, self._wait = self.lowered + 1, 0
        begins, self._before = _begins_anew(self._begins, self._before, logs), logs.get("step", epoch)
        if begins:
            self.lowered, self._wait, self._best = 0, 0, math.inf

    def go_on(self, reports: list[tuple[int, dict]]) -> None:
        """Brings it to its state after the reports of a run that goes on."""
        self.lowered, self._wait, self._best, self._before = 0, 0, math.inf, 0
        for report in reports:
            self.on_epoch_end(*report)


def _begins_anew(begins, before: int, logs: dict) -> bool:
    """Whether one of the steps `begins` came since the report of step `before`: not each has a report of its own."""
    return any(before < step <= logs.get("step", 0) for step in begins)


def make_watchers(config, monitor: str | None, first_epoch: int = 0, begins=()) -> tuple:
    """What looks at the reports of a training as the settings say: `Patience` and `Plateau`.

    Args:
        config: uses patience, lr_schedule, plateau_patience.
        monitor: column of `error.csv`; None = there are no validation images.
        first_epoch: see `Patience`.
        begins: steps at which the schedule begins anew; the next report tells of it.

    Raises:
        UsageError: something is asked for, and there is nothing to look at.
    """
    watchers = [Patience(monitor, config.patience, first_epoch, begins)] if config.patience else []
    watchers += [Plateau(monitor, config.plateau_patience, begins)] if config.lr_schedule == "plateau" else []
    if watchers and not monitor:
        raise UsageError("--patience and --lr_schedule=plateau need validation images, received none; hold some out")
    return tuple(watchers)


def count_lowered(watchers) -> int:
    """How often a plateau schedule has lowered the learning rate."""
    return sum(watcher.lowered for watcher in watchers if isinstance(watcher, Plateau))
