"""The published numbers that runs are held against, and the numbers of a run that are published beside them."""

import dataclasses
import re
from pathlib import Path

from flowers.settings import FlowerParameters
from hyper_parameters import HyperParameters, from_preset
from resnet_study.errors import UsageError
from resnet_study.evaluation import PARTS, read_result
from resnet_study.files import is_kind, read_json
from resnet_study.networks import registry
from resnet_study.presets import PRESETS
from resnet_study.run_folder import RunFolder
from resnet_study.settings import DATA, TRAINING

LU_SONG = "Lu & Song, table 1"
# (family, data set) -> (highest training accuracy, highest test accuracy) of all epochs, in %
LU_SONG_TABLE = {
    ("resnet", "mnist"): (100.000, 99.665),
    ("lenet", "mnist"): (99.523, 99.110),
    ("alexnet", "mnist"): (100.000, 99.440),
    ("resnet", "cifar10"): (92.890, 86.600),
    ("lenet", "cifar10"): (80.594, 63.470),
    ("alexnet", "cifar10"): (99.974, 84.140),
}
CHENYAOFO = "chenyaofo/pytorch-cifar-models, 200 epochs"
# Source -> data set -> depth -> test error in %, of the residual networks with 6n+2 layers.
DEPTH_TABLE = {
    "He et al. 2015": {"cifar10": registry.HE_ERROR},
    CHENYAOFO: {
        "cifar10": {20: 7.40, 32: 6.47, 44: 5.99, 56: 5.63},
        "cifar100": {20: 31.17, 32: 29.84, 44: 28.37, 56: 27.37},
    },
}
# Which data, how much of them, and what a recipe tells in words.
_TOLD_OTHERWISE = (
    "dataset", "synthetic_images", "image_size", "channels", "heads", "resize", "jpeg_size", "label_level", "label_separator", "value_range",
    "validation_fraction", "test_fraction", "split_seed", "folds", "fold", "train_steps", "teacher", "sparsity",
)  # fmt: skip
_TOLD_OF_ALL = ("image_size", "test_fraction", "split_seed")
_TOLD_OF_OWN_IMAGES = (*_TOLD_OF_ALL, "channels", "resize", "jpeg_size", "value_range", "label_level", "folds", "fold")
# Which images there are, and what of them is held out.
_TOLD_OF_FLOWERS = (
    "dataset", "data_dir", "classes", "labels", "label_level", "label_separator", "validation_fraction", "test_fraction",
    "folds", "fold", "on_bad_image", "find_leaks", "extend",
)  # fmt: skip
_FAMILIES = {"resnet": r"resnet(9|20|32|44|56|110)", "lenet": r"lenet.*", "alexnet": r"alexnet.*"}
UNREPEATABLE = "no single command repeats it"  # a run that was extended twice


def published_number(config: HyperParameters) -> tuple[str, float, str] | None:
    """(metric, value in %, source) that a run is held against, or None."""
    # The paper's recipe cut short, and one for other images.
    if config.preset == "degradation" or config.corrupt or is_changed(config):
        return None
    preset = PRESETS[config.preset]
    if config.dataset == "cifar10":
        if preset.published and config.model_name == preset.settings["model"]:
            return preset.published
        spec = registry.find(config.model_name)
        if spec.cifar10_error:
            return "test_error", spec.cifar10_error, spec.source
    depth = re.fullmatch(r"resnet(\d+)", config.model_name)
    if config.dataset == "cifar100" and depth and (error := DEPTH_TABLE[CHENYAOFO]["cifar100"].get(int(depth[1]))):
        return "test_error", error, CHENYAOFO
    accuracies = LU_SONG_TABLE.get((find_family(config.model_name), config.dataset))
    if accuracies:
        return "test_error", round(100 - accuracies[1], 3), f"{LU_SONG}: the epoch of the highest test accuracy"
    return None


def is_changed(config: HyperParameters) -> bool:
    """Whether a training differs from its preset, so that it repeats nobody's: shortened, or from trained weights, it does too."""
    return bool(
        is_another_network(config)
        or config.teacher
        or list_changes(config)
        or config.train_steps != from_preset(config.preset).train_steps
        or config.is_use_ckpt
    )


