"""Residual networks for small images: ResNet-20/32/44/56/110/164/1001 in five forms, and a wide ResNet-9.

    form           block                                       shortcut where a stage begins        source
    v1             conv-BN-ReLU-conv-BN, add, ReLU             every second pixel + zero channels   He 2015, section 4.2
    preact         BN-ReLU-conv-BN-ReLU-conv, add              average pool + zero channels         Liang 2020, section 2
    plain          conv-BN-ReLU-conv-BN-ReLU                   none                                 He 2015, figure 6
    v2             BN-ReLU-conv-BN-ReLU-conv, add              BN-ReLU, then as v1                  He 2016, figure 4e
    bottleneck_v2  three BN-ReLU-conv: 1x1, 3x3, 1x1, add      BN-ReLU, then 1x1 convolution        He 2016, appendix

    depth 6n+2     20        32        44        56         110     bottleneck, depth 9n+2       164         1001
    n               3         5         7         9          18                       n           18          111
    trainable 269,722   464,154   658,586   853,018   1,727,962               trainable    1,703,258   10,327,706
    (32x32x3, 10 classes; the four forms of depth 6n+2 have equal counts)

References: He 2015 = He et al., Deep Residual Learning, arXiv:1512.03385. He 2016 = He et al., Identity Mappings in Deep
Residual Networks, arXiv:1603.05027. Liang 2020 = J. Phys.: Conf. Ser. 1634 012110.
The networks of this file are plain functional `keras.Model`s. Importing it registers their layers, so that
`keras.models.load_model` reads a saved network after `import resnet`.
"""

import functools
import inspect

import keras
from keras import layers

from resnet_study.networks.layers import (
    FusedBatchNormalization,
    PartialIdentity,
    PatchWhitening,
    ZeroPadChannels,
)
from resnet_study.saved_models import load_weights, open_weights

FILTERS = (16, 32, 64)
FORMS = ("v1", "preact", "plain", "v2", "bottleneck_v2")

# Networks of `build_resnet` whose trained weights are shipped, by (num_residual_blocks, form).
_SHIPPED = {(3, "v1"): "resnet20_cifar10.keras", (3, "preact"): "resnet20_preact_cifar10.keras"}


def _residual_block(x, filters, stride, name, *, conv, norm, relu, drop, finish, dtype, shortcut):
    """v1 block (He 2015, figure 2): ReLU(x + BN(conv(ReLU(BN(conv(x)))))). `shortcut` is "A", "B" or None (plain network)."""
    residual = x
    if stride == 2:
        # TensorFlow's "same" would pad an even map only at its end and centre the kernel on odd pixels, while the
        # shortcut keeps the even ones. One pixel on each side and "valid" puts both on the same grid.
        residual = layers.ZeroPadding2D(1, dtype=dtype, name=f"{name}_pad")(residual)
    residual = conv(filters, 3, stride, f"{name}_conv1", padding="valid" if stride == 2 else "same")(residual)
    residual = drop(relu(f"{name}_relu1")(norm(f"{name}_bn1")(residual)), name)
    residual = norm(f"{name}_bn2", last=True)(conv(filters, 3, 1, f"{name}_conv2")(residual))
    residual = finish(residual, name)
    if shortcut is None:
        return relu(f"{name}_relu2")(residual)
    if stride == 2 and shortcut == "A":
        # A 1x1 window picks every second pixel.
        x = layers.AveragePooling2D(1, strides=2, dtype=dtype, name=f"{name}_subsample")(x)
        x = ZeroPadChannels(filters, dtype=dtype, name=f"{name}_shortcut")(x)
    elif stride == 2:
        x = norm(f"{name}_shortcut_bn")(conv(filters, 1, 2, f"{name}_shortcut_conv")(x))
    return relu(f"{name}_relu2")(layers.Add(dtype=dtype, name=f"{name}_add")([x, residual]))


