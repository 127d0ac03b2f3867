"""One stage of a training: a network, the optimizer that trains it, the averages of its weights, and what is measured of it."""

import collections
import contextlib

import tensorflow as tf

from resnet_study import workers
from resnet_study.training.averages import averaged_weights
from resnet_study.training.machine import Machine
from resnet_study.training.optimizers import make_optimizer
from resnet_study.training.proxy import Proxy
from resnet_study.training.run_log import name_columns
from resnet_study.training.step import CompiledSteps, undone


class Stage:
    """What trains from one step to another. Most tasks have one stage; a new one begins with a fresh optimizer.

    Attributes:
        number: 0-based, among the task's `stage_ends`.
        model: keras.Model that is trained, from normalised images to logits.
        optimizer: Keras optimizer, built for its trainable variables.
        averages: variables for the averages of `model.weights`, or [].
        proxy: `Proxy` that chooses what the network is trained on, or None.
        steps: `CompiledSteps`.
    """

    def __init__(self, number: int, task, config, machine: Machine):
        """Builds all of it.

        Args:
            number: see above.
            task: see `resnet_study.training.task`.
            config: settings; uses those of the optimizer.
            machine: what it computes on.
        """
        policy, strategy = machine.policy, machine.strategy
        self.number, self._task, self._strategy = number, task, strategy
        self._arithmetic = {"precision": policy, "towers": machine.towers}
        self.model = task.build(number, policy, strategy)
        with strategy.scope():
            self.optimizer = make_optimizer(
                config, self.model.trainable_variables, strategy.num_replicas_in_sync, policy, task.rates(self.model)
            )
            averaged = self.model.weights if task.update.weight_averaging else []
            self.averages = [tf.Variable(variable.value, trainable=False) for variable in averaged]
        self.model.optimizer, self.model.stop_training = self.optimizer, False
        for watcher in task.watchers:
            watcher.set_model(self.model)
        proxy = task.build_proxy(policy, strategy)
        self.proxy = proxy and Proxy(proxy, task, config, machine)
        self.steps = CompiledSteps(
            model=self.model,
            optimizer=self.optimizer,
            averages=self.averages,
            measure=task.measure,
            normalization=task.normalization,
            strategy=strategy,
            towers=machine.towers,
            update=task.update,
            train_steps=task.stage_ends[-1],
            teach=task.teach,
            choose=self.proxy and self.proxy.choose,
        )

    @property
    def variables(self) -> dict:
        """Everything that a checkpoint holds, by a stable name."""
        named = dict(self._task.name_variables(self.model))
        named |= {f"optimizer/{index:04d}": variable for index, variable in enumerate(self.optimizer.variables)}
        named |= {f"average/{index:04d}": variable for index, variable in enumerate(self.averages)}
        return named | (self.proxy.variables if self.proxy else {})

    @property
    def facts(self) -> dict:
        """What a checkpoint says of the network and its arithmetic."""
        return {"net": self._task.facts(self.model), **self._arithmetic}

    def start_averages(self) -> None:
        """Sets the averages to the weights."""
        for average, variable in zip(self.averages, self.model.weights if self.averages else [], strict=True):
            average.assign(variable.value)

    def batches(self, first_step: int):
        """Yields the batches from a step to the end of the stage, each shared among the devices."""
        replicas = self._strategy.num_replicas_in_sync
        yield from self._strategy.distribute_datasets_from_function(
            lambda context: self._task.training_batches(
                first_step, replicas, context.input_pipeline_id, context.num_input_pipelines
            )
        )

    def train(self, images, labels, step: int) -> dict[str, tf.Tensor]:
        """Trains one batch, the `step`-th; returns its sums over the images, which a device may not have computed yet."""
        learning_rate = self._task.learning_rate(step)
        self.optimizer.learning_rate.assign(learning_rate)
        sums = self.steps.train(images, labels, tf.constant(step, tf.int64))
        if self.proxy:
            sums |= self.proxy.train(images, labels, step, learning_rate)
        return sums

    def find_fitting(self, size: int) -> int:
        """How many images of a batch a device has the memory to train at once: half of `size`, a quarter, ...; 0 = none was found."""
        images, labels = next(self.batches(0))
        parts = self._task.update.parts
        while self._strategy.num_replicas_in_sync == 1 and (size := size // 2):
            with contextlib.suppress(tf.errors.ResourceExhaustedError), undone(self.variables.values()):
                float(self.train(images[: size * parts], labels[: size * parts], 0)["loss"])
                return size
        return 0

    def measure(self, step: int) -> tuple[dict[str, float], float]:
        """What a report tells of the network after so many steps: loss and top-1 error in %.

        Returns:
            (columns of `error.csv`, of the averaged weights where there are any; a loss that is finite if the weights are numbers).
        """
        task, lookahead = self._task, self._task.update.lookahead_steps
        # Lookahead's result is the average alone: the weights between two averages are neither kept nor told.
        with averaged_weights(self.model, self.averages) if lookahead else contextlib.nullcontext():
            columns = self.validate("validation", task.validation_batches(step))
        loss = (
            columns["validation_loss"]
            if columns
            else self.validate("train", [next(task.training.batches(64))])["train_loss"]
        )
        with averaged_weights(self.model, self.averages):
            if self.averages and not lookahead:
                columns |= {f"{name}_unaveraged": value for name, value in columns.items()}
                columns |= self.validate("validation", task.validation_batches(step))
            columns |= self.validate("test", task.test_batches())
        return columns, loss

    def validate(self, part: str, batches) -> dict[str, float]:
        """Loss and top-1 error in % of the network as it is on (images, labels) of a part; nothing of a part without images."""
        sums, count = collections.Counter(), 0
        for images, labels in batches:
            sums.update({name: float(value) for name, value in self.steps.validate(images, labels).items()})
            count += len(labels)
        if not count:
            return {}
        columns = name_columns(part, sums, count)
        # Machines of different kinds differ in the last bits; what is decided by these numbers must not.
        return dict(zip(columns, workers.from_chief(self._strategy, list(columns.values())), strict=True))