def list_changes(config: HyperParameters) -> dict:
    """What the training has otherwise than its preset, beside network, data, length, start and who the teacher is: {setting: value}."""
    usual = config.as_preset()
    told = set(_TOLD_OTHERWISE)
    if config.train_steps != usual.train_steps:
        told.add("warmup_steps")  # which goes with the length
    if config.lr_schedule != "step":
        told |= {"decay_step0", "decay_step1"}
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata["group"] in (DATA, TRAINING)
        and not field.metadata["operational"]
        and field.name not in told
        and getattr(config, field.name) != getattr(usual, field.name)
    }


def is_another_network(config: HyperParameters) -> bool:
    """Whether heads, or options that its preset has not, make the network another one than that of the published number."""
    own = from_preset(config.preset, model=config.model_name).network_options
    return bool(config.heads) or config.network_options != own


def find_family(model_name: str) -> str | None:
    """Under which name of Lu & Song's table a network is held: resnet (activation after the addition, as theirs), lenet, alexnet."""
    return next((name for name, pattern in _FAMILIES.items() if re.fullmatch(pattern, model_name)), None)


def list_cifar_numbers(run: RunFolder) -> tuple[HyperParameters, str, dict]:
    """What is published of a run of `cifar10_main.py`: errors of the one test, and those of validation.

    Returns:
        (settings, recipe in few words, {metric: (value in %, published value or None, its source or None, note)}).
    """
    config, result, history = run.read_config(HyperParameters), read_result(run, "test"), run.read_history()
    names = {
        "error": "test_error",
        "top5_error": "test_top5_error",
        "error_flip": "test_error_flip",
        "error_shifts": "test_error_shifts",
    }
    if len(result["test"].get("confusion_matrix", ())) <= 5:  # it can only be 0
        del names["top5_error"]
    numbers = {names[name]: result["test"][name] for name in names if name in result["test"]}
    if "mean_average_precision" in result["test"]:
        numbers["test_mean_average_precision"] = 100 * result["test"]["mean_average_precision"]
    numbers |= {f"test_error_{head}": tested["test"]["error"] for head, tested in result.get("heads", {}).items()}
    last = history.iloc[-1]
    numbers |= {column: last[column] for column in history if column.startswith("validation_error")}
    recipe, usual = config.preset, config.as_preset()
    if "validation_error" in numbers:
        if config.validation_fraction != usual.validation_fraction:
            recipe += f", {config.validation_fraction:.0%} held out"
        if not is_kind(result, {"validation_error": float}):
            raise UsageError(f"{run.result} does not hold the validation_error of the run; test the run again")
        numbers["validation_error_of_chosen"] = result["validation_error"]
    else:
        recipe += ", all training images"
    if config.train_steps != usual.train_steps:
        recipe += f", {config.train_steps:,} steps"
    finished = result["last_step"] == config.train_steps
    if not finished:
        recipe += f", ended at step {result['last_step']:,}"
    before = run.earlier_ends(config)
    if before:
        recipe += f", extended before at step {' and '.join(f'{step:,}' for step in before)}"
    if config.is_use_ckpt:
        recipe += ", from trained weights"
    if config.teacher:
        recipe += ", with a teacher"
    if config.sparsity:
        recipe += f", {config.sparsity:.0%} zeros"
    data = {
        name: getattr(config, name)
        for name in _TOLD_OF_OWN_IMAGES
        if config.dataset == "folder" or name in _TOLD_OF_ALL
    }
    told = {name: value for name, value in data.items() if value != getattr(usual, name)} | list_changes(config)
    recipe += "".join(f", {name} {value}" for name, value in told.items())
    metric_published, *published = (finished and published_number(config)) or (None, None, None)
    return (
        config,
        recipe,
        {
            metric: (
                value,
                *(published if metric.removesuffix("_unaveraged") == metric_published else (None, None)),
                UNREPEATABLE if before else "",
            )
            for metric, value in numbers.items()
        },
    )


@dataclasses.dataclass(frozen=True)
class Trial:
    """A training that a text on transfer learning has published.

    Attributes:
        name: in tables.
        source: where it is printed.
        numbers: {"training", "validation" or "test": (accuracy in %, loss or None)}.
    """

    name: str
    source: str
    numbers: dict


_FLOWERS = Trial("flower text", "flower text: 38 of 43 pictures", {"validation": (88.37, None)})
_TRIALS = tuple(
    Trial(
        f"Trial {number}",
        f"Waghmode et al., Trial {number}",
        dict(zip(("training", "validation", "test"), numbers, strict=True)),
    )
    for number, numbers in (
        (1, ((81.6025, 0.5693), (73.27, 0.8855), (76.80, 0.7163))),
        (2, ((83.775, 0.5060), (76.66, 0.7224), (78.95, 0.6532))),
    )
)


