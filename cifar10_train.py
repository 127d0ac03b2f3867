"""How a network is trained: one loop in steps, validated every `report_freq` of them, that a kill cannot harm.

A step is one batch. Keras' `fit` is not used: it restarts the data order on resume, counts phantom steps and cannot run on several
machines. Keras callbacks still work; one Keras "epoch" is one report interval.

At each report, in this order: validation, TensorBoard, checkpoint, best.keras, error.csv, console line. The checkpoint notes how
long the event files are, so that what follows in them is cut off when the run is resumed; everything after the checkpoint is made
from it again. So a run killed in between is completed.
"""

import atexit
import collections
import contextlib
import dataclasses
import math
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

import cifar10_input
from hyper_parameters import HyperParameters, from_preset, is_made_for, learning_rate_at
from resnet_study import devices
from resnet_study.checkpoints import read_checkpoint
from resnet_study.errors import UsageError
from resnet_study.files import read_json, write_atomically, write_json
from resnet_study.networks import registry
from resnet_study.networks.layers import PatchWhitening
from resnet_study.predictor import Predictor
from resnet_study.presets import default_preset
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import copy_weights, find_new_heads, load_model, save_model
from resnet_study.training.callbacks import check_callbacks, make_callback_list
from resnet_study.training.optimizers import make_optimizer
from resnet_study.training.run_log import TensorBoardLog, callback_logs, format_row, name_columns, seconds_left, smooth
from resnet_study.training.signals import catch_signals
from resnet_study.training.step import CompiledSteps, averaged_weights


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal after its checkpoint was written. The message says how to go on."""


class Train:
    """Training of one network, as the text's program has it: `train()` trains, `test()` returns probabilities.

    The loop knows nothing of CIFAR. What depends on the data or the network is in the methods of the section "what is trained, and
    on what", which `flowers.transfer` overrides.

    Attributes:
        net: keras.Model from normalised images to logits, in the precision of the run.
        data: the data set without its training images (`data.train` is None), which are in `training` and `validation`.
        train_steps: batches to train.
        report_freq: batches between reports.
        step: batches trained so far.
        history: list of the rows of `error.csv`.
    """

    # The column of `error.csv` whose lowest value decides which weights are kept; without validation images the newest are.
    chosen_by = "validation_error"

    def __init__(self, config: HyperParameters | None = None, run: RunFolder | None = None, data=None):
        """Builds the network and the optimizer; reads the data set if it is not given.

        Args:
            config: settings; None = the preset "liang".
            run: where to write; None = `runs/<run name>`, which is made new by `train()`.
            data: `cifar10_input.ImageData`; None = as the settings say.
        """
        self.config = config or from_preset("liang")
        self.run = run or RunFolder(f"{self.config.runs_dir}/{self.config.run_name}")
        devices.set_up(self.config.seed, self.config.deterministic)

        self.is_chief = devices.is_chief(self.config.strategy)
        self.strategy = devices.choose_strategy(self.config.strategy)
        self.policy = devices.choose_policy(self.config.precision, self.config.strategy, self.run.stored_policy())
        self.replicas = self.strategy.num_replicas_in_sync
        if self.config.train_batch_size % self.replicas:
            raise UsageError(
                f"--train_batch_size must be a multiple of the {self.replicas} devices, received {self.config.train_batch_size}"
            )
        self.towers = devices.choose_towers(
            self.config.towers, self.strategy, self.config.train_batch_size, self.run.stored_towers()
        )
        self._prepare(data)
        with self.strategy.scope():
            self.net = self._build_net()
            self._make_optimizer()
            averaged = self.net.weights if self.config.weight_averaging else []
            self.averages = [tf.Variable(variable.value, trainable=False) for variable in averaged]

        self.step = 0
        self.history = []
        self._left_by_callbacks = False
        self.best_step, self.best_error = None, math.inf
        self._seconds_before = 0.0  # of earlier starts of this run
        self._interval = {"images": 0, "wrong": 0.0, "loss": 0.0, "seconds": 0.0}
        self._compile()

    def test(self, images) -> np.ndarray:
        """Softmax probabilities float32 [num_images, num_labels] of raw pixels [num_images, height, width, RGB], 0..255.

        With several heads a dict, name of the head -> such an array.
        """
        return Predictor(self._export()).predict(images, self.config.test_batch_size)

    def train(self, *, resume=False, overwrite=False, callbacks=()) -> None:
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
        check_callbacks(callbacks)
        self._left_by_callbacks = False  # of an earlier call
        with self.run.locked() if self.is_chief else contextlib.nullcontext(), self._naming_lost_machines():
            if self.is_chief:
                self.run.begin(self.config, resume=resume, overwrite=overwrite)
            checkpoint = self._agree_on_checkpoint()
            if checkpoint:
                self.restore(checkpoint)
            else:
                self._start()
                for average, variable in zip(self.averages, self.net.weights if self.averages else [], strict=True):
                    average.assign(variable.value)
            if self.is_chief:
                if checkpoint:
                    self.run.delete_checkpoints_beside(checkpoint)  # a kill may have come before that
                else:
                    self.run.trim_tensorboard({})
                self._describe()
            if not self._has_ended():
                self._loop(callbacks)
            if self.is_chief:
                self._save(self.run.final)
            if self.config.strategy == "multi_worker":
                # A machine that ends while the chief still tests looks to TensorFlow as if it had crashed.
                atexit.register(devices.wait_for_all, self.strategy)

    # What is trained, and on what

    def _prepare(self, data):
        """Sets the data, their normalisation, `classes`, `train_steps` and `report_freq`; comes before the network is built."""
        if len(self.config.tasks) > 1 and not isinstance(self, MultiTaskTrain):
            raise UsageError(f"Train has one head, received --heads={self.config.heads}; use MultiTaskTrain")
        self._options = self.config.net_options
        registry.find(self.config.model_name).check_options(self._options)
        data = data or cifar10_input.load_data(self.config)
        self.training, self.validation = cifar10_input.split_data(data, self.config)
        self.data, self.tested = dataclasses.replace(data, train=None), data.test  # the split is a copy
        self.normalization = cifar10_input.make_normalization(self.config.normalization, self.training.images)
        self.classes = len(self.data.class_names)
        self.train_steps, self.report_freq = self.config.train_steps, self.config.report_freq

    def _build_net(self) -> keras.Model:
        """The network that is trained: to logits, in the precision of the run."""
        return self._build(dtype=self.policy, classifier_activation=None)

    def _build(self, **options):
        return registry.find(self.config.model_name).build(
            input_shape=self.training.images.shape[1:], classes=self.classes, **self._options, **options
        )

    def _start(self):
        """What a run does that does not go on from a checkpoint."""
        for layer in self.net.layers:
            if isinstance(layer, PatchWhitening):
                layer.adapt(self.normalization(self.training.images[:5000]))
        if self.config.is_use_ckpt:
            self._start_from(self.config.ckpt_path)

    def _training_batches(self, first_step=0, *share) -> tf.data.Dataset:
        """The batches of `net` from `first_step` to `train_steps`; see `cifar10_input.training_batches`."""
        return cifar10_input.training_batches(self.training, self.normalization, self.config, first_step, *share)

    def _shared_batches(self):
        """Yields the batches from `step` on, each shared among the devices."""
        yield from self.strategy.distribute_datasets_from_function(
            lambda context: self._training_batches(
                self.step, self.replicas, context.input_pipeline_id, context.num_input_pipelines
            )
        )

    def _learning_rate(self, step: int) -> float:
        """That of a 0-based step; see `learning_rate_at`."""
        return learning_rate_at(step, self.config, self.train_steps)

    def _validation_batches(self):
        """Yields (images, labels) of the validation part, before normalisation, or of one random batch of it, as the settings say."""
        part, size = self.validation, self.config.validation_batch_size
        if not self.config.is_full_validation:
            rng = np.random.default_rng((self.config.seed, 4, self.step))
            part = part.take(rng.choice(len(part), min(size, len(part)), replace=False))
        return part.batches(size)

    def _has_ended(self) -> bool:
        return self.step >= self.train_steps

    def _net_facts(self) -> dict:
        """What `saved_models.load_model` needs to build the network of a checkpoint."""
        return {
            "model": self.config.model_name,
            "options": self._options,
            "input_shape": self.net.input_shape[1:],
            "classes": self.classes,
            "normalization": self.normalization.get_config(),
        }

    def _export(self) -> keras.Model:
        """The network as users get it: raw pixels to probabilities, float32, with the averaged weights where there are any."""
        if self._left_by_callbacks:
            return self._exported
        if not hasattr(self, "_exported"):
            self._exported = self._build(dtype="float32", preprocessing=self.normalization)
        source = self.averages or self.net.weights
        for variable, value in zip(self._exported.weights, source, strict=True):
            variable.assign(value)
        return self._exported

    def _save(self, path):
        """Saves the network as users get it, without the optimizer that callbacks see in it."""
        model = self._export()
        optimizer = getattr(model, "optimizer", None)
        if optimizer is None:
            save_model(model, path)
            return
        model.optimizer = None
        try:
            save_model(model, path)
        finally:
            model.optimizer = optimizer

    def _start_from(self, path):
        """Takes the weights of a trained model, but for a head of other classes; step and optimizer stay at their start."""
        source = load_model(path, self.config.model_name)
        new_heads = find_new_heads(source, self.net)
        try:
            copy_weights(source, self.net, new_heads)
        except ValueError as error:
            raise UsageError(f"--ckpt_path={path} does not fit --model={self.config.model_name}: {error}") from error
        begin_random = [f"{name} ({here} classes, {there} there)" for name, (there, here) in new_heads.items()]
        print(
            f"starting from the weights of {path}"
            + (f", but for the dense layer {', '.join(begin_random)}, which begins random" if new_heads else "")
        )

    def _note_start(self) -> dict:
        """Adds this start to `environment.json`; returns what is noted there."""
        environment = devices.describe_environment(self.policy, self.config.strategy, self.towers)
        starts = read_json(self.run.environment, [dict]) if self.run.environment.exists() else []
        write_json(self.run.environment, [*starts, {"step": self.step, **environment}])
        return environment

    def _describe(self):
        """Prints what was chosen, and adds this start to `environment.json` and `data.json`."""
        environment = self._note_start()
        counts = {"training": len(self.training), "validation": len(self.validation), "test": len(self.data.test)}
        write_json(self.run.data, {"class_names": self.data.class_names, "found": self.data.found, "images": counts})
        config = self.config
        preset, usual = config.preset, default_preset(config.dataset, config.model)
        if preset != usual and not is_made_for(preset, config.model):
            preset += f" (made for other networks, that of this one is {usual})"
        print(
            f"{config.model_name}: {self.net.count_params():,} parameters, {self.policy}, "
            f"{devices.describe_strategy(self.strategy, self.towers)}, on "
            f"{', '.join(environment['gpus']) or environment['processor']} ({environment['cores']} cores)\n"
            f"{config.dataset} from {self.data.found}: {counts['training']:,} training, {counts['validation']:,} validation, "
            f"{counts['test']:,} test images\n"
            f"preset {preset}: {config.train_steps:,} steps of {config.train_batch_size} images "
            f"({config.train_steps * config.train_batch_size / counts['training']:.1f} epochs), run folder {self.run}"
            + self._describe_resume()
        )

    def _describe_resume(self) -> str:
        """A line of the first message: where a resumed run goes on, or that nothing is left to train."""
        if not self.step:
            return ""
        if self._has_ended():
            return f"\nfinished after step {self.step:,}, nothing is left to train; --overwrite begins it again"
        return f"\ngoing on after step {self.step:,}"

    def _loop(self, callbacks):
        """Trains from `step` on."""
        config = self.config
        callbacks = list(callbacks) if self.is_chief else []
        self._left_by_callbacks = False
        shown = self._export() if callbacks else self.net
        shown.stop_training = self.net.stop_training = False
        shown.optimizer = self.optimizer  # where callbacks look for it
        self.callbacks = callback_list = make_callback_list(
            callbacks, shown, epochs=math.ceil(self.train_steps / self.report_freq), steps=self.report_freq
        )
        self._started = time.monotonic()
        tensorboard = self._open_tensorboard() if config.tensorboard and self.is_chief else None
        with (
            catch_signals() as caught,
            tqdm(
                total=self.train_steps, initial=self.step, unit="step", disable=None if self.is_chief else True
            ) as bar,
        ):
            callback_list.on_train_begin()
            if not self.history:
                self._report_start(tensorboard, bar)
            self._spread_dropout()
            callback_list.on_epoch_begin(self.step // self.report_freq)
            clock = time.perf_counter()
            for images, labels in self._shared_batches():
                callback_list.on_train_batch_begin(self.step)
                loss = self._take_step(images, labels)
                self._interval["seconds"] += time.perf_counter() - clock
                callback_list.on_train_batch_end(self.step - 1, {"loss": loss})
                bar.update()
                if self.step % self.report_freq == 0 or self.step == self.train_steps:
                    row = self._report(tensorboard, bar)
                    if callbacks:
                        self._export()  # so that they see this report's weights
                    callback_list.on_epoch_end((self.step - 1) // self.report_freq, callback_logs(row))
                    stops = shown.stop_training or self.net.stop_training
                    if devices.is_any(self.strategy, stops) or self._has_ended():
                        break
                    callback_list.on_epoch_begin(self.step // self.report_freq)
                if devices.is_any(self.strategy, bool(caught)):
                    if self.is_chief:
                        self._write_checkpoint()
                    raise self._interrupted(caught)
                clock = time.perf_counter()
            callback_list.on_train_end()
            # EarlyStopping may have put back the weights of its best report; they are then those of the result.
            self._left_by_callbacks = bool(callbacks)
            if devices.is_any(self.strategy, bool(caught)):  # it came while the last report was written
                raise self._interrupted(caught)

    def _interrupted(self, caught) -> Interrupted:
        return Interrupted(
            f"stopped by {caught[0].name if caught else 'another machine'} after step {self.step:,} of {self.train_steps:,}, "
            f"checkpoint written; go on with: {self._resume_command}"
        )

    @property
    def _resume_command(self) -> str:
        place = self.run.path.parent
        options = (
            [] if place == Path(type(self.config).__dataclass_fields__["runs_dir"].default) else [f"--runs_dir={place}"]
        )
        if self.config.strategy == "multi_worker":
            options.append("--strategy=multi_worker")
        if self.config.watch_test:  # which may have been asked for by a later start than the first
            options.append("--watch_test=true")
        return " ".join([self.config.PROGRAM, *options, f"--version={self.run.path.name}", "--resume"])

    def _agree_on_checkpoint(self):
        """The checkpoint that all machines go on from, which the chief chooses; None for a new run."""
        checkpoint = self.run.latest_checkpoint() if self.is_chief else None
        chosen = -1 if checkpoint is None else int(checkpoint.stem.removeprefix("step-"))
        chosen = int(devices.from_chief(self.strategy, [chosen])[0])
        if self.is_chief or chosen < 0:
            return checkpoint
        return self.run.checkpoint_of(chosen)

    @contextlib.contextmanager
    def _naming_lost_machines(self):
        try:
            yield
        except (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
        ) as error:
            if self.config.strategy != "multi_worker":
                raise
            raise UsageError(
                "another machine has stopped or cannot be reached; see what it said, then start all machines again with: "
                f"{self._resume_command}"
            ) from error

    def _spread_dropout(self):
        """Gives each device dropout of its own; from Keras all get the same. The first keeps its seeds, which checkpoints hold."""
        states = [variable for variable in self.net.variables if variable.name == "seed_generator_state"]
        if self.replicas == 1 or not states:
            return
        values = [tf.constant(state.numpy()) for state in states]

        def spread():
            replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, values[0].dtype)
            for state, value in zip(states, values, strict=True):
                state.assign(value + tf.stack([replica, tf.zeros_like(replica)]))

        self.strategy.run(tf.function(spread))

    def restore(self, path) -> None:
        """Sets weights, optimizer, averages, step, history and the unfinished interval from a checkpoint.

        Raises:
            UsageError: the checkpoint is damaged or of another network or optimizer.
        """
        arrays, facts = read_checkpoint(path)
        expected = self._variables()
        received = {name: array.shape for name, array in arrays.items()}
        if received != {name: tuple(variable.shape) for name, variable in expected.items()}:
            raise UsageError(
                f"{path} is a checkpoint of another network or optimizer: expected {len(expected)} arrays for "
                f"{self.config.model_name}, received {len(received)} for {facts.get('net', {}).get('model')}; give another --version"
            )
        for name, variable in expected.items():
            variable.assign(arrays[name])
        self.step, self.history, self._interval = facts["step"], facts["history"], facts["interval"]
        self.best_step, self.best_error = min(
            ((row["step"], self._rank(row)) for row in self.history),
            key=lambda best: best[1],  # of equal ones the first
            default=(None, math.inf),
        )
        self._seconds_before = facts["seconds"]
        if not self.is_chief:
            return
        # What follows a checkpoint at a report may have been cut off by a kill.
        if isinstance(facts.get("tensorboard"), dict):
            self.run.trim_tensorboard(facts["tensorboard"])
        self._write_error_csv()
        if self.best_step == self.step:
            self._save(self.run.best)

    def _make_optimizer(self):
        self.optimizer = make_optimizer(self.config, self.net.trainable_variables, self.replicas)
        self.net.optimizer = self.optimizer
        if getattr(getattr(self, "_exported", None), "optimizer", None) is not None:
            self._exported.optimizer = self.optimizer  # of the second stage of a fine-tuning

    def _compile(self):
        self.steps = CompiledSteps(
            model=self.net,
            optimizer=self.optimizer,
            averages=self.averages,
            measure=self._measure,
            normalization=self.normalization,
            strategy=self.strategy,
            towers=self.towers,
            config=self.config,
            train_steps=self.train_steps,
        )

    def _take_step(self, images, labels) -> float:
        """Trains one batch and adds it to the interval; returns its mean loss."""
        rate = self._learning_rate(self.step)
        self.optimizer.learning_rate.assign(rate)
        sums = {name: float(value) for name, value in self.steps.train(images, labels).items()}
        loss = sums["loss"]
        self._check_loss(sum(sums.values()))
        self.step += 1
        count = self.config.train_batch_size
        for name, value in {"images": count, **sums}.items():
            self._interval[name] = self._interval.get(name, 0.0) + value
        return loss / count

    def _check_loss(self, loss):
        """Raises UsageError unless `loss`, of a batch or of the validation part, is finite."""
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss must be finite, received {loss} at step {self.step} (learning rate "
                f"{self._learning_rate(self.step):g}); lower --init_lr or lengthen --warmup_steps; last good checkpoint: "
                f"{self.run.latest_checkpoint() or 'none'}"
            )

    def _validate(self, part="validation") -> dict:
        """Loss and top-1 error in % of the network as it is, on the part "validation" or "test"; nothing of a part without images."""
        batches = (
            self._validation_batches()
            if part == "validation"
            else self.tested.batches(self.config.validation_batch_size)
        )
        sums, count = collections.Counter(), 0
        for images, labels in batches:
            sums.update({name: float(value) for name, value in self.steps.validate(images, labels).items()})
            count += len(labels)
        if not count:
            return {}
        columns = name_columns(part, sums, count)
        # Machines of different kinds differ in the last bits; what is decided by these numbers must not.
        return dict(zip(columns, devices.from_chief(self.strategy, list(columns.values())), strict=True))

    def _measure(self, logits, labels):
        """What training lowers and reports tell.

        Args:
            logits: output of `net` for some images.
            labels: of these, int32 [images].

        Returns:
            (losses to lower, float32 [images]; sums over the images: {"loss": cross-entropy in nat, "wrong": wrong answers}).
        """
        log_probabilities = tf.nn.log_softmax(logits)
        losses = -tf.gather(log_probabilities, labels, batch_dims=1)
        wrong = tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) != labels, tf.float32)
        smoothing, objective = self.config.label_smoothing, losses
        if smoothing:
            objective = (1 - smoothing) * losses - smoothing * tf.reduce_mean(log_probabilities, axis=-1)
        return objective, {"loss": tf.reduce_sum(losses), "wrong": tf.reduce_sum(wrong)}

    def _first_batch(self):
        """Images and labels of the batch of step 0, whole."""
        return next(iter(self._training_batches()))

    def _report_start(self, tensorboard, bar):
        """The row of step 0: the untrained network. Its training loss, with batch statistics, can be held against ln(classes)."""
        # By a training step that is undone: a graph of its own would take 20 MB more with ResNet-110.
        kept = [(variable, variable.numpy()) for variable in self._variables().values()]
        self._take_step(*next(self._shared_batches()))
        while kept:  # not held until the report is written
            variable, value = kept.pop()
            variable.assign(value)
        self.step = 0
        self._report(tensorboard, bar)

    def _report(self, tensorboard, bar) -> dict:
        """Validates and writes everything that a report writes; returns the row of `error.csv`."""
        interval, config = self._interval, self.config
        trained = name_columns("train", interval, interval["images"])
        row = {
            "step": self.step,
            "epoch": round(self.step * config.train_batch_size / len(self.training), 4),
            "train_error": trained["train_error"],
            "train_error_smoothed": smooth(
                [*self._column("train_error"), trained["train_error"]], config.train_ema_decay
            ),
            "train_loss": trained["train_loss"],
        }
        # Lookahead's result is the average alone: the weights between two averages are neither kept nor told.
        with averaged_weights(self.net, self.averages) if config.lookahead_steps else contextlib.nullcontext():
            validated = self._validate()
        # Before a checkpoint of weights that are not numbers is written.
        self._check_loss(validated["validation_loss"] if validated else self._loss_of_some_images())
        row |= validated
        with averaged_weights(self.net, self.averages):
            if self.averages and not config.lookahead_steps:
                row |= {f"{name}_unaveraged": value for name, value in validated.items()} | self._validate()
            if config.watch_test:
                row |= self._validate("test")
        row["learning_rate"] = self._learning_rate(max(0, self.step - 1))
        row["examples_per_sec"] = round(interval["images"] / interval["seconds"], 1) if interval["seconds"] else 0.0
        row["seconds"] = round(self._seconds(), 1)
        row |= trained  # further heads
        self.history.append(row)
        self._interval = dict.fromkeys(interval, 0.0) | {"images": 0}
        if self._rank(row) < self.best_error:
            self.best_step, self.best_error = self.step, self._rank(row)
        if not self.is_chief:
            return row
        if tensorboard:
            images = self._watched_images()
            tensorboard.write(self.history, config.train_ema_decay, self._validates_fully, images)
        self._write_checkpoint()
        if self.best_step == self.step:
            self._save(self.run.best)
        self._write_error_csv()
        bar.write(format_row(row, self.train_steps, seconds_left(self.history, self.train_steps)))
        return row

    def _loss_of_some_images(self) -> float:
        """Summed loss of the first training images, to see whether the weights are numbers."""
        return float(self.steps.validate(self.training.images[:64], self.training.labels[:64])["loss"])

    def _rank(self, row: dict) -> float:
        """What the weights of a report are chosen by, the lowest first."""
        return row[self.chosen_by] if len(self.validation) else -row["step"]

    def _column(self, name) -> list[float]:
        return [row[name] for row in self.history]

    def _seconds(self):
        return self._seconds_before + time.monotonic() - self._started

    def _variables(self):
        """Everything that a checkpoint holds, by a stable name."""
        named = {f"net/{variable.path}": variable for variable in self.net.weights}
        # The other variables are the states of dropout. By number: Keras counts their paths on from network to network of a process.
        weights = {id(variable) for variable in self.net.weights}
        states = [variable for variable in self.net.variables if id(variable) not in weights]
        named |= {f"state/{index:04d}": variable for index, variable in enumerate(states)}
        named |= {f"optimizer/{index:04d}": variable for index, variable in enumerate(self.optimizer.variables)}
        return named | {f"average/{index:04d}": variable for index, variable in enumerate(self.averages)}

    def _write_checkpoint(self):
        facts = {
            "step": self.step,
            "history": self.history,
            "interval": self._interval,
            "seconds": self._seconds(),
            "tensorboard": self.run.tensorboard_sizes(),
            "net": self._net_facts(),
            "precision": self.policy,
            "towers": self.towers,
        }
        self.run.save_checkpoint(self.step, self._variables(), facts)

    def _write_error_csv(self):
        write_atomically(self.run.error_csv, pd.DataFrame(self.history).to_csv(index=False))

    # What TensorBoard shows

    def _open_tensorboard(self) -> TensorBoardLog:
        log = TensorBoardLog(self.run.tensorboard, self.net)
        if not self.history:
            images, labels = self._first_batch()
            # What one machine of several traces alone, the others would wait for.
            alone = self.config.strategy != "multi_worker"
            log.write_start(images, self.steps.train.get_concrete_function(images, labels).graph if alone else None)
        return log

    @property
    def _validates_fully(self) -> bool:
        return self.config.is_full_validation and len(self.validation) > 0

    def _watched_images(self):
        """The normalised images whose activations TensorBoard shows: the first validation images, else training images."""
        part = self.validation if len(self.validation) else self.training
        # So few because TensorBoard's histogram takes 240 bytes a value.
        return self.normalization(part.images[:16])


class MultiTaskTrain(Train):
    """Training of one network with several heads on a shared trunk: for each image one label for each of `config.heads`.

    The loss is the sum of the heads' cross-entropies, each times its factor of `config.head_weights`. In `error.csv` the columns
    of the first head have the usual names, those of the others end in the name of the head. Weights are chosen by the first.

    Attributes:
        heads: head name -> `cifar10_input.ImageData`, the same images with the labels of the head; without training images, as
            `data`.
    """

    def _prepare(self, data):
        """`data`: as `heads`, or None = as the settings say."""
        self.heads = data or cifar10_input.load_heads(self.config)
        first = next(iter(self.heads.values()))
        super()._prepare(first)
        self.classes = {head: len(data.class_names) for head, data in self.heads.items()}
        # The same split as with the first head alone, with the labels int32 [images, heads].
        numbers = cifar10_input.Split(np.arange(len(first.train)), first.train.labels)
        labels = np.stack([data.train.labels for data in self.heads.values()], axis=1)
        self.training, self.validation = (
            cifar10_input.Split(first.train.images[part.images], labels[part.images])
            for part in cifar10_input.split_data(dataclasses.replace(first, train=numbers), self.config)
        )
        tested = np.stack([data.test.labels for data in self.heads.values()], axis=1)
        self.tested = cifar10_input.Split(first.test.images, tested)
        self.heads = {head: dataclasses.replace(data, train=None) for head, data in self.heads.items()}

    def _measure(self, logits, labels):
        objective, sums = 0.0, {}
        for index, (head, factor) in enumerate(self.config.tasks.items()):
            losses, found = super()._measure(logits[head], labels[:, index])
            objective += factor * losses
            sums |= {f"{name}_{head}" if index else name: value for name, value in found.items()}
        return objective, sums

    def _describe(self):
        super()._describe()
        names = {head: data.class_names for head, data in self.heads.items()}
        write_json(self.run.data, read_json(self.run.data, dict) | {"heads": names})


def train(config: HyperParameters, *, resume=False, overwrite=False, callbacks=()) -> RunFolder:
    """Trains one network in its run folder, see `Train.train`; a folder that cannot be used is refused before any work.

    Returns:
        The run folder, with `best.keras`, `final.keras` and `error.csv`.
    """
    run = RunFolder(f"{config.runs_dir}/{config.run_name}")
    if devices.is_chief(config.strategy):
        run.check(config, resume=resume, overwrite=overwrite)
    trainer = (MultiTaskTrain if len(config.tasks) > 1 else Train)(config, run)
    trainer.train(resume=resume, overwrite=overwrite, callbacks=callbacks)
    return run
