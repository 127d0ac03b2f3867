"""Names -> networks, with the facts needed to use each: builder, options, published error.

Builders are named by module and function and imported when a network is built, so that listing the names costs nothing.
"""

import dataclasses
import difflib
import functools
import importlib
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

from resnet_study.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What is known of a registered network.

    Attributes:
        name: registry name.
        builder: "module:function"; the function has the signature habits of `keras.applications`.
        options: keyword arguments the name stands for.
        summary: one line.
        trainable: exact number of trainable parameters for three channels and 10 classes (at 32x32 or, where `options` has one, its
            input_shape, where that matters).
        multiply_adds: of one image, see `multiply_adds.multiply_adds`; at 32x32x3, or at the builder's own input_shape.
        minimum_size: smallest height and width of the input, pixels.
        cifar10_error: published top-1 test error on CIFAR-10 in %, or None.
        source: where the network and the error are published.
        accepts: settings of `hyper_parameters.NETWORK_OPTIONS` that the builder takes.
    """

    name: str
    builder: str
    options: dict = dataclasses.field(default_factory=dict)
    summary: str
    trainable: int
    multiply_adds: int
    minimum_size: int = 8
    cifar10_error: float | None = None
    source: str = ""
    accepts: tuple[str, ...] = ()

    @property
    def shipped_errors(self) -> dict[str, float]:
        """What `weights` calls the shipped weights of this network -> their top-1 test error in %."""
        return {card["weights"]: card["error"] for card in read_cards() if card["model"] == self.name}

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network has batch norm, as all but those of `networks.baselines`."""
        return not self.builder.startswith("resnet_study.networks.baselines:")

    def check_options(self, options: dict) -> None:
        """Raises UsageError for a setting of `hyper_parameters.NETWORK_OPTIONS` that the network does not have."""
        for name, value in options.items():
            if name not in self.accepts:
                raise UsageError(
                    f"--model={self.name} has no option {name}, received --{name}={value}; leave it out, or use a network "
                    f"that has it, such as {next(spec.name for spec in MODELS.values() if name in spec.accepts)}"
                )

    def build(self, **arguments):
        """Builds the network.

        Args:
            arguments: `input_shape`, `classes`, `weights`, ... as the builder documents them. `classes` may also be a dict, {name:
                number of classes}: the network then has a dense layer for each on a shared trunk, and its output is a dict of the
                same names. `weights` fill the trunk alone, which a warning says. These layers are He-normal with a bias in each network, and a dropout before the one they replace is left out, but for
                that of plain_cnn.

        Returns:
            keras.Model.

        Raises:
            UsageError: images smaller than `minimum_size`.
        """
        sizes = arguments.get("input_shape", ())[:2]
        if any(size is not None and size < self.minimum_size for size in sizes):
            raise UsageError(
                f"--model={self.name} needs images of at least {self.minimum_size} x {self.minimum_size} pixels, received "
                f"{sizes[0]} x {sizes[1]}; give larger ones, or another --model"
            )
        module, function = self.builder.split(":")
        builder: Callable = getattr(importlib.import_module(module), function)
        if not isinstance(arguments.get("classes"), dict):
            return builder(**self.options | arguments)
        import keras

        classes, activation = arguments.pop("classes"), arguments.pop("classifier_activation", "softmax")
        trunk = builder(**self.options | arguments, include_top=False)
        heads = {
            name: keras.layers.Dense(
                count, activation, kernel_initializer="he_normal", dtype="float32", name=f"predictions_{name}"
            )(trunk.output)
            for name, count in classes.items()
        }
        if arguments.get("weights") is not None:
            warnings.warn(f"the weights for {trunk.name} fill its trunk: its heads begin random", stacklevel=2)
        return keras.Model(trunk.input, heads, name=trunk.name)


# What the argument `weights` calls files of `pretrained/`, `<network>_<weights>.keras`: the data set they were trained on, and for what.
SHIPPED = ("cifar10", "cifar10_robust", "cifar100")
PRETRAINED = Path(__file__).parent.parent / "pretrained"


def dataset_of(weights: str) -> str:
    """What shipped weights were trained on: "cifar10" of "cifar10_robust"."""
    return weights.split("_")[0]


def default_network(weights: str) -> str:
    """Whose shipped weights are meant where no network is named: those of ResNet-20, or of the smallest network that has such."""
    names = [card["model"] for card in read_cards() if card["weights"] == weights]
    return next((name for name in ("resnet20", *names) if name in names), "resnet20")


def shipped_file(name: str, weights: str) -> Path:
    """Where the shipped weights of a network lie; there need not be such."""
    return PRETRAINED / f"{name}_{weights}.keras"


