"""How a transfer network is trained: a task for the loop of `cifar10_train`, on a folder of images, with a backbone that may be frozen,
for good or for the first epochs.

While the backbone is frozen and the images do not change, or change between N fixed variants, the backbone runs once per image
(and variant), and the head is trained on what it gave: the same losses in a fraction of the time.
"""

import functools
import math

import keras
import numpy as np
import tensorflow as tf

from cifar10_train import Train
from flowers import transfer_facts
from flowers.augmentation import make_variant
from flowers.backbone_weights import find_weights, load_backbone_weights
from flowers.backbones import KNOWN_WEIGHTS, find
from flowers.batches import training_batches
from flowers.data import FlowerData, load_images
from flowers.features import can_cache_features, compute_features, in_batches
from flowers.heads import build_transfer, find_backbone, find_stages, split_model, unfreeze_stages
from flowers.settings import FlowerParameters
from resnet_study import workers
from resnet_study.checkpoints import list_checkpoints
from resnet_study.data import streams
from resnet_study.data.balance import class_weights
from resnet_study.data.mixing import check_mixing
from resnet_study.errors import UsageError
from resnet_study.files import read_json, write_json
from resnet_study.networks import registry
from resnet_study.networks.layers import PatchWhitening, PixelNormalization, finalize_layers
from resnet_study.networks.multiply_adds import count_parameters
from resnet_study.run_folder import RunFolder, run_folder_of
from resnet_study.run_images import check_same_images, tell_known_images
from resnet_study.saved_models import save_model
from resnet_study.strings import shorten
from resnet_study.training.callbacks import count_lowered, make_watchers
from resnet_study.training.learning_rate import stage_rate
from resnet_study.training.step import UpdateRule, is_seed
from resnet_study.training.task import Task

_WHITENED = 5000 * 32 * 32  # pixels of the images that whitening filters are made from


