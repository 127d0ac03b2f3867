"""How a transfer net is trained: the loop of `cifar10_train`, on a folder of pictures, with a base that may be frozen, for good or
for the first epochs.

While the base is frozen and the pictures do not change, or change between N fixed variants, the base runs once per picture
(and variant), and the head is trained on what it gave: the same losses in a fraction of the time.
"""

import dataclasses
import itertools
import json
import math
import re

import keras
import numpy as np
import tensorflow as tf

from cifar10_train import Train
from flowers.augmentation import make_variant
from flowers.batches import training_batches
from flowers.data import FlowerData, load_images
from flowers.heads import build_transfer, find_backbone, load_backbone_weights, split_model, unfreeze_stages
from flowers.settings import FlowerParameters
from hyper_parameters import learning_rate_at
from resnet_study import devices
from resnet_study.checkpoints import read_checkpoint
from resnet_study.errors import UsageError
from resnet_study.files import read_json, write_json
from resnet_study.networks.layers import PixelNormalization
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import save_model
from resnet_study.training.run_log import TensorBoardLog

_LARGEST_FEATURES = 2 << 30  # bytes of cached features, of training and validation pictures together


class TransferTrain(Train):
    """Training of one transfer net.

    An epoch is one pass over the training pictures in whole batches, as many as hold all of them; the last batch of a pass is
    filled with the first pictures of the next. Each ends with a report. Training stops after `epochs`, or when the validation
    loss has not fallen for `patience` of them. `best.keras` has the weights of the lowest validation loss.

    With `unfreeze_at_epoch` there are two stages. The first takes all its epochs, however the validation loss goes. The second
    goes on from its last weights, and trains `fine_tune_stages` of the base too: with a fresh optimizer, a learning-rate
    schedule of its own, and patience counted from its beginning. The batch normalisation of the base stays in inference mode,
    its statistics, gamma and beta as they were.

    Attributes:
        transfer: keras.Model from raw pixels to logits, in the precision of the run.
        net: what the loop trains: `transfer`, or its head where features are cached.
        switch_step: the second stage begins after so many steps; 0 = there is none.
        unfrozen: whether it has begun.
    """

    chosen_by = "validation_loss"

    def __init__(
        self,
        config: FlowerParameters,
        run: RunFolder | None = None,
        data: FlowerData | None = None,
        *,
        load_weights=True,
    ):
        """Builds the net and the optimizer; reads the pictures if they are not given.

        Args:
            config: settings.
            run: where to write; None = `<runs_dir>/<run name>`, which is made new by `train()`.
            data: images of `flowers.data.load_images`; None = as the settings say.
            load_weights: False = leave the base random, for a run that goes on from a checkpoint.

        Raises:
            UsageError: the pictures or the weights cannot be used.
        """
        self._load_weights = load_weights
        self._features = None
        self.unfrozen = False
        super().__init__(config, run, data)
        # Not where the net is built: there every variable, also those of a net from a file, belongs to all devices.
        if load_weights and config.weights not in ("imagenet", "none"):
            load_backbone_weights(self.base, config.weights)

    def train(self, **options):
        """As `Train.train`; afterwards `data.json` also names the pictures that were found broken on the way."""
        super().train(**options)
        if self.is_chief:
            write_json(self.run.data, read_json(self.run.data, {}) | {"skipped": self.data.skipped})

    def _prepare(self, data):
        config = self.config
        self.data = data or load_images(config, self.run)
        self.training, self.validation = self.data.training, self.data.validation
        self.normalization = tf.identity  # the net has its preprocessing within
        self.classes = len(self.data.class_names)
        self.report_freq = math.ceil(len(self.training) / config.train_batch_size)
        self.train_steps = config.epochs * self.report_freq
        self.switch_step = config.unfreeze_at_epoch * self.report_freq

    def _build_net(self):
        weights = self.config.weights if self._load_weights and self.config.weights == "imagenet" else None
        self.transfer = self._build(dtype=self.policy, classifier_activation=None, weights=weights)
        self.base = find_backbone(self.transfer)
        if self.replicas > 1 and self.config.base_trainable:
            for layer in self.base.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = True  # statistics of the whole batch, which the devices share
        self._to_features, head = split_model(self.transfer)
        self.caches_features = self._choose_caching(self._to_features.output_shape[1:])
        return head if self.caches_features else self.transfer

    def _build(self, **options):
        config = self.config
        return build_transfer(
            config.model,
            self.classes,
            input_shape=self.training.shape,
            head=config.head_name,
            backbone_trainable=config.base_trainable,
            dropout=0.4 if config.model == "resnet50" else 0.5,
            preprocessing=PixelNormalization(0.0, 1.0, name="preprocessing") if config.faithful else None,
            **options,
        )

    @property
    def _variants(self) -> int:
        """How many fixed variants of each picture there are; 0 = endlessly many."""
        return self.config.variants if self.config.augment else 1

    def _choose_caching(self, shape) -> bool:
        config = self.config
        if config.cache_features == "off" or config.base_trainable or config.faithful or not self._variants:
            return False
        size = (len(self.training) * self._variants + len(self.validation)) * math.prod(shape) * 4
        if size <= _LARGEST_FEATURES:
            return True
        needs = f"the cached features would take {size / 2**30:.1f} GiB of memory, more than {_LARGEST_FEATURES / 2**30:.0f}"
        if config.cache_features == "on":
            raise UsageError(f"{needs}; use --head=pool, fewer --variants, or --cache_features=off")
        print(f"{needs}, so the base runs for every batch; --head=pool needs far less")
        return False

    def _compute_features(self):
        """Of the training pictures float32 [n, variants, ...]; of the validation pictures float32 [n, ...] and their labels."""
        if self._features is None:
            run = tf.function(lambda images: self._to_features(images, training=False), reduce_retracing=True)

            def compute(images):
                return np.asarray(run(images), np.float32)

            pairs = list(itertools.product(range(len(self.training)), range(self._variants)))
            # Filled in place: pieces put together would for a time take twice the memory.
            features = np.empty((len(pairs), *self._to_features.output_shape[1:]), np.float32)
            size = self.config.validation_batch_size
            for place, batch in zip(_in_batches(features, size), _in_batches(pairs, size), strict=True):
                place[:] = compute(np.stack([make_variant(self.training, *pair, self.config) for pair in batch]))
            validation = [(compute(images), labels) for images, labels in self._plain_batches()]
            self._features = (
                features.reshape(len(self.training), self._variants, *features.shape[1:]),
                *(np.concatenate(values) for values in zip(*validation, strict=True)),
            )
        return self._features

    def _start(self):
        if not self.config.base_trainable and self.is_chief:
            # A frozen base never changes, so it is not in every checkpoint; a resumed run takes it from here.
            save_model(self.base, self.frozen_base)

    @property
    def frozen_base(self):
        return self.run.path / "base.keras"

    def restore(self, path) -> None:
        """As `Train.restore`, with the frozen base from the run folder."""
        if not self.config.base_trainable:
            load_backbone_weights(self.base, str(self.frozen_base))
            self._features = None
        if 0 < self.switch_step < read_checkpoint(path)[1]["step"]:
            self._unfreeze()
        super().restore(path)

    def _unfreeze(self):
        """Begins the second stage."""
        unfreeze_stages(self.base, self.config.fine_tune_stages)
        self.unfrozen, self.caches_features, self._features = True, False, None
        self.net = self.transfer
        with self.strategy.scope():
            self._make_optimizer()
        self._compile()

    def _shared_batches(self):
        # The checkpoint of the switch itself is still one of the first stage.
        if self.step < self.switch_step:
            yield from super()._shared_batches()
        if self.switch_step and not self.unfrozen:
            self._unfreeze()
            self.net.stop_training = False
            if self.is_chief:
                trainable = sum(math.prod(variable.shape) for variable in self.net.trainable_variables)
                print(
                    f"fine-tuning from here on: {trainable:,} trainable parameters, highest rate {self.config.fine_tune_lr:g}"
                )
        yield from super()._shared_batches()

    def _learning_rate(self, step):
        if not self.switch_step:
            return super()._learning_rate(step)
        if step < self.switch_step:
            return learning_rate_at(step, self.config, self.switch_step)
        second = dataclasses.replace(self.config, init_lr=self.config.fine_tune_lr, warmup_steps=0)
        return learning_rate_at(step - self.switch_step, second, self.train_steps - self.switch_step)

    def _variables(self):
        frozen = set() if self.config.base_trainable else {id(v) for v in self.base.variables if not v.trainable}
        kept = [variable for variable in self.net.variables if id(variable) not in frozen]
        # By number, not by path: Keras counts the seed generators of a process on, so their paths are not the same again.
        named = {f"net/{index:04d}/{variable.name}": variable for index, variable in enumerate(kept)}
        return named | {f"optimizer/{index:04d}": variable for index, variable in enumerate(self.optimizer.variables)}

    def _training_batches(self, first_step=0, *share):
        features = self._compute_features()[0] if self.caches_features else None
        last_step = self.train_steps if self.unfrozen else self.switch_step or self.train_steps
        return training_batches(self.training, self.config, last_step, first_step, *share, features=features)

    def _validation_batches(self):
        if not self.caches_features:
            return self._plain_batches()
        _, features, labels = self._compute_features()
        size = self.config.validation_batch_size
        return zip(_in_batches(features, size), _in_batches(labels, size), strict=True)

    def _plain_batches(self):
        """Yields validation pictures and labels; as the text has it, if asked for, under the augmentation of training."""
        part, config = self.validation, self.config
        for indices in _in_batches(np.arange(len(part)), config.validation_batch_size):
            if not config.faithful:
                images, labels = part.load(indices)
                if len(labels):
                    yield images, labels
                continue
            # Far from the numbers that training takes, or both would turn pictures of equal index alike.
            variant = 1_000_000 + self.step // self.report_freq
            yield np.stack([make_variant(part, index, variant, config) for index in indices]), part.labels[indices]

    def _loop(self, callbacks):
        try:
            super()._loop(callbacks)
        except tf.errors.OpError as error:  # the pipeline wraps what is raised while it reads
            reason = re.search(r"UsageError: (.*)", error.message)
            if not reason:
                raise
            raise UsageError(reason[1]) from error

    def _has_ended(self) -> bool:
        if self.step <= self.switch_step:
            return False
        start = math.inf if self.best_step is None else max(self.best_step, self.switch_step)
        return super()._has_ended() or sum(row["step"] > start for row in self.history) >= self.config.patience

    def _net_facts(self) -> dict:
        return {"model": self.config.model, "head": self.config.head_name, "classes": self.classes}

    def _export(self) -> keras.Model:
        """The net as users get it: raw pixels to probabilities, float32."""
        if self._left_by_callbacks:
            return self._exported
        if not hasattr(self, "_exported"):
            self._exported = self._build(dtype="float32")
        for variable, value in zip(self._exported.variables, self.transfer.variables, strict=True):
            variable.assign(value)
        return self._exported

    def _describe(self):
        data, config = self.data, self.config
        counts = {"training": len(data.training), "validation": len(data.validation), "test": len(data.test or ())}
        facts = {
            "class_names": list(data.class_names),
            "class_folders": list(data.class_folders),
            "images": counts,
            "split_rounding": data.split_rounding,
            "found": data.found,
            "skipped": list(data.skipped),
            "leaks": [list(pair) for pair in data.leaks],
            "leak_count": data.leak_count,
        }
        if self.history:
            same = {"class_folders": [str], "images": dict.fromkeys(counts, int)}
            kept = read_json(self.run.data, same)
            for name in same:
                if json.loads(json.dumps(facts[name])) != kept[name]:
                    raise UsageError(
                        f"--resume goes on with the pictures of {self.run}: expected {name} {kept[name]}, received {facts[name]}; "
                        "give the same --data_dir or start another --version"
                    )
        environment = self._note_start()
        write_json(self.run.data, facts)
        parameters = self.transfer.count_params()
        trainable = sum(math.prod(variable.shape) for variable in self.transfer.trainable_variables)
        print(
            f"{config.model}, head {config.head_name}: {parameters:,} parameters, {trainable:,} of them trainable; base "
            f"{'trained' if config.base_trainable else 'frozen'}, its weights: {config.weights}; {self.policy}, "
            f"{devices.describe_strategy(self.strategy, self.towers)}, on "
            f"{', '.join(environment['gpus']) or environment['processor']} ({environment['cores']} cores)\n"
            f"{data.found}: {len(data.class_names)} classes, {counts['training']:,} training, {counts['validation']:,} validation, "
            f"{counts['test']:,} test pictures at {config.image_size} x {config.image_size}\n"
            f"{config.epochs} epochs of {self.report_freq} steps of {config.train_batch_size} pictures"
            f"{', features cached' if self.caches_features else ''}, run folder {self.run}"
        )
        if self.switch_step:
            print(
                f"after {config.unfreeze_at_epoch} epochs fine-tuning: the last {config.fine_tune_stages} stage(s) of the base train too, "
                "its batch norm stays in inference mode"
            )
        if data.leak_count is None and config.dataset == "folder" and config.find_leaks == "auto":
            print(
                "pictures that are in two parts were not looked for: too many files are of equal size; use --find_leaks=on"
            )
        for text in data.broken:
            print(f"skipped: {text}")
        if data.leak_count:
            first = " = ".join(data.leaks[0])
            print(
                f"leak: {data.leak_count} pair(s) of equal pictures are in two parts, so errors there look too small: {first}, ...; "
                f"listed in {self.run.data}"
            )
        if not config.base_trainable and config.weights == "none":
            print("note: the base is frozen with random weights; give --weights or use --base=trained")
        if line := self._describe_resume().strip():
            print(line)

    def _open_tensorboard(self):
        return TensorBoardLog(self.run.tensorboard, None)  # the layers of a backbone of 50 or 152 would fill the disk

    def _watched_images(self):
        return None


def _in_batches(values, size):
    """Yields a sequence in pieces of `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def train(config: FlowerParameters, *, resume=False, overwrite=False, callbacks=()) -> RunFolder:
    """Trains one net in its run folder; a folder that cannot be used is refused before any work.

    Args:
        config: settings.
        resume, overwrite, callbacks: see `cifar10_train.Train.train`.

    Returns:
        The run folder, with `best.keras`, `final.keras` and `error.csv`.
    """
    run = RunFolder(f"{config.runs_dir}/{config.run_name}")
    if devices.is_chief(config.strategy):
        run.check(config, resume=resume, overwrite=overwrite)
    goes_on = resume and any(run.checkpoints.glob("step-*.npz"))
    trainer = TransferTrain(config, run, load_weights=not goes_on)
    trainer.train(resume=resume, overwrite=overwrite, callbacks=callbacks)
    return run
