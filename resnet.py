"""Residual networks for small pictures: ResNet-20/32/44/56/110 in three forms.

    form      block                                            shortcut where a stage begins        source
    v1        conv-BN-ReLU-conv-BN, add, ReLU                  every second pixel + zero channels   He 2015, section 4.2
    preact    BN-ReLU-conv-BN-ReLU-conv, add                   average pool + zero channels         Liang 2020, section 2
    plain     conv-BN-ReLU-conv-BN-ReLU                        none                                 He 2015, figure 6

    depth 6n+2     20        32        44        56         110
    n               3         5         7         9          18
    trainable 269,722   464,154   658,586   853,018   1,727,962     (32x32x3, 10 classes, each form)

References: He 2015 = He et al., Deep Residual Learning, arXiv:1512.03385. Liang 2020 = J. Phys.: Conf. Ser. 1634 012110.
The nets of this file are plain functional `keras.Model`s. Importing it registers their layers, so that
`keras.models.load_model` reads a saved net after `import resnet`.
"""

import functools
from pathlib import Path

import keras
from keras import layers

from resnet_layers import FusedBatchNormalization, PatchWhitening, PixelNormalization, ZeroPadChannels

FILTERS = (16, 32, 64)

# Nets whose trained weights are shipped, by (num_residual_blocks, form).
_SHIPPED = {(3, "v1"): "resnet20_cifar10.keras", (3, "preact"): "resnet20_preact_cifar10.keras"}


def _residual_block(x, filters, stride, name, *, conv, norm, relu, shortcut):
    """v1 block (He 2015, figure 2): ReLU(x + BN(conv(ReLU(BN(conv(x)))))). `shortcut` is "A", "B" or None (plain net)."""
    residual = x
    if stride == 2:
        # TensorFlow's "same" would pad an even map only at its end and centre the kernel on odd pixels, while the
        # shortcut keeps the even ones. One pixel on each side and "valid" puts both on the same grid.
        residual = layers.ZeroPadding2D(1, name=f"{name}_pad")(residual)
    residual = conv(filters, 3, stride, f"{name}_conv1", padding="valid" if stride == 2 else "same")(residual)
    residual = relu(f"{name}_relu1")(norm(f"{name}_bn1")(residual))
    residual = norm(f"{name}_bn2")(conv(filters, 3, 1, f"{name}_conv2")(residual))
    if shortcut is None:
        return relu(f"{name}_relu2")(residual)
    if stride == 2 and shortcut == "A":
        x = layers.AveragePooling2D(1, strides=2, name=f"{name}_subsample")(x)  # a 1x1 window picks every second pixel
        x = ZeroPadChannels(filters, name=f"{name}_shortcut")(x)
    elif stride == 2:
        x = norm(f"{name}_shortcut_bn")(conv(filters, 1, 2, f"{name}_shortcut_conv")(x))
    return relu(f"{name}_relu2")(layers.Add(name=f"{name}_add")([x, residual]))


def _preact_block(x, filters, stride, name, *, conv, norm, relu, first):
    """Liang's block: x + conv(ReLU(BN(conv(ReLU(BN(x)))))); the first block of the net has no BN-ReLU before its first conv."""
    residual = x if first else relu(f"{name}_relu1")(norm(f"{name}_bn1")(x))
    residual = conv(filters, 3, stride, f"{name}_conv1")(residual)
    residual = relu(f"{name}_relu2")(norm(f"{name}_bn2")(residual))
    residual = conv(filters, 3, 1, f"{name}_conv2")(residual)
    if stride == 2:
        x = layers.AveragePooling2D(2, padding="same", name=f"{name}_pool")(x)
        x = ZeroPadChannels(filters, name=f"{name}_shortcut")(x)
    return layers.Add(name=f"{name}_add")([x, residual])


