"""The settings of a training run, once: name, default, unit, meaning and source. `resnet_study.shared_settings` has the others.

`HyperParameters` is frozen: a run is described by one value of it, stored as `config.json` in the run folder. The command line is made
from its fields. `PRESETS` holds the named recipes; a preset changes defaults, a flag on the command line changes the preset.

Sources: He 2015 = arXiv:1512.03385, section 4.2. Liang = Liang 2020, J. Phys.: Conf. Ser. 1634 012110, whose program
is the TensorFlow 1 code wenxinxu/resnet-in-tensorflow ("the original stack" in other modules).

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import dataclasses
import difflib
import math
from typing import ClassVar

from resnet_study.errors import UsageError, say_once
from resnet_study.networks.registry import find, name_with_blocks
from resnet_study.presets import OF_DATASET, PRESETS, default_preset, recipe_of_model
from resnet_study.settings import DATA, LOADING, NETWORK, RUN, TRAINING, setting
from resnet_study.shared_settings import SharedSettings
from resnet_study.training.learning_rate import learning_rate_at as learning_rate_at

# Settings that are arguments of a network's builder; the registry knows which network takes which.
NETWORK_OPTIONS = (
    "shortcut", "squeeze_excitation", "block_dropout", "stochastic_depth", "zero_last_gamma", "maxout", "widths", "dropout",
)  # fmt: skip
# Labels that a data set has for its images, each a task of its own.
HEADS_OF_DATASET = {"cifar10": ("class", "kind"), "cifar100": ("fine", "coarse")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyperParameters(SharedSettings):
    """One training run. Steps are batches, errors are top-1 in %, images are [height, width, channels] of 0..255, RGB or grey.

    Made by `from_preset`: this class knows the name of the preset and applies none of its values.
    """

    PROGRAM: ClassVar[str] = "python cifar10_main.py --mode=train"
    LENGTH: ClassVar[str] = "train_steps"

    # Run and report
    preset: str = setting(
        "fast",
        RUN,
        "named recipe, the defaults of all other flags; else the one of --model and --dataset",
        choices=tuple(PRESETS),
    )
    version: str = setting(
        "", RUN, "name of the run folder; '' = <model>-<dataset>-<preset>-seed<seed>", operational=True
    )
    report_freq: int = setting(
        352, RUN, "steps between reports: validation, console line, error.csv, checkpoint, TensorBoard", minimum=1
    )
    tensorboard: bool = setting(True, RUN, "write TensorBoard scalars, histograms, graph and images", operational=True)

    # Data and augmentation
    dataset: str = setting(
        "cifar10",
        DATA,
        "cifar10, cifar100 (fine labels), cifar100_coarse, mnist, digits (1,797 real digits, no download), "
        "synthetic (drawn images, no download), folder (images of one's own in --data_dir)",
        choices=("cifar10", "cifar100", "cifar100_coarse", "mnist", "digits", "synthetic", "folder"),
    )
    data_dir: str = setting(
        "",
        DATA,
        "where the data set lies: CIFAR's extracted folder, .tar.gz or binary version; MNIST's IDX files or mnist.npz; "
        "'' = Keras' cache, then download; of --dataset=folder the folder or .zip of images",
        operational=True,
    )
    image_size: int = setting(
        32, DATA, "--dataset=folder: height and width that images are brought to, pixels", minimum=8, maximum=4096
    )
    channels: int = setting(
        0, DATA, "--dataset=folder: 1 = grey, 3 = colour; 0 = grey where all images are", minimum=0, maximum=3
    )
    synthetic_images: int = setting(
        2000, DATA, "images drawn for --dataset=synthetic, training and test", minimum=40, maximum=1000000
    )
    normalization: str = setting(
        "channel_standard",
        DATA,
        "channel_standard = (x - mean) / std per channel; channel_mean, pixel_mean (He 2015) = (x - mean) / 255 per "
        "channel / per pixel; image_standard (Liang) = per-image standardisation, (x - mean) / std of each image; whiten is its old name",
        choices=("channel_standard", "channel_mean", "pixel_mean", "image_standard"),
        old_values={"whiten": "image_standard"},
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
    train_random_label: bool = setting(False, DATA, "random training labels, to see a network memorise")
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
        "where a stage begins: A = subsample and zero-pad, no weights; B = 1x1 projection (v1 and v2 networks; resnet164_v2 and "
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
    zero_last_gamma: bool = setting(False, NETWORK, "each block begins as the identity (v1 networks only)")
    maxout: int = setting(
        0, NETWORK, "hidden layer of maxout units before the classifier, linear pieces per unit; 0 = off", minimum=0
    )
    widths: str = setting(
        "",
        NETWORK,
        "channels within each residual block, such as 32,0,144 for the three of ResNet-9, 0 = without the block; '' = as published; "
        "--mode=prune chooses them",
    )
    prune_by: str = setting(
        "taylor",
        NETWORK,
        "what a channel is worth that pruning keeps: taylor = how much the loss would change without it; l1 = the size of its weights; "
        "norm = the scale of its batch norm",
        choices=("taylor", "l1", "norm"),
    )
    dropout: float = setting(
        0.5, NETWORK, "AlexNet: share of the values dropped before each hidden dense layer", minimum=0.0, maximum=0.9
    )

    # Training and learning rate
    train_steps: int = setting(14062, TRAINING, "batches to train", minimum=1)
    beta_lr_factor: float = setting(
        1.0,
        TRAINING,
        "SGD: factor of the learning rate of the offsets (beta) of batch norm; their decay stays as it is",
        minimum=0.0,
        maximum=1000.0,
    )
    decay_step0: int = setting(40000, TRAINING, "step schedule: first decay", minimum=0)
    decay_step1: int = setting(60000, TRAINING, "step schedule: second decay", minimum=0)
    head_weights: str = setting("", TRAINING, "factors of the heads' losses, such as 1,0.5; '' = 1 for each")
    teacher: str = setting(
        "",
        TRAINING,
        "distillation: a trained network that teaches this one, by its run folder, .keras file or checkpoint, or the name of a network "
        "with shipped weights, such as resnet9",
    )
    teacher_temperature: float = setting(
        2.0, TRAINING, "distillation: what the logits of both networks are divided by", minimum=0.1, maximum=100.0
    )
    teacher_share: float = setting(
        0.5,
        TRAINING,
        "distillation: weight of the teacher's probabilities; the labels have the rest",
        minimum=0.0,
        maximum=1.0,
    )
    hard_share: float = setting(
        1.0,
        TRAINING,
        "share of each batch that is trained on, such as 0.5: the images with the largest losses of a small network that is trained beside "
        "(Jordan, airbench96_faster), which pays for large networks; the loss is still divided by the whole batch; 1 = all",
        minimum=0.01,
        maximum=1.0,
    )
    weight_averaging: float = setting(
        0.0,
        TRAINING,
        "decay per step of an exponential moving average of the weights, which is then validated and kept; see also lookahead_steps; "
        "0 = off",
        minimum=0.0,
        maximum=0.99999,
        alias="ema_decay",
    )
    lookahead_steps: int = setting(
        0,
        TRAINING,
        "Lookahead (Zhang et al. 2019, arXiv:1907.08610): every that many steps, and after the last, weights and moving statistics are "
        "averaged and training goes on from the average; the decay is weight_averaging * (step / train_steps)**3 (Jordan 2024, "
        "arXiv:2404.00498), with extend in each part by itself; 0 = off",
        minimum=0,
    )

    sparsity: float = setting(
        0.0,
        TRAINING,
        "share of the weights of all convolutions but the first that become 0, the smallest first, in the first three quarters of the "
        "steps (Zhu & Gupta 2017, arXiv:1710.01878); 0 = off",
        minimum=0.0,
        maximum=0.99,
    )
    quantize_aware: bool = setting(
        False,
        TRAINING,
        "train a trained network on (--is_use_ckpt) so that it loses less by --quantize=int8: in the forward pass kernels and maps are rounded "
        "to 8 bits, and batch norm is that of a test (Jacob et al. 2018, arXiv:1712.05877)",
    )

    # Validating, testing and loading
    is_full_validation: bool = setting(
        True,
        LOADING,
        "validate on all held-out images; false = on one random batch of them, as wenxinxu/resnet-in-tensorflow",
    )
    watch_test: bool = setting(
        False,
        LOADING,
        "measure the error on the test images at each report too, for a curve; nothing is chosen by it",
        operational=True,
    )
    test_flip: bool = setting(
        False,
        LOADING,
        "also test with the mean of the answers for each image and its mirror image, reported apart as test_error_flip",
        operational=True,
    )
    test_shifts: bool = setting(
        False,
        LOADING,
        "also test with six answers for each image: of it and its mirror image, with half of the weight, and of both moved by one pixel up and "
        "left, and down and right; reported apart as test_error_shifts",
        operational=True,
    )
    is_use_ckpt: bool = setting(False, LOADING, "start from the weights in ckpt_path, at step 0")
    ckpt_path: str = setting("", LOADING, "checkpoint, .keras file or run folder to start from, with --is_use_ckpt")
    test_ckpt_path: str = setting(
        "",
        LOADING,
        "what to test or predict with: .keras file, checkpoint, run folder, .onnx, .tflite or SavedModel, or 'cifar10' (cifar10_robust, cifar100) "
        "= shipped weights of --model; "
        "'' = best.keras of --version",
        operational=True,
    )

    def __post_init__(self):
        super().__post_init__()
        _check_together(self)

    def needs(self):
        # Commands of runs that --mode=prune began tell their decays, whatever the schedule is.
        decays = self.lr_schedule == "step" or (self.is_use_ckpt and bool(self.widths or self.sparsity))
        of_labels = not self.teacher or self.teacher_share < 1
        has_beta = self.beta_lr_factor == 1 or find(self.model_name).has_batch_norm
        return [
            *super().needs(),
            (("synthetic_images",), self.dataset == "synthetic", "--dataset=synthetic"),
            (
                ("split_seed",),
                self.validation_fraction > 0 or self.dataset == "folder",
                "--validation_fraction above 0",
            ),
            (("rotation", "flip", "padding_size", "padding_mode", "cutout"), self.augment, "--augment=true"),
            (("head_weights",), len(self.head_factors) > 1, "several --heads"),
            (("teacher_temperature", "teacher_share"), self.teacher != "", "--teacher"),
            (("teacher",), self.teacher_share > 0, "--teacher_share above 0"),
            (("label_smoothing", "class_weight"), of_labels, "--teacher_share below 1, since labels have the rest"),
            (("decay_step0", "decay_step1"), decays, "--lr_schedule=step"),
            (("prune_by",), self.is_use_ckpt and self.widths != "", "--widths with --is_use_ckpt, or --mode=prune"),
            (("beta_lr_factor",), has_beta, f"batch norm, which --model={self.model} lacks"),
        ]

    def check_given(self, flags):
        super().check_given(flags)
        size = self.image_size if self.dataset == "folder" else 28 if self.dataset == "mnist" else 32
        if flags.get("cutout", 0) > size:
            raise UsageError(
                f"--cutout must be at most {size}, the height and width of the images in pixels, received {flags['cutout']}; give such as 8"
            )

    @property
    def model_name(self) -> str:
        """Registry name of the network, with the depth that `num_residual_blocks` asks for."""
        if not self.num_residual_blocks:
            return self.model
        return name_with_blocks(self.model, self.num_residual_blocks)

    @property
    def images_per_step(self) -> int:
        return round(self.hard_share * self.train_batch_size)

    @property
    def head_factors(self) -> dict[str, float]:
        """The factor of the loss of each head, by its name, in the order of `heads`; empty where there are none."""
        return _read_heads(self.dataset, self.heads, self.head_weights)

    @property
    def network_options(self) -> dict:
        """Arguments of the network's builder that differ from their defaults: of `NETWORK_OPTIONS`."""
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in NETWORK_OPTIONS and getattr(self, field.name) != field.default
        }
        return options | ({"widths": [int(width) for width in self.widths.split(",")]} if self.widths else {})

    @property
    def model_choices(self) -> dict:
        """What makes the network another one than its name says."""
        return self.network_options | ({"heads": self.heads} if self.heads else {})

    @property
    def run_name(self) -> str:
        """Name of the run folder below `runs_dir`."""
        recipe = self.preset if self.validation_fraction else f"{self.preset}-all"
        return self.version or f"{self.model_name}-{self.dataset_name}-{recipe}-seed{self.seed}{self.fold_name}"

    def chosen_by(self, multi_label: bool) -> str | None:
        """The column of `error.csv` whose lowest value chooses the weights that are kept; None = the newest are.

        Args:
            multi_label: whether images have several labels.
        """
        # The weights of a report before the last zeros came would not be sparse.
        if self.sparsity or not self.validation_fraction:
            return None
        return "validation_loss" if multi_label else "validation_error"

    def as_preset(self) -> "HyperParameters":
        """What the preset gives for this network and data set, from which some settings follow."""
        return from_preset(self.preset, model=self.model, dataset=self.dataset)

    @property
    def command(self) -> str:
        """The command that repeats the run: what differs from the preset, its name if it was given one, where images of one's own are."""
        own = from_preset(self.preset)
        implied = dataclasses.replace(self.as_preset(), model=own.model, dataset=own.dataset)
        changes = self.as_published().flags_beside(implied)
        return " ".join([self.PROGRAM, f"--preset={self.preset}", *changes, *self.folder_flags, *self.name_flags])


