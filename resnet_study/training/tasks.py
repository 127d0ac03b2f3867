"""The tasks of `cifar10_train`: one label or several for each image, or one for each of several heads. See `training.task` for what a task has."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

import cifar10_input
from hyper_parameters import HyperParameters, is_made_for
from resnet_study.class_names import ClassNames
from resnet_study.data import streams
from resnet_study.data.balance import class_weights, describe_balance
from resnet_study.data.folder_data import check_several_labels
from resnet_study.data.image_data import as_given, digest
from resnet_study.data.mixing import check_mixing
from resnet_study.errors import UsageError, say_once
from resnet_study.networks import registry
from resnet_study.networks.layers import PatchWhitening, PixelNormalization
from resnet_study.networks.multiply_adds import count_parameters
from resnet_study.networks.pruning import keep_channels, score_channels
from resnet_study.networks.weights import copy_weights, find_new_heads
from resnet_study.presets import default_preset
from resnet_study.run_folder import RunFolder
from resnet_study.run_images import check_given_images, check_same_images, tell_known_images
from resnet_study.saved_models import load_model, save_model
from resnet_study.training.callbacks import count_lowered, make_watchers
from resnet_study.training.distillation import Teacher
from resnet_study.training.learning_rate import stage_rate
from resnet_study.training.proxy import SMALLEST, build_proxy
from resnet_study.training.run_log import (
    note_large_batch,
    note_late_decay,
    note_long_warmup,
    note_many_epochs,
    note_rates,
)
from resnet_study.training.step import UpdateRule, measure_classes
from resnet_study.training.task import Task


class Classification(Task):
    """One label for each image of a data set of `cifar10_input`, or several.

    Attributes:
        data: the data set without its training images (`data.train` is None), which are in `training` and `validation`.
        training, validation: `cifar10_input.Split`; the latter may be empty.
        normalization: layer of `cifar10_input.make_normalization`.
        classes: number of classes; with several heads {name of the head: number}.
        stage_ends: the step with which each stage of the training ends; a stage has a network and an optimizer of its own.
        report_freq: steps between reports.
        update: `UpdateRule`.
        chosen_by: column of `error.csv` whose lowest value decides which weights are kept; None = the newest are.
        watchers: what looks at each report: to end the training early, to lower the learning rate; see `callbacks.make_watchers`.
        validates_fully: whether the validation error is that of all validation images.
    """

    def __init__(self, config: HyperParameters, run: RunFolder, data=None, *, is_given: bool = True):
        """`data`: `cifar10_input.ImageData`; None = read as the settings say. `is_given`: whether a program gave `data`."""
        self.config, self.run = config, run
        self._options = config.network_options
        registry.find(config.model_name).check_options(self._options)
        if config.model_name in ("resnet50", "resnet152"):
            say_once(
                f"note: {config.model_name} is the network of depth 6n+2 for small images (He et al. 2015, section 4.2); that of ImageNet is "
                f"python -m flowers.train --model={config.model_name}"
            )
        was_given = is_given and data is not None and not data.fingerprint
        data = as_given(data) if was_given else data or cifar10_input.load_data(config)
        if data.multi_label:
            check_several_labels(config, "images")
        # Of images that a program gave, settings do not tell.
        self.was_given, self._digest = was_given, digest(data) if was_given or run.told("given") else ""
        self._keeps_last = run.keeps_last()
        self.training, self.validation = cifar10_input.split_data(data, config, self._keeps_last)
        self.data, self._tested = dataclasses.replace(data, train=None), data.test  # the split is a copy
        self.normalization = cifar10_input.make_normalization(config.normalization, self.training.images)
        check_mixing(config, self.training.images.shape[1:])
        smallest = min(self.training.images.shape[1:3])
        if config.augment and config.cutout > smallest:
            say_once(
                f"note: a square of {config.cutout} pixels is cut out of images of {smallest}, which leaves little of them; give a smaller --cutout"
            )
        if config.augment and config.padding_mode == "reflect" and config.padding_size >= smallest:
            raise UsageError(
                f"--padding_size must be below the {smallest} pixels of the images to reflect them, received {config.padding_size}; give less, "
                "or --padding_mode=zero"
            )
        self.classes = len(data.class_names)
        kept = run.told("class_weights")
        self.class_weights = class_weights(
            config.class_weight, self.training.labels, data.class_names, data.class_folders, kept
        )
        self.stage_ends, self.report_freq = (config.train_steps,), config.report_freq
        self.update = UpdateRule(
            batch_size=config.train_batch_size,
            weight_decay=config.weight_decay,
            weight_decay_on=config.weight_decay_on,
            beta_lr_factor=config.beta_lr_factor,
            weight_averaging=config.weight_averaging,
            lookahead_steps=config.lookahead_steps,
            extend=config.extend,
            parts=config.accumulate,
            sparsity=config.sparsity,
            quantize_aware=config.quantize_aware,
        )
        if config.hard_share < 1 and smallest < SMALLEST:
            raise UsageError(
                f"--hard_share needs images of at least {SMALLEST} pixels, received {smallest}; give --hard_share=1"
            )
        self._teacher, self.teach = None, self._ask_teacher if config.teacher else None
        self._proxy: keras.Model | None = None
        self.chosen_by = config.chosen_by(data.multi_label)
        self.extended_at = config.extend
        self.watchers = make_watchers(config, self.chosen_by, begins=(self.extended_at,))
        self.validates_fully = config.is_full_validation and len(self.validation) > 0

    # Data

    def training_batches(self, first_step=0, *share) -> tf.data.Dataset:
        """The batches of the network from `first_step` to the end of the stage; see `cifar10_input.training_batches`."""
        classes = len(self.data.class_names)
        return cifar10_input.training_batches(
            self.training, self.normalization, self.config, first_step, *share, classes=classes
        )

    def validation_batches(self, step: int):
        """Yields (images, labels) of the validation part, before normalisation, or of one random batch of it, as the settings say."""
        part, size = self.validation, self.config.validation_batch_size
        if not self.config.is_full_validation:
            rng = np.random.default_rng((self.config.seed, streams.VALIDATION_BATCH, step))
            part = part.take(rng.choice(len(part), min(size, len(part)), replace=False))
        return part.batches(size)

    def test_batches(self):
        """Yields the same of the test images, if reports tell of them."""
        return self._tested.batches(self.config.validation_batch_size) if self.config.watch_test else ()

    def watched_images(self):
        """The normalised images whose activations TensorBoard shows, the first validation images, else training images; or None."""
        part = self.validation if len(self.validation) else self.training
        # So few because TensorBoard's histogram takes 240 bytes a value.
        return self.normalization(part.images[:16])

    # Network

    def build(self, stage: int, policy: str, strategy) -> keras.Model:
        """The network of a 0-based stage: to logits, in the precision of the run, its variables where the strategy has them."""
        self._policy = policy
        with strategy.scope():
            return self._build(dtype=policy, classifier_activation=None)

    def build_proxy(self, policy: str, strategy) -> keras.Model | None:
        """See `Task.build_proxy`."""
        if self.config.hard_share == 1:
            return None
        with strategy.scope():
            self._proxy = build_proxy(self.training.images.shape[1:], self.classes, policy)
        return self._proxy

    def build_for_users(self) -> keras.Model:
        """The same network from raw pixels to probabilities, in float32."""
        return self._build(dtype="float32", preprocessing=self.normalization, **self._activation)

    @property
    def _activation(self) -> dict:
        """The end of the network, where it is not that of all builders."""
        return {"classifier_activation": "sigmoid"} if self.data.multi_label else {}

    def copy_for_users(self, model, averages, exported) -> None:
        """Gives the network of `build_for_users` the weights of the trained one, the averaged ones where there are any."""
        for variable, value in zip(exported.weights, averages or model.weights, strict=True):
            variable.assign(value)

    def _build(self, **options):
        return registry.find(self.config.model_name).build(
            input_shape=self.training.images.shape[1:], classes=self.classes, **self._options, **options
        )

    def begin(self, model: keras.Model, resumed: bool) -> None:
        """Sets the weights that a run starts with; those of a resumed run all come from its checkpoint, but for its teacher's. Raises
        UsageError where a resumed run was begun on other images, if the task can tell.
        """
        if resumed:
            if self.was_given and self.run.told("fingerprint"):
                raise UsageError(
                    f"--resume goes on with the images that {self.run} has read, received others (Train(data=...)); leave data out or start another --version"
                )
            check_given_images(self.run, lambda: self._digest)
            if self.data.fingerprint:
                check_same_images(self.run, self.describe_data())
        if self.config.teacher:
            source = str(self.run.teacher) if resumed else self.config.teacher
            names = self.data.class_names
            if resumed and not self.run.teacher.exists():
                raise UsageError(
                    f"--resume needs {source}, the teacher that {self.run} was begun with, which is missing; bring it back or start another --version"
                )
            self._teacher = Teacher(source, self.normalization, names, model.input_shape[1:], self._policy)
            if not resumed:  # a run of before goes on
                self._teacher.check_answers()
                name = f"the teacher {self.config.teacher}"
                tell_known_images(self._teacher.weights, self.config, self.data, name)
        if resumed:
            return
        for layer in [*model.layers, *(self._proxy.layers if self._proxy else [])]:
            if isinstance(layer, PatchWhitening):
                layer.adapt(self.normalization(self._choose_images(5000)))
        if self.config.is_use_ckpt:
            self._start_from(model, self.config.ckpt_path)

    def _choose_images(self, most: int):
        """Some training images: the first ones, but of images of one's own, which lie class by class, some of all classes."""
        images = self.training.images
        if self.config.dataset != "folder" or len(images) <= most:
            return images[:most]
        return images[
            np.random.default_rng((self.config.seed, streams.CHOSEN_IMAGES)).choice(len(images), most, replace=False)
        ]

    def keep_files(self) -> None:
        """Copies into the folder of a run that begins what it needs of other files, so that they may change before it is resumed."""
        if self._teacher:
            save_model(self._teacher.model, self.run.teacher)

    def _ask_teacher(self, images, logits, losses):
        return self._teacher.teach(images, logits, losses, self.config.teacher_temperature, self.config.teacher_share)

    def _start_from(self, model, path):
        """Takes the weights of a trained model, but for a head of other classes; step and optimizer stay at their start. Of a network with
        other `widths` it takes the channels that are worth most.
        """
        source = load_model(path, self.config.shipped_name)
        first = next((layer for layer in source.layers if isinstance(layer, PixelNormalization)), None)
        if first is not None and (kind := first.kind) != self.normalization.kind:
            say_once(
                f"note: --ckpt_path={path} was trained on pixels normalised by {kind}, this run has {self.normalization.kind}; "
                f"--normalization={kind} is nearer to its weights"
            )
        new_heads = find_new_heads(source, model)
        if self.config.widths and not new_heads and source.count_params() > model.count_params():
            scores = score_channels(source, self.config.prune_by, self.training, self.config.seed)
            source = keep_channels(source, self.build_for_users(), scores)
        try:
            copy_weights(source, model, new_heads)
        except ValueError as error:
            raise UsageError(f"--ckpt_path={path} does not fit --model={self.config.model_name}: {error}") from error
        tell_known_images(path, self.config, self.data)
        begin_random = [f"{name} ({here} classes, {there} there)" for name, (there, here) in new_heads.items()]
        print(
            f"starting from the weights of {path}"
            + (f", but for the dense layer {', '.join(begin_random)}, which begins random" if new_heads else "")
        )

    def name_variables(self, model: keras.Model) -> dict:
        """The variables of the network that a checkpoint holds, by a stable name."""
        weights = {id(variable) for variable in model.weights}
        # The other variables are the states of dropout. By number: Keras counts their paths on from network to network of a process.
        states = [variable for variable in model.variables if id(variable) not in weights]
        named = {f"net/{variable.path}": variable for variable in model.weights}
        return named | {f"state/{index:04d}": variable for index, variable in enumerate(states)}

    def facts(self, model: keras.Model) -> dict:
        """What `saved_models.load_model` needs to build the network of a checkpoint."""
        return {
            "model": self.config.model_name,
            "options": self._options | self._activation,
            "input_shape": model.input_shape[1:],
            "classes": self.classes,
            "normalization": self.normalization.get_config(),
        }

    # Course

    def learning_rate(self, step: int) -> float:
        """That of a 0-based step; see `learning_rate_at`."""
        config = self.config
        begins = sorted({0, config.extend})
        return stage_rate(
            step,
            config,
            [(begin, config.init_lr) for begin in begins],
            config.train_steps,
            count_lowered(self.watchers),
        )

    # What is said

    def describe_data(self) -> dict:
        """What `data.json` holds."""
        facts = {"class_names": self.data.class_names, "found": self.data.found, "images": self._count_images()}
        facts |= {"several": True, "keeps_last": self._keeps_last} if self.data.multi_label else {}
        if self.was_given or self.run.told("given"):
            facts["given"] = self._digest
        if self.config.class_weight not in ("", "balanced"):
            facts["class_weights"] = self.class_weights.tolist()
        if not self.data.fingerprint:
            return facts
        return facts | {
            "class_folders": self.data.class_folders,
            "fingerprint": self.data.fingerprint,
            "sample": self.data.sample,
        }

    def _count_images(self) -> dict[str, int]:
        return {"training": len(self.training), "validation": len(self.validation), "test": len(self.data.test)}

    def describe(self, model: keras.Model, machine: str) -> str:
        """What was chosen, in some lines; `machine` says where it trains."""
        config, counts = self.config, self._count_images()
        preset, usual = config.preset, default_preset(config.dataset, config.model)
        if preset != usual and not is_made_for(preset, config.model):
            preset += f" (made for other networks, that of this one is {usual})"
        hardest = f"the hardest {config.images_per_step} of each are trained on, " if self._proxy else ""
        return (
            f"{config.model_name}: {model.count_params():,} parameters, {count_parameters(model.trainable_variables):,} of them trainable, {machine}\n"
            f"{config.dataset_name} from {self.data.found}: {counts['training']:,} training, {counts['validation']:,} validation, "
            f"{counts['test']:,} test images\n"
            f"preset {preset}: {config.train_steps:,} steps of {config.train_batch_size} images "
            f"({config.train_steps * config.train_batch_size / counts['training']:.1f} epochs), {hardest}run folder {self.run}"
            + note_large_batch(config.train_batch_size, counts["training"])
            + note_long_warmup(config.warmup_steps, config.train_steps)
            + note_rates(config)
            + note_late_decay(config)
            + note_many_epochs(
                config.train_steps,
                config.train_batch_size,
                counts["training"],
                bool(self.chosen_by) and not config.patience,
            )
            + self._describe_balance()
        )

    def _describe_balance(self):
        labels, names = self.training.labels, self.data.class_names
        if (labels.ndim > 1 and not self.data.multi_label) or self.config.train_random_label:
            return ""
        weighted = self.class_weights is not None or self.config.balanced_sampling
        return "".join(f"\n{line}" for line in describe_balance(labels, names, weighted))


