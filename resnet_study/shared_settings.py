"""The settings that both programs have, once: name, default, unit and meaning. `flowers.settings` changes some of the defaults.

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import dataclasses
import shlex
from typing import ClassVar

from resnet_study.errors import UsageError
from resnet_study.own_image_settings import OwnImageSettings
from resnet_study.settings import DATA, LOADING, RUN, TRAINING, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedSettings(OwnImageSettings):
    """What the settings of both programs have in common.

    LENGTH is the setting that says how long a run trains.
    """

    LENGTH: ClassVar[str]

    # Run and report
    runs_dir: str = setting("runs", RUN, "folder of all run folders", operational=True)
    seed: int = setting(0, RUN, "seed of initial weights, batch order and augmentation", minimum=0)
    train_ema_decay: float = setting(
        0.8,
        RUN,
        "decay of the smoothed curves, per report (wenxinxu/resnet-in-tensorflow: 0.95 per step)",
        minimum=0.0,
        maximum=0.9999,
        alias="curve_smoothing",
    )
    precision: str = setting(
        "auto",
        RUN,
        "number format of the heavy arithmetic; auto = bfloat16 where the devices are faster in it, else float32; float16 = for older GPUs, the "
        "loss scaled so that small gradients do not vanish (processors compute it very slowly)",
        choices=("auto", "float32", "bfloat16", "float16"),
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

    # Data
    validation_fraction: float = setting(
        0.1,
        DATA,
        "share of each class of the training images held out for validation (He 2015: 5k of 50k; MNIST: 5k of 60k); 0 = train "
        "on all of them and keep the weights of the last step, for a recipe that was chosen before",
        minimum=0.0,
        maximum=0.9,
    )
    split_seed: int = setting(0, DATA, "seed of the training/validation split", minimum=0)
    mixup: float = setting(
        0.0,
        DATA,
        "MixUp (Zhang et al. 2018, arXiv:1710.09412): alpha of the shares by which images and labels of a batch are mixed, such as 0.2; 0 = off",
        minimum=0.0,
        maximum=100.0,
    )
    cutmix: float = setting(
        0.0,
        DATA,
        "CutMix (Yun et al. 2019, arXiv:1905.04899): alpha of the shares by which rectangles are exchanged, such as 1; with --mixup one of "
        "both for each batch; 0 = off",
        minimum=0.0,
        maximum=1.0,
    )
    rand_augment: float = setting(
        0.0,
        DATA,
        "RandAugment (Cubuk et al. 2020, arXiv:1909.13719): strength of two changes of form or colour for each batch, such as 0.3; 0 = off",
        minimum=0.0,
        maximum=1.0,
    )
    corrupt: float = setting(
        0.0,
        DATA,
        "share of the training images that are made worse before all else, by light, resolution, noise and compression at random, such as 0.5; "
        "0 = off",
        minimum=0.0,
        maximum=1.0,
    )
    corrupt_mix: str = setting(
        "even",
        DATA,
        "of images made worse: even = light, resolution, noise and WebP in half of the cases each; compressed = noise in a quarter, WebP or JPEG "
        "in three quarters",
        choices=("even", "compressed"),
    )

    # Training and learning rate
    train_batch_size: int = setting(128, TRAINING, "images per batch", minimum=1, maximum=65536)
    accumulate: int = setting(
        1,
        TRAINING,
        "parts in which each batch is computed, one after the other, their gradients added up: less memory, but batch norm has the "
        "statistics of a part, and moves its averages once for each",
        minimum=1,
    )
    patience: int = setting(
        0,
        TRAINING,
        "reports without a lower validation error (flowers, several labels: loss) after which training stops; 0 = it never does",
        minimum=0,
    )
    optimizer: str = setting(
        "nesterov", TRAINING, "momentum, nesterov = SGD; adam", choices=("momentum", "nesterov", "adam")
    )
    momentum: float = setting(0.9, TRAINING, "momentum of SGD, beta_1 of Adam", minimum=0.0, maximum=0.9999)
    init_lr: float = setting(0.2, TRAINING, "highest learning rate", minimum=0.0)
    lr_schedule: str = setting(
        "linear",
        TRAINING,
        "course of the learning rate after warm-up; linear and cosine end at final_lr with the training; plateau = "
        "times lr_decay_factor, not below final_lr, after each plateau_patience reports without a lower validation error (flowers, several labels: loss)",
        choices=("step", "cosine", "linear", "constant", "plateau"),
    )
    final_lr: float = setting(0.0, TRAINING, "learning rate where the linear and the cosine schedule end", minimum=0.0)
    lr_decay_factor: float = setting(
        0.1, TRAINING, "step and plateau schedule: factor at each decay", minimum=0.0, maximum=1.0
    )
    plateau_patience: int = setting(
        5,
        TRAINING,
        "plateau schedule: reports without a lower validation error (flowers, several labels: loss) before each decay",
        minimum=1,
    )
    extend: int = setting(
        0,
        TRAINING,
        "where a finished run ended, for --resume with more steps (epochs): the schedule begins anew there, without warm-up, from the last weights",
        minimum=0,
    )
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
    label_smoothing: float = setting(
        0.0, TRAINING, "share of the target spread evenly over all classes", minimum=0.0, maximum=0.9
    )
    class_weight: str = setting(
        "",
        TRAINING,
        "factor of each class in the loss that training lowers: balanced = in inverse proportion to its training images; or a JSON file "
        "{class: factor}; '' = 1",
    )
    balanced_sampling: bool = setting(
        False, TRAINING, "draw every class equally often, images of rare classes several times an epoch"
    )

    # Validating and testing
    validation_batch_size: int = setting(250, LOADING, "images per validation batch", minimum=1)
    test_batch_size: int = setting(125, LOADING, "images per test batch", minimum=1, operational=True)

    def __post_init__(self):
        super().__post_init__()
        if self.extend >= getattr(self, self.LENGTH):
            raise UsageError(
                f"--extend must be below --{self.LENGTH}={getattr(self, self.LENGTH)}, received {self.extend}; give where the run ended, and a "
                f"larger --{self.LENGTH}"
            )
        if self.train_batch_size % self.accumulate:
            raise UsageError(
                f"--accumulate must divide --train_batch_size={self.train_batch_size}, received {self.accumulate}; give another number"
            )
        if (
            (self.patience or self.lr_schedule == "plateau")
            and not self.validation_fraction
            and self.dataset != "folder"
        ):
            raise UsageError(
                "--patience and --lr_schedule=plateau look at the validation error, received --validation_fraction=0; hold images out"
            )
        if self.balanced_sampling and self.class_weight:
            raise UsageError(
                f"--balanced_sampling makes all classes count alike, received it and --class_weight={self.class_weight}; leave one out"
            )
        if self.corrupt_mix != "even" and not self.corrupt:
            raise UsageError(
                f"--corrupt_mix={self.corrupt_mix} is about the images that --corrupt makes worse, received --corrupt=0; give --corrupt=0.5 too, or leave it out"
            )
        if self.corrupt and not self.augment:
            raise UsageError("--corrupt is a part of the augmentation, received it and --augment=false; leave one out")

    def needs(self):
        schedule = self.lr_schedule
        return [
            *super().needs(),
            (("final_lr",), schedule not in ("constant", "step"), "--lr_schedule=linear, cosine or plateau"),
            (("lr_decay_factor",), schedule in ("step", "plateau"), "--lr_schedule=step or plateau"),
            (("plateau_patience",), schedule == "plateau", "--lr_schedule=plateau"),
            (("warmup_lr", "warmup_shape"), self.warmup_steps > 0, "--warmup_steps above 0"),
            (("weight_decay_on",), self.weight_decay > 0, "--weight_decay above 0"),
        ]

    @property
    def images_per_step(self) -> int:
        """Images of each batch that are trained on."""
        return self.train_batch_size

    @property
    def name_flags(self) -> list[str]:
        """The flag of a command that repeats a run under the name it was given, if it was given one."""
        own_name = dataclasses.replace(self, version="").run_name
        return [f"--version={shlex.quote(self.version)}"] * (self.version not in ("", own_name))

    def extended_at(self, history) -> int:
        """The step at which --extend began the schedule anew, of the table of `error.csv`; 0 = it did not."""
        steps = history["step"]
        if self.LENGTH == "train_steps":
            return self.extend
        return (
            int(steps.iloc[self.extend]) if self.extend < len(steps) else 0
        )  # a report is an epoch; patience may end before