def _preact_block(x, filters, stride, name, *, conv, norm, relu, drop, finish, dtype, first):
    """Liang's block: x + conv(ReLU(BN(conv(ReLU(BN(x)))))); the first block of all has no BN-ReLU before its first conv."""
    residual = x if first else relu(f"{name}_relu1")(norm(f"{name}_bn1")(x))
    residual = conv(filters, 3, stride, f"{name}_conv1")(residual)
    residual = drop(relu(f"{name}_relu2")(norm(f"{name}_bn2")(residual)), name)
    residual = finish(conv(filters, 3, 1, f"{name}_conv2")(residual), name)
    if stride == 2:
        x = layers.AveragePooling2D(2, padding="same", name=f"{name}_pool")(x)
        x = ZeroPadChannels(filters, name=f"{name}_shortcut")(x)
    return layers.Add(name=f"{name}_add")([x, residual])


def _v2_block(x, filters, stride, name, *, conv, norm, relu, drop, finish, dtype, begins_stage, bottleneck, shortcut):
    """v2 block (He 2016, figure 4e): x + conv(ReLU(BN(... x))). Where a stage begins, both branches share the first BN-ReLU.

    `bottleneck`: 1x1 (it has the stride), 3x3 and 1x1 convolution, the last with 4 * `filters`; else two of 3x3.
    """
    residual = relu(f"{name}_relu1")(norm(f"{name}_bn1")(x))
    if begins_stage:
        x = residual
    if bottleneck:
        residual = conv(filters, 1, stride, f"{name}_conv1")(residual)
        residual = relu(f"{name}_relu2")(norm(f"{name}_bn2")(residual))
        residual = drop(
            relu(f"{name}_relu3")(norm(f"{name}_bn3")(conv(filters, 3, 1, f"{name}_conv2")(residual))), name
        )
        filters = 4 * filters
        residual = conv(filters, 1, 1, f"{name}_conv3")(residual)
    else:
        if stride == 2:  # one grid with the shortcut, as in `_residual_block`
            residual = layers.ZeroPadding2D(1, dtype=dtype, name=f"{name}_pad")(residual)
        residual = conv(filters, 3, stride, f"{name}_conv1", padding="valid" if stride == 2 else "same")(residual)
        residual = drop(relu(f"{name}_relu2")(norm(f"{name}_bn2")(residual)), name)
        residual = conv(filters, 3, 1, f"{name}_conv2")(residual)
    if x.shape[-1] != filters and shortcut == "B":
        x = conv(filters, 1, stride, f"{name}_shortcut_conv")(x)
    elif x.shape[-1] != filters:
        x = layers.AveragePooling2D(1, strides=2, name=f"{name}_subsample")(x)
        x = ZeroPadChannels(filters, name=f"{name}_shortcut")(x)
    return layers.Add(name=f"{name}_add")([x, finish(residual, name)])


