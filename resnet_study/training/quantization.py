"""Training that reckons with 8 bits: a forward pass in which kernels and maps are rounded as in an int8 file.

After Jacob et al. 2018 (arXiv:1712.05877), section 3.
"""

import keras
from keras import ops

from resnet_study.networks.first_and_last import find_first_and_last, list_operations
from resnet_study.networks.fold_batch_norm import find_pairs

_SMALLEST = 1e-6  # of a range, which must not be empty


def imitate_int8(model: keras.Model) -> keras.Model:
    """A network on the weights of another one that computes as the int8 file which is exported of that, as ONNX: LiteRT's has sums of blocks in float32.

    Batch normalisation is that of a test, folded into the convolution before it where `fold_batch_norm` folds it. Kernels are rounded
    channel by channel. Maps are rounded before each layer that reads them but activations, by their range in the batch. The first and the
    last layers with weights, what is before those and what is behind these are not rounded. Gradients pass as if nothing were rounded, where values lie within the range.

    Args:
        model: functional network in float32 that uses each layer once; it is not changed.
    """
    convolutions = find_pairs(model)
    norms = {convolution: norm for norm, convolution in convolutions.items()}
    kept = find_first_and_last(list_operations(model))
    in_float = {model.operations[place] for place in kept}
    rounded = {}

    def read(tensor):
        if id(tensor) not in rounded:
            rounded[id(tensor)] = _round(tensor, ops.min(tensor), ops.max(tensor))
        return rounded[id(tensor)]

    def call_layer(layer, inputs, *arguments, **options):
        if layer in convolutions:
            return inputs
        rounds = layer not in in_float
        if rounds and not isinstance(layer, keras.layers.ReLU | keras.layers.Activation):
            inputs = keras.tree.map_structure(read, inputs)
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense | keras.layers.BatchNormalization):
            return _AsInt8(layer, norms.get(layer), rounds)(inputs)
        return layer(inputs, *arguments, **options)

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call_layer)


class _AsInt8(keras.layers.Layer):
    """A layer with its kernel rounded or not, and the batch normalisation behind it; batch normalisation alone is that of a test."""

    def __init__(self, layer, norm, rounds):
        super().__init__()
        self.layer, self.norm, self.rounds = layer, norm, rounds

    def call(self, inputs):
        layer, norm = self.layer, self.norm
        if isinstance(layer, keras.layers.BatchNormalization):
            return layer(inputs, training=False)
        factor, offset = 1.0, 0.0
        if norm:
            factor = (norm.gamma if norm.scale else 1.0) / ops.sqrt(norm.moving_variance + norm.epsilon)
            offset = (norm.beta if norm.center else 0.0) - norm.moving_mean * factor
            offset += (layer.bias if layer.use_bias else 0.0) * (factor - 1)
        kernel = layer.kernel * factor
        if self.rounds:
            largest = ops.max(ops.abs(kernel), axis=tuple(range(len(kernel.shape) - 1)))
            kernel = _round(kernel, -largest, largest, narrow_range=True, axis=-1)
        with keras.StatelessScope(state_mapping=[(layer.kernel, kernel)]):
            return layer(inputs) + offset


def _round(values, low, high, **options):
    low, high = ops.minimum(low, -_SMALLEST), ops.maximum(high, _SMALLEST)
    return keras.quantizers.fake_quant_with_min_max_vars(
        values, ops.stop_gradient(low), ops.stop_gradient(high), **options
    )