def _check_together(config: HyperParameters) -> None:
    """Raises UsageError where settings contradict each other, or one would change nothing."""
    if config.dataset != "folder" and (config.image_size, config.channels) != (32, 0):
        raise UsageError(
            f"--image_size and --channels are for --dataset=folder, received {config.dataset}; leave them out"
        )
    if config.channels == 2:
        raise UsageError("--channels must be 1, 3, or 0 = as the images are, received 2")
    if not config.validation_fraction and (config.vali_random_label or not config.is_full_validation):
        raise UsageError(
            "--validation_fraction=0 holds no images out, received --vali_random_label or --is_full_validation=false, which are "
            "about them; leave one out"
        )
    if config.head_factors and (config.train_random_label or config.vali_random_label):
        raise UsageError("--heads need true labels, received random ones; leave --heads or --*_random_label out")
    if config.hard_share < 1 and not 0 < config.images_per_step < config.train_batch_size:
        raise UsageError(
            f"--hard_share must leave some images of --train_batch_size={config.train_batch_size} and leave others out, received "
            f"{config.hard_share:g}, which makes {config.images_per_step}; give such as 0.5"
        )
    if config.hard_share < 1 and config.accumulate > 1:
        raise UsageError(
            f"--accumulate={config.accumulate} computes the images that are trained on in parts, but not the choice of --hard_share="
            f"{config.hard_share:g}; give --hard_share=1, or leave --accumulate out"
        )
    if config.sparsity and (config.patience or config.lr_schedule == "plateau"):
        raise UsageError(
            "--sparsity keeps the newest weights, which alone are sparse, so it takes no --patience and no --lr_schedule=plateau; give "
            "--patience=0, and another --lr_schedule"
        )
    if config.quantize_aware and not (config.is_use_ckpt and config.precision == "float32"):
        raise UsageError(
            "--quantize_aware trains a trained network on in float32, received --is_use_ckpt="
            f"{str(config.is_use_ckpt).lower()} and --precision={config.precision}; give --is_use_ckpt, --ckpt_path and --precision=float32"
        )
    if config.widths and not all(width.isdecimal() for width in config.widths.split(",")):
        raise UsageError(f"--widths must be whole numbers such as 32,32,144, received '{config.widths}'")
    if config.maxout == 1:
        raise UsageError("--maxout must be 0 or at least 2, received 1; one piece is a linear layer")
    if config.optimizer == "adam" and config.beta_lr_factor != 1:
        raise UsageError(
            f"--optimizer=adam takes no --beta_lr_factor, received {config.beta_lr_factor:g}, which would change nothing; give 1"
        )
    if config.lookahead_steps and not config.weight_averaging:
        raise UsageError(
            f"--lookahead_steps needs a --weight_averaging above 0, received --lookahead_steps={config.lookahead_steps} and 0, which "
            "would change nothing; give such as 0.774, or --lookahead_steps=0"
        )
    if config.lookahead_steps > config.report_freq:
        raise UsageError(
            f"--lookahead_steps must be at most --report_freq={config.report_freq}, received {config.lookahead_steps}, or reports would "
            "tell of no new weights; give fewer steps"
        )
    fields = HyperParameters.__dataclass_fields__
    for name in ("mixup", "cutmix", "class_weight", "balanced_sampling", "teacher", "hard_share"):
        if len(config.head_factors) > 1 and getattr(config, name) != fields[name].default:
            way = "give --hard_share=1" if name == "hard_share" else "leave one out"  # which may be the preset's
            raise UsageError(f"--{name} is for networks with one head, received --heads={config.heads}; {way}")
    if config.is_use_ckpt and not config.ckpt_path:
        raise UsageError("--is_use_ckpt needs --ckpt_path=FILE_OR_RUN, received none; give where to start from")


