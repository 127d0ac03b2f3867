"""The optimizers: Keras' own, and for one device the same with each variable updated by one operation."""

import keras
import tensorflow as tf

from resnet_study.errors import UsageError

_KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")  # separable convolutions have two
# `weight_decay_on` -> the names of the variables that decay: kernels, biases too (Liang), gamma and beta too (He 2015).
_DECAYED = {"kernels": _KERNELS, "weights": (*_KERNELS, "bias"), "all": (*_KERNELS, "bias", "gamma", "beta")}


def make_optimizer(config, variables, replicas: int, policy: str, rates=None) -> keras.optimizers.Optimizer:
    """The optimizer that the settings ask for, built for `variables`; its learning rate is set at every step.

    Args:
        config: uses optimizer, init_lr, momentum.
        variables: trainable variables of the model.
        replicas: devices that share a batch; the fused optimizers are for one.
        policy: Keras dtype policy of the network; float16 needs the loss scaled, by a factor that is a variable of the optimizer.
        rates: factor of the learning rate of each variable; None = 1.
    """
    if config.optimizer == "adam":
        kind = FusedAdam if replicas == 1 else keras.optimizers.Adam
        options = {"beta_1": float(config.momentum)}
    else:
        kind = FusedSGD if replicas == 1 and config.momentum else keras.optimizers.SGD
        options = {"momentum": float(config.momentum), "nesterov": config.optimizer == "nesterov"}
    if rates:
        kind = _with_rates(kind, rates)
    optimizer = kind(config.init_lr, **options)
    if policy == "mixed_float16":
        if (
            replicas > 1
        ):  # whether a step overflows is decided by each device for itself, and they would go on with other weights
            raise UsageError(
                f"--precision=float16 is for one device, received {replicas} of them; give --precision=bfloat16 or float32"
            )
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


def _with_rates(kind, rates):
    """The class of an optimizer whose variables have learning rates of their own."""

    class Rated(kind):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate * rates[self._get_variable_index(variable)])

    return Rated


def find_decayed(update, variables) -> set[int]:
    """`id` of each variable to which weight decay applies; `update` is a `step.UpdateRule`."""
    names = _DECAYED[update.weight_decay_on] if update.weight_decay > 0 else ()
    return {id(variable) for variable in variables if variable.name in names}


class FusedAdam(keras.optimizers.Adam):
    """`keras.optimizers.Adam`, each variable by one operation, for one device and dense gradients.

    The plain optimizer takes a dozen operations, each a pass over the memory of all weights. With AlexNet's 20 million that is a
    quarter of a step. Same variables, same results within float tolerance.
    """

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        count = tf.cast(self.iterations.value + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**count,
            beta2_power=self.beta_2**count,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class FusedSGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` with momentum, each variable by one operation, for one device and dense gradients.

    The plain optimizer takes eight small operations a variable; in ResNet-110, with 330 of them, their graph alone takes 50 MB. Same
    variables, same results.
    """

    def update_step(self, gradient, variable, learning_rate):
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=learning_rate,
            grad=gradient,
            momentum=self.momentum,
            use_nesterov=self.nesterov,
        )
