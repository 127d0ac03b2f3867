"""Every setting of a training run, once: name, default, unit, meaning and source.

`HyperParameters` is frozen: a run is described by one value of it, which is stored as `config.json` in the run
folder. The command line is made from its fields, so a default is written here and nowhere else. `PRESETS` holds
the named recipes; a preset changes defaults, a flag on the command line changes the preset.

Sources: He 2015 = arXiv:1512.03385, section 4.2. Liang = Liang 2020, J. Phys.: Conf. Ser. 1634 012110, whose program
is the TensorFlow 1 code wenxinxu/resnet-in-tensorflow ("the original stack" below).

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import argparse
import dataclasses
import io
import json
import math
import os
import re
import shlex
import sys
from pathlib import Path
from typing import ClassVar

RUN, DATA, NETWORK, TRAINING, LOADING = (
    "run and report",
    "data and augmentation",
    "network",
    "training and learning rate",
    "validating, testing and loading",
)


# Settings that are arguments of a net's builder; `model_registry` knows which net takes which.
NET_OPTIONS = (
    "shortcut", "squeeze_excitation", "block_dropout", "stochastic_depth", "zero_last_gamma", "maxout", "dropout",
)  # fmt: skip
# Labels that a data set has for its pictures, each a task of its own.
HEADS = {"cifar10": ("class", "kind"), "cifar100": ("fine", "coarse")}
_PATHS = (
    "data_dir",
    "runs_dir",
    "ckpt_path",
    "test_ckpt_path",
    "weights",
)  # settings that are paths, of all classes of settings


class UsageError(ValueError):
    """Something the user gave cannot be used. The message is one line: expected, received, what to do."""


def setting(default, group, text, *, choices=None, minimum=None, maximum=None, operational=False):
    """A dataclass field with what the command line needs to know about it.

    `operational` settings may differ when a run is resumed: they change where and how it runs, not what it computes.
    """
    metadata = {
        "group": group,
        "help": text,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "operational": operational,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """What the frozen dataclasses of settings have in common; every field is a `setting`."""

    PROGRAM: ClassVar[str]  # the command that trains with these settings

    def __post_init__(self):
        """Raises UsageError unless every value fits the declared type, choices and range of its field."""
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
            if field.name in _PATHS:
                try:
                    Path(getattr(self, field.name)).expanduser()
                except RuntimeError as error:
                    raise UsageError(
                        f"--{field.name} must be a path, received '{getattr(self, field.name)}' ({error})"
                    ) from error
        if re.search(r"[\\/]|^\.", self.version):
            raise UsageError(
                f"--version must be a plain folder name, received '{self.version}'; use --runs_dir for the place"
            )

    def flags_beside(self, other: "Settings") -> list[str]:
        """The flags of what differs from `other`, and not only in where things lie."""
        return [
            f"--{field.name}={shlex.quote(str(getattr(self, field.name)))}"
            for field in dataclasses.fields(self)
            if not field.metadata["operational"] and getattr(self, field.name) != getattr(other, field.name)
        ]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, source: str):
        """Reads `config.json`. Raises UsageError, naming `source`, where it is not the settings of a run."""
        try:
            values = json.loads(text)
            return cls(**values)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"expected the settings of a run in {source}, received {error}; start a new run"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyperParameters(Settings):
    """One training run. Steps are batches, errors are top-1 in %, images are [height, width, RGB] of 0..255."""

    PROGRAM: ClassVar[str] = "python cifar10_main.py --mode=train"

    # Run and report
    preset: str = setting("fast", RUN, "named recipe that sets the defaults of all other flags")
    version: str = setting(
        "", RUN, "name of the run folder; '' = <model>-<dataset>-<preset>-seed<seed>", operational=True
    )
    runs_dir: str = setting("runs", RUN, "folder of all run folders", operational=True)
    seed: int = setting(0, RUN, "seed of initial weights, batch order and augmentation", minimum=0)
    report_freq: int = setting(
        352, RUN, "steps between reports: validation, console line, error.csv, checkpoint, TensorBoard", minimum=1
    )
    train_ema_decay: float = setting(
        0.8,
        RUN,
        "decay of the smoothed curves, per report (the original stack: 0.95 per step)",
        minimum=0.0,
        maximum=0.9999,
    )
    tensorboard: bool = setting(True, RUN, "write TensorBoard scalars, histograms, graph and images", operational=True)
    precision: str = setting(
        "auto",
        RUN,
        "number format of the heavy arithmetic; auto = bfloat16 where the processor computes it natively, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    strategy: str = setting(
        "auto",
        RUN,
        "devices; auto = all GPUs if there are several, else one device; mirrored = all GPUs, the batch shared among them; "
        "multi_worker = all devices of the machines in TF_CONFIG",
        choices=("auto", "cpu", "one_gpu", "mirrored", "multi_worker"),
        operational=True,
    )
    deterministic: bool = setting(False, RUN, "bit-identical repeats on the same machine; costs some speed")

    # Data and augmentation
    dataset: str = setting(
        "cifar10",
        DATA,
        "cifar10, cifar100 (fine labels), cifar100_coarse, mnist, digits (1,797 real digits, no download), "
        "synthetic (drawn pictures, no download)",
        choices=("cifar10", "cifar100", "cifar100_coarse", "mnist", "digits", "synthetic"),
    )
    data_dir: str = setting(
        "",
        DATA,
        "where the data set lies: CIFAR's extracted folder, .tar.gz or binary version; MNIST's IDX files or mnist.npz; "
        "'' = Keras' cache, then download",
        operational=True,
    )
    synthetic_images: int = setting(
        2000, DATA, "images drawn for --dataset=synthetic, training and test", minimum=40, maximum=1000000
    )
    validation_fraction: float = setting(
        0.1,
        DATA,
        "share of each class of the training images held out for validation (He 2015: 5k of 50k; MNIST: 5k of 60k); 0 = train "
        "on all of them and keep the weights of the last step, for a recipe that was chosen before",
        minimum=0.0,
        maximum=0.9,
    )
    split_seed: int = setting(0, DATA, "seed of the training/validation split", minimum=0)
    normalization: str = setting(
        "channel_standard",
        DATA,
        "channel_standard = (x - mean) / std per channel; channel_mean, pixel_mean (He 2015) = (x - mean) / 255 per "
        "channel / per pixel; whiten (Liang) = (x - mean) / std of each image",
        choices=("channel_standard", "channel_mean", "pixel_mean", "whiten"),
    )
    augment: bool = setting(True, DATA, "crop, flip, rotate and cut the training images as the flags below say")
    padding_size: int = setting(4, DATA, "pixels added on each side before the random crop", minimum=0, maximum=16)
    padding_mode: str = setting("reflect", DATA, "what the added pixels show", choices=("zero", "reflect"))
    flip: str = setting(
        "alternate",
        DATA,
        "horizontal flip: random = with probability 1/2; alternate = a random half in one epoch, the other half in the next",
        choices=("none", "random", "alternate"),
    )
    cutout: int = setting(
        0, DATA, "side in pixels of a square that is set to the mean colour in each training image; 0 = none", minimum=0
    )
    rotation: float = setting(
        0.0,
        DATA,
        "largest angle in degrees by which a training image is rotated, either way; 0 = none",
        minimum=0.0,
        maximum=180.0,
    )
    train_random_label: bool = setting(False, DATA, "random training labels, to see a net memorise")
    vali_random_label: bool = setting(False, DATA, "random validation labels: the error must stay at chance")

    heads: str = setting(
        "",
        DATA,
        "which labels are learnt: class, kind (vehicle or animal) of cifar10, fine, coarse of cifar100; several, such as "
        "fine,coarse = a head for each on one trunk, chosen by the error of the first; '' = the data set's own",
    )

    # Network
    model: str = setting(
        "resnet20",
        NETWORK,
        "name in the model registry: resnet20, resnet20_preact, plain20, alexnet, lenet5, plain_cnn, ...",
    )
    num_residual_blocks: int = setting(
        0, NETWORK, "residual blocks per stage n, depth 6n+2; 0 = as the model's name says", minimum=0, maximum=200
    )
    shortcut: str = setting(
        "A",
        NETWORK,
        "where a stage begins: A = subsample and zero-pad, no weights; B = 1x1 projection (v1 and v2 nets; resnet164_v2 and "
        "resnet1001_v2 always have B)",
        choices=("A", "B"),
    )
    squeeze_excitation: int = setting(
        0, NETWORK, "squeeze-and-excitation in each block, channels per unit of its hidden layer; 0 = off", minimum=0
    )
    block_dropout: float = setting(
        0.0, NETWORK, "share of the values dropped before the last convolution of each block", minimum=0.0, maximum=0.9
    )
    stochastic_depth: float = setting(
        0.0,
        NETWORK,
        "probability that an image skips the last block in training; less for the blocks before, linearly",
        minimum=0.0,
        maximum=0.9,
    )
    zero_last_gamma: bool = setting(False, NETWORK, "each block begins as the identity (v1 nets only)")
    maxout: int = setting(
        0, NETWORK, "hidden layer of maxout units before the classifier, linear pieces per unit; 0 = off", minimum=0
    )

    dropout: float = setting(
        0.5, NETWORK, "AlexNet: share of the values dropped before each hidden dense layer", minimum=0.0, maximum=0.9
    )

    # Training and learning rate
    train_steps: int = setting(14062, TRAINING, "batches to train", minimum=1)
    train_batch_size: int = setting(128, TRAINING, "images per batch", minimum=1, maximum=65536)
    optimizer: str = setting(
        "nesterov",
        TRAINING,
        "momentum, nesterov = SGD; adam",
        choices=("momentum", "nesterov", "adam"),
    )
    momentum: float = setting(0.9, TRAINING, "momentum of SGD, beta_1 of Adam", minimum=0.0, maximum=0.9999)
    init_lr: float = setting(0.2, TRAINING, "highest learning rate", minimum=0.0)
    beta_lr_factor: float = setting(
        1.0,
        TRAINING,
        "SGD: factor of the learning rate of the offsets (beta) of batch norm; their decay stays as it is",
        minimum=0.0,
        maximum=1000.0,
    )
    lr_schedule: str = setting(
        "linear",
        TRAINING,
        "course of the learning rate after warm-up; linear and cosine end at 0 after train_steps",
        choices=("step", "cosine", "linear", "constant"),
    )
    lr_decay_factor: float = setting(
        0.1, TRAINING, "step schedule: factor at each decay step", minimum=0.0, maximum=1.0
    )
    decay_step0: int = setting(40000, TRAINING, "step schedule: first decay", minimum=0)
    decay_step1: int = setting(60000, TRAINING, "step schedule: second decay", minimum=0)
    warmup_steps: int = setting(1000, TRAINING, "steps of warm-up", minimum=0)
    warmup_lr: float = setting(0.02, TRAINING, "learning rate at step 0 of the warm-up", minimum=0.0)
    warmup_shape: str = setting(
        "linear",
        TRAINING,
        "linear = rise from warmup_lr to init_lr; constant = stay at warmup_lr, then jump",
        choices=("linear", "constant"),
    )
    weight_decay: float = setting(
        4e-4, TRAINING, "factor d of the gradient term d*w, that is of the loss term d/2*sum(w**2)", minimum=0.0
    )
    weight_decay_on: str = setting(
        "kernels",
        TRAINING,
        "variables that decay: kernels; weights = kernels and biases (Liang); all = batch norm too (He 2015)",
        choices=("kernels", "weights", "all"),
    )
    head_weights: str = setting("", TRAINING, "factors of the heads' losses, such as 1,0.5; '' = 1 for each")
    label_smoothing: float = setting(
        0.0, TRAINING, "share of the target spread evenly over all classes", minimum=0.0, maximum=0.9
    )
    weight_averaging: float = setting(
        0.0,
        TRAINING,
        "decay per step of an exponential moving average of the weights, which is then validated and kept; see also lookahead_steps; "
        "0 = off",
        minimum=0.0,
        maximum=0.99999,
    )
    lookahead_steps: int = setting(
        0,
        TRAINING,
        "Lookahead (Zhang et al. 2019, arXiv:1907.08610): every that many steps, and after the last, weights and moving statistics are "
        "averaged and training goes on from the average; the decay is weight_averaging * (step / train_steps)**3 (Jordan 2024, "
        "arXiv:2404.00498); 0 = off",
        minimum=0,
    )

    # Validating, testing and loading
    is_full_validation: bool = setting(
        True, LOADING, "validate on all held-out images; false = on one random batch of them, as the original stack"
    )
    validation_batch_size: int = setting(250, LOADING, "images per validation batch", minimum=1)
    watch_test: bool = setting(
        False,
        LOADING,
        "measure the error on the test images at each report too, for a curve; nothing is chosen by it",
        operational=True,
    )
    test_batch_size: int = setting(125, LOADING, "images per test batch", minimum=1, operational=True)
    test_flip: bool = setting(
        False,
        LOADING,
        "also test with the mean of the answers for each image and its mirror image, told apart as test_error_flip",
        operational=True,
    )
    is_use_ckpt: bool = setting(False, LOADING, "start from the weights in ckpt_path, at step 0")
    ckpt_path: str = setting("", LOADING, "checkpoint, .keras file or run folder to start from, with --is_use_ckpt")
    test_ckpt_path: str = setting(
        "",
        LOADING,
        "what to test or predict with: .keras file, checkpoint, run folder, or 'cifar10' = the shipped weights of --model; "
        "'' = best.keras of --version",
        operational=True,
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.validation_fraction and (self.vali_random_label or not self.is_full_validation):
            raise UsageError(
                "--validation_fraction=0 holds no images out, received --vali_random_label or --is_full_validation=false, which are "
                "about them; leave one out"
            )
        if self.tasks and (self.train_random_label or self.vali_random_label):
            raise UsageError("--heads need true labels, received random ones; leave --heads or --*_random_label out")
        if self.maxout == 1:
            raise UsageError("--maxout must be 0 or at least 2, received 1; one piece is a linear layer")
        if self.optimizer == "adam" and self.beta_lr_factor != 1:
            raise UsageError(
                f"--optimizer=adam takes no --beta_lr_factor, received {self.beta_lr_factor:g}, which would change nothing; give 1"
            )
        if self.lookahead_steps and not self.weight_averaging:
            raise UsageError(
                f"--lookahead_steps needs a --weight_averaging above 0, received --lookahead_steps={self.lookahead_steps} and 0, which "
                "would change nothing; give such as 0.774"
            )
        if self.lookahead_steps > self.report_freq:
            raise UsageError(
                f"--lookahead_steps must be at most --report_freq={self.report_freq}, received {self.lookahead_steps}, or reports would "
                "tell of no new weights; give fewer steps"
            )
        if self.is_use_ckpt and not self.ckpt_path:
            raise UsageError(
                "--is_use_ckpt needs --ckpt_path=FILE_OR_RUN, received none; give the weights to start from"
            )

    @property
    def model_name(self) -> str:
        """Registry name of the net, with the depth that `num_residual_blocks` asks for."""
        if not self.num_residual_blocks:
            return self.model
        match = re.fullmatch(r"(resnet|plain)(\d+)(_preact|_v2)?", self.model)
        # ResNet-9, and the bottleneck nets of depth 9n+2, are nets of their own.
        if not match or int(match[2]) % 6 != 2 or self.model in ("resnet164_v2", "resnet1001_v2"):
            raise UsageError(
                f"--num_residual_blocks fits the nets of depth 6n+2 (resnet20, plain20, ...), received --model={self.model}"
            )
        return f"{match[1]}{6 * self.num_residual_blocks + 2}{match[3] or ''}"

    @property
    def tasks(self) -> dict[str, float]:
        """The factor of the loss of each head, by its name, in the order of `heads`; empty where there are none."""
        if not self.heads and not self.head_weights:
            return {}
        known, names = HEADS.get(self.dataset, ()), self.heads.split(",")
        if not set(names) <= set(known) or len(set(names)) < len(names):
            choice = f"one or more of {', '.join(known)}" if known else f"left out for {self.dataset}"
            raise UsageError(f"--heads must be {choice}, received '{self.heads}'")
        weights = self.head_weights.split(",") if self.head_weights else ["1"] * len(names)
        try:
            values = [float(weight) for weight in weights]
        except ValueError:
            values = []
        if len(values) != len(names) or not all(0 < value < math.inf for value in values):
            raise UsageError(
                f"--head_weights must be {len(names)} positive number(s), one for each of --heads, received '{self.head_weights}'"
            )
        return dict(zip(names, values, strict=True))

    @property
    def dataset_name(self) -> str:
        """For titles and file names."""
        return self.dataset

    @property
    def net_options(self) -> dict:
        """Arguments of the net's builder that differ from their defaults: settings of the group NETWORK."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in NET_OPTIONS and getattr(self, field.name) != field.default
        }

    @property
    def run_name(self) -> str:
        """Name of the run folder below `runs_dir`."""
        recipe = self.preset if self.validation_fraction else f"{self.preset}-all"
        return self.version or f"{self.model_name}-{self.dataset}-{recipe}-seed{self.seed}"

    @property
    def command(self) -> str:
        """The command that repeats the run: what differs from the preset, its name if it was given one, not where things lie."""
        own_name = dataclasses.replace(self, version="").run_name
        name = [f"--version={self.version}"] if self.version not in ("", own_name) else []
        own = from_preset(self.preset)
        # What follows from net and data set needs no flag of its own.
        implied = from_preset(self.preset, model=self.model, dataset=self.dataset)
        changes = self.flags_beside(dataclasses.replace(implied, model=own.model, dataset=own.dataset))
        return " ".join([self.PROGRAM, f"--preset={self.preset}", *changes, *name])