class SeveralHeads(Classification):
    """One network with several heads on a shared trunk: for each image one label for each of `config.heads`.

    The loss is the sum of the heads' cross-entropies, each times its factor of `config.head_weights`. In `error.csv` the columns
    of the first head have the usual names, those of the others end in the name of the head. Weights are chosen by the first.

    Attributes:
        heads: name of the head -> `cifar10_input.ImageData`, the same images with the labels of the head; without training images,
            as `data`.
    """

    def __init__(self, config: HyperParameters, run: RunFolder, data=None):
        """`data`: name of the head -> `cifar10_input.ImageData`; None = read as the settings say."""
        if data is None:
            heads = cifar10_input.load_heads(config)
        elif isinstance(data, dict) and set(data) == set(config.head_factors):
            heads = {
                head: as_given(data[head]) for head in config.head_factors
            }  # in the order of the settings, as the labels
        else:
            received = ", ".join(map(str, data)) if isinstance(data, dict) else f"one {type(data).__name__}"
            raise UsageError(
                f"data must be a dict with an ImageData for each of the heads {', '.join(config.head_factors)}, received {received}; give such"
            )
        first = next(iter(heads.values()))
        held = {
            head: [len(part or ()) for part in (data.train, data.validation, data.test)] for head, data in heads.items()
        }
        if len({str(counts) for counts in held.values()}) > 1:
            raise UsageError(
                f"heads must label the same images, received for training, validation and test {held}; give each all labels"
            )
        super().__init__(config, run, first, is_given=False)
        self.was_given = data is not None and not first.fingerprint
        self._digest = digest(*heads.values()) if self.was_given or run.told("given") else ""
        self.classes = {head: len(data.class_names) for head, data in heads.items()}
        # The same split as with the first head alone, with the labels int32 [images, heads].
        numbered = {
            name: cifar10_input.Split(index * len(first.train) + np.arange(len(part)), part.labels)
            for index, name in enumerate(("train", "validation"))
            if (part := getattr(first, name)) is not None
        }
        images = [getattr(first, name).images for name in numbered]
        images = np.concatenate(images) if len(images) > 1 else images[0]
        labels = np.concatenate(
            [np.stack([getattr(data, name).labels for data in heads.values()], axis=1) for name in numbered]
        )
        self.training, self.validation = (
            cifar10_input.Split(images[part.images], labels[part.images])
            for part in cifar10_input.split_data(dataclasses.replace(first, **numbered), config)
        )
        tested = np.stack([data.test.labels for data in heads.values()], axis=1)
        self._tested = cifar10_input.Split(first.test.images, tested)
        self.heads = {head: dataclasses.replace(data, train=None) for head, data in heads.items()}

    def measure(self, logits, labels):
        """As `Classification.measure`; logits: {name of the head: float [images, classes]}, labels: int32 [images, heads]."""
        objective, sums = 0.0, {}
        for index, (head, factor) in enumerate(self.config.head_factors.items()):
            losses, found = measure_classes(logits[head], labels[:, index], self.config.label_smoothing)
            objective += factor * losses
            sums |= {f"{name}_{head}" if index else name: value for name, value in found.items()}
        return objective, sums

    @property
    def class_names(self) -> ClassNames:
        names = {head: list(data.class_names) for head, data in self.heads.items()}
        return ClassNames(names, self.config.reading()["resize"])

    def describe_data(self):
        """As `Classification.describe_data`, with the class names of each head."""
        return super().describe_data() | {"heads": {head: data.class_names for head, data in self.heads.items()}}
