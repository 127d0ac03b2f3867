"""Averages of the weights: an exponential moving average that is kept beside them, or Lookahead, which puts it in their place."""

import contextlib

import tensorflow as tf


def update_averages(averages, weights, update, count, train_steps) -> None:
    """What comes after the optimizer in a step; a part of the compiled step.

    Lookahead (Zhang et al. 2019, arXiv:1907.08610): every `lookahead_steps` steps, and after the last, the average moves towards
    the weights, and these begin anew from it. The averaging grows with the training, as Jordan 2024 (arXiv:2404.00498) has it. A training
    that was made longer (`extend`) has two parts, each with an end, and it grows in each.

    Args:
        averages: variables, one for each of `weights`; [] = none are kept.
        weights: variables of the model.
        update: `UpdateRule`; uses weight_averaging, lookahead_steps, extend.
        count: tensor, the steps so far, this one included.
        train_steps: steps of the whole training.
    """

    def move(decay):
        for average, variable in zip(averages, weights, strict=True):
            average.assign(average + (1 - decay) * (variable.value - average))

    if update.lookahead_steps:
        done, steps = count, train_steps
        if update.extend:
            is_second = count > update.extend
            done = tf.where(is_second, count - update.extend, count)
            steps = tf.cast(tf.where(is_second, train_steps - update.extend, update.extend), tf.float32)
        if count % update.lookahead_steps == 0 or count == train_steps or count == update.extend:
            move(update.weight_averaging * (tf.cast(done, tf.float32) / steps) ** 3)
            for variable, value in zip(weights, averages, strict=True):
                variable.assign(value)
    elif averages:
        steps = tf.cast(count, tf.float32)
        # The first steps weigh more, so that the average does not remember the random start.
        move(tf.minimum(update.weight_averaging, (1 + steps) / (10 + steps)))


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