def shared_setting(name: str, default=None, **facts):
    """A field of `HyperParameters` for another class of settings: the same meaning and range, perhaps another default.

    Args:
        name: field of `HyperParameters`.
        default: None = the same default.
        **facts: what else differs, such as `choices`.
    """
    field = HyperParameters.__dataclass_fields__[name]
    return dataclasses.field(
        default=field.default if default is None else default, metadata={**field.metadata, **facts}
    )


def _check(field, value):
    """Raises UsageError unless `value` fits the declared type, choices and range of the field."""
    flag, facts = f"--{field.name}", field.metadata
    if type(value) is not field.type and not (field.type is float and type(value) is int):
        raise UsageError(f"{flag} must be {field.type.__name__}, received {value!r}")
    if field.type is str and "\0" in value:
        raise UsageError(f"{flag} must be text without NUL characters, received {value!r}")
    if facts["choices"] and value not in facts["choices"]:
        raise UsageError(f"{flag} must be one of {', '.join(facts['choices'])}; received '{value}'")
    if field.type in (int, float):
        if type(value) is int and abs(value) >= 2**31:
            raise UsageError(f"{flag} must be below {2**31}, received a larger number")
        if not math.isfinite(value):
            raise UsageError(f"{flag} must be a finite number, received {value}")
        if facts["minimum"] is not None and value < facts["minimum"]:
            raise UsageError(f"{flag} must be at least {facts['minimum']}, received {value}")
        if facts["maximum"] is not None and value > facts["maximum"]:
            raise UsageError(f"{flag} must be at most {facts['maximum']}, received {value}")


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named recipe.

    Attributes:
        summary: one line for `--help` and the README.
        settings: what differs from the defaults of `HyperParameters`.
        published: (metric, value in %, source) of the number on CIFAR-10 that the recipe with its own net is held against;
            None = the test error that the model registry states.
    """

    summary: str
    settings: dict
    published: tuple[str, float, str] | None = None


_HE2015 = {
    "normalization": "pixel_mean",
    "padding_mode": "zero",
    "flip": "random",
    "optimizer": "momentum",
    "init_lr": 0.1,
    "lr_schedule": "step",
    "decay_step0": 32000,
    "decay_step1": 48000,
    "train_steps": 64000,
    "report_freq": 500,
    "warmup_steps": 0,
    "weight_decay": 1e-4,
    "weight_decay_on": "all",
}

# The margin of digits is black: reflected, it stays so, while zeros would be the mean grey.
_MNIST = {"dataset": "mnist", "padding_size": 2, "padding_mode": "reflect", "report_freq": 430}

_RESNET9 = {
    "model": "resnet9",
    "train_batch_size": 512,
    "init_lr": 0.5,
    "beta_lr_factor": 64.0,
    "warmup_lr": 0.1,
    "weight_decay": 1e-3,
    "weight_decay_on": "all",
    "label_smoothing": 0.2,
    "padding_size": 4,
    "cutout": 8,
}
_RESNET110 = ("test_error", 6.43, "He et al. 2015, table 6, ResNet-110, best of five runs")

PRESETS = {
    "fast": Preset("best accuracy for the time: 40 epochs, linear schedule, reflect padding, alternating flips", {}),
    "resnet9": Preset(
        "a wide ResNet-9 in 20 epochs: whitening stem, large batches, fast offsets, label smoothing, cutout",
        _RESNET9 | {"train_steps": 1760, "report_freq": 176, "warmup_steps": 264},
        _RESNET110,
    ),
    "resnet9_hour": Preset(
        "resnet9 in an hour on two cores: 24 epochs of all 50,000 training images, none held out, with Lookahead",
        _RESNET9
        | {
            "train_steps": 2350,
            "report_freq": 235,
            "warmup_steps": 352,
            "validation_fraction": 0.0,
            "weight_averaging": 0.774,
            "lookahead_steps": 5,
        },
        _RESNET110,
    ),
    "he2015": Preset(
        "He 2015: 64,000 steps, rate .1 divided by 10 at 32k and 48k, weight decay 1e-4",
        _HE2015,
    ),
    "he2015_110": Preset(
        "he2015 for ResNet-110: rate .01 for the first 400 steps",
        _HE2015 | {"model": "resnet110", "warmup_steps": 400, "warmup_lr": 0.01, "warmup_shape": "constant"},
    ),
    "degradation": Preset(
        "plain against residual nets in an hour: he2015 with 1,408 steps (4 epochs), the rate falling linearly to 0",
        _HE2015 | {"lr_schedule": "linear", "train_steps": 1408, "report_freq": 88},
    ),
    "liang": Preset(
        "Liang 2020: pre-activation ResNet-20, per-image whitening, 9,775 steps at rate .1, weight decay 2e-4",
        {
            "model": "resnet20_preact",
            "normalization": "whiten",
            "padding_size": 2,
            "padding_mode": "zero",
            "flip": "random",
            "optimizer": "momentum",
            "init_lr": 0.1,
            "lr_schedule": "step",
            "train_steps": 9775,
            "report_freq": 391,
            "warmup_steps": 0,
            "weight_decay": 2e-4,
            "weight_decay_on": "weights",
            # Liang has no averaging. It only watches: the net trains exactly as without it, and error.csv has both errors.
            "weight_averaging": 0.999,
        },
        ("validation_error", 12.8, "Liang 2020, section 6, step 9775, one batch of 250 images"),
    ),
    "mnist": Preset(
        "residual nets on MNIST: 14 epochs, linear schedule, shifts and rotations, no flips, label smoothing",
        _MNIST
        | {
            "train_steps": 6020,
            "init_lr": 0.2,
            "warmup_steps": 430,
            "warmup_lr": 0.02,
            "weight_decay": 5e-4,
            "weight_averaging": 0.998,
            "rotation": 15.0,
            "label_smoothing": 0.1,
        },
    ),
    "mnist_resnet9": Preset(
        "ResNet-9 on MNIST: 6 epochs, linear schedule, shifts and rotations, label smoothing",
        _MNIST
        | {
            "model": "resnet9",
            "train_steps": 1290,
            "report_freq": 215,
            "train_batch_size": 256,
            "init_lr": 0.25,
            "warmup_steps": 215,
            "warmup_lr": 0.05,
            "weight_decay": 1e-3,
            "weight_decay_on": "all",
            "weight_averaging": 0.995,
            "rotation": 15.0,
            "label_smoothing": 0.1,
        },
    ),
    "mnist_lenet": Preset(
        "LeNet-5 on MNIST: 30 epochs of Adam, linear schedule, shifts of up to 2 pixels, label smoothing",
        _MNIST
        | {
            "model": "lenet5",
            "train_steps": 12900,
            "optimizer": "adam",
            "init_lr": 0.003,
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "label_smoothing": 0.1,
            "weight_averaging": 0.998,
        },
    ),
    "mnist_alexnet": Preset(
        "AlexNet on MNIST: 4 epochs of Adam, linear schedule, shifts of up to 2 pixels, label smoothing",
        _MNIST
        | {
            "model": "alexnet_b",
            "train_steps": 1720,
            "report_freq": 215,
            "optimizer": "adam",
            "init_lr": 1e-3,
            "warmup_steps": 215,
            "warmup_lr": 1e-4,
            "weight_decay": 0.0,
            "label_smoothing": 0.1,
        },
    ),
    "lenet": Preset(
        "LeNet-5 and the plain CNN on CIFAR-10: 40 epochs of Adam, linear schedule, shifts of up to 2 pixels, alternating flips",
        {
            "model": "lenet5",
            "padding_size": 2,
            "train_steps": 14062,
            "optimizer": "adam",
            "init_lr": 0.002,
            "warmup_steps": 0,
            "weight_decay": 0.0,
        },
    ),
    "alexnet": Preset(
        "AlexNet on CIFAR-10: 14 epochs of Adam, linear schedule, shifts of up to 2 pixels, alternating flips, label smoothing",
        {
            "model": "alexnet_b",
            "dropout": 0.2,
            "padding_size": 2,
            "train_batch_size": 64,
            "train_steps": 9844,
            "report_freq": 704,
            "optimizer": "adam",
            "init_lr": 7e-4,
            "warmup_steps": 704,
            "warmup_lr": 7e-5,
            "weight_decay": 0.0,
            "label_smoothing": 0.1,
        },
    ),
    "demo": Preset(
        "the 1,797 real digits of scikit-learn, no download, about a minute",
        {
            "dataset": "digits",
            "train_steps": 400,
            "report_freq": 40,
            "warmup_steps": 80,
            "warmup_lr": 0.01,
            "init_lr": 0.1,
            "padding_mode": "zero",
        },
    ),
    "smoke": Preset(
        "a few steps on drawn pictures, to see that everything works, under a minute",
        {
            "dataset": "synthetic",
            "synthetic_images": 600,
            "model": "resnet8",
            "train_steps": 60,
            "report_freq": 20,
            "warmup_steps": 10,
            "warmup_lr": 0.01,
            "init_lr": 0.1,
            "train_batch_size": 32,
        },
    ),
}

# What a data set asks of every recipe: digits are never mirrored, and MNIST is split 55,000 / 5,000.
_OF_DATASET = {"mnist": {"validation_fraction": 1 / 12, "flip": "none"}, "digits": {"flip": "none"}}

# A recipe for 50,000 photographs makes no sense for a small data set, so these have one of their own.
DEFAULT_PRESET = {"digits": "demo", "synthetic": "smoke", "mnist": "mnist"}

# Nor does a recipe for the deep narrow nets for these: beginning of the net's name -> end of the preset's.
_PRESET_OF_NET = {"lenet5": "lenet", "plain_cnn": "lenet", "alexnet": "alexnet", "resnet9": "resnet9"}


def _recipe_of_net(model: str) -> str | None:
    return next((preset for net, preset in _PRESET_OF_NET.items() if re.match(rf"{net}(?!\d)", model)), None)


def is_made_for(preset: str, model: str) -> bool:
    """Whether the preset's own net is of the kind of `model`: LeNet, AlexNet, ResNet-9, or the deep narrow nets."""
    own = PRESETS[preset].settings.get("model", HyperParameters.__dataclass_fields__["model"].default)
    return _recipe_of_net(model) == _recipe_of_net(own)


