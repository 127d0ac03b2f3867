"""What is the network: a backbone of `flowers.backbones`, and a head for classes of one's own. Those of the texts:

    builder                        backbone      head                                          parameters (10 classes)
    build_resnet50_transfer        ResNet50      Flatten, 512 ELU, 64 ELU, dropout .4          75,001,930 at 224 x 224
                                                 global average pooling, then the same         24,670,282 at any size
    build_resnet152v2_transfer     ResNet152V2   four 3x3 convolutions, 512, dropout .5        59,024,586 at 32 x 32

Sources: the first is J. (Nov. 7, 2021), "Deep Learning 101 - Building ResNet for Flower Image Recognition"; the second is
Waghmode, Ramisetty & Jidugu, "Deep Residual Learning for Image Recognition", figure 2. Layers have the names printed there.

Every model takes raw pixels: the preprocessing its backbone was trained with is its first layer, and so the same in training,
testing and prediction. Importing this module registers that layer (it is in `resnet_study.networks.layers`), so that
`keras.models.load_model` reads the models.
"""

import contextlib
import re
import socket
from numbers import Integral

import keras
import numpy as np
from keras import layers

from flowers.backbone_weights import check_imagenet, load_backbone_weights
from flowers.backbones import KNOWN_WEIGHTS, find
from resnet_study.errors import UsageError
from resnet_study.networks.assembly import unused
from resnet_study.networks.signatures import name_builder
from resnet_study.strings import shorten

HEADS = ("flatten", "pool", "convolutional", "linear")


def build_transfer(
    backbone_name,
    classes,
    *,
    input_shape,
    weights=None,
    head="pool",
    backbone_trainable=False,
    dropout=0.4,
    classifier_activation="softmax",
    dtype=None,
    name=None,
    preprocessing=None,
):
    """Builds a backbone of `flowers.backbones` with one of `HEADS`.

    Args:
        backbone_name: see `backbones.find`; a network of this library takes the names of its shipped weights too.
        classes: width of the output, int >= 2.
        input_shape: (height, width, 3), height and width at least `backbones.find(name).smallest`: 32 pixels for most of
            `keras.applications`, 8 for resnet20, 16 for resnet9.
        weights: of the backbone. None = random; "imagenet" = downloaded by Keras, or another of `Backbone.known_weights`; or the path of a no-top file (`.h5`,
            `.weights.h5`, `.keras`) or of a run folder of this library.
        head: "flatten" as in the flower text; "pool" = global average pooling in the place of Flatten; "convolutional" as in the CIFAR-10
            text; "linear" = one dense layer on pooled features.
        backbone_trainable: False = the backbone is frozen, and its batch normalisation uses its moving statistics, also while
            the head is trained.
        dropout: share of the values that each dropout layer drops while training.
        classifier_activation: "softmax", or None for logits.
        dtype: dtype policy, "float32" or "mixed_bfloat16"; None = the current one. Preprocessing and output are float32.
        name: name of the model; None = the backbone's and "_transfer".
        preprocessing: first layer; None = what the weights of the backbone need, see `Backbone.make_preprocessing`.

    Returns:
        keras.Model. Input: raw pixels [batch, height, width, RGB], 0..255. Output: float32 [batch, classes].

    Raises:
        UsageError: an argument is out of its range, or the weights cannot be had or do not fit.

    Example:
        import numpy as np
        from flowers.heads import build_transfer

        model = build_transfer("resnet50", 10, input_shape=(64, 64, 3), head="pool")
        print(model(np.zeros((1, 64, 64, 3))).shape)  # (1, 10)
    """
    spec = find(backbone_name)
    _check_arguments(spec, classes, input_shape, head)
    classes, input_shape = int(classes), tuple(map(int, input_shape))
    spec.check_weights(weights)
    if weights == "imagenet":
        check_imagenet(spec)
    known = weights if weights in KNOWN_WEIGHTS else None
    with _policy(dtype):
        backbone = spec.build(input_shape, known, pooled=head in ("pool", "linear"))
        backbone.trainable = backbone_trainable
        inputs = keras.Input(input_shape, name="pixels")
        pixels = unused(preprocessing or spec.make_preprocessing(known or ""))(inputs)
        features = backbone(pixels) if backbone_trainable else backbone(pixels, training=False)
        outputs = _attach_head(features, head, classes, dropout, classifier_activation)
    if weights not in (None, known):
        load_backbone_weights(backbone, weights)
    return keras.Model(inputs, outputs, name=name or f"{backbone_name}_transfer")


