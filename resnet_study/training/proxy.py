"""Training on the hardest images of each batch alone, which a small network that is trained beside points out.

Reference: Jordan, https://github.com/KellerJordan/cifar10-airbench, airbench96_faster, after Coleman et al. 2020, "Selection via Proxy",
arXiv:1906.11829, and Jiang et al. 2019, "Accelerating Deep Learning by Focusing on the Biggest Losers", arXiv:1910.00762. There the proxy
is trained first and its choices are kept. Here it is trained along with the network: it sees the same batches in the same order, so it
chooses in the same way, and a run is resumed from one checkpoint. There it is trained on the images it has chosen; with towers here on
those that it would choose of each tower's.
"""

import dataclasses

import keras
import tensorflow as tf

from resnet_study import devices
from resnet_study.networks.airbench import build_airbench
from resnet_study.training.machine import Machine
from resnet_study.training.optimizers import make_optimizer
from resnet_study.training.step import CompiledSteps

SMALLEST = 16  # height and width of the images, pixels
TRAINS_EVERY = 4  # steps; in between it only chooses


class Proxy:
    """A small network, the optimizer that trains it, and the choice of images by its losses.

    Attributes:
        model: keras.Model from normalised images to logits.
    """

    def __init__(self, model, task, config, machine: Machine):
        """Builds the optimizer; see `Stage` for the arguments.

        Args:
            model: of `build_proxy`.
            config: settings; uses hard_share and those of the optimizer.
        """
        self.model, self._task, self._share, self._towers = model, task, config.hard_share, machine.towers
        replicas = machine.strategy.num_replicas_in_sync
        with machine.strategy.scope():
            self._optimizer = make_optimizer(config, model.trainable_variables, replicas, machine.policy)
        plain = {"weight_averaging": 0.0, "lookahead_steps": 0, "sparsity": 0.0, "quantize_aware": False}
        self._steps = CompiledSteps(
            model=model,
            optimizer=self._optimizer,
            averages=[],
            measure=self._measure_hardest,
            normalization=task.normalization,
            strategy=machine.strategy,
            towers=machine.towers,
            update=dataclasses.replace(task.update, **plain),
            train_steps=task.stage_ends[-1],
        )

    @property
    def variables(self) -> dict:
        """Everything that a checkpoint holds, by a stable name."""
        named = {f"proxy/{variable.path}": variable for variable in self.model.weights}
        return named | {
            f"proxy_optimizer/{index:04d}": variable for index, variable in enumerate(self._optimizer.variables)
        }

    def choose(self, images, labels) -> tuple:
        """The images of a batch with the largest losses, in the order of the batch, and their labels; a part of the compiled step."""
        # The statistics of batch norm are those of the batch; the moving ones, which nothing reads, are left alone.
        with keras.StatelessScope():
            losses = [
                self._task.measure(self.model(some, training=True), of_these)[0]
                for some, of_these in devices.split_among_towers(self._towers, images, labels)
            ]
        losses = tf.concat(losses, axis=0)
        hardest = tf.sort(tf.math.top_k(losses, self._count(losses)).indices)
        return tf.gather(images, hardest), tf.gather(labels, hardest)

    def train(self, images, labels, step: int, learning_rate: float) -> dict[str, tf.Tensor]:
        """Trains the proxy on the hardest images of a batch, the `step`-th, if it is the turn of that; returns the sum of its losses then."""
        if step % TRAINS_EVERY:
            return {}
        self._optimizer.learning_rate.assign(learning_rate)
        return {"proxy_loss": self._steps.train(images, labels, tf.constant(step, tf.int64))["loss"]}

    def _measure_hardest(self, logits, labels):
        losses, sums = self._task.measure(logits, labels)
        return tf.math.top_k(losses, self._count(losses)).values, sums

    def _count(self, losses):
        return max(1, round(self._share * losses.shape[0]))


def build_proxy(input_shape, classes: int, policy: str = "float32") -> keras.Model:
    """The network of airbench with 32, 64 and 64 channels, its stem frozen: 17 million multiply-adds an image of 32 x 32.

    Args:
        input_shape: (height, width, channels) of the images, height and width at least `SMALLEST`.
        classes: number of classes.
        policy: Keras dtype policy.
    """
    model = build_airbench(
        widths=(32, 64, 64),
        input_shape=input_shape,
        classes=classes,
        classifier_activation=None,
        dtype=policy,
        name="proxy",
    )
    model.get_layer("stem_whitening").trainable = False
    return model