def default_preset(dataset: str, model: str) -> str:
    """The preset of a net on a data set, for whoever names none."""
    own = _recipe_of_net(model)
    if dataset not in DEFAULT_PRESET:
        return own or "fast"
    return f"{dataset}_{own}" if f"{dataset}_{own}" in PRESETS else DEFAULT_PRESET[dataset]


def from_preset(name: str, **settings) -> HyperParameters:
    """The settings of a preset, with single ones replaced.

    What the data set asks of every recipe comes with it, and options of the preset's own net (`NET_OPTIONS`) hold only for nets of
    its kind.

    Args:
        name: key of `PRESETS`.
        **settings: fields of `HyperParameters`.

    Raises:
        UsageError: unknown preset, or a value out of its range.
    """
    if name not in PRESETS:
        raise UsageError(f"--preset must be one of {', '.join(PRESETS)}; received '{name}'")
    recipe = PRESETS[name].settings
    asked = {field.name: field.default for field in dataclasses.fields(HyperParameters)} | recipe | settings
    if not is_made_for(name, str(asked["model"])):
        recipe = {setting: value for setting, value in recipe.items() if setting not in NET_OPTIONS}
    return HyperParameters(**{**recipe, **_OF_DATASET.get(asked["dataset"], {}), **settings, "preset": name})