# Depth -> test error in % on CIFAR-10 (He et al. 2015, table 6).
HE_ERROR = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43}
_FORM = {
    "resnet": ("v1", "conv-BN-ReLU residual network", "He et al. 2015, arXiv:1512.03385, section 4.2 and table 6"),
    "resnet_preact": ("preact", "BN-ReLU-conv residual network with average-pool shortcuts", "Liang 2020, section 2"),
    "plain": ("plain", "the v1 network without its shortcuts", "He et al. 2015, figure 6"),
    "resnet_v2": ("v2", "BN-ReLU-conv residual network", "He et al. 2016, arXiv:1603.05027, figure 4e"),
}
_ACCEPTS = {
    "v1": (
        "shortcut",
        "squeeze_excitation",
        "block_dropout",
        "stochastic_depth",
        "zero_last_gamma",
        "maxout",
        "widths",
    ),
    "preact": ("squeeze_excitation", "block_dropout", "stochastic_depth", "maxout", "widths"),
    "plain": ("squeeze_excitation", "block_dropout", "maxout", "widths"),
    "v2": ("shortcut", "squeeze_excitation", "block_dropout", "stochastic_depth", "maxout", "widths"),
}


def _cifar_resnet(prefix: str, depth: int, suffix: str) -> ModelSpec:
    """The spec of one network of depth 6n+2; the four forms have equal parameter counts."""
    form, summary, source = _FORM[prefix + suffix]
    blocks = (depth - 2) // 6
    return ModelSpec(
        name=f"{prefix}{depth}{suffix}",
        builder="resnet:build_resnet",
        options={"num_residual_blocks": blocks, "form": form},
        summary=f"{summary}, {blocks} blocks a stage",
        trainable=97216 * blocks - 21926,
        multiply_adds=14155776 * blocks - 1916288,
        accepts=_ACCEPTS[form],
        cifar10_error=HE_ERROR.get(depth) if form == "v1" else None,
        source=source,
    )


def _bottleneck_resnet(depth: int, cifar10_error: float) -> ModelSpec:
    """The spec of one network of depth 9n+2 (He 2016, appendix)."""
    blocks = (depth - 2) // 9
    return ModelSpec(
        name=f"resnet{depth}_v2",
        builder="resnet:build_resnet",
        options={"num_residual_blocks": blocks, "form": "bottleneck_v2"},
        summary=f"BN-ReLU-conv bottleneck network, {blocks} blocks a stage",
        trainable=92736 * blocks + 34010,
        multiply_adds=13369344 * blocks + 3852800,
        accepts=_ACCEPTS["v2"],
        cifar10_error=cifar10_error,
        source="He et al. 2016, arXiv:1603.05027, table 3",
    )


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        *(
            _cifar_resnet(prefix, depth, suffix)
            for prefix, suffix in (("resnet", ""), ("resnet", "_preact"), ("plain", ""), ("resnet", "_v2"))
            for depth in HE_ERROR
        ),
        _bottleneck_resnet(164, 5.46),
        _bottleneck_resnet(1001, 4.92),
        ModelSpec(
            name="inception_resnet_v1",
            builder="resnet_study.networks.inception_resnet:build_inception_resnet_v1",
            summary="Inception-ResNet v1 as published",
            trainable=20_981_258,
            multiply_adds=6_206_361_696,
            minimum_size=75,
            source="Szegedy et al. 2016, arXiv:1602.07261; Liang 2020, section 4",
        ),
        ModelSpec(
            name="inception_resnet_v1_small",
            builder="resnet_study.networks.inception_resnet:build_inception_resnet_v1_small",
            summary="the same for 32x32: stem that halves once, a quarter of the filters, 2 A, 3 B and 2 C modules",
            trainable=702_218,
            multiply_adds=37_177_728,
            minimum_size=13,
            source="reduced here",
        ),
        ModelSpec(
            name="resnet9",
            builder="resnet:build_resnet9",
            summary="wide residual network with a whitening stem, trained in minutes",
            trainable=3_188_450,
            multiply_adds=160_651_552,
            minimum_size=16,
            accepts=("widths",),
            source="after Page 2019, How to train your ResNet, and Jordan 2024, arXiv:2404.00498",
        ),
        ModelSpec(
            name="airbench",
            builder="resnet_study.networks.airbench:build_airbench",
            summary="six wide convolutions behind a whitening stem, GELU; 94 % on CIFAR-10 for 0.36 PFLOP",
            trainable=1_971_352,
            multiply_adds=118_147_360,
            minimum_size=16,
            source="Jordan 2024, arXiv:2404.00498",
        ),
        ModelSpec(
            name="airbench96",
            builder="resnet_study.networks.airbench:build_airbench",
            options={"widths": (128, 384, 512), "convolutions": 3, "name": "airbench96"},
            summary="nine wide convolutions behind a whitening stem, with three shortcuts, GELU",
            trainable=9_915_416,
            multiply_adds=451_967_264,
            minimum_size=16,
            source="Jordan 2024, https://github.com/KellerJordan/cifar10-airbench",
        ),
    )
}

