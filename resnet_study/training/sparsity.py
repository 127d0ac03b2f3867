"""Unstructured pruning: the smallest weights become 0 while the network trains on.

How many are 0 rises as in Zhu & Gupta 2017 (arXiv:1710.01878). Until that has ended, what is 0 moves on with all others, and which are the
smallest is asked anew each time: iterative hard thresholding, Jin et al. 2016 (arXiv:1607.05423). A weight that was set to 0 too early comes back.
"""

import keras
import tensorflow as tf

_TIMES = 50  # that weights are pruned
_ENDS = 0.75  # share of the steps after which as many are 0 as are asked for


class MagnitudePruning:
    """Sets weights of all convolutions but the first to 0, over the whole network the smallest, and in the end keeps them there; parts
    of the compiled step. What is 0 is the mask: a checkpoint needs no other.
    """

    def __init__(self, model, averages, sparsity: float, train_steps: int):
        """`sparsity`: share of the weights that are 0 at the end; `averages`: of `model.weights`, or []."""
        convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)][1:]
        self._kernels = [layer.kernel for layer in convolutions]
        places = {id(variable): place for place, variable in enumerate(model.weights)}
        self._averages = [averages[places[id(kernel)]] for kernel in self._kernels] if averages else []
        self._sparsity, self._end = sparsity, max(1, int(_ENDS * train_steps))
        self._every = max(1, self._end // _TIMES)

    def find_kept(self, count) -> list:
        """Which weights the optimizer may move; `count`: tensor, the steps so far."""
        return [tf.logical_or(kernel.value != 0, count < self._end) for kernel in self._kernels]

    def prune(self, kept, count) -> None:
        """Sets what is not `kept` to 0, and in some steps more; the averages, too. `count`: tensor, the steps so far, with this one."""
        kept = tf.cond(
            tf.logical_or(count % self._every == 0, count == self._end),
            lambda: self._find_largest(kept, count),
            lambda: kept,
        )
        for variables in filter(None, (self._kernels, self._averages)):
            for variable, mask in zip(variables, kept, strict=True):
                variable.assign(tf.where(mask, variable, tf.zeros_like(variable)))

    def _find_largest(self, kept, count):
        share = 1 - tf.minimum(1.0, tf.cast(count, tf.float32) / self._end)
        wanted = self._sparsity * (1 - share**3)
        sizes = [
            tf.abs(kernel.value) * tf.cast(mask, tf.float32) for kernel, mask in zip(self._kernels, kept, strict=True)
        ]
        rising = tf.sort(tf.concat([tf.reshape(size, [-1]) for size in sizes], axis=0))
        smallest = rising[tf.cast(wanted * tf.cast(tf.size(rising) - 1, tf.float32), tf.int32)]
        return [size > smallest for size in sizes]