def _read_heads(dataset: str, heads: str, head_weights: str) -> dict[str, float]:
    """See `HyperParameters.head_factors`."""
    if not heads and not head_weights:
        return {}
    if not heads:
        raise UsageError(f"--head_weights are for --heads, received '{head_weights}' and no heads; name them")
    known, names = HEADS_OF_DATASET.get(dataset, ()), heads.split(",")
    if not set(names) <= set(known) or len(set(names)) < len(names):
        choice = f"one or more of {', '.join(known)}" if known else f"left out for {dataset}"
        raise UsageError(f"--heads must be {choice}, received '{heads}'")
    weights = head_weights.split(",") if head_weights else ["1"] * len(names)
    try:
        values = [float(weight) for weight in weights]
    except ValueError:
        values = []
    if len(values) != len(names) or not all(0 < value < math.inf for value in values):
        raise UsageError(
            f"--head_weights must be {len(names)} positive number(s), one for each of --heads, received '{head_weights}'"
        )
    return dict(zip(names, values, strict=True))


def is_made_for(preset: str, model: str) -> bool:
    """Whether the preset's own network is of the kind of `model`: LeNet, AlexNet, ResNet-9, or the deep narrow networks."""
    own = PRESETS[preset].settings.get("model", HyperParameters.__dataclass_fields__["model"].default)
    return recipe_of_model(model) == recipe_of_model(own)


