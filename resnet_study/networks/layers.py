"""The layers that Keras lacks: pixel normalisation, zero channels, patch whitening, batch normalisation as one fused operation.

Importing this module registers them, so that `keras.models.load_model` reads networks made of them.
"""

import warnings

import keras
import numpy as np
import tensorflow as tf

from resnet_study.devices import check_keras
from resnet_study.errors import UsageError

try:
    check_keras()
except UsageError as error:  # in a notebook: the command lines have checked before
    raise ImportError(str(error)) from None


def finalize_layers(model: keras.Model) -> None:
    """Lets layers compute with weights that were assigned: `keras.layers.Normalization` does so with constants, made when Keras loads a file."""
    for layer in model._flatten_layers(include_self=False):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


@keras.saving.register_keras_serializable("resnet")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` over the channels, computed by one fused operation.

    The plain layer (Keras 3.15, TensorFlow backend) is built from about ten small operations, each a pass over the
    activations. TensorFlow's `FusedBatchNormV3` is one, and keeps bfloat16 activations in bfloat16.

    Input and output: [batch, height, width, channels], channels last. Same weights, same results within float
    tolerance, same moving statistics as the plain layer. Under a `tf.distribute` strategy with several replicas the
    statistics are those of the whole batch, by plain operations.

    `scale=False` (no gamma) works: the operation gets ones. So do the policies "bfloat16" and "float16", which keep the weights and
    the moving statistics in these types.

    Raises:
        ValueError: for an option the fused operation lacks (no center, other axis, masks, synchronized, renorm).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        renorm = getattr(self, "renorm", False)  # which Keras has since 3.13
        if self.axis not in (-1, 3) or not self.center or self.synchronized or renorm:
            raise ValueError(
                "FusedBatchNormalization needs axis -1, center, synchronized=False and renorm=False, received "
                f"axis={self.axis}, center={self.center}, synchronized={self.synchronized}, renorm={renorm}; "
                "use keras.layers.BatchNormalization"
            )

    def call(self, inputs, training=None, mask=None):
        if mask is not None:
            raise ValueError("FusedBatchNormalization takes no mask; use keras.layers.BatchNormalization")
        if self.compute_dtype == "float64":  # which the operation lacks
            return super().call(inputs, training=training)
        inputs = tf.cast(inputs, self.compute_dtype)
        # The operation takes its scale, offset and statistics in float32 only, whatever the policy keeps them in.
        offset = tf.cast(self.beta.value, tf.float32)
        scale = tf.cast(self.gamma.value, tf.float32) if self.scale else tf.ones_like(offset)
        moving = [tf.cast(weight.value, tf.float32) for weight in (self.moving_mean, self.moving_variance)]
        if not (training and self.trainable):
            mean, variance = moving
            return tf.raw_ops.FusedBatchNormV3(
                x=inputs,
                scale=scale,
                offset=offset,
                mean=mean,
                variance=variance,
                epsilon=self.epsilon,
                is_training=False,
            ).y
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            output, mean, variance = self._normalize_over_replicas(inputs, scale, offset)
        else:
            output, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=inputs, scale=scale, offset=offset, mean=[], variance=[], epsilon=self.epsilon, is_training=True
            )
            count = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
            # The operation returns the unbiased variance; Keras averages the biased one.
            variance = variance * (count - 1) / count
        keep = self.momentum
        for weight, old, new in zip((self.moving_mean, self.moving_variance), moving, (mean, variance), strict=True):
            weight.assign(tf.cast(old * keep + new * (1 - keep), weight.dtype))
        return output

    def _normalize_over_replicas(self, inputs, scale, offset):
        """Statistics of the whole batch, which the replicas share, so that their number does not change the result."""
        values = tf.cast(inputs, tf.float32)
        context, add = tf.distribute.get_replica_context(), tf.distribute.ReduceOp.SUM
        count = tf.cast(tf.size(values) / values.shape[-1], tf.float32)
        total, count = context.all_reduce(add, [tf.reduce_sum(values, (0, 1, 2)), count])
        mean = total / count
        # From the mean, and not as the mean of the squares less its square: that could be negative by rounding.
        variance = context.all_reduce(add, tf.reduce_sum((values - mean) ** 2, (0, 1, 2))) / count
        output = tf.nn.batch_normalization(values, mean, variance, offset, scale, self.epsilon)
        return tf.cast(output, self.compute_dtype), mean, variance


@keras.saving.register_keras_serializable("resnet")
class PixelNormalization(keras.layers.Layer):
    """Brings raw pixels of 0..255 to the range a network was trained on; the first layer of every trained model of the library.

    Input: [batch, height, width, channels], any number type, values 0..255, RGB order. Output: float32, same shape.

    Args:
        mean: number, list [channels] or list [height, width, channels] subtracted from the pixels, 0..255.
        scale: number or list [channels] the difference is divided by, 0..255.
        per_image: True = per-image standardisation: subtract each image's own mean and divide by its own standard deviation, the
            latter at least 1/sqrt(number of values) (Liang's program, `whitening_image`); `mean` and `scale` are then ignored.
    """

    def __init__(self, mean=0.0, scale=255.0, per_image=False, **kwargs):
        # Always float32: 256 grey values do not fit the 8 significant bits of bfloat16.
        super().__init__(**{"trainable": False, **kwargs, "dtype": "float32"})
        # NumPy's arrays would be saved in a form that cannot be computed with afterwards.
        self.mean, self.scale = (np.asarray(value, float).tolist() for value in (mean, scale))
        self.per_image = per_image

    @property
    def kind(self) -> str:
        """What `--normalization` calls it."""
        if self.per_image:
            return "image_standard"
        if np.ndim(self.mean) > 1:
            return "pixel_mean"
        return "channel_mean" if np.all(np.equal(self.scale, 255)) else "channel_standard"

    def call(self, images):
        shape = images.shape
        if getattr(shape, "rank", 4) is not None and len(shape) == 4:
            self._check(shape)
        images = keras.ops.cast(images, "float32")
        if not self.per_image:
            mean, scale = (keras.ops.convert_to_tensor(value, "float32") for value in (self.mean, self.scale))
            return (images - mean) / scale
        mean, variance = keras.ops.moments(images, axes=(1, 2, 3), keepdims=True)
        height, width, channels = keras.ops.shape(images)[1:]  # tensors where the size is open
        values = height * width * channels
        smallest = values**-0.5 if isinstance(values, int) else keras.ops.rsqrt(keras.ops.cast(values, "float32"))
        return (images - mean) / keras.ops.maximum(keras.ops.sqrt(variance), smallest)

    def _check(self, shape):
        """Raises ValueError for images that the constants would broadcast to another shape."""
        constants, sizes = np.broadcast_shapes(np.shape(self.mean), np.shape(self.scale)), tuple(shape[1:])
        fits = len(constants) <= len(sizes) and all(
            size in (1, given) or given is None for size, given in zip(constants[::-1], sizes[::-1], strict=False)
        )
        if not self.per_image and not fits:
            raise ValueError(
                f"expected images of the size of the constants of PixelNormalization, {constants}, received {sizes}; give images of that "
                "size, or a PixelNormalization with one mean and scale for each channel"
            )

    def compute_output_spec(self, images):
        self._check(images.shape)
        return keras.KerasTensor(images.shape, "float32")

    def save_own_variables(self, store):
        """Keeps the constants beside the weights: a `.weights.h5` file has no config, and is worth nothing without them."""
        # float64, which `halve_weights` leaves alone.
        for name in ("mean", "scale", "per_image"):
            store[name] = np.asarray(getattr(self, name), np.float64)

    def load_own_variables(self, store):
        """Takes nothing: a layer that was built with constants keeps these. `networks.weights.open_weights` reads the stored ones. Warns where
        they differ.
        """
        own = {"mean": self.mean, "scale": self.scale, "per_image": self.per_image}
        stored = {name: np.asarray(store[name]) for name in own if name in store}
        if any(
            value.shape != np.shape(own[name]) or not np.allclose(value, own[name]) for name, value in stored.items()
        ):
            warnings.warn(
                f"the weights belong to pixels normalised by other constants than those of the layer {self.name}, which stay; load them by the weights= of "
                "a builder, which takes theirs",
                stacklevel=2,
            )

    def get_config(self):
        return super().get_config() | {"mean": self.mean, "scale": self.scale, "per_image": self.per_image}


@keras.saving.register_keras_serializable("flowers")
class CaffePreprocessing(PixelNormalization):
    """What the ImageNet weights of ResNet50 expect: RGB becomes BGR, minus the mean colour of ImageNet, not scaled.

    Input: [batch, height, width, RGB], any number type, 0..255. Output: float32, same shape, BGR, about -124..152. Equal to
    `keras.applications.resnet.preprocess_input`.
    """

    def __init__(self, mean=(123.68, 116.779, 103.939), scale=1.0, **kwargs):  # red, green, blue
        super().__init__(mean, scale, **kwargs)

    def call(self, images):
        return super().call(images)[..., ::-1]


@keras.saving.register_keras_serializable("resnet")
class ZeroPadChannels(keras.layers.Layer):
    """Adds channels of zeros, half before and half after the given ones.

    Input: [batch, height, width, channels]. Output: [batch, height, width, filters].
    He 2015 leaves open on which side the zeros stand; Liang's program puts half on each, and so do we in both forms.
    """

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def call(self, inputs):
        missing = self.filters - inputs.shape[-1]
        return keras.ops.pad(inputs, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return super().get_config() | {"filters": self.filters}


@keras.saving.register_keras_serializable("resnet")
class LocalResponseNormalization(keras.layers.Layer):
    """Divides each value by a power of the energy of its neighbours among the channels (Krizhevsky et al. 2012, section 3.3).

    Input and output: [batch, height, width, channels]. The constants are the paper's: k 2, n 5, alpha 1e-4, beta .75.
    """

    def call(self, inputs):
        values = tf.nn.local_response_normalization(tf.cast(inputs, tf.float32), 2, bias=2.0, alpha=1e-4, beta=0.75)
        return tf.cast(values, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("resnet")
class PartialIdentity(keras.initializers.Initializer):
    """Kernels [height, width, channels, filters] whose first filters copy a channel each.

    A deep network so begins near a shallow one (Jordan 2024, arXiv:2404.00498, section 3.3). The other filters are drawn with a
    sixth of the variance of He's rule: batch norm undoes the scale, and a small kernel turns faster.
    """

    def __init__(self, seed=None):
        self.seed = seed
        self._random = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed)

    def __call__(self, shape, dtype=None):
        height, width, channels, filters = shape
        kernel = np.array(self._random(shape, dtype))
        copied = np.arange(min(channels, filters))
        kernel[..., copied] = 0
        kernel[height // 2, width // 2, copied, copied] = 1
        return keras.ops.convert_to_tensor(kernel, dtype)

    def get_config(self):
        return {"seed": self.seed}


@keras.saving.register_keras_serializable("resnet")
class PatchWhitening(keras.layers.Conv2D):
    """A convolution whose filters are fixed: they make the pixels of a patch uncorrelated and of equal variance.

    Each direction of the patches comes with its negative, so that a ReLU behind the layer loses nothing. Only the bias is
    trained, and with one channel not even that. After Page 2019 ("How to train your ResNet 8: bag of tricks") and Jordan 2024
    (arXiv:2404.00498, section 3.2).

    Input: [batch, height, width, channels]. Output: [batch, height - size + 1, width - size + 1, 2 * size * size * channels].

    Args:
        channels: channels of the input.
        size: height and width of a patch, pixels.
        epsilon: added to the variance of each direction, so that noise is not blown up.
    """

    def __init__(self, channels, size=2, epsilon=5e-4, **kwargs):
        for name in ("filters", "kernel_size", "strides", "padding", "use_bias"):  # follow from the other arguments
            kwargs.pop(name, None)
        super().__init__(2 * size * size * channels, size, padding="valid", use_bias=True, **kwargs)
        self.channels, self.size, self.epsilon = channels, size, epsilon

    def build(self, input_shape):
        super().build(input_shape)
        self._fix_filters()

    def _fix_filters(self):
        self.kernel.trainable = False
        # The margins of digits are all alike: there the bias grew past 1,000, and the statistics of batch norm no longer fitted.
        self.bias.trainable = self.bias.trainable and self.channels > 1

    @property
    def trainable(self):
        return super().trainable

    @trainable.setter
    def trainable(self, value):
        """As of Keras, which lets all variables train again; the filters stay as they are."""
        keras.layers.Layer.trainable.fset(self, value)
        if self.built:
            self._fix_filters()

    def adapt(self, images):
        """Sets the filters by the patches of some training images; until then they are random.

        Args:
            images: [n, height, width, channels], normalised as the input of the layer will be.
        """
        if np.ndim(images) != 4 or not len(images) or np.shape(images)[3] != self.channels:
            raise ValueError(
                f"images must be [n, height, width, {self.channels}] with n above 0, received shape {np.shape(images)}"
            )
        count, sums, products = 0, 0.0, 0.0
        for start in range(0, len(images), 500):  # all patches at once would take more memory than the training
            part = np.asarray(images[start : start + 500], np.float64)
            windows = np.lib.stride_tricks.sliding_window_view(part, (self.size, self.size), axis=(1, 2))
            patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, self.size * self.size * self.channels)
            count, sums, products = count + len(patches), sums + patches.sum(axis=0), products + patches.T @ patches
        variances, directions = np.linalg.eigh(products / count - np.outer(sums / count, sums / count))
        filters = directions / np.sqrt(variances + self.epsilon)
        self.kernel.assign(np.concatenate([filters, -filters], axis=1).reshape(self.kernel.shape))

    def get_config(self):
        return super().get_config() | {"channels": self.channels, "size": self.size, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("resnet")
def sigmoid_gelu(x):
    """x * sigmoid(1.702 x), the short form of GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2), of a tensor of any shape."""
    return _sigmoid_gelu(x)


@tf.custom_gradient
def _sigmoid_gelu(x):
    gate = tf.sigmoid(1.702 * x)
    # TensorFlow's own gradient takes twice as many passes over the maps.
    return x * gate, lambda upstream: upstream * (gate + 1.702 * x * gate * (1 - gate))
