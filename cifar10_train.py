"""How a network is trained: one loop in steps, validated every `report_freq` of them, that a kill cannot harm.

A step is one batch. Keras' `fit` is not used: it restarts the data order on resume, counts phantom steps and cannot run on several
machines. Keras callbacks still work; one Keras "epoch" is one report interval.

At each report, in this order: validation, TensorBoard, checkpoint, best.keras, error.csv, console line. The checkpoint notes how
long the event files are, so that what follows in them is cut off when the run is resumed; everything after the checkpoint is made
from it again. So a run killed in between is completed.

What is trained, and on what, is in `resnet_study.training.task` and `tasks`; what one step computes in `resnet_study.training.step`.
"""

import atexit
import bisect
import contextlib
import math
import random
import time
from collections.abc import Sequence

import keras
import numpy as np
from tqdm import tqdm

from hyper_parameters import HyperParameters, from_preset
from resnet_study import devices, workers
from resnet_study.checkpoints import check_checkpoint, delete_checkpoints_beside, list_checkpoints, step_of
from resnet_study.environment import describe_environment
from resnet_study.errors import UsageError
from resnet_study.files import write_json
from resnet_study.networks.layers import finalize_layers
from resnet_study.predictor import Predictor
from resnet_study.run_folder import RunFolder, run_folder_of
from resnet_study.training.callbacks import KeepBest, check_callbacks, make_callback_list
from resnet_study.training.machine import choose_machine
from resnet_study.training.memory import check_batch, naming_batch, naming_size
from resnet_study.training.run_log import Forecast, callback_logs, format_row, seconds_left
from resnet_study.training.signals import catch_signals, check_loss, naming_errors
from resnet_study.training.stage import Stage
from resnet_study.training.state import TrainingState, find_checkpoint
from resnet_study.training.step import spread_dropout, undone
from resnet_study.training.tasks import Classification, SeveralHeads
from resnet_study.training.tensorboard_log import TensorBoardLog, trim_events
from resnet_study.training.user_model import UserModel