def _squeeze_and_excite(x, ratio, name, dtype):
    """Scales each channel by what two dense layers make of the means of all channels (Hu et al. 2018, figure 2)."""
    channels = x.shape[-1]
    gate = layers.GlobalAveragePooling2D(keepdims=True, dtype=dtype, name=f"{name}_se_pool")(x)
    gate = layers.Dense(
        max(1, channels // ratio),
        "relu",
        kernel_initializer="he_normal",
        dtype=dtype,
        name=f"{name}_se_reduce",
    )(gate)
    gate = layers.Dense(channels, "sigmoid", dtype=dtype, name=f"{name}_se_expand")(gate)
    return layers.Multiply(dtype=dtype, name=f"{name}_se_scale")([x, gate])


def build_resnet(
    num_residual_blocks=3,
    form="v1",
    *,
    weights=None,
    include_top=True,
    input_shape=(32, 32, 3),
    input_tensor=None,
    pooling="avg",
    classes=10,
    classifier_activation="softmax",
    shortcut=None,
    squeeze_excitation=0,
    block_dropout=0.0,
    stochastic_depth=0.0,
    zero_last_gamma=False,
    maxout=0,
    preprocessing=None,
    dtype=None,
    name=None,
):
    """Builds a residual network of depth 6n+2 (He 2015, section 4.2; Liang 2020, section 2), or 9n+2 with bottlenecks (He 2016).

    A 3x3 convolution, then three stages of n blocks with 16, 32 and 64 filters (bottlenecks give four times as many) on maps
    of full, half and quarter size, then global average pooling and a dense layer. Convolutions have no bias. Stride 2 sits in
    the first convolution of stages 2 and 3.

    Args:
        num_residual_blocks: n, blocks per stage, int >= 1 (3 -> ResNet-20, 18 -> ResNet-110, or 164 with bottlenecks).
        form: one of `FORMS`, see the table at the head of this file.
        weights: None = random; "cifar10" = the shipped weights, 32x32x3, or with `include_top` False any size with three channels;
            or the path of a `.keras` or `.weights.h5` file of the same network.
        include_top: False = end before the dense layer, as `pooling` says.
        input_shape: (height, width, channels), height and width >= 8.
        input_tensor: Keras tensor [batch, height, width, channels] to build the network on, an `Input` or the output of a layer;
            None = a new `Input`. Its shape then stands for `input_shape`.
        pooling: what ends the network with `include_top` False: "avg" = global average pooling, output [batch, 64] or, with
            bottlenecks, [batch, 256]; "max" = global maximum pooling; None = the map [batch, height / 4, width / 4, 64 or 256],
            rounded up. With `include_top` it is always "avg".
        classes: width of the output, int >= 1. With "cifar10" and another number than 10 the dense layer begins random, and all
            layers before it have the shipped weights.
        classifier_activation: "softmax", or None for logits.
        shortcut: "A" = subsample + zero channels, no weights (the paper's choice on CIFAR); "B" = 1x1 convolution, in v1
            with BN (+2,752 trainable parameters), in v2 without (+2,560). None = "B" with bottlenecks, which have no other,
            else "A". preact and plain have no "B".
        squeeze_excitation: 0 = off; r >= 1 = squeeze-and-excitation at the end of each residual branch with a hidden layer of
            max(1, channels // r) units (Hu et al. 2018, arXiv:1709.01507).
        block_dropout: share 0..<1 of the values dropped before the last convolution of each block (Zagoruyko & Komodakis
            2016, arXiv:1605.07146, section 2.4).
        stochastic_depth: probability 0..<1 that the residual branch of the last block is left out in training, for each image
            alone; it rises linearly from block to block (Huang et al. 2016, arXiv:1603.09382). Not for plain.
        zero_last_gamma: the last BN of each block begins with gamma 0, so that each block begins as the identity (Goyal et
            al. 2017, arXiv:1706.02677, section 5.1). v1 only: in the others no BN stands there.
        maxout: 0 = off; k >= 2 = a hidden layer of as many maxout units as there are pooled channels, each the largest of k
            linear functions, before the classifier (Goodfellow et al. 2013, arXiv:1302.4389).
        preprocessing: layer put before the network, such as `PixelNormalization`. None = the one that stands in the file of
            `weights`, or none; `keras.layers.Identity()` = none in any case. "cifar10" allows no other than its own.
        dtype: dtype policy of the layers, e.g. "mixed_bfloat16"; None = Keras' global policy. Pooling and the dense layers are
            always float32, and so are the sums of preact and v2, which pass from block to block without normalisation, unless
            the global policy is another.
        name: name of the model; None = "resnet20", "resnet20_preact", "plain20", "resnet20_v2", "resnet164_v2", ...

    Returns:
        keras.Model. Input [batch, height, width, channels], RGB; raw pixels 0..255 with `preprocessing` or the
        weights of a trained model, otherwise normalised pixels. Output float32 [batch, classes], or what `pooling` says.

    Raises:
        ValueError: an argument out of its range, or weights of another network.

    Example:
        import numpy as np
        from resnet import build_resnet

        features = build_resnet(3, "v1", weights="cifar10", include_top=False, pooling=None, input_shape=(64, 64, 3))
        images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3))  # raw pixels
        print(features(images).shape)  # (2, 16, 16, 64)

    Differs from the papers: v1 draws weights by He's normal rule over the fan-in, as He 2015 writes; his program used the
    fan-out. preact: Liang's program never averages batch statistics and so tests with those of the test batch; we keep
    moving averages (momentum 0.9). v2: He 2016 does not say which shortcut its networks of depth 6n+2 have; "A" is that of He
    2015.
    stochastic_depth: Huang et al. leave a branch out for a whole batch and shrink it in testing; we do it for each image and
    enlarge what stays by 1 / (1 - probability), so that testing needs nothing.
    """
    bottleneck = form == "bottleneck_v2"
    input_shape = _find_shape(input_shape, input_tensor)
    shortcut = shortcut or ("B" if bottleneck else "A")
    _check_arguments(num_residual_blocks, form, weights, include_top, input_shape, classes, shortcut, preprocessing)
    _check_options(form, squeeze_excitation, block_dropout, stochastic_depth, zero_last_gamma, maxout)
    _check_pooling(pooling)
    if maxout and not include_top and pooling is None:
        raise ValueError(
            "maxout needs pooled features, received pooling None; use pooling 'avg' or 'max', or leave it out"
        )
    preact = form == "preact"
    source, preprocessing = open_weights(weights, preprocessing, _SHIPPED.get((num_residual_blocks, form)))
    regular = "glorot_uniform" if preact else "he_normal"

    def conv(filters, size, stride, layer_name, padding="same"):
        return layers.Conv2D(
            filters, size, stride, padding, use_bias=False, kernel_initializer=regular, dtype=dtype, name=layer_name
        )

    def norm(layer_name, last=False):
        gamma = "zeros" if last and zero_last_gamma else "ones"
        return FusedBatchNormalization(
            momentum=0.9, epsilon=1e-3 if preact else 1e-5, gamma_initializer=gamma, dtype=dtype, name=layer_name
        )

    def relu(layer_name):
        return layers.ReLU(dtype=dtype, name=layer_name)

    def drop(x, block_name):
        return layers.Dropout(block_dropout, dtype=dtype, name=f"{block_name}_dropout")(x) if block_dropout else x

    def finish(residual, block_name):
        """What stands between the last layer of a residual branch and the addition."""
        if squeeze_excitation:
            residual = _squeeze_and_excite(residual, squeeze_excitation, block_name, dtype)
        if stochastic_depth:
            place = (stage - 1) * num_residual_blocks + index
            probability = stochastic_depth * place / (len(FILTERS) * num_residual_blocks)
            residual = layers.Dropout(
                probability, noise_shape=(None, 1, 1, 1), dtype=dtype, name=f"{block_name}_stochastic_depth"
            )(residual)
        return residual

    inputs = layers.Input(input_shape, name="image") if input_tensor is None else input_tensor
    x = inputs if preprocessing is None else preprocessing(inputs)
    x = conv(FILTERS[0], 3, 1, "stem_conv")(x)
    if not form.endswith("v2"):
        x = relu("stem_relu")(norm("stem_bn")(x))
    block = {"preact": _preact_block, "v2": _v2_block, "bottleneck_v2": _v2_block}.get(form, _residual_block)
    block = functools.partial(block, conv=conv, norm=norm, relu=relu, drop=drop, finish=finish, dtype=dtype)
    for stage, filters in enumerate(FILTERS, start=1):
        for index in range(1, num_residual_blocks + 1):
            if preact:
                special = {"first": stage == index == 1}
            elif form.endswith("v2"):
                special = {"begins_stage": index == 1, "bottleneck": bottleneck, "shortcut": shortcut}
            else:
                special = {"shortcut": None if form == "plain" else shortcut}
            x = block(x, filters, 2 if stage > 1 and index == 1 else 1, f"stage{stage}_block{index}", **special)
    if preact or form.endswith("v2"):
        x = relu("head_relu")(norm("head_bn")(x))
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="average_pool", dtype="float32")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool", dtype="float32")(x)
    if maxout:
        units = x.shape[-1]
        x = layers.Dense(maxout * units, kernel_initializer=regular, dtype="float32", name="maxout_pieces")(x)
        x = layers.Reshape((maxout, units), dtype="float32", name="maxout_reshape")(x)
        x = layers.GlobalMaxPooling1D(dtype="float32", name="maxout")(x)
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
        depth = (9 if bottleneck else 6) * num_residual_blocks + 2
        name = ("plain" if form == "plain" else "resnet") + f"{depth}"
        name += {"preact": "_preact", "v2": "_v2", "bottleneck_v2": "_v2"}.get(form, "")
    return _make_model(inputs, x, name, source, has_new_head=weights == "cifar10" and classes != 10)