def build_resnet(
    num_residual_blocks=3,
    form="v1",
    *,
    weights=None,
    include_top=True,
    input_shape=(32, 32, 3),
    classes=10,
    classifier_activation="softmax",
    shortcut="A",
    preprocessing=None,
    dtype=None,
    name=None,
):
    """Builds a residual net of depth 6n+2 (He 2015, section 4.2; Liang 2020, section 2).

    A 3x3 convolution, then three stages of n two-convolution blocks with 16, 32 and 64 filters on maps of full, half and
    quarter size, then global average pooling and a dense layer. Convolutions have no bias. Stride 2 sits in the
    first 3x3 convolution of stages 2 and 3.

    Args:
        num_residual_blocks: n, blocks per stage, int >= 1 (3 -> ResNet-20, 18 -> ResNet-110).
        form: "v1", "preact" or "plain", see the table at the head of this file.
        weights: None = random; "cifar10" = the shipped weights (10 classes, 32x32x3); or the path of a `.keras` or
            `.weights.h5` file of the same net.
        include_top: False = end after global average pooling, output [batch, 64].
        input_shape: (height, width, channels), height and width >= 8.
        classes: width of the output, int >= 1.
        classifier_activation: "softmax", or None for logits.
        shortcut: "A" = subsample + zero channels, no weights (the paper's choice on CIFAR); "B" = 1x1 convolution with
            BN (+2,752 trainable parameters). v1 only.
        preprocessing: `PixelNormalization` put before the net, or None. Shipped weights bring their own.
        dtype: dtype policy of all layers, e.g. "mixed_bfloat16"; None = Keras' global policy.
        name: name of the model; None = "resnet20", "resnet20_preact", "plain20", ...

    Returns:
        keras.Model. Input [batch, height, width, channels], RGB; raw pixels 0..255 with `preprocessing` or shipped
        weights, otherwise normalised pixels. Output float32 [batch, classes].

    Raises:
        ValueError: an argument out of its range, or weights of another net.

    Differs from the papers: v1 draws weights by He's normal rule over the fan-in, as He 2015 writes; his program used the
    fan-out. preact: Liang's program never averages batch statistics and so tests with those of the test batch; we keep
    moving averages (momentum 0.9).
    """
    _check_arguments(num_residual_blocks, form, weights, include_top, input_shape, classes, shortcut, preprocessing)
    preact = form == "preact"
    if weights == "cifar10":
        shipped = _shipped_model(num_residual_blocks, form)
        preprocessing = PixelNormalization.from_config(shipped.layers[1].get_config())
    regular = "glorot_uniform" if preact else "he_normal"

    def conv(filters, size, stride, layer_name, padding="same"):
        return layers.Conv2D(
            filters, size, stride, padding, use_bias=False, kernel_initializer=regular, dtype=dtype, name=layer_name
        )

    def norm(layer_name):
        epsilon = 1e-3 if preact else 1e-5
        return FusedBatchNormalization(momentum=0.9, epsilon=epsilon, dtype=dtype, name=layer_name)

    def relu(layer_name):
        return layers.ReLU(dtype=dtype, name=layer_name)

    inputs = layers.Input(input_shape, name="image")
    x = inputs if preprocessing is None else preprocessing(inputs)
    x = relu("stem_relu")(norm("stem_bn")(conv(FILTERS[0], 3, 1, "stem_conv")(x)))
    block = functools.partial(_preact_block if preact else _residual_block, conv=conv, norm=norm, relu=relu)
    for stage, filters in enumerate(FILTERS, start=1):
        for index in range(1, num_residual_blocks + 1):
            begins_stage = stage > 1 and index == 1
            special = {"first": stage == index == 1} if preact else {"shortcut": None if form == "plain" else shortcut}
            x = block(x, filters, 2 if begins_stage else 1, f"stage{stage}_block{index}", **special)
    if preact:
        x = relu("head_relu")(norm("head_bn")(x))
    x = layers.GlobalAveragePooling2D(name="average_pool", dtype="float32")(x)
    if include_top:
        initializer = keras.initializers.VarianceScaling(1.0, "fan_in", "uniform") if preact else "he_normal"
        # float32: a softmax over bfloat16 logits would round the probabilities to 8 bits.
        x = layers.Dense(
            classes,
            activation=classifier_activation,
            kernel_initializer=initializer,
            dtype="float32",
            name="predictions",
        )(x)
    if name is None:
        depth = 6 * num_residual_blocks + 2
        name = {"v1": f"resnet{depth}", "preact": f"resnet{depth}_preact", "plain": f"plain{depth}"}[form]
    model = keras.Model(inputs, x, name=name)
    if weights == "cifar10":
        copy_weights(shipped, model)
    elif weights is not None:
        load_weights(model, weights)
    return model