def from_preset(name: str, **settings) -> HyperParameters:
    """The settings of a preset, with single ones replaced.

    What the data set asks of every recipe comes with it, and options of the preset's own network (`NETWORK_OPTIONS`) hold only for networks of
    its kind. A note tells of a setting that changes nothing.

    Args:
        name: key of `PRESETS`.
        **settings: fields of `HyperParameters`.

    Returns:
        HyperParameters.

    Raises:
        UsageError: unknown preset, or a value out of its range.

    Example:
        from hyper_parameters import from_preset

        config = from_preset("fast", model="resnet32", seed=1)
        print(config.run_name)  # resnet32-cifar10-fast-seed1
    """
    config = apply_preset(name, settings)
    try:
        config.check_given(settings)
    except UsageError as unread:  # no mistake of a program that varies another setting
        say_once(f"note: {unread}")
    return config


def apply_preset(name: str, settings: dict) -> HyperParameters:
    """As `from_preset`, which also tells of settings that change nothing."""
    if name not in PRESETS:
        raise UsageError(f"--preset must be one of {', '.join(PRESETS)}; received '{name}'")
    if unknown := settings.keys() - {field.name for field in dataclasses.fields(HyperParameters)}:
        known = [field.name for field in dataclasses.fields(HyperParameters)]
        near = {name: found for name in sorted(unknown) if (found := difflib.get_close_matches(name, known))}
        advice = "; ".join(f"for {name}, did you mean {' or '.join(found)}?" for name, found in near.items())
        advice = advice or "see --help-all"
        raise UsageError(f"expected settings of HyperParameters, received {', '.join(sorted(unknown))}; {advice}")
    if settings.get("ckpt_path") and not settings.get("is_use_ckpt"):
        raise UsageError(
            f"--ckpt_path={settings['ckpt_path']} is read with --is_use_ckpt only; give that too, or neither"
        )
    recipe = PRESETS[name].settings
    asked = {field.name: field.default for field in dataclasses.fields(HyperParameters)} | recipe | settings
    if not is_made_for(name, str(asked["model"])):
        recipe = {setting: value for setting, value in recipe.items() if setting not in NETWORK_OPTIONS}
    of_dataset = dict(OF_DATASET.get(str(asked["dataset"]), {}))
    if "validation_fraction" in recipe:  # which is what such a preset is about, on whatever data set
        of_dataset.pop("validation_fraction", None)
    return HyperParameters(**{**recipe, **of_dataset, **settings, "preset": name})


def from_flags(given: dict) -> HyperParameters:
    """Settings from the flags that were given; the preset, if not given, is that of the data set and the network.

    Args:
        given: flag name -> value, only those on the command line.

    Returns:
        HyperParameters.

    Raises:
        UsageError: see `from_preset`; or a flag that needs another one.
    """
    fields = HyperParameters.__dataclass_fields__
    preset = given.get("preset") or default_preset(
        *(given.get(name, fields[name].default) for name in ("dataset", "model"))
    )
    return apply_preset(preset, {name: value for name, value in given.items() if name != "preset"})