def _find_shape(input_shape, input_tensor):
    if input_tensor is None:
        return input_shape
    if not isinstance(input_tensor, keras.KerasTensor) or len(input_tensor.shape) != 4:
        raise ValueError(
            f"input_tensor must be a Keras tensor [batch, height, width, channels], received {input_tensor!r}; give keras.Input(...) "
            "or the output of a layer"
        )
    return tuple(input_tensor.shape[1:])


def _make_model(start, end, name, source, has_new_head):
    """The model from the inputs behind `start` to `end`, the layers between these two filled from `source`."""
    inputs = keras.utils.get_source_inputs(start)
    model = keras.Model(inputs[0] if len(inputs) == 1 else inputs, end, name=name)
    if source is not None:
        # What the caller put before the network is not in the source.
        network = model if any(start is tensor for tensor in inputs) else keras.Model(start, end, name=name)
        load_weights(network, source, fresh=("predictions",) if has_new_head else ())
    return model


def _check_pooling(pooling):
    if pooling not in (None, "avg", "max"):
        raise ValueError(f"pooling must be None, 'avg' or 'max', received {pooling!r}")


def _check_for_shipped(input_shape, include_top, preprocessing):
    if tuple(input_shape) != (32, 32, 3) and (include_top or input_shape[2] != 3):
        raise ValueError(
            "weights='cifar10' need input_shape (32, 32, 3) or, with include_top=False, any size with 3 channels; received "
            f"{tuple(input_shape)}"
        )
    if preprocessing is not None:
        raise ValueError("weights='cifar10' bring their own preprocessing; leave the argument out")