def load_weights(model, path):
    """Fills `model` from a `.keras` or `.weights.h5` file of the same net.

    Raises:
        ValueError: the file is missing, is no such file, or holds another net. The model may be partly filled then.
    """
    path = Path(path)
    if not path.is_file() or not path.name.endswith((".keras", ".weights.h5")):
        raise ValueError(
            f"weights must be None, 'cifar10' or an existing .keras or .weights.h5 file, received '{path}'"
        )
    if path.suffix == ".keras":
        copy_weights(keras.saving.load_model(path, compile=False), model)
    else:
        model.load_weights(path)


def copy_weights(source, target):
    """Copies the weights of every layer of `target` from the layer of the same name in `source`.

    Raises:
        ValueError: a layer is missing in `source`, or its weights have other shapes; `target` is then unchanged.
    """
    given = {layer.name: layer.get_weights() for layer in source.layers}
    wanted = {layer.name: [tuple(weight.shape) for weight in layer.weights] for layer in target.layers if layer.weights}
    for name, shapes in wanted.items():
        received = [weight.shape for weight in given.get(name, [])]
        if received != shapes:
            raise ValueError(
                f"weights of '{source.name}' do not fit '{target.name}': layer {name} expects {shapes}, received {received}"
            )
    for name in wanted:
        target.get_layer(name).set_weights(given[name])


def _shipped_model(num_residual_blocks, form):
    """The trained model in `pretrained/` (beside this file in a clone, `resnet_pretrained` where installed)."""
    here = Path(__file__).parent
    if (num_residual_blocks, form) not in _SHIPPED:
        known = ", ".join(f"n={blocks} {kind}" for blocks, kind in _SHIPPED)
        raise ValueError(
            f"weights='cifar10' are shipped for {known}; received n={num_residual_blocks} {form}; train your own"
        )
    file_name = _SHIPPED[num_residual_blocks, form]
    for folder in (here / "pretrained", here / "resnet_pretrained"):
        if (folder / file_name).is_file():
            return keras.saving.load_model(folder / file_name, compile=False)
    raise ValueError(f"expected the shipped weights {file_name} in {here / 'pretrained'}; install the library again")


def _check_arguments(num_residual_blocks, form, weights, include_top, input_shape, classes, shortcut, preprocessing):
    if not isinstance(num_residual_blocks, int) or num_residual_blocks < 1:
        raise ValueError(
            f"num_residual_blocks must be an int >= 1, received {num_residual_blocks!r}; use 3 for ResNet-20"
        )
    if form not in ("v1", "preact", "plain"):
        raise ValueError(f"form must be 'v1', 'preact' or 'plain', received {form!r}")
    if shortcut not in ("A", "B") or (shortcut == "B" and form != "v1"):
        raise ValueError(f"shortcut must be 'A', or 'B' with form 'v1'; received {shortcut!r} with form {form!r}")
    if len(input_shape) != 3 or None in input_shape or min(input_shape[:2]) < 8 or input_shape[2] < 1:
        raise ValueError(f"input_shape must be (height >= 8, width >= 8, channels >= 1), received {tuple(input_shape)}")
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"classes must be an int >= 1, received {classes!r}")
    if weights == "cifar10":
        if tuple(input_shape) != (32, 32, 3) or (include_top and classes != 10) or shortcut != "A":
            raise ValueError(
                "weights='cifar10' need input_shape (32, 32, 3), shortcut 'A' and, with include_top, 10 classes; received "
                f"{tuple(input_shape)}, {shortcut!r}, {classes}"
            )
        if preprocessing is not None:
            raise ValueError("weights='cifar10' bring their own preprocessing; leave the argument out")