build_resnet50_transfer = name_builder(
    build_transfer,
    "build_resnet50_transfer",
    """Builds ResNet50 with the head of the flower text.

    ResNet50 (blocks 3, 4, 6, 3; stride 2 in the first 1x1 convolution of a stage), 23,587,712 parameters, then Flatten,
    Dropout, `fc1` 512 ELU, Dropout, `fc2` 64 ELU, Dropout, `fc3_output`.

        parameters, 224 x 224, 10 classes           total     trainable, backbone frozen     backbone trained
        head="flatten" (the text)              75,001,930                     51,414,218           74,948,810
        head="pool"                            24,670,282                      1,082,570           24,617,162

    The prose of the text says "train all model parameters", its program freezes the backbone. Differs from the text: the BGR mean
    subtraction that the ImageNet weights need is there (the text sets an unused mean instead); the backbone is one nested layer, `resnet50`.""",
    fixed={"backbone_name": "resnet50"},
    defaults={"input_shape": (224, 224, 3), "head": "flatten"},
)
build_resnet152v2_transfer = name_builder(
    build_transfer,
    "build_resnet152v2_transfer",
    """Builds ResNet152V2 with the convolutional head of the CIFAR-10 text (its figure 2).

        layer                               output (32 x 32 input)     parameters
        resnet152v2                             1 x 1 x 2048           58,331,648
        conv2d, activation                      1 x 1 x 32                589,856
        conv2d_1, activation_1                  1 x 1 x 32                  9,248
        max_pooling2d_3                         1 x 1 x 32                      0
        conv2d_2, activation_2                  1 x 1 x 64                 18,496
        conv2d_3, activation_3                  1 x 1 x 64                 36,928
        max_pooling2d_4, flatten                64                              0
        dense, dropout                          512                        33,280
        dense_1                                 10                          5,130
        total                                                          59,024,586 = 225.16 MB of float32
        trainable / non-trainable                            58,880,842 / 143,744

    Three misprints of the figure are corrected here: conv2d has 589,856 parameters (printed: 589556), the total is
    59,024,586 (printed: 59024556) and is 225.16 MB (printed: 223.16 MB). Its trainable and non-trainable counts, which it
    prints rightly, add up to the corrected total.

    The map sizes show "same" padding for convolutions and pooling. At 32 x 32 pixels the backbone ends in a 1 x 1 map, so eight
    of the nine taps of each 3x3 kernel see padding only; 64 x 64 and more use them all.

    Differs from the text, which gives no activation, pool size, dropout rate or preprocessing: we take ReLU, 2x2, .5 and
    the [-1, 1] of the ImageNet weights.""",
    fixed={"backbone_name": "resnet152v2"},
    defaults={"input_shape": (32, 32, 3), "head": "convolutional", "backbone_trainable": True, "dropout": 0.5},
)


def _attach_head(x, head, classes, dropout, activation):
    """The head on the maps `x` [batch, height, width, channels], or features; float32 output [batch, classes]."""
    if head == "convolutional":
        for index, filters in enumerate((32, 32, 64, 64)):
            suffix = f"_{index}" if index else ""
            x = layers.Conv2D(filters, 3, padding="same", name=f"conv2d{suffix}")(x)
            x = layers.Activation("relu", name=f"activation{suffix}")(x)
            if index % 2:
                # The backbone holds three pooling layers of these automatic names.
                x = layers.MaxPooling2D(2, padding="same", name=f"max_pooling2d_{3 + index // 2}")(x)
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(512, activation="relu", name="dense")(x)
        x = layers.Dropout(dropout, name="dropout")(x)
        return layers.Dense(classes, activation=activation, dtype="float32", name="dense_1")(x)
    if len(x.shape) == 4:  # those of this library may have pooled
        x = (
            layers.Flatten(name="flatten")(x)
            if head == "flatten"
            else layers.GlobalAveragePooling2D(name="avg_pool")(x)
        )
    if head == "linear":
        return layers.Dense(classes, activation=activation, dtype="float32", name="predictions")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    for index, units in enumerate((512, 64), start=1):
        x = layers.Dense(units, activation="elu", name=f"fc{index}")(x)
        x = layers.Dropout(dropout, name=f"dropout_{index}")(x)
    return layers.Dense(classes, activation=activation, dtype="float32", name="fc3_output")(x)


