"""Names -> networks, with the facts needed to use each: builder, family, published error.

Builders are named by module and function and imported when a net is built, so that listing the names costs nothing.
"""

import dataclasses
import importlib
import re
from collections.abc import Callable

from hyper_parameters import UsageError


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What is known of a registered net.

    Attributes:
        name: registry name.
        builder: "module:function"; the function has the signature habits of `keras.applications`.
        options: keyword arguments the name stands for.
        summary: one line.
        trainable: exact number of trainable parameters at 32x32x3 and 10 classes.
        minimum_size: smallest height and width of the input, pixels.
        cifar10_error: published top-1 test error on CIFAR-10 in %, or None.
        source: where the net and the error are published.
    """

    name: str
    builder: str
    options: dict
    summary: str
    trainable: int
    minimum_size: int = 8
    cifar10_error: float | None = None
    source: str = ""

    def build(self, **arguments):
        """Builds the net: `input_shape`, `classes`, `weights`, ... as the builder documents them."""
        module, function = self.builder.split(":")
        builder: Callable = getattr(importlib.import_module(module), function)
        return builder(**self.options, **arguments)


_HE_ERROR = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43}
_FORM = {
    "resnet": ("v1", "conv-BN-ReLU residual net", "He et al. 2015, arXiv:1512.03385, section 4.2 and table 6"),
    "resnet_preact": ("preact", "BN-ReLU-conv residual net with average-pool shortcuts", "Liang 2020, section 2"),
    "plain": ("plain", "the v1 net without its shortcuts", "He et al. 2015, figure 6"),
}


def _cifar_resnet(prefix: str, depth: int, suffix: str) -> ModelSpec:
    """The spec of one net of depth 6n+2; the three forms have equal parameter counts."""
    form, summary, source = _FORM[prefix + suffix]
    blocks = (depth - 2) // 6
    return ModelSpec(
        name=f"{prefix}{depth}{suffix}",
        builder="resnet:build_resnet",
        options={"num_residual_blocks": blocks, "form": form},
        summary=f"{summary}, {blocks} blocks a stage",
        trainable=97216 * blocks - 21926,
        cifar10_error=_HE_ERROR.get(depth) if form == "v1" else None,
        source=source,
    )


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for prefix, suffix in (("resnet", ""), ("resnet", "_preact"), ("plain", ""))
    for spec in (_cifar_resnet(prefix, depth, suffix) for depth in _HE_ERROR)
} | {
    "resnet9": ModelSpec(
        name="resnet9",
        builder="resnet:build_resnet9",
        options={},
        summary="wide residual net with a whitening stem, trained in minutes",
        trainable=3116194,
        minimum_size=16,
        source="after Page 2019, How to train your ResNet, and Jordan 2024, arXiv:2404.00498",
    )
}

_BASELINES = (  # name, builder, form, summary, trainable, minimum_size, source
    ("lenet5", "lenet5", "modern", "LeNet-5, ReLU and maximum pooling", 62_006, 12, "LeCun et al. 1998, section II.B"),
    (
        "lenet5_1998",
        "lenet5",
        "1998",
        "LeNet-5, tanh and average pooling",
        62_006,
        12,
        "LeCun et al. 1998, section II.B",
    ),
    ("alexnet", "alexnet", "A", "AlexNet of 3x3 kernels", 23_272_266, 16, "Krizhevsky et al. 2012, section 3"),
    (
        "alexnet_b",
        "alexnet",
        "B",
        "AlexNet of Krizhevsky's widths",
        29_983_114,
        16,
        "Krizhevsky et al. 2012, section 3",
    ),
    ("alexnet_c", "alexnet", "C", "AlexNet with one dense layer", 2_472_266, 16, "Krizhevsky et al. 2012, section 3"),
    ("plain_cnn", "plain_cnn", None, "the CNN of the textbooks", 1_250_858, 10, "Keras' example cifar10_cnn.py"),
)
MODELS |= {
    name: ModelSpec(
        name=name,
        builder=f"baseline_networks:build_{builder}",
        options={"form": form} if form else {},
        summary=summary,
        trainable=trainable,
        minimum_size=minimum_size,
        source=source,
    )
    for name, builder, form, summary, trainable, minimum_size, source in _BASELINES
}


def find(name: str) -> ModelSpec:
    """The spec of a registered name, or of any other depth 6n+2 of the same families (`resnet8`, `plain26`, ...).

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name in MODELS:
        return MODELS[name]
    match = re.fullmatch(r"(resnet|plain)(\d{1,4})(_preact)?", name)
    if match and int(match[2]) >= 8 and int(match[2]) % 6 == 2 and match[1] + (match[3] or "") in _FORM:
        return _cifar_resnet(match[1], int(match[2]), match[3] or "")
    raise UsageError(
        f"--model must be one of {', '.join(MODELS)}, or a residual or plain net with another depth 6n+2; received '{name}'"
    )
