"""The published numbers that runs are held against."""

import re

from hyper_parameters import HyperParameters, from_preset
from resnet_study.networks import registry
from resnet_study.presets import PRESETS

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
_FAMILIES = {"resnet": r"resnet(9|20|32|44|56|110)", "lenet": r"lenet.*", "alexnet": r"alexnet.*"}


def published_number(config: HyperParameters) -> tuple[str, float, str] | None:
    """(metric, value in %, source) that a run is held against, or None."""
    preset = PRESETS[config.preset]
    if is_another_net(config) or config.train_steps != from_preset(config.preset).train_steps:
        return None  # a shortened recipe is no repetition of anybody's
    if config.dataset == "cifar10":
        if preset.published and config.model_name == preset.settings["model"]:
            return preset.published
        spec = registry.find(config.model_name)
        if spec.cifar10_error:
            return "test_error", spec.cifar10_error, spec.source
    accuracies = LU_SONG_TABLE.get((find_family(config.model_name), config.dataset))
    if accuracies:
        return "test_error", round(100 - accuracies[1], 3), f"{LU_SONG}: the epoch of the highest test accuracy"
    return None


def is_another_net(config: HyperParameters) -> bool:
    """Whether heads, or options that its preset has not, make the net another one than that of the published number."""
    own = from_preset(config.preset, model=config.model_name).net_options
    return bool(config.heads) or config.net_options != own


def find_family(model_name: str) -> str | None:
    """Under which name of Lu & Song's table a net is held: resnet (activation after the addition, as theirs), lenet, alexnet."""
    return next((name for name, pattern in _FAMILIES.items() if re.fullmatch(pattern, model_name)), None)
