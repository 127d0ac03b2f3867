"""One step of training and one of validation, each a compiled function."""

import contextlib

import tensorflow as tf

from resnet_study.training.optimizers import find_decayed


class CompiledSteps:
    """Forward and backward pass, weight decay, optimizer and averages in one `tf.function`; the forward pass in another.

    Attributes:
        train: function (images, labels) -> sums over the batch, dict of scalars; changes the model.
        validate: the same for images before normalisation; changes nothing.
    """

    def __init__(self, *, model, optimizer, averages, measure, normalization, strategy, config, train_steps):
        """Compiles nothing yet: that happens at the first call.

        Args:
            model: keras.Model that is trained, from normalised images to logits.
            optimizer: built for its trainable variables.
            averages: variables for the averages of `model.weights`, or [].
            measure: function (logits, labels) -> (losses to lower [images], dict of sums over the images).
            normalization: function of images, for `validate`.
            strategy: tf.distribute.Strategy.
            config: uses train_batch_size, beta_lr_factor, weight_decay, weight_decay_on, weight_averaging, lookahead_steps.
            train_steps: steps of the whole training, for Lookahead.
        """
        replicas = strategy.num_replicas_in_sync
        decayed = find_decayed(config, model.trainable_variables)

        def replica_step(images, labels):
            with tf.GradientTape() as tape:
                objective, sums = measure(model(images, training=True), labels)
                # The optimizer adds up the gradients of all replicas, so each contributes its share of the batch.
                objective = tf.reduce_sum(objective) / config.train_batch_size
            gradients = tape.gradient(objective, model.trainable_variables)
            if config.beta_lr_factor != 1:
                gradients = [
                    config.beta_lr_factor * gradient if variable.name == "beta" else gradient
                    for gradient, variable in zip(gradients, model.trainable_variables, strict=True)
                ]
            gradients = [
                gradient + config.weight_decay / replicas * variable if id(variable) in decayed else gradient
                for gradient, variable in zip(gradients, model.trainable_variables, strict=True)
            ]
            optimizer.apply(gradients, model.trainable_variables)
            return sums

        def move_averages(decay):
            for average, variable in zip(averages, model.weights, strict=True):
                average.assign(average + (1 - decay) * (variable.value - average))

        @tf.function
        def train_step(images, labels):
            sums = strategy.run(replica_step, (images, labels))
            count = optimizer.iterations.value
            if config.lookahead_steps:
                if count % config.lookahead_steps == 0 or count == train_steps:
                    move_averages(config.weight_averaging * (tf.cast(count, tf.float32) / train_steps) ** 3)
                    for variable, value in zip(model.weights, averages, strict=True):
                        variable.assign(value)
            elif averages:
                steps = tf.cast(count, tf.float32)
                # The first steps weigh more, so that the average does not remember the random start.
                move_averages(tf.minimum(config.weight_averaging, (1 + steps) / (10 + steps)))
            return {name: strategy.reduce("SUM", value, axis=None) for name, value in sums.items()}

        @tf.function(reduce_retracing=True)
        def validation_step(images, labels):
            return measure(model(normalization(images), training=False), labels)[1]

        self.train, self.validate = train_step, validation_step


@contextlib.contextmanager
def averaged_weights(model, averages):
    """Puts the averages into the model for a while, where there are any; it gets its own weights back, whatever happens."""
    weights = model.weights if averages else []
    current = [variable.numpy() for variable in weights]
    try:
        for variable, average in zip(weights, averages, strict=True):
            variable.assign(average)
        yield
    finally:
        for variable, value in zip(weights, current, strict=True):
            variable.assign(value)
