"""Every setting of a training run, once: name, default, unit, meaning and source.

`HyperParameters` is frozen: a run is described by one value of it, stored as `config.json` in the run folder. The command line is made
from its fields. `PRESETS` holds the named recipes; a preset changes defaults, a flag on the command line changes the preset.

Sources: He 2015 = arXiv:1512.03385, section 4.2. Liang = Liang 2020, J. Phys.: Conf. Ser. 1634 012110, whose program
is the TensorFlow 1 code wenxinxu/resnet-in-tensorflow ("the original stack" below).

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

from resnet_study.errors import UsageError
from resnet_study.folder_settings import FolderSettings
from resnet_study.networks.registry import name_with_blocks
from resnet_study.presets import OF_DATASET, PRESETS, default_preset, recipe_of_model
from resnet_study.settings import DATA, LOADING, NETWORK, RUN, TRAINING, setting
from resnet_study.training.learning_rate import learning_rate_at as learning_rate_at

# Settings that are arguments of a network's builder; the registry knows which network takes which.
NETWORK_OPTIONS = (
    "shortcut", "squeeze_excitation", "block_dropout", "stochastic_depth", "zero_last_gamma", "maxout", "dropout",
)  # fmt: skip
# Labels that a data set has for its images, each a task of its own.
HEADS = {"cifar10": ("class", "kind"), "cifar100": ("fine", "coarse")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyperParameters(FolderSettings):
    """One training run. Steps are batches, errors are top-1 in %, images are [height, width, RGB] of 0..255."""

    PROGRAM: ClassVar[str] = "python cifar10_main.py --mode=train"

    # Run and report
    preset: str = setting("fast", RUN, "named recipe that sets the defaults of all other flags", choices=tuple(PRESETS))
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
        alias="curve_smoothing",
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
    towers: int = setting(
        0,
        RUN,
        "shards of each batch, computed side by side by the cores of a processor, each with batch-norm statistics of its own; "
        "0 = one for each core, but none with fewer than 32 images; 1 on GPUs",
        minimum=0,
    )
    deterministic: bool = setting(False, RUN, "bit-identical repeats on the same machine; costs some speed")

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
    dropout: float = setting(
        0.5, NETWORK, "AlexNet: share of the values dropped before each hidden dense layer", minimum=0.0, maximum=0.9
    )

    # Training and learning rate
    train_steps: int = setting(14062, TRAINING, "batches to train", minimum=1)
    train_batch_size: int = setting(128, TRAINING, "images per batch", minimum=1, maximum=65536)
    optimizer: str = setting(
        "nesterov", TRAINING, "momentum, nesterov = SGD; adam", choices=("momentum", "nesterov", "adam")
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
        "course of the learning rate after warm-up; linear and cosine end at final_lr after train_steps",
        choices=("step", "cosine", "linear", "constant"),
    )
    final_lr: float = setting(0.0, TRAINING, "learning rate where the linear and the cosine schedule end", minimum=0.0)
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
        "also test with the mean of the answers for each image and its mirror image, reported apart as test_error_flip",
        operational=True,
    )
    test_shifts: bool = setting(
        False,
        LOADING,
        "also test with the mean of the answers for each image, its mirror image and both moved by one pixel, reported apart as "
        "test_error_shifts",
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
        if self.dataset != "folder" and (self.image_size, self.channels) != (32, 0):
            raise UsageError(
                f"--image_size and --channels are for --dataset=folder, received {self.dataset}; leave them out"
            )
        if self.channels == 2:
            raise UsageError("--channels must be 1, 3, or 0 = as the images are, received 2")
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
        if self.class_weight and len(self.tasks) > 1:
            raise UsageError(
                f"--class_weight is for networks with one head, received --heads={self.heads}; leave one out"
            )
        if self.teacher and len(self.tasks) > 1:
            raise UsageError(
                f"--teacher is for networks with one head, received --heads={self.heads}; leave one of them out"
            )
        if self.is_use_ckpt and not self.ckpt_path:
            raise UsageError("--is_use_ckpt needs --ckpt_path=FILE_OR_RUN, received none; give where to start from")

    @property
    def model_name(self) -> str:
        """Registry name of the network, with the depth that `num_residual_blocks` asks for."""
        if not self.num_residual_blocks:
            return self.model
        return name_with_blocks(self.model, self.num_residual_blocks)

    @property
    def tasks(self) -> dict[str, float]:
        """The factor of the loss of each head, by its name, in the order of `heads`; empty where there are none."""
        if not self.heads and not self.head_weights:
            return {}
        if not self.heads:
            raise UsageError(f"--head_weights are for --heads, received '{self.head_weights}' and no heads; name them")
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
        """For titles and file names: that of the data set, or of the folder of images."""
        return self.folder_name if self.dataset == "folder" else self.dataset

    @property
    def network_options(self) -> dict:
        """Arguments of the network's builder that differ from their defaults: settings of the group NETWORK."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in NETWORK_OPTIONS and getattr(self, field.name) != field.default
        }

    @property
    def model_choices(self) -> dict:
        """What makes the network another one than its name says."""
        return self.network_options | ({"heads": self.heads} if self.heads else {})

    @property
    def run_name(self) -> str:
        """Name of the run folder below `runs_dir`."""
        recipe = self.preset if self.validation_fraction else f"{self.preset}-all"
        return self.version or f"{self.model_name}-{self.dataset_name}-{recipe}-seed{self.seed}"

    @property
    def command(self) -> str:
        """The command that repeats the run: what differs from the preset, its name if it was given one, not where things lie."""
        own_name = dataclasses.replace(self, version="").run_name
        name = [f"--version={self.version}"] if self.version not in ("", own_name) else []
        own = from_preset(self.preset)
        # What follows from network and data set needs no flag of its own.
        implied = from_preset(self.preset, model=self.model, dataset=self.dataset)
        teacher = f"runs/{Path(self.teacher).name}" if "/" in self.teacher else self.teacher
        changes = dataclasses.replace(self, teacher=teacher).flags_beside(
            dataclasses.replace(implied, model=own.model, dataset=own.dataset)
        )
        return " ".join([self.PROGRAM, f"--preset={self.preset}", *changes, *self.folder_flags, *name])