def find_backbone(model: keras.Model) -> keras.Model:
    """The nested backbone of a model of this module. Raises UsageError if there is none."""
    for layer in reversed(model.layers):  # preprocessing may be a model, too
        if isinstance(layer, keras.Model):
            return layer
    raise UsageError(f"expected a model whose backbone is a nested model, received '{model.name}'")


def unfreeze_stages(backbone: keras.Model, stages: int) -> None:
    """Makes the convolutions of the last stages of a backbone trainable and freezes the rest.

    All batch normalisation stays frozen, and so in inference mode: the few images of a transfer would spoil its statistics.
    (Calling the backbone with `training=False` would not do: Keras' functional models pass their own `training` on to it.)

    Args:
        backbone: of `flowers.backbones`.
        stages: 1 = the layers that read the smallest maps, of ResNet50 conv5; 2 = those before, too; as many as there are = all.
    """
    backbone.trainable = True
    for layer, stage in zip(backbone.layers, numbers := find_stages(backbone), strict=True):
        layer.trainable = stage > numbers[-1] - stages and not isinstance(layer, layers.BatchNormalization)


def find_stages(backbone: keras.Model) -> list[int]:
    """The number of the stage of each layer: one begins with each layer that makes the maps smaller than all before."""
    # The ResNets of `keras.applications` name them; those of the second kind make their maps smaller where a stage ends.
    named = [re.match(r"(?:conv|pool)(\d)_", layer.name) for layer in backbone.layers]
    has_names = backbone.name.startswith("resnet") and any(named)
    stage, smallest, found = 0, backbone.input_shape[1], []
    for layer, name in zip(backbone.layers, named, strict=True):
        strides = isinstance(layer, keras.Model) or np.max(getattr(layer, "strides", 1)) > 1
        if has_names:
            stage = int(name[1]) if name else stage
        elif strides and len(layer.output.shape) == 4 and layer.output.shape[1] < smallest:
            stage, smallest = stage + 1, layer.output.shape[1]
        found.append(stage)
    return found


def split_model(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Cuts a model in two that share its weights: pixels -> features, features -> output.

    The features are what the backbone gives; where the head begins with global average pooling, they are pooled already.

    Args:
        model: of this module.

    Returns:
        (pixels -> features, features -> output).

    Example:
        from flowers.heads import build_resnet50_transfer, split_model

        model = build_resnet50_transfer(10, input_shape=(64, 64, 3), weights=None, head="pool")
        to_features, head = split_model(model)
        print(to_features.output_shape)  # (None, 2048)
    """
    cut = model.layers.index(find_backbone(model))
    if isinstance(model.layers[cut + 1], layers.GlobalAveragePooling2D):
        cut += 1
    maps = model.layers[cut + 1].input  # `output` of a nested model is a tensor within it
    features = keras.Model(model.input, maps, name="features")
    inputs = x = keras.Input(maps.shape[1:], name="features")
    for layer in model.layers[cut + 1 :]:
        x = layer(x)
    return features, keras.Model(inputs, x, name="head")


@contextlib.contextmanager
def _policy(dtype):
    """`keras.applications` takes no dtype, so the policy is set for the time of building."""
    before, timeout = keras.config.dtype_policy(), socket.getdefaulttimeout()
    keras.config.set_dtype_policy(dtype or before)
    socket.setdefaulttimeout(30)  # a stalled download would be waited for for ever
    try:
        yield
    except Exception as error:
        if "URL fetch failure" not in str(error):
            raise
        raise UsageError(
            f"the download of the ImageNet weights failed ({shorten(str(error))}); try again, or use --weights=FILE"
        ) from error
    finally:
        keras.config.set_dtype_policy(before)
        socket.setdefaulttimeout(timeout)


def _check_arguments(spec, classes, input_shape, head):
    if head not in HEADS:
        raise UsageError(f"head must be one of {', '.join(HEADS)}; received {head!r}")
    if not isinstance(classes, Integral) or classes < 2:
        raise UsageError(f"classes must be an int >= 2, received {classes!r}")
    shape = tuple(input_shape)
    is_whole = all(isinstance(size, Integral) for size in shape)
    if len(shape) != 3 or not is_whole or shape[2] != 3 or min(shape[:2]) < spec.smallest:
        raise UsageError(
            f"input_shape must be (height, width, 3) with {spec.smallest} pixels or more for {spec.name}, received {shape}"
        )