def _check_arguments(num_residual_blocks, form, weights, include_top, input_shape, classes, shortcut, preprocessing):
    if not isinstance(num_residual_blocks, int) or num_residual_blocks < 1:
        raise ValueError(
            f"num_residual_blocks must be an int >= 1, received {num_residual_blocks!r}; use 3 for ResNet-20"
        )
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, received {form!r}")
    possible = {"v1": ("A", "B"), "v2": ("A", "B"), "bottleneck_v2": ("B",)}.get(form, ("A",))
    if shortcut not in possible:
        raise ValueError(f"shortcut must be {' or '.join(possible)} with form {form!r}, received {shortcut!r}")
    _check_sizes(input_shape, classes, least=8)
    if weights == "cifar10":
        if (num_residual_blocks, form) not in _SHIPPED or shortcut != "A":
            known = ", ".join(f"n={blocks} {kind}" for blocks, kind in _SHIPPED)
            raise ValueError(
                f"weights='cifar10' are shipped for {known} with shortcut 'A'; received n={num_residual_blocks} {form}, "
                f"'{shortcut}'; train your own"
            )
        _check_for_shipped(input_shape, include_top, preprocessing)


def _check_sizes(input_shape, classes, least):
    if len(input_shape) != 3 or None in input_shape or min(input_shape[:2]) < least or input_shape[2] < 1:
        raise ValueError(
            f"input_shape must be (height >= {least}, width >= {least}, channels >= 1), received {tuple(input_shape)}"
        )
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"classes must be an int >= 1, received {classes!r}")