_AHEAD = 24  # steps that are under way before their losses are looked at


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal after its checkpoint was written. The message says how to go on."""


class Train:
    """Training of one network, as the text's program has it: `train()` trains, `test()` returns probabilities.

    Attributes:
        task: what is trained, and on what; see `resnet_study.training.task`.
        machine: what it computes on, `resnet_study.training.machine.Machine`.
        stage: what trains now: network, optimizer, averages, compiled steps; see `resnet_study.training.stage`.
        model: the network of the stage, keras.Model from what the task's batches hold to logits, in the precision of the run.
        data: the data set, see the task.
        train_steps: batches to train.
        report_freq: batches between reports.
        step: batches trained so far.
        history: list of the rows of `error.csv`.
    """

    def __init__(self, config: HyperParameters | None = None, run: RunFolder | None = None, data=None, *, task=None):
        """Builds the network and the optimizer; reads the data set if it is not given.

        Args:
            config: settings; None = the preset "liang".
            run: where to write; None = `runs/<run name>`, which is made new by `train()`.
            data: `cifar10_input.ImageData`, with several heads one for each by its name; None = as the settings say.
            task: function of (config, run, data) that makes the task; None = by the settings, one head or several.
        """
        self._asked = config = config or from_preset("liang")
        if task is None and not isinstance(config, HyperParameters):
            raise UsageError(
                f"config must be HyperParameters, received {type(config).__name__}; FlowerParameters are for flowers.transfer.train"
            )
        self.run = run or run_folder_of(config)
        config = self.config = self.run.as_begun(config)
        self._random_states = None
        with self._own_random_states():
            devices.set_up(config.seed, config.deterministic)
            self.machine = choose_machine(config, devices.choose_strategy(config.strategy), self.run)
            if task is None:
                task = SeveralHeads if len(config.head_factors) > 1 else Classification
            self.task = task(config, self.run, data)
            self.data, self.report_freq = self.task.data, self.task.report_freq
            self.train_steps = self.task.stage_ends[-1]
            self._state, self._user_model = TrainingState(), UserModel(self.task)
            self._under_way: list[tuple] = []  # pairs of step and what it gave, on the device
            self._keeper = KeepBest(
                self.run.best, self.task.chosen_by, lambda path: self._user_model.save(self.stage, path)
            )
            self._enter_stage(0)

    @property
    def step(self) -> int:
        return self._state.step

    @property
    def history(self) -> list[dict]:
        return self._state.history

    def test(self, images: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        """Probabilities float32 [num_images, num_labels] of raw pixels [num_images, height, width, channels], 0..255, RGB or grey.

        They are those of a softmax, or of a sigmoid for each label where images have several.
        With several heads a dict, name of the head -> such an array.
        """
        return Predictor(self._user_model.update(self.stage)).predict(images, self.config.test_batch_size)

    # Begin

    def train(
        self, *, resume: bool = False, overwrite: bool = False, callbacks: Sequence[keras.callbacks.Callback] = ()
    ) -> None:
        """Trains to `train_steps`, or until a callback sets `model.stop_training`, and fills the run folder.

        Args:
            resume: go on from the newest checkpoint of the run folder; a folder without a run is begun.
            overwrite: empty a run folder that already holds a run.
            callbacks: stock Keras callbacks; epochs are report intervals. They see the model from raw pixels to probabilities, see
                `resnet_study.training.callbacks`. Of several machines, the chief alone calls them. Callbacks whose job a setting
                does are refused.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint of the last whole step was written.
            UsageError: the folder is taken or holds another run, or the loss is not finite; in the latter case the
                checkpoint of the last report is kept.
        """
        if self.step and not resume:
            raise UsageError(
                f"this Train has trained to step {self.step:,}, expected a new one; make another Train, or give resume=True"
            )
        if overwrite and self.run.goes_on():
            self._check_own_choice()
        callbacks = check_callbacks(callbacks)
        self._user_model.frozen = self.model.stop_training = False  # of an earlier call
        self._under_way.clear()
        with (
            self._own_random_states(),
            self.run.locked() if self.machine.is_chief else contextlib.nullcontext(),
            naming_errors(self.config, self.run),
        ):
            if not resume:  # before the folder is emptied, so that a file that cannot be read costs no run
                self.task.begin(self.model, resumed=False)
            if self.machine.is_chief:
                self.run.begin(self.config, resume=resume, overwrite=overwrite)
            checkpoint = find_checkpoint(self.run, self.machine)
            if checkpoint:
                self.restore(checkpoint)
            else:
                if resume:
                    self.task.begin(self.model, resumed=False)
                self.stage.start_averages()
            if self.machine.is_chief:
                if checkpoint:
                    delete_checkpoints_beside(checkpoint)  # a kill may have come before that
                else:
                    self.task.keep_files()
                    trim_events(self.run.tensorboard, {})
                if checkpoint and self.model.stop_training:
                    self.run.check_not_longer(self.config)
                self._describe()
                self.run.keep_changes(self.config)  # only now: images may have been refused
            had_ended = self._has_ended()
            if not had_ended:
                self._loop(callbacks)
            if self.machine.is_chief and not (
                had_ended and self.run.has_final()
            ):  # which may be the weights that a callback put back
                self._user_model.save(self.stage, self.run.final)
                self.run.note_final(self.step)
            if self.config.strategy == "multi_worker":
                # A machine that ends while the chief still tests looks to TensorFlow as if it had crashed.
                atexit.register(workers.wait_for_all, self.machine.strategy)

    @contextlib.contextmanager
    def _own_random_states(self):
        """Networks draw from the global generators of Python and NumPy. So may the program that trains several: it gets its states back, and the
        training goes on with its own.
        """
        before = random.getstate(), np.random.get_state()
        if self._random_states:
            random.setstate(self._random_states[0])
            np.random.set_state(self._random_states[1])
        try:
            yield
        finally:
            self._random_states = random.getstate(), np.random.get_state()
            random.setstate(before[0])
            np.random.set_state(before[1])

    def _check_own_choice(self):
        """Raises UsageError where something is that of the run which `overwrite` deletes, and a new one might have another."""
        config = self.config
        if config.class_weight not in ("", "balanced") or config.reading() != self._asked.reading():
            raise UsageError(
                f"this Train has taken class weights or --jpeg_size from the run in {self.run}, which overwrite=True deletes; call "
                "cifar10_train.train(config, overwrite=True)"
            )
        if not self.run.keeps_last():
            raise UsageError(
                f"this Train has split its images as the run in {self.run}, which overwrite=True deletes; call cifar10_train.train(config, overwrite=True)"
            )
        if config.strategy == "multi_worker":  # the machines would have to agree again
            return
        taken, own = self.machine, choose_machine(config, self.machine.strategy)
        if own != taken:
            raise UsageError(
                f"this Train has taken {taken.policy} and {taken.towers} tower(s) from the run in {self.run}, which overwrite=True deletes; a new one "
                f"would have {own.policy} and {own.towers}: call cifar10_train.train(config, overwrite=True)"
            )

    def _enter_stage(self, number):
        """Makes what is trained in a stage of the task: its network, a fresh optimizer, the compiled steps."""
        with naming_size(self.config):
            self.stage = Stage(number, self.task, self.config, self.machine)
        self.model = self.stage.model
        steps = [step_of(path) for path in list_checkpoints(self.run.checkpoints)] if self.run.goes_on() else []
        if self.train_steps not in steps:  # else nothing is left to train
            check_batch(self.model, self.config, self.stage.proxy and self.stage.proxy.model, begun=bool(steps))

    def restore(self, path) -> None:
        """Sets weights, optimizer, averages, step, history and the unfinished interval from a checkpoint.

        Raises:
            UsageError: the checkpoint is damaged or of another network or optimizer.
        """
        # The checkpoint of the end of a stage is still one of that stage.
        stage = bisect.bisect_left(self.task.stage_ends[:-1], check_checkpoint(path)["step"])
        if stage != self.stage.number:
            self._enter_stage(stage)
        self.task.begin(self.model, resumed=True)
        facts = self._state.read(path, self.stage, self.config.model_name)
        finalize_layers(self.model)
        if self.machine.is_chief and self.step < self.task.extended_at and self.run.earlier_ends(self.config):
            # What began anew before that would not be told from it: settings name the last time alone.
            raise UsageError(
                f"{self.run} was extended more than once, the last time after step {self.task.extended_at:,}: expected a checkpoint of that step "
                f"or a later one, received {path}; bring back a later one or start another --version"
            )
        reports = self._state.reports()
        for watcher in self.task.watchers:
            watcher.go_on(reports)
        if self.machine.is_chief:  # what follows a checkpoint at a report may have been cut off by a kill
            if isinstance(facts.get("tensorboard"), dict):
                trim_events(self.run.tensorboard, facts["tensorboard"])
            self._state.write_table(self.run)
            self._keeper.go_on(reports, self.step)

    def _describe(self):
        """Prints what was chosen, and adds this start to `environment.json`, where it trains, and to `data.json`."""
        write_json(self.run.data, self.task.describe_data())
        environment = describe_environment(self.machine.policy, self.config.strategy, self.machine.towers)
        if not self._has_ended():
            self.run.note_start({"step": self.step, "extend": self.config.extend, **environment})
        print(self.task.describe(self.model, self.machine.describe(environment)))
        if self._has_ended():
            print(f"finished after step {self.step:,}, nothing is left to train; --overwrite begins it again")
        elif self.step:
            print(f"going on after step {self.step:,}")

    # The loop

    def _loop(self, callbacks):
        """Trains from `step` on."""
        callbacks = callbacks if self.machine.is_chief else []
        shown = self._user_model.update(self.stage) if callbacks else self.model
        shown.stop_training = False
        callback_list = make_callback_list(callbacks, shown, epochs=self._count_epochs(), steps=self.report_freq)
        self._state.start_clock()
        shows = self.config.tensorboard and self.machine.is_chief
        tensorboard = TensorBoardLog(self.run.tensorboard, self.model, self.task.watched_images()) if shows else None
        with (
            catch_signals() as caught,
            tqdm(
                total=self.train_steps, initial=self.step, unit="step", disable=None if self.machine.is_chief else True
            ) as bar,
        ):
            callback_list.on_train_begin()
            forecast = Forecast(seconds_left(self.history, self.train_steps) if self.history else None)
            if not self.history:
                self._report_start(tensorboard, bar)
                forecast.end_report()
            spread_dropout(self.model, self.machine.strategy)
            callback_list.on_epoch_begin(len(self.history) - 1)
            clock = time.perf_counter()
            for images, labels in self._batches():
                callback_list.on_train_batch_begin(self.step)
                loss = self._take_step(images, labels, ahead=0 if callbacks or forecast.measures else _AHEAD)
                self._state.interval["seconds"] += time.perf_counter() - clock
                callback_list.on_train_batch_end(self.step - 1, {"loss": loss})
                bar.update()
                steps_left = self.train_steps - self.step
                if (
                    line := forecast.end_step(steps_left, math.ceil(steps_left / self.report_freq))
                ) and self.machine.is_chief:
                    bar.write(line)
                if self._is_report():
                    row = self._report(tensorboard, bar)
                    if callbacks:
                        self._user_model.update(self.stage)  # so that they see this report's weights
                    callback_list.on_epoch_end(len(self.history) - 2, callback_logs(row))
                    if workers.is_any(self.machine.strategy, shown.stop_training or self._has_ended()):
                        break
                    callback_list.on_epoch_begin(len(self.history) - 1)
                if workers.is_any(self.machine.strategy, bool(caught)):
                    clock = time.perf_counter()
                    self._wait()
                    self._state.interval["seconds"] += time.perf_counter() - clock
                    if self.machine.is_chief:
                        self._state.write(self.run, self.stage)
                    raise self._interrupted(caught)
                clock = time.perf_counter()
            callback_list.on_train_end()
            # EarlyStopping may have put back the weights of its best report; they are then those of the result.
            self._user_model.frozen = bool(callbacks)
            if workers.is_any(self.machine.strategy, bool(caught)):  # it came while the last report was written
                raise self._interrupted(caught)

    def _is_report(self) -> bool:
        """Whether a report follows this step. The end that a longer training had before has one, so that one command repeats both."""
        return self.step % self.report_freq == 0 or self.step in (self.train_steps, self.task.extended_at)

    def _count_epochs(self) -> int:
        """Report intervals of the whole training, each an epoch to Keras callbacks."""
        begun, to_come = (steps // self.report_freq for steps in (self.step, self.train_steps))
        ends = {
            step for step in (self.train_steps, self.task.extended_at) if step > self.step and step % self.report_freq
        }
        return max(0, len(self.history) - 1) + to_come - begun + len(ends)

    def _has_ended(self) -> bool:
        return self.step >= self.train_steps or self.model.stop_training

    def _batches(self):
        """Yields the batches from `step` on, each shared among the devices, stage by stage."""
        for stage, last_step in enumerate(self.task.stage_ends):
            if self.step >= last_step:
                continue
            if stage > self.stage.number:
                self._enter_stage(stage)
                spread_dropout(self.model, self.machine.strategy)
                if self.machine.is_chief:
                    self._user_model.update(self.stage)  # with the new optimizer, where callbacks look for it
            yield from self.stage.batches(self.step)

    def _take_step(self, images, labels, ahead: int = 0) -> float | None:
        """Trains one batch; returns its mean loss, or None where up to `ahead` batches may be under way, so that a GPU need not wait for Python."""
        with naming_batch(self.stage, self.config):
            self._under_way.append((self.step, self.stage.train(images, labels, self.step)))
        self._state.step += 1
        return self._wait() if self._is_report() or len(self._under_way) > ahead else None

    def _wait(self) -> float | None:
        """Waits for the batches that are under way and adds them to the interval; returns the mean loss of the last one."""
        loss = None
        while self._under_way:
            step, sums = self._under_way.pop(0)
            with naming_batch(self.stage, self.config):
                sums = {name: float(value) for name, value in sums.items()}
            check_loss(sum(sums.values()), step, self.task, self.run)
            self._state.add_batch(self.config.images_per_step, sums)
            loss = sums["loss"] / self.config.images_per_step
        return loss

    # Report and checkpoint

    def _report_start(self, tensorboard, bar):
        """The row of step 0: the untrained network. Its training loss, with batch statistics, can be held against ln(classes)."""
        if tensorboard and tensorboard.watches:
            # What one machine of several traces alone, the others would wait for.
            traced = None if self.config.strategy == "multi_worker" else self.stage.steps.train
            tensorboard.write_start(*next(iter(self.task.training_batches())), traced)
        # By a training step that is undone: a graph of its own would take 20 MB more with ResNet-110.
        with undone(self.stage.variables.values()):
            self._take_step(*next(self._batches()))
        self._state.step = 0
        self._report(tensorboard, bar)

    def _report(self, tensorboard, bar) -> dict:
        """Validates and writes everything that a report writes; returns the row of `error.csv`."""
        measured, loss = self.stage.measure(self.step)
        # Before a checkpoint of weights that are no numbers is written.
        check_loss(loss, self.step, self.task, self.run)
        row = self._state.add_report(measured, self.task, self.config)
        report = self._state.reports()[-1]
        for watcher in self.task.watchers:
            watcher.on_epoch_end(*report)
        if self.machine.is_chief:
            if tensorboard:
                tensorboard.write(self.history, self.config.train_ema_decay, self.task.validates_fully)
            self._state.write(self.run, self.stage)
            self._keeper.on_epoch_end(*report)
            self._state.write_table(self.run)
            bar.write(format_row(row, self.train_steps, seconds_left(self.history, self.train_steps)))
        return row

    def _interrupted(self, caught) -> Interrupted:
        again = self.config.resume_command(self.run.path)
        if self.task.was_given:
            again = "Train(config, data=THE SAME IMAGES).train(resume=True)"
        return Interrupted(
            f"stopped by {caught[0].name if caught else 'another machine'} after step {self.step:,} of {self.train_steps:,}, "
            f"checkpoint written; go on with: {again}"
        )


def train(
    config: HyperParameters,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> RunFolder:
    """Trains one network in its run folder; a folder that cannot be used is refused before any work.

    Args:
        config: settings.
        resume, overwrite, callbacks: see `Train.train`.

    Returns:
        The run folder, with `best.keras`, `final.keras` and `error.csv`.

    Raises:
        UsageError, Interrupted: see `Train.train`.

    Example:
        from cifar10_train import train
        from hyper_parameters import from_preset

        run = train(from_preset("smoke"))  # some seconds, on drawn images
        print(run.best)  # runs/resnet8-synthetic-smoke-seed0/best.keras
    """
    run = run_folder_of(config)
    run.check(config, resume=resume, overwrite=overwrite)
    Train(config, run).train(resume=resume, overwrite=overwrite, callbacks=callbacks)
    return run
