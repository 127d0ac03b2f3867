"""Which backbones there are: every classifier of `keras.applications`, and the networks of this library; each with its size and preprocessing.

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import dataclasses
import difflib

from resnet_study.errors import UsageError
from resnet_study.networks import registry

KNOWN_WEIGHTS = ("imagenet", *registry.SHIPPED)  # what `weights` can name without a file
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red, green, blue, 0..1


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network without its top.

    Attributes:
        name: as `--model` takes it.
        application: name of the builder in `keras.applications`; "" = a network of `resnet_study.networks.registry`.
        pixels: what its weights expect, the key of a layer in `make_preprocessing`.
        size: height and width of the images it was trained with, pixels.
        smallest: lowest height and width, pixels.
        head: the head that it has by itself, one of `heads.HEADS`.
    """

    name: str
    application: str
    pixels: str
    size: int
    smallest: int = 32
    head: str = "pool"

    @property
    def known_weights(self) -> tuple[str, ...]:
        """The names of the weights to be had without a file, the usual ones first."""
        return ("imagenet",) if self.application else tuple(registry.find(self.name).shipped_errors)

    @property
    def own_weights(self) -> str:
        """The usual weights, "imagenet" or shipped ones; "none" where there are none."""
        return next(iter(self.known_weights), "none")

    def check_weights(self, weights: str | None) -> None:
        """Raises UsageError for the name of weights that there are, but not for this backbone."""
        if weights in KNOWN_WEIGHTS and weights not in self.known_weights:
            raise UsageError(
                f"--weights={weights} are not there for --model={self.name}, expected {', '.join(self.known_weights) or 'none'}, a file or a "
                "run; give one"
            )

    def build(self, input_shape, weights: str | None, pooled: bool):
        """The network from preprocessed pixels to maps; a network of this library, if `pooled`, to features, as its own head takes them.

        Args:
            input_shape: (height, width, 3).
            weights: None = random; or one of `known_weights`.
            pooled: whether a head follows that begins with pooled features.
        """
        import keras

        from resnet_study.networks.weights import copy_weights

        if not self.application:
            spec, maps = registry.find(self.name), {} if pooled else {"pooling": None}
            backbone = spec.build(input_shape=input_shape, include_top=False, name=self.name, **maps)
            if weights:
                copy_weights(spec.build(weights=weights), backbone)
            return backbone
        build = getattr(keras.applications, self.application)
        if not weights or self.pixels != "efficientnet":
            return build(include_top=False, weights=weights, input_shape=input_shape)
        from resnet_study.networks.layers import finalize_layers

        # With them Keras inserts a layer that a network from a checkpoint would lack; `make_preprocessing` has it instead.
        backbone = build(include_top=False, weights=None, input_shape=input_shape)
        backbone.set_weights(build(include_top=False, weights=weights, input_shape=input_shape).get_weights())
        finalize_layers(backbone)
        return backbone

    def make_preprocessing(self, source: str = ""):
        """The first layer of a model with this backbone: what its weights expect, from raw pixels 0..255.

        Args:
            source: `.keras` file that the weights of a network of this library are from, or what shipped ones are called; "" = `own_weights`.
        """
        from resnet_study.networks.layers import CaffePreprocessing, PixelNormalization
        from resnet_study.networks.weights import open_weights

        source = source or self.own_weights
        if self.pixels == "own" and source != "none":
            _, found = open_weights(source, shipped=self.name)
            if found is not None:
                return type(found).from_config(found.get_config() | {"name": "preprocessing"})
        if self.pixels == "caffe":
            return CaffePreprocessing(name="preprocessing")
        constants = {
            "torch": ([255 * mean for mean in _MEAN], [255 * deviation for deviation in _DEVIATION]),
            "within": (0.0, 1.0),  # the network has its own
            # The weights ask for a division by the root of the deviation after the normalisation that the network has.
            "efficientnet": (
                [255 * mean * (1 - deviation**0.5) for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)],
                [deviation**0.5 for deviation in _DEVIATION],
            ),
        }
        return PixelNormalization(*constants.get(self.pixels, (127.5, 127.5)), name="preprocessing")  # -1..1


_APPLICATIONS = (  # pixels, size, smallest, builders
    ("caffe", 224, 32, "ResNet50 ResNet101 ResNet152 VGG16 VGG19"),
    ("tf", 224, 32, "ResNet50V2 ResNet101V2 ResNet152V2 MobileNet MobileNetV2 NASNetMobile"),
    ("tf", 299, 75, "InceptionV3 InceptionResNetV2"),
    ("tf", 299, 71, "Xception"),
    ("torch", 224, 32, "DenseNet121 DenseNet169 DenseNet201"),
    ("tf", 331, 32, "NASNetLarge"),
    *(
        ("efficientnet", size, 32, f"EfficientNetB{number}")
        for number, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    ),
    *(
        ("within", size, 32, f"EfficientNetV2{kind}")
        for kind, size in (("B0", 224), ("B1", 240), ("B2", 260), ("B3", 300), ("S", 384), ("M", 480), ("L", 480))
    ),
    (
        "within",
        224,
        32,
        "MobileNetV3Small MobileNetV3Large ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge",
    ),
)
TEXT_HEADS = {"resnet50": "flatten", "resnet152v2": "convolutional"}  # the networks of the texts
APPLICATIONS = {
    name.lower(): Backbone(name.lower(), name, pixels, size, smallest, TEXT_HEADS.get(name.lower(), "pool"))
    for pixels, size, smallest, names in _APPLICATIONS
    for name in names.split()
}


def find(name: str) -> Backbone:
    """The backbone of a name; those of `keras.applications` come first.

    Raises:
        UsageError: unknown name; the message lists the known ones.

    Example:
        from flowers.backbones import find

        print(find("efficientnetb3").size)  # 300
    """
    if name in APPLICATIONS:
        return APPLICATIONS[name]
    try:
        spec = registry.find(name)
    except UsageError as error:
        near = difflib.get_close_matches(
            name.lower().replace("_", "").replace("-", ""), [*APPLICATIONS, *registry.MODELS]
        )
        if near:
            raise UsageError(
                f"expected the name of a network, received '{name}'; did you mean {' or '.join(near)}? All of keras.applications: "
                f"{', '.join(APPLICATIONS)}; or a network of cifar10_main.py --mode=models"
            ) from error
        raise UsageError(f"{error}, or one of keras.applications: {', '.join(APPLICATIONS)}") from error
    return Backbone(name, "", "own", 32, max(8, spec.minimum_size), "linear")