def build_resnet9(
    *,
    weights=None,
    include_top=True,
    input_shape=(32, 32, 3),
    input_tensor=None,
    pooling="max",
    classes=10,
    classifier_activation="softmax",
    preprocessing=None,
    dtype=None,
    name="resnet9",
):
    """Builds a wide residual network of nine trained convolutions for short trainings on CIFAR-10.

    layer                                                            output (32 x 32 input)
    2x2 patch whitening with fixed filters, bias, ReLU               31 x 31 x 24
    3x3 convolution, 2x2 max pooling, BN, ReLU; residual block       15 x 15 x 64
    3x3 convolution, 2x2 max pooling, BN, ReLU; residual block       7 x 7 x 256
    3x3 convolution, 2x2 max pooling, BN, ReLU; residual block       3 x 3 x 256
    global max pooling, divided by 9, dense                          10

    A residual block is ReLU(x + BN(conv(ReLU(BN(conv(x)))))). 3,188,450 parameters are trained, 161 million multiply-adds an
    image. The layout follows Page 2019 ("How to train your ResNet"), the stem, the pooling before BN, BN without gamma, the
    kernels that begin as copies and the head Jordan 2024 (arXiv:2404.00498); the widths and the residual blocks are ours.

    The filters of the first layer are set by training images: `PatchWhitening.adapt`, which `cifar10_train.Train` calls.

    Args:
        weights: None = random; "cifar10" = the shipped weights, in half precision, 32x32x3, or with `include_top` False any size
            with three channels; or the path of a `.keras` or `.weights.h5` file of the same network.
        include_top: False = end before the dense layer, as `pooling` says.
        input_shape: (height, width, channels), height and width >= 16.
        input_tensor: Keras tensor [batch, height, width, channels] to build the network on, an `Input` or the output of a layer;
            None = a new `Input`. Its shape then stands for `input_shape`.
        pooling: what ends the network with `include_top` False: "max" = global maximum pooling, divided by 9, output [batch, 256];
            "avg" = global average pooling; None = the map [batch, (height - 1) // 8, (width - 1) // 8, 256]. With `include_top` it
            is always "max".
        classes: width of the output, int >= 1. With "cifar10" and another number than 10 the dense layer begins random, and all
            layers before it have the shipped weights.
        classifier_activation: "softmax", or None for logits.
        preprocessing: layer put before the network, such as `PixelNormalization`. None = the one that stands in the file of
            `weights`, or none; `keras.layers.Identity()` = none in any case. "cifar10" allows no other than its own.
        dtype: dtype policy of all layers, e.g. "mixed_bfloat16"; None = Keras' global policy.
        name: name of the model.

    Returns:
        keras.Model. Input [batch, height, width, channels], RGB; raw pixels 0..255 with `preprocessing` or the
        weights of a trained model, otherwise normalised pixels. Output float32 [batch, classes], or what `pooling` says.

    Raises:
        ValueError: an argument out of its range, or weights of another network.

    Example:
        import numpy as np
        from resnet import build_resnet9

        model = build_resnet9(weights="cifar10", classes=3)  # the dense layer is new
        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))  # raw pixels
        print(model(images).shape)  # (2, 3)
    """
    input_shape = _find_shape(input_shape, input_tensor)
    _check_sizes(input_shape, classes, least=16)
    _check_pooling(pooling)
    if weights == "cifar10":
        _check_for_shipped(input_shape, include_top, preprocessing)
    source, preprocessing = open_weights(weights, preprocessing, "resnet9_cifar10.keras")

    def convolve(x, filters, layer_name, pool=False):
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer=PartialIdentity(),
            dtype=dtype,
            name=f"{layer_name}_conv",
        )(x)
        if pool:
            x = layers.MaxPooling2D(2, dtype=dtype, name=f"{layer_name}_pool")(x)
        return FusedBatchNormalization(momentum=0.8, epsilon=1e-5, scale=False, dtype=dtype, name=f"{layer_name}_bn")(x)

    def relu(x, layer_name):
        return layers.ReLU(dtype=dtype, name=f"{layer_name}_relu")(x)

    inputs = layers.Input(input_shape, name="image") if input_tensor is None else input_tensor
    x = inputs if preprocessing is None else preprocessing(inputs)
    x = relu(PatchWhitening(input_shape[2], dtype=dtype, name="stem_whitening")(x), "stem")
    for stage, filters in enumerate((64, 256, 256), start=1):
        x = relu(convolve(x, filters, f"stage{stage}", pool=True), f"stage{stage}")
        residual = relu(convolve(x, filters, f"stage{stage}_block1_1"), f"stage{stage}_block1_1")
        residual = convolve(residual, filters, f"stage{stage}_block1_2")
        x = relu(layers.Add(name=f"stage{stage}_block1_add", dtype=dtype)([x, residual]), f"stage{stage}_block1_2")
    if include_top or pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool", dtype="float32")(x)
        x = layers.Rescaling(1 / 9, name="scale", dtype="float32")(x)
    elif pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="average_pool", dtype="float32")(x)
    if include_top:
        x = layers.Dense(classes, activation=classifier_activation, dtype="float32", name="predictions")(x)
    return _make_model(inputs, x, name, source, has_new_head=weights == "cifar10" and classes != 10)