def is_made_for(preset: str, model: str) -> bool:
    """Whether the preset's own network is of the kind of `model`: LeNet, AlexNet, ResNet-9, or the deep narrow networks."""
    own = PRESETS[preset].settings.get("model", HyperParameters.__dataclass_fields__["model"].default)
    return recipe_of_model(model) == recipe_of_model(own)


def from_preset(name: str, **settings) -> HyperParameters:
    """The settings of a preset, with single ones replaced.

    What the data set asks of every recipe comes with it, and options of the preset's own network (`NETWORK_OPTIONS`) hold only for networks of
    its kind.

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
    if name not in PRESETS:
        raise UsageError(f"--preset must be one of {', '.join(PRESETS)}; received '{name}'")
    if unknown := settings.keys() - {field.name for field in dataclasses.fields(HyperParameters)}:
        raise UsageError(f"expected settings of HyperParameters, received {', '.join(sorted(unknown))}; see --help-all")
    recipe = PRESETS[name].settings
    asked = {field.name: field.default for field in dataclasses.fields(HyperParameters)} | recipe | settings
    if not is_made_for(name, str(asked["model"])):
        recipe = {setting: value for setting, value in recipe.items() if setting not in NETWORK_OPTIONS}
    of_dataset = OF_DATASET.get(str(asked["dataset"]), {})
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
    if given.get("ckpt_path") and not given.get("is_use_ckpt"):
        raise UsageError(f"--ckpt_path={given['ckpt_path']} is read with --is_use_ckpt only; give that too, or neither")
    return from_preset(preset, **{name: value for name, value in given.items() if name != "preset"})