class Transfer(Task):
    """The task of a new head on a backbone; see `resnet_study.training.task` for what a task has.

    An epoch is one pass over the training images in whole batches, as many as hold all of them; the last batch of a pass is
    filled with the first images of the next. Each ends with a report. Training stops after `epochs`, or when the validation
    loss has not fallen for `patience` of them. `best.keras` has the weights of the lowest validation loss.

    With `unfreeze_at_epoch` there are two stages. The first takes all its epochs, however the validation loss goes. The second
    goes on from its last weights, and trains `fine_tune_stages` of the backbone too: with a fresh optimizer, a learning-rate
    schedule of its own, and patience counted from its beginning. The batch normalisation of the backbone stays in inference mode,
    its statistics, gamma and beta as they were.

    Attributes:
        data: `flowers.data.FlowerData`; `training` and `validation` are its parts.
        transfer: keras.Model from raw pixels to logits, in the precision of the run.
        backbone: the part of it that may be frozen.
        caches_features: whether the stage trains the head alone, on what the backbone gives for each image.
        unfrozen: whether the second stage has begun.
    """

    validates_fully = True
    normalization = staticmethod(tf.identity)  # the network has its preprocessing within

    def __init__(
        self, config: FlowerParameters, run: RunFolder, data: FlowerData | None = None, *, load_weights: bool = True
    ):
        """Reads the images if they are not given.

        Args:
            config: settings.
            run: its folder.
            data: of `flowers.data.load_images`; None = as the settings say.
            load_weights: False = leave the backbone random and split the images as before, for a run that goes on from a checkpoint.

        Raises:
            UsageError: the images cannot be used.
        """
        self.config, self.run = config, run
        self.data = data or load_images(config, None if load_weights else run)
        self.training, self.validation = self.data.training, self.data.validation
        self.class_weights = class_weights(
            config.class_weight,
            self.training.labels,
            self.data.class_names,
            self.data.class_folders,
            run.told("class_weights"),
        )
        check_mixing(config, self.training.shape)
        self.report_freq = math.ceil(len(self.training) / config.train_batch_size)
        ends = [config.unfreeze_at_epoch] * (config.unfreeze_at_epoch > 0) + [config.epochs]
        self.stage_ends = tuple(epochs * self.report_freq for epochs in ends)
        self.update = UpdateRule(
            batch_size=config.train_batch_size,
            weight_decay=config.weight_decay,
            weight_decay_on=config.weight_decay_on,
            parts=config.accumulate,
        )
        self.extended_at = config.extend * self.report_freq
        begins = (config.unfreeze_at_epoch * self.report_freq, self.extended_at)
        self.chosen_by = config.chosen_by(self.data.multi_label)
        self.watchers = make_watchers(config, self.chosen_by, first_epoch=config.unfreeze_at_epoch, begins=begins)
        self.unfrozen, self._features, self._load_weights = False, None, load_weights
        self._frozen_backbone = run.path / "base.keras"

    # Data

    def training_batches(self, first_step=0, *share) -> tf.data.Dataset:
        """The batches from `first_step` to the end of the stage, as features where they are cached; see `flowers.batches`."""
        features = self._cached()[0] if self.caches_features else None
        end = self.stage_ends[self.unfrozen]
        classes = len(self.data.class_names)
        return training_batches(self.training, self.config, end, first_step, *share, features=features, classes=classes)

    def validation_batches(self, step: int):
        """Yields (images or cached features, labels) of the validation part."""
        if not self.caches_features:
            return self._plain_batches(step)
        _, features, labels = self._cached()
        size = self.config.validation_batch_size
        return zip(in_batches(features, size), in_batches(labels, size), strict=True)

    def _plain_batches(self, step):
        """Yields validation images and labels; as the text has it, if asked for, under the augmentation of training."""
        part, config, read = self.validation, self.config, 0
        for indices in in_batches(np.arange(len(part)), config.validation_batch_size):
            if not config.faithful:
                images, labels = part.load(indices)
                if len(labels):
                    yield images, labels
                read += len(labels)
                continue
            # Far from the numbers that training takes, or both would turn images of equal index alike.
            variant = 1_000_000 + step // self.report_freq
            images = np.stack([make_variant(part, index, variant, config) for index in indices])
            yield images, part.labels_of(indices)
        if not (read or config.faithful):
            raise UsageError(
                f"expected validation images that can be read, received {len(part)} that cannot; mend them, or hold out others"
            )

    def test_batches(self):
        """None: reports tell of the validation part alone."""
        return ()

    def watched_images(self):
        """None: the layers of a backbone of 50 or 152 would fill the disk."""
        return None

    def _cached(self):
        """Features of the training images and of the validation images, and the labels of the latter; see `compute_features`."""
        if self._features is None:
            validation = self._plain_batches(step=0)
            self._features = compute_features(self._to_features, self.training, validation, self.config)
        return self._features

    # Network

    def build(self, stage: int, policy: str, strategy) -> keras.Model:
        """The network of a stage: in the first the whole one, or its head where features are cached; in the second the whole one.

        Raises:
            UsageError: the weights cannot be used.
        """
        return self._unfreeze() if stage else self._build_first(policy, strategy)

    def _build_first(self, policy, strategy):
        config, known = self.config, self.config.weights in KNOWN_WEIGHTS
        with strategy.scope():
            weights = config.weights if known and self._load_weights else None
            self.transfer = self._build(dtype=policy, classifier_activation=None, weights=weights)
        self.backbone = find_backbone(self.transfer)
        for layer in self.backbone.layers if config.backbone_trainable else ():
            if isinstance(layer, keras.layers.BatchNormalization):
                # The statistics of the whole batch, which the devices share.
                layer.synchronized = layer.synchronized or strategy.num_replicas_in_sync > 1
                # Moving variances begin at 1. With the .99 or .999 of Keras they keep a share of that through some hundred steps, which is
                # too much where maps are small, as those of depthwise convolutions: tests then give chance.
                layer.momentum = min(layer.momentum, 0.9) if config.weights == "none" else layer.momentum
        # Keras hands on that the whole network trains, and a frozen backbone would drop features that it keeps where they are cached.
        self._dropout_rates = {
            layer: layer.rate for layer in self.backbone.layers if isinstance(layer, keras.layers.Dropout)
        }
        for layer in () if config.backbone_trainable else self._dropout_rates:
            layer.rate = 0.0
        with strategy.scope():
            self._to_features, head = split_model(self.transfer)
        # Outside the scope: within it every variable, also those of a network from a file, belongs to all devices.
        if self._load_weights and not known and config.weights != "none":
            load_backbone_weights(self.backbone, config.weights)
        if self._load_weights:
            tell_known_images(config.weights, config, self.data)
        if self._load_weights and config.weights == "none":
            self._adapt_whitening()
        self.caches_features = can_cache_features(config, len(self.training), len(self.validation), self._to_features)
        return head if self.caches_features else self.transfer

    def _adapt_whitening(self):
        """Sets the filters that are made from training images and never trained, of networks that have some."""
        found = [layer for layer in self.backbone.layers if isinstance(layer, PatchWhitening)]
        if not found:
            return
        height, width = self.training.shape[:2]
        most = max(100, _WHITENED // (height * width))
        chosen = np.random.default_rng((self.config.seed, streams.CHOSEN_IMAGES)).permutation(len(self.training))[:most]
        images = self._preprocessing(self.training.load(chosen)[0])
        for layer in found:
            layer.adapt(images)

    def _unfreeze(self):
        """Begins the second stage."""
        unfreeze_stages(self.backbone, self.config.fine_tune_stages)
        for layer, rate in self._dropout_rates.items():
            layer.rate = rate
        self.unfrozen, self.caches_features, self._features = True, False, None
        if workers.is_chief(self.config.strategy):
            print(
                f"fine-tuning from here on: {count_parameters(self.transfer.trainable_variables):,} trainable parameters, highest rate "
                f"{self.config.fine_tune_lr:g}"
            )
        return self.transfer

    def build_for_users(self) -> keras.Model:
        """The whole network from raw pixels to probabilities, in float32."""
        return self._build(dtype="float32", classifier_activation="sigmoid" if self.data.multi_label else "softmax")

    def copy_for_users(self, model, averages, exported) -> None:
        """Gives it the variables of the whole network."""
        for variable, value in zip(exported.variables, self.transfer.variables, strict=True):
            variable.assign(value)
        finalize_layers(exported)

    def _build(self, **options):
        config = self.config
        return build_transfer(
            config.model,
            len(self.data.class_names),
            input_shape=self.training.shape,
            head=config.head_name,
            backbone_trainable=config.backbone_trainable,
            dropout=0.5 if config.model == "resnet152v2" else 0.4,
            preprocessing=self._preprocessing,
            **options,
        )

    @functools.cached_property
    def _preprocessing(self):
        """What the backbone was trained with; of a network of this library, the normalisation of the run that its weights are from."""
        if self.config.faithful:
            return PixelNormalization(0.0, 1.0, name="preprocessing")
        weights = self.config.weights
        # A run that was killed before its first report was done has no best.keras yet.
        kept = not self._load_weights and self.run.best.is_file()
        given, shipped = self.run.best if kept else find_weights(weights), weights in registry.SHIPPED
        is_file = given.name.endswith((".keras", ".weights.h5")) and given.is_file()
        try:
            return find(self.config.model).make_preprocessing(str(given) if is_file else weights if shipped else "")
        except ValueError as error:
            advice = "; give the .keras file of that network" if given.suffix == ".h5" else ""
            raise UsageError(f"--weights={weights} could not be read: {shorten(str(error))}{advice}") from error

    def begin(self, model: keras.Model, resumed: bool) -> None:
        """Takes the frozen backbone of a resumed run from its folder. Raises UsageError where that was begun on other images."""
        if resumed:
            check_same_images(self.run, self.describe_data())
        if resumed and not self.config.backbone_trainable:
            load_backbone_weights(self.backbone, str(self._frozen_backbone))
            self._features = None

    def keep_files(self) -> None:
        """Keeps a frozen backbone in the run folder: it never changes, so it is not in every checkpoint."""
        if not self.config.backbone_trainable:
            save_model(self.backbone, self._frozen_backbone)

    def name_variables(self, model: keras.Model) -> dict:
        """The variables of the network that a checkpoint holds, by a stable name."""
        fixed = () if self.config.backbone_trainable else self.backbone.variables
        # Dropout in a backbone draws once this is called as one that trains.
        frozen = {id(variable) for variable in fixed if not (variable.trainable or is_seed(variable))}
        kept = [variable for variable in model.variables if id(variable) not in frozen]
        # By number, not by path: Keras counts the seed generators of a process on, so their paths are not the same again.
        return {f"net/{index:04d}/{variable.name}": variable for index, variable in enumerate(kept)}

    def facts(self, model: keras.Model) -> dict:
        """What checkpoints say of the network."""
        return {"model": self.config.model, "head": self.config.head_name, "classes": len(self.data.class_names)}

    # Course

    def learning_rate(self, step: int) -> float:
        """That of a 0-based step: each stage has a schedule of its own."""
        config, fine_tuned = self.config, self.config.unfreeze_at_epoch
        highest = {0: config.init_lr, fine_tuned: config.fine_tune_lr if fine_tuned else config.init_lr}
        highest.setdefault(config.extend, config.fine_tune_lr if 0 < fine_tuned <= config.extend else config.init_lr)
        begins = [(epoch * self.report_freq, rate) for epoch, rate in sorted(highest.items())]
        return stage_rate(step, config, begins, self.stage_ends[-1], count_lowered(self.watchers))

    def rates(self, model: keras.Model) -> list[float] | None:
        """Factor of the learning rate of each trainable variable: less from stage to stage of the backbone; None = all have the same."""
        if self.config.layer_decay == 1:
            return None
        stages = find_stages(self.backbone)
        factors = {
            id(variable): self.config.layer_decay ** (stages[-1] - stage + 1)
            for layer, stage in zip(self.backbone.layers, stages, strict=True)
            for variable in layer.variables
        }
        return [factors.get(id(variable), 1.0) for variable in model.trainable_variables]

    # What is said

    def describe_data(self) -> dict:
        """What `data.json` holds."""
        return transfer_facts.describe_data(self)

    def describe(self, model: keras.Model, machine: str) -> str:
        """What was chosen and found, in some lines; `machine` says where it trains."""
        return transfer_facts.describe(self, machine)


def train(config: FlowerParameters, *, resume=False, overwrite=False, callbacks=()) -> RunFolder:
    """Trains one network in its run folder; a folder that cannot be used is refused before any work.

    Afterwards `data.json` also names the images that were found broken on the way.

    Args:
        config: settings.
        resume, overwrite, callbacks: see `cifar10_train.Train.train`.

    Returns:
        The run folder, with `best.keras`, `final.keras` and `error.csv`.
    """
    if not isinstance(config, FlowerParameters):
        raise UsageError(
            f"config must be FlowerParameters, received {type(config).__name__}; HyperParameters are for cifar10_train.train"
        )
    run = run_folder_of(config)
    run.check(config, resume=resume, overwrite=overwrite)
    goes_on = resume and bool(list_checkpoints(run.checkpoints))
    trainer = Train(config, run, task=functools.partial(Transfer, load_weights=not goes_on))
    trainer.train(resume=resume, overwrite=overwrite, callbacks=callbacks)
    if trainer.machine.is_chief:
        write_json(run.data, read_json(run.data, {}) | {"skipped": trainer.data.skipped})
    return run