def learning_rate_at(step: int, config: Settings, train_steps: int | None = None) -> float:
    """Learning rate of one step, a pure function, so that a resumed run follows the same course.

    Args:
        step: 0-based index of the batch.
        config: settings; uses init_lr, lr_schedule, warmup_* , lr_decay_factor, decay_step0/1, train_steps.
        train_steps: where the schedule ends; None = as the settings say.
    """
    if step < config.warmup_steps:
        if config.warmup_shape == "constant":
            return config.warmup_lr
        return config.warmup_lr + (config.init_lr - config.warmup_lr) * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.init_lr
    if config.lr_schedule == "step":
        decays = (step >= config.decay_step0) + (step >= config.decay_step1)
        return config.init_lr * config.lr_decay_factor**decays
    progress = min(
        1.0, (step - config.warmup_steps) / max(1, (train_steps or config.train_steps) - config.warmup_steps)
    )
    if config.lr_schedule == "linear":
        return config.init_lr * (1 - progress)
    return config.init_lr * 0.5 * (1 + math.cos(math.pi * progress))


def as_text(name: str) -> str:
    """The name of a file, which need not be text, as something that can be written and drawn: what is no text is escaped."""
    return name.encode(errors="backslashreplace").decode()


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are `UsageError`s."""

    def error(self, message):
        raise UsageError(f"{message}; see --help")


def run_command(command) -> int:
    """Calls `command()` for a command line. Returns the exit code: 0, 2 for what the user can mend (one line on stderr), 130
    for Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    try:
        command()
    except UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError) as error:  # a disk, a permission or an odd file name that no message foresaw
        place = " ".join(str(getattr(error, "filename", None) or "memory").split())
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        print(f"error: {place}: {reason}; make room, or give another file or folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    return 0


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, received '{text}'")
    return values[text.lower()]


def add_flags(parser: argparse.ArgumentParser, settings: type[Settings] = HyperParameters) -> None:
    """Adds one flag per field, in the five groups; a flag that is not given stays out of the parsed namespace."""
    groups = {name: parser.add_argument_group(name) for name in (RUN, DATA, NETWORK, TRAINING, LOADING)}
    for field in dataclasses.fields(settings):
        facts = field.metadata
        options = {"default": argparse.SUPPRESS, "help": f"{facts['help']} [{field.default}]".replace("%", "%%")}
        if field.type is bool:
            options |= {"type": _boolean, "nargs": "?", "const": True, "metavar": "BOOL"}
        elif field.name == "preset":
            options |= {"choices": tuple(PRESETS)}
        elif facts["choices"]:
            options |= {"choices": facts["choices"]}
        else:
            options |= {"type": field.type, "metavar": field.type.__name__.upper()}
        groups[facts["group"]].add_argument(f"--{field.name}", **options)


def from_flags(given: dict) -> HyperParameters:
    """Settings from the flags that were given; the preset, if not given, is that of the data set and the net.

    Args:
        given: flag name -> value, only those on the command line.
    """
    fields = HyperParameters.__dataclass_fields__
    preset = given.get("preset") or default_preset(
        *(given.get(name, fields[name].default) for name in ("dataset", "model"))
    )
    return from_preset(preset, **{name: value for name, value in given.items() if name != "preset"})
