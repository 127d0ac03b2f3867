"""The settings of a transfer run that `resnet_study.shared_settings` does not have; defaults are those of the flower text.

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import dataclasses
from typing import ClassVar

from flowers.backbones import TEXT_HEADS, find
from hyper_parameters import HyperParameters
from resnet_study.errors import UsageError
from resnet_study.settings import DATA, LOADING, NETWORK, RUN, TRAINING, setting
from resnet_study.shared_settings import SharedSettings


def _changed(name: str, default=None, **facts):
    """A field of `SharedSettings` with another default (None = the same), or with what else differs, such as `choices`."""
    field = SharedSettings.__dataclass_fields__[name]
    return dataclasses.field(
        default=field.default if default is None else default, metadata={**field.metadata, **facts}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowerParameters(SharedSettings):
    """One transfer run. Images are [height, width, RGB] of 0..255; an epoch is one pass over the training images."""

    PROGRAM: ClassVar[str] = "python -m flowers.train"
    LENGTH: ClassVar[str] = "epochs"

    # Run and report
    version: str = setting("", RUN, "name of the run folder; '' = <model>-<folder>-seed<seed>", operational=True)
    tensorboard: bool = setting(True, RUN, "write TensorBoard scalars", operational=True)

    # Data and augmentation
    dataset: str = setting(
        "folder",
        DATA,
        "folder = the images of --data_dir; oxford102 = Oxford 102 Flowers, downloaded once (345 MB), in the parts of the flower text; or a "
        "data set of cifar10_main.py, see there",
        choices=(*HyperParameters.__dataclass_fields__["dataset"].metadata["choices"], "oxford102"),
    )
    data_dir: str = setting(
        "",
        DATA,
        "folder or .zip with train/<class>/ and valid/<class>/, perhaps test/<class>/; or with one folder per class, to be split; for "
        "--dataset=cifar10 and the like the place of its files",
        operational=True,
    )
    classes: int = setting(0, DATA, "use the first so many classes, in numeric or alphabetic order; 0 = all", minimum=0)
    image_size: int = setting(
        0,
        DATA,
        "height and width that images are brought to, pixels; 0 = as --model was trained",
        minimum=0,
        maximum=4096,
    )
    validation_fraction: float = _changed(
        "validation_fraction",
        minimum=0.001,
        help="share of each class held out for validation, where the folder has no valid/",
    )
    augment: bool = setting(True, DATA, "rotate, shear, zoom and flip the training images")
    rotation: float = setting(30.0, DATA, "largest rotation, degrees to either side", minimum=0.0, maximum=180.0)
    shear: float = setting(
        0.2,
        DATA,
        "largest shear, degrees to either side (degrees, as ImageDataGenerator means it)",
        minimum=0.0,
        maximum=80.0,
    )
    zoom: float = setting(0.2, DATA, "zoom of each axis by a factor of 1 - zoom to 1 + zoom", minimum=0.0, maximum=0.9)
    horizontal_flip: bool = setting(True, DATA, "mirror half of the images")
    variants: int = setting(
        0, DATA, "augmented variants of each image, drawn once and taken in turn; 0 = new ones every epoch", minimum=0
    )
    pipeline: str = setting(
        "tfdata",
        DATA,
        "who augments: tfdata = one affine map by OpenCV; generator = Keras' ImageDataGenerator, as the text (slower)",
        choices=("tfdata", "generator"),
    )
    find_leaks: str = setting(
        "auto",
        DATA,
        "look for files that are in two parts, by their content, among those of equal size; auto = where these are at most 50,000",
        choices=("auto", "on", "off"),
        operational=True,
    )
    faithful: bool = setting(
        False,
        DATA,
        "the quirks of the flower text, for comparison: validation images augmented as those of training, others at each report; "
        "classes in the order 1, 10, 2; RGB pixels without the preprocessing that the ImageNet weights need; images squeezed "
        "into a square by their nearest pixels. The evaluation afterwards does not augment",
    )

    # Network
    model: str = setting(
        "resnet50",
        NETWORK,
        "backbone of the network: a classifier of keras.applications (resnet50, efficientnetb0, convnexttiny, ...), or a network of "
        "cifar10_main.py, for small images (resnet20, resnet9, ...)",
    )
    head: str = setting(
        "auto", NETWORK, "head of the network; auto = that of the text: flatten for resnet50, convolutional for resnet152v2; else pool = "
        "global average pooling, far fewer weights, or for small networks linear = one dense layer",
        choices=("auto", "flatten", "pool", "convolutional", "linear"),
    )  # fmt: skip
    base: str = setting(
        "auto",
        NETWORK,
        "whether the backbone is frozen or trained; auto = as the text: resnet152v2 trained; the others frozen",
        choices=("auto", "frozen", "trained"),
        alias="backbone",
    )
    weights: str = setting(
        "auto", NETWORK, "weights of the backbone: imagenet (downloaded by Keras), cifar10 and others that are shipped (see cifar10_main.py --mode=models), "
        "none, a .h5, .weights.h5 or .keras file, or the folder of an earlier run; auto = imagenet, or the first that is shipped, else none"
    )  # fmt: skip
    cache_features: str = setting(
        "auto",
        NETWORK,
        "run the frozen backbone once per image and train the head alone; auto = where the images do not change",
        choices=("auto", "on", "off"),
        operational=True,
    )

    unfreeze_at_epoch: int = setting(
        0,
        NETWORK,
        "fine-tuning: after so many epochs, which are all trained, the last stages of the frozen backbone train too, with a fresh "
        "optimizer; all batch norm of the backbone stays frozen, in inference mode; 0 = never",
        minimum=0,
        maximum=100000,
    )
    fine_tune_stages: int = setting(
        1,
        NETWORK,
        "fine-tuning: stages of the backbone that train, from the last on; of ResNet50 1 = conv5, 4 = conv2 to conv5, 5 = the stem "
        "too; of others each size of maps is a stage",
        minimum=1,
        maximum=9,
    )

    # Training and learning rate
    epochs: int = setting(
        20, TRAINING, "passes over the training images; each ends with a report", minimum=1, maximum=100000
    )
    patience: int = _changed(
        "patience",
        10,
        minimum=1,
        help="epochs without a lower validation loss after which training stops; with --unfreeze_at_epoch they count from there on",
    )
    train_batch_size: int = _changed("train_batch_size", 32)
    optimizer: str = _changed("optimizer", "adam")
    init_lr: float = _changed(
        "init_lr",
        0.0,
        help="highest learning rate; 0 = 1e-5 for resnet50 (the flower text has it) and resnet152v2; for other backbones 0.0001 where they train, else 0.01 "
        "with the linear head and 0.001 with others",
    )
    fine_tune_lr: float = setting(
        1e-6,
        TRAINING,
        "highest learning rate of fine-tuning; the schedule starts again with it, without warm-up",
        minimum=0.0,
    )
    layer_decay: float = setting(
        1.0,
        TRAINING,
        "backbones that train: factor of the learning rate from each stage to the one before; the head has all of it; 1 = all the same",
        minimum=0.0,
        maximum=1.0,
    )
    lr_schedule: str = _changed("lr_schedule", "constant", choices=("constant", "cosine", "linear", "plateau"))
    warmup_steps: int = _changed("warmup_steps", 0)
    warmup_lr: float = _changed("warmup_lr", 0.0)
    weight_decay: float = _changed("weight_decay", 0.0)

    # Validating, testing and loading
    validation_batch_size: int = _changed("validation_batch_size", 32)
    test_batch_size: int = _changed("test_batch_size", 32)
    test_ckpt_path: str = setting(
        "",
        LOADING,
        "what to evaluate or predict with: .keras file, run folder, .onnx, .tflite or SavedModel, or 'cifar10' = shipped weights of --model (flowers.export: "
        "none of the exported formats); '' = best.keras of --version",
        operational=True,
    )

    def __post_init__(self):
        backbone = find(self.model)
        # What follows from the network is written down, so that a run says it.
        object.__setattr__(self, "image_size", self.image_size or backbone.size)
        if self.weights == "auto":
            object.__setattr__(self, "weights", backbone.own_weights)
        if not self.init_lr:
            other = 1e-4 if self.backbone_trainable else 1e-2 if self.head_name == "linear" else 1e-3
            object.__setattr__(self, "init_lr", 1e-5 if self.model in TEXT_HEADS else other)
        super().__post_init__()
        if self.classes == 1:
            raise UsageError("--classes must be at least 2, or 0 for all, received 1; give more, or leave it out")
        # A model that is given by its file has the size that it was trained with, whatever --model is here.
        if self.image_size < backbone.smallest and not self.test_ckpt_path:
            raise UsageError(
                f"--image_size must be at least {backbone.smallest} for --model={self.model}, received {self.image_size}; give more, or "
                "another --model"
            )
        backbone.check_weights(self.weights)
        if self.cache_features == "on" and self.backbone_trainable:
            raise UsageError(
                "--cache_features=on needs a frozen backbone, received a trained one; use --backbone=frozen"
            )
        if self.cache_features == "on" and self.augment and not self.variants:
            raise UsageError(
                "--cache_features=on needs images that do not change; use --augment=false or --variants=N, such as 8"
            )
        if self.cache_features == "on" and self.changes_batches:
            raise UsageError(
                "--cache_features=on needs images that do not change; leave out --mixup, --cutmix and --rand_augment"
            )
        if self.layer_decay != 1 and not (self.backbone_trainable or self.unfreeze_at_epoch):
            raise UsageError(
                "--layer_decay is for a backbone that trains; give --backbone=trained or --unfreeze_at_epoch=N too"
            )
        if self.unfreeze_at_epoch and self.backbone_trainable:
            raise UsageError(
                "--unfreeze_at_epoch needs a backbone that is frozen until then, received a trained one; use --backbone=frozen"
            )
        if self.unfreeze_at_epoch >= self.epochs:
            raise UsageError(
                f"--unfreeze_at_epoch must be below --epochs={self.epochs}, received {self.unfreeze_at_epoch}; leave epochs for "
                "fine-tuning"
            )
        if self.faithful and self.model != "resnet50":
            raise UsageError(
                f"--faithful has the quirks of the text on resnet50, received --model={self.model}; leave it out"
            )
        if self.faithful and self.cache_features == "on":
            raise UsageError("--cache_features=on needs validation images that do not change; leave out --faithful")
        if self.faithful and self.resize != "auto":
            raise UsageError(
                f"--faithful squeezes images as the text did, received --resize={self.resize}; leave one out"
            )

    def needs(self):
        split = self.dataset != "oxford102"
        augmentation = ("rotation", "shear", "zoom", "horizontal_flip", "variants", "pipeline")
        return [
            *super().needs(),
            (
                ("validation_fraction", "split_seed"),
                split,
                "images that are to be split, other than --dataset=oxford102",
            ),
            (("find_leaks",), self.dataset in ("folder", "oxford102"), "image files, such as --dataset=folder"),
            (augmentation, self.augment, "--augment=true"),
            (("fine_tune_lr", "fine_tune_stages"), self.unfreeze_at_epoch > 0, "--unfreeze_at_epoch, such as 10"),
        ]

    def reading(self, told=None) -> dict:
        """As `SharedSettings.reading`, with the quirk of the text."""
        return super().reading(told) | ({"resize": "nearest", "jpeg_size": "full"} if self.faithful else {})

    def as_usual(self) -> "FlowerParameters":
        """What a run of this network with this head has without further flags."""
        return type(self)(model=self.model, head=self.head, base=self.base)

    @property
    def model_name(self) -> str:
        return self.model

    @property
    def shipped_name(self) -> str:
        """See `SharedSettings.shipped_name`; the ResNet50 of Keras is none of this library."""
        return "" if find(self.model).application else self.model

    @property
    def model_choices(self) -> dict:
        """What makes the network another one than its name says."""
        return {} if self.head == "auto" else {"head": self.head}

    @property
    def changes_batches(self) -> bool:
        """Whether images change from batch to batch, whatever `variants` say."""
        return any((self.mixup, self.cutmix, self.rand_augment))

    @property
    def backbone_trainable(self) -> bool:
        """Whether the backbone trains from the first step on."""
        return self.model == "resnet152v2" if self.base == "auto" else self.base == "trained"

    def chosen_by(self, multi_label: bool) -> str:
        """See `HyperParameters.chosen_by`."""
        return "validation_loss"

    @property
    def head_name(self) -> str:
        """The head, with "auto" resolved: a key of `flowers.heads.HEADS`."""
        if self.head != "auto":
            return self.head
        return find(self.model).head

    @property
    def run_name(self) -> str:
        """Name of the run folder below `runs_dir`."""
        return self.version or f"{self.model}-{self.dataset_name}-seed{self.seed}{self.fold_name}"

    @property
    def command(self) -> str:
        """The command that repeats the run, with given weights as if in `runs/`."""
        changes = self.as_published().flags_beside(type(self)())
        return " ".join([self.PROGRAM, *self.folder_flags, *changes, *self.name_flags])