_LECUN, _KRIZHEVSKY = "LeCun et al. 1998, section II.B", "Krizhevsky et al. 2012, section 3"
_BASELINES = (  # name, builder, form, summary, trainable, multiply_adds, minimum_size, source
    ("lenet5", "lenet5", "modern", "LeNet-5, ReLU and maximum pooling", 62_006, 651_720, 12, _LECUN),
    ("lenet5_1998", "lenet5", "1998", "LeNet-5, tanh and average pooling", 62_006, 651_720, 12, _LECUN),
    ("alexnet", "alexnet", "A", "AlexNet of 3x3 kernels", 23_272_266, 62_742_528, 16, _KRIZHEVSKY),
    ("alexnet_b", "alexnet", "B", "AlexNet of Krizhevsky's widths", 29_983_114, 323_600_384, 16, _KRIZHEVSKY),
    ("alexnet_c", "alexnet", "C", "AlexNet with one dense layer", 2_472_266, 14_957_056, 16, _KRIZHEVSKY),
    (
        "alexnet_original",
        "alexnet",
        "original",
        "AlexNet as published, in one tower, for 224x224",
        58_322_314,
        1_131_201_056,
        64,
        _KRIZHEVSKY,
    ),
    (
        "plain_cnn",
        "plain_cnn",
        None,
        "the CNN of the textbooks",
        1_250_858,
        20_741_120,
        10,
        "Keras' example cifar10_cnn.py",
    ),
)
MODELS |= {
    name: ModelSpec(
        name=name,
        builder=f"resnet_study.networks.baselines:build_{builder}",
        options=({"form": form} if form else {}) | ({"input_shape": (224, 224, 3)} if form == "original" else {}),
        summary=summary,
        trainable=trainable,
        multiply_adds=multiply_adds,
        minimum_size=minimum_size,
        accepts=("dropout",) if builder == "alexnet" else (),
        source=source,
    )
    for name, builder, form, summary, trainable, multiply_adds, minimum_size, source in _BASELINES
}


@functools.cache
def read_cards() -> list[dict]:
    """What is known of each file of `resnet_study/pretrained`, see `resnet_study.reports.model_cards`."""
    return json.loads(Path(PRETRAINED, "cards.json").read_text(encoding="utf-8"))


_BOTTLENECKS = ("resnet164_v2", "resnet1001_v2")  # of depth 9n+2, though called like depths 6n+2


def find(name: str) -> ModelSpec:
    """The spec of a registered name, or of any other depth 6n+2 of the same families (`resnet8`, `plain26`, ...).

    Args:
        name: as `--model` takes it.

    Returns:
        ModelSpec.

    Raises:
        UsageError: unknown name; the message lists the known ones.

    Example:
        from resnet_study.networks import registry

        model = registry.find("resnet20").build(classes=100)
        print(model.output_shape)  # (None, 100)
    """
    if name in MODELS:
        return MODELS[name]
    match = re.fullmatch(r"(resnet|plain)(\d{1,4})(_preact|_v2)?", name)
    if match and int(match[2]) >= 8 and int(match[2]) % 6 == 2 and match[1] + (match[3] or "") in _FORM:
        return _cifar_resnet(match[1], int(match[2]), match[3] or "")
    near = difflib.get_close_matches(name, MODELS)
    raise UsageError(
        f"expected the name of a network, received '{name}'; "
        + (f"did you mean {' or '.join(near)}? All names: " if near else "give one of ")
        + f"{', '.join(MODELS)}, or a residual or plain network with another depth 6n+2"
    )


def name_with_blocks(name: str, blocks: int) -> str:
    """The name of the network of the same family with `blocks` residual blocks per stage: resnet20_v2 and 9 give resnet56_v2.

    Raises:
        UsageError: the network has no family of depths 6n+2.
    """
    match = re.fullmatch(r"(resnet|plain)(\d+)(_preact|_v2)?", name)
    # ResNet-9, and the bottleneck networks of depth 9n+2, are networks of their own.
    if not match or int(match[2]) % 6 != 2 or name in _BOTTLENECKS:
        raise UsageError(
            f"--num_residual_blocks fits the networks of depth 6n+2 (resnet20, plain20, ...), received --model={name}"
        )
    found = f"{match[1]}{6 * blocks + 2}{match[3] or ''}"
    if found in _BOTTLENECKS:
        raise UsageError(
            f"--num_residual_blocks={blocks} would give {found}, which is a network of bottlenecks; give another number"
        )
    return found