def build_resnet9(
    *,
    weights=None,
    include_top=True,
    input_shape=(32, 32, 3),
    classes=10,
    classifier_activation="softmax",
    preprocessing=None,
    dtype=None,
    name="resnet9",
):
    """Builds a wide residual net of nine layers that trains to 94 % on CIFAR-10 in minutes on two cores.

    layer                                                            output (32 x 32 input)
    2x2 patch whitening with fixed filters, bias, ReLU               31 x 31 x 24
    3x3 convolution, 2x2 max pooling, BN, ReLU                       15 x 15 x 64
    3x3 convolution, 2x2 max pooling, BN, ReLU; residual block       7 x 7 x 256
    3x3 convolution, 2x2 max pooling, BN, ReLU; residual block       3 x 3 x 256
    global max pooling, divided by 9, dense                          10

    A residual block is ReLU(x + BN(conv(ReLU(BN(conv(x)))))). 3,116,194 parameters are trained, 144 million multiply-adds an
    image. The layout follows Page 2019 ("How to train your ResNet"), the stem, the pooling before BN and the head Jordan
    2024 (arXiv:2404.00498); the widths and the places of the residual blocks are ours.

    The filters of the first layer are set by training images: `PatchWhitening.adapt`, which `cifar10_train.Train` calls.

    Args:
        weights: None = random; or the path of a `.keras` or `.weights.h5` file of the same net.
        include_top: False = end after global max pooling, output [batch, 256].
        input_shape: (height, width, channels), height and width >= 16.
        classes: width of the output, int >= 1.
        classifier_activation: "softmax", or None for logits.
        preprocessing: `PixelNormalization` put before the net, or None.
        dtype: dtype policy of all layers, e.g. "mixed_bfloat16"; None = Keras' global policy.
        name: name of the model.

    Returns:
        keras.Model. Input [batch, height, width, channels], RGB. Output float32 [batch, classes].

    Raises:
        ValueError: an input that is too small, or weights of another net.
    """
    if len(input_shape) != 3 or None in input_shape or min(input_shape[:2]) < 16:
        raise ValueError(
            f"input_shape must be (height >= 16, width >= 16, channels >= 1), received {tuple(input_shape)}"
        )

    def convolve(x, filters, layer_name, pool=False):
        # Drawn three times smaller than by He's rule: batch norm undoes the scale, and a small kernel turns faster.
        initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer=initializer,
            dtype=dtype,
            name=f"{layer_name}_conv",
        )(x)
        if pool:
            x = layers.MaxPooling2D(2, dtype=dtype, name=f"{layer_name}_pool")(x)
        return FusedBatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype, name=f"{layer_name}_bn")(x)

    def relu(x, layer_name):
        return layers.ReLU(dtype=dtype, name=f"{layer_name}_relu")(x)

    inputs = layers.Input(input_shape, name="image")
    x = inputs if preprocessing is None else preprocessing(inputs)
    x = relu(PatchWhitening(input_shape[2], dtype=dtype, name="stem_whitening")(x), "stem")
    for stage, (filters, has_block) in enumerate(((64, False), (256, True), (256, True)), start=1):
        x = relu(convolve(x, filters, f"stage{stage}", pool=True), f"stage{stage}")
        if has_block:
            residual = relu(convolve(x, filters, f"stage{stage}_block1_1"), f"stage{stage}_block1_1")
            residual = convolve(residual, filters, f"stage{stage}_block1_2")
            x = relu(layers.Add(name=f"stage{stage}_block1_add", dtype=dtype)([x, residual]), f"stage{stage}_block1_2")
    x = layers.GlobalMaxPooling2D(name="max_pool", dtype="float32")(x)
    if include_top:
        x = layers.Rescaling(1 / 9, name="scale", dtype="float32")(x)
        x = layers.Dense(classes, activation=classifier_activation, dtype="float32", name="predictions")(x)
    model = keras.Model(inputs, x, name=name)
    if weights is not None:
        load_weights(model, weights)
    return model


def build_resnet20(**arguments):
    """ResNet-20, 269,722 trainable parameters, published test error on CIFAR-10 8.75 %. Arguments: see `build_resnet`."""
    return build_resnet(3, **arguments)


def build_resnet32(**arguments):
    """ResNet-32, 464,154 trainable parameters, published test error on CIFAR-10 7.51 %. Arguments: see `build_resnet`."""
    return build_resnet(5, **arguments)


def build_resnet44(**arguments):
    """ResNet-44, 658,586 trainable parameters, published test error on CIFAR-10 7.17 %. Arguments: see `build_resnet`."""
    return build_resnet(7, **arguments)


def build_resnet56(**arguments):
    """ResNet-56, 853,018 trainable parameters, published test error on CIFAR-10 6.97 %. Arguments: see `build_resnet`."""
    return build_resnet(9, **arguments)


def build_resnet110(**arguments):
    """ResNet-110, 1,727,962 trainable parameters, published test error on CIFAR-10 6.43 %. Arguments: see `build_resnet`."""
    return build_resnet(18, **arguments)