def published_trials(config: FlowerParameters, class_folders, validation_images: int) -> tuple[Trial, ...]:
    """What the text of this network has published on these data; nothing for other data.

    Args:
        config: settings of the run.
        class_folders: what the folders of its classes are called, or the classes of a data set without folders.
        validation_images: how many it has.
    """
    if config.model == "resnet152v2" and config.dataset == "cifar10" and len(class_folders) == 10:
        return _TRIALS
    # The flowers of the text are the first ten of their folders, 1 to 10.
    if config.model == "resnet50" and validation_images == 43 and set(class_folders) == set(map(str, range(1, 11))):
        return (_FLOWERS,)
    return ()


def list_flower_numbers(run: RunFolder) -> tuple[FlowerParameters, str, dict]:
    """What is published of a run of `flowers.train`: accuracies of validation and test. See `list_cifar_numbers`."""
    config, result = run.read_config(FlowerParameters), read_result(run, "validation")
    classes, numbers = len(run.read_class_names()), {}
    folders = read_json(run.data, {}).get("class_folders") or run.read_class_names()
    trials, before = published_trials(config, folders, result["validation"]["images"]), run.earlier_ends(config)
    for part in PARTS:
        if part not in result:
            continue
        metrics = result[part]
        low, high = metrics["accuracy_interval"]
        best = max((trial for trial in trials if part in trial.numbers), key=lambda t: t.numbers[part], default=None)
        published = (best.numbers[part][0], best.source) if best else (None, None)
        remark = UNREPEATABLE if before else ""
        note = f"{metrics['images']:,} images, 95 % interval {low:.1f} .. {high:.1f} %" + f"; {remark}" * bool(remark)
        numbers[f"{part}_accuracy"] = (metrics["accuracy"], *published, note)
        if "mean_average_precision" in metrics:
            numbers[f"{part}_mean_average_precision"] = (100 * metrics["mean_average_precision"], None, None, remark)
        elif classes > 5:
            numbers[f"{part}_top5_accuracy"] = (100 - metrics["top5_error"], None, None, remark)
        if "balanced_accuracy" in metrics:  # older runs have none
            numbers[f"{part}_balanced_accuracy"] = (metrics["balanced_accuracy"], None, None, remark)
    backbone = "trained" if config.backbone_trainable else "frozen"
    if config.unfreeze_at_epoch:
        backbone += f" for {config.unfreeze_at_epoch} epochs, then the last {config.fine_tune_stages} stage(s) trained"
    recipe = f"{config.head_name} head, base {backbone}, weights {Path(config.weights).name}"
    if before:
        recipe += f", extended before at epoch {' and '.join(map(str, before))}"
    usual = config.as_usual()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        told = field.metadata["group"] not in (DATA, TRAINING) or field.name in _TOLD_OF_FLOWERS
        if not told and not field.metadata["operational"] and value != getattr(usual, field.name):
            recipe += f", {field.name}" if value is True else f", {field.name} {value}"
    return config, recipe, numbers


def short_source(source: str) -> str:
    """Whose a published number is, without where it stands."""
    return source.split(",")[0]


def settings_class(run: RunFolder) -> type[HyperParameters] | type[FlowerParameters]:
    """The class of settings of the program that trained a run. Raises UsageError if the folder holds none."""
    if not run.holds_run():
        raise UsageError(f"expected a run in {run}, found no config.json; --mode=runs lists the runs there are")
    return HyperParameters if run.has_presets() else FlowerParameters


def list_numbers(run: RunFolder) -> tuple:
    """`list_cifar_numbers` or `list_flower_numbers`, whichever is of the program that trained the run."""
    return (list_cifar_numbers if settings_class(run) is HyperParameters else list_flower_numbers)(run)


def published_error(numbers: dict, part: str) -> tuple[str, float, str] | None:
    """The published error that a run is held against, among what `list_numbers` gives.

    Args:
        numbers: see `list_numbers`.
        part: "validation" or "test", the part that is asked for first.

    Returns:
        (the part that it is of, which can also be validation, error in %, whose it is); None if nothing is published.
    """
    for found in (part, "validation"):
        for metric in ("error", "accuracy"):
            _, number, source, _ = numbers.get(f"{found}_{metric}", (None,) * 4)
            if number is not None:
                return found, number if metric == "error" else round(100 - number, 6), short_source(source)
    return None
