"""The named recipes. A preset changes defaults of `hyper_parameters.HyperParameters`, a flag on the command line changes the preset."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named recipe.

    Attributes:
        summary: one line for `--help-all`.
        settings: what differs from the defaults of `HyperParameters`.
        published: (metric, value in %, source) of the number on CIFAR-10 that the recipe with its own network is held against;
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
_AIRBENCH = {
    "model": "airbench",
    "train_batch_size": 1024,
    "train_steps": 550,
    "report_freq": 55,
    "momentum": 0.85,
    "init_lr": 1.5,
    "final_lr": 0.105,
    "beta_lr_factor": 64.0,
    "warmup_steps": 126,
    "warmup_lr": 0.3,
    "weight_decay": 1.33e-3,
    "weight_decay_on": "all",
    "label_smoothing": 0.2,
    "weight_averaging": 0.774,
    "lookahead_steps": 5,
    "padding_size": 2,
    "validation_fraction": 0.0,
    "test_flip": True,
    "test_shifts": True,
}
_RESNET110 = ("test_error", 6.43, "ResNet-110 of He et al. 2015, table 6, best of five runs")

PRESETS = {
    "fast": Preset(
        "the default of ResNet-20 and its kin: 40 epochs, linear schedule, reflect padding, alternating flips", {}
    ),
    "zoo": Preset(
        "fast with 1,000 images held out instead of 5,000: for weights that ship, with a temperature of their own",
        {"validation_fraction": 0.02, "test_flip": True},
    ),
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
    "robust": Preset(
        "resnet9 for images with noise, blur, JPEG or other light: 30 epochs, half of the images made worse at random",
        _RESNET9 | {"train_steps": 2640, "report_freq": 264, "warmup_steps": 396, "corrupt": 0.5},
    ),
    "ten_minutes": Preset(
        "test error 6.57 % on CIFAR-10, 5.89 % with mirror images and shifts, for 0.40 PFLOP, 20 minutes on two cores: 11 epochs of all training images, Lookahead, none held out",
        _AIRBENCH,
        ("test_error_shifts", 5.99, "Jordan 2024, airbench94, mean of 1,000 runs with test-time augmentation"),
    ),
    "night": Preset(
        "test error 4.90 % on CIFAR-10, 4.15 % with mirror images and shifts, for 3.13 PFLOP, two and a half hours on two cores: airbench96_faster, 44 epochs of all training images, of which the hardest half trains",
        _AIRBENCH
        | {
            "model": "airbench96",
            "train_steps": 2160,
            "report_freq": 108,
            "init_lr": 1.174,
            "final_lr": 0.0,
            "warmup_steps": 216,
            "warmup_lr": 0.235,
            "padding_size": 4,
            "cutout": 12,
            "hard_share": 0.5,
        },
        ("test_error_shifts", 3.97, "Jordan 2024, airbench96_faster, mean of 100 runs with test-time augmentation"),
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
        "plain against residual networks in an hour: he2015 with 1,408 steps (4 epochs), the rate falling linearly to 0",
        _HE2015 | {"lr_schedule": "linear", "train_steps": 1408, "report_freq": 88},
    ),
    "liang": Preset(
        "Liang 2020 and the program it uses: pre-activation ResNet-20, per-image standardisation, 9,775 steps at rate .1, weight decay 2e-4",
        {
            "model": "resnet20_preact",
            "normalization": "image_standard",
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
            # Liang has no averaging. It only watches: the network trains exactly as without it, and error.csv has both errors.
            "weight_averaging": 0.999,
        },
        (
            "validation_error",
            12.8,
            "Liang 2020, section 6, step 9775; its program validates on one batch of 250 images",
        ),
    ),
    "mnist": Preset(
        "residual networks on MNIST: 14 epochs, linear schedule, shifts and rotations, no flips, label smoothing",
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
    "folder": Preset(
        "images of one's own: 2,000 steps, linear schedule, mirrored at random; give more --train_steps for many images",
        {
            "dataset": "folder",
            "train_steps": 2000,
            "report_freq": 100,
            "warmup_steps": 200,
            "warmup_lr": 0.01,
            "init_lr": 0.1,
            "flip": "random",
        },
    ),
    "smoke": Preset(
        "a few steps on drawn images, to see that everything works, under a minute",
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
_NO_MIRROR = {"flip": "none", "test_flip": False, "test_shifts": False}  # test_shifts has mirror images, too
OF_DATASET: dict[str, dict] = {"mnist": _NO_MIRROR | {"validation_fraction": 1 / 12}, "digits": _NO_MIRROR}

# A recipe for 50,000 photographs makes no sense for a small data set, so these have one of their own.
DEFAULT_PRESET = {"digits": "demo", "synthetic": "smoke", "mnist": "mnist", "folder": "folder"}

# Nor does a recipe for the deep narrow networks for these: beginning of the network's name -> end of the preset's.
_PRESET_OF_MODEL = {
    "lenet5": "lenet",
    "plain_cnn": "lenet",
    "alexnet": "alexnet",
    "resnet9": "resnet9",
    "airbench96": "night",
    "airbench": "ten_minutes",
}


def recipe_of_model(model: str) -> str | None:
    return next((preset for name, preset in _PRESET_OF_MODEL.items() if re.match(rf"{name}(?!\d)", model)), None)


def default_preset(dataset: str, model: str) -> str:
    """The preset of a network on a data set, for whoever names none."""
    own = recipe_of_model(model)
    if dataset not in DEFAULT_PRESET:
        return own or "fast"
    if dataset == "folder" and own:
        return own
    return f"{dataset}_{own}" if f"{dataset}_{own}" in PRESETS else DEFAULT_PRESET[dataset]