def _check_options(form, squeeze_excitation, block_dropout, stochastic_depth, zero_last_gamma, maxout):
    for argument, value, least in (("squeeze_excitation", squeeze_excitation, 1), ("maxout", maxout, 2)):
        if not isinstance(value, int) or (value and value < least):
            raise ValueError(f"{argument} must be 0 or an int >= {least}, received {value!r}")
    for argument, value in (("block_dropout", block_dropout), ("stochastic_depth", stochastic_depth)):
        if not 0 <= value < 1:
            raise ValueError(f"{argument} must be at least 0 and below 1, received {value!r}")
    if stochastic_depth and form == "plain":
        raise ValueError("stochastic_depth needs a network with shortcuts, received form 'plain'; leave it out")
    if zero_last_gamma and form != "v1":
        raise ValueError(f"zero_last_gamma needs form 'v1', received {form!r}; leave it out")


def _builder_of(function_name, num_residual_blocks, form, summary):
    """`build_resnet` with its first two arguments fixed, as a function whose signature and docstring `help` can show."""
    signature = inspect.signature(build_resnet)
    left = [value for key, value in signature.parameters.items() if key not in ("num_residual_blocks", "form")]
    signature = signature.replace(parameters=left)

    def build(**arguments):
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise TypeError(f"{function_name}(): {error}") from None
        return build_resnet(num_residual_blocks, form, **arguments)

    build.__name__ = build.__qualname__ = function_name
    build.__signature__ = signature
    explained = build_resnet.__doc__ or ""  # python -OO leaves no docstring
    explained = explained[explained.find("        weights: ") : explained.find("    Example:")]
    build.__doc__ = f"""{summary}

    It is `build_resnet({num_residual_blocks}, "{form}")` under a name of its own, and takes the other arguments of that.

    Example:
        import resnet
        model = resnet.{function_name}(classes=10)

    Args:
{explained.rstrip()}
    """
    return build


build_resnet20 = _builder_of(
    "build_resnet20",
    3,
    "v1",
    "Builds ResNet-20: 269,722 trainable parameters, published test error on CIFAR-10 8.75 %.",
)
build_resnet32 = _builder_of(
    "build_resnet32",
    5,
    "v1",
    "Builds ResNet-32: 464,154 trainable parameters, published test error on CIFAR-10 7.51 %.",
)
build_resnet44 = _builder_of(
    "build_resnet44",
    7,
    "v1",
    "Builds ResNet-44: 658,586 trainable parameters, published test error on CIFAR-10 7.17 %.",
)
build_resnet56 = _builder_of(
    "build_resnet56",
    9,
    "v1",
    "Builds ResNet-56: 853,018 trainable parameters, published test error on CIFAR-10 6.97 %.",
)
build_resnet110 = _builder_of(
    "build_resnet110",
    18,
    "v1",
    "Builds ResNet-110: 1,727,962 trainable parameters, published test error on CIFAR-10 6.43 %.",
)
build_resnet164_v2 = _builder_of(
    "build_resnet164_v2",
    18,
    "bottleneck_v2",
    "Builds ResNet-164 of pre-activation bottlenecks: 1,703,258 trainable parameters, published test error on CIFAR-10 5.46 %.",
)
build_resnet1001_v2 = _builder_of(
    "build_resnet1001_v2",
    111,
    "bottleneck_v2",
    "Builds ResNet-1001 of pre-activation bottlenecks: 10,327,706 trainable parameters, published test error on CIFAR-10 4.92 %.",
)
