"""One step of training and one of validation, each a compiled function, in which the cores of a processor share the batch.

With N towers a step splits its batch into N shards. The forward and the backward pass of each shard is a part of the graph that waits
for no other, so that each core takes one ("tower", after the first training programs for several GPUs). Splitting every operation over the cores
instead, as TensorFlow does by itself, wastes the cores on small maps. Batch normalisation then has the statistics of a shard ("ghost batch
norm", Hoffer et al. 2017, arXiv:1705.08741). He et al. 2015 train on two GPUs, with the statistics of 64 images each.
"""

import contextlib
import dataclasses

import keras
import tensorflow as tf

from resnet_study.devices import split_among_towers
from resnet_study.training.averages import update_averages
from resnet_study.training.optimizers import find_decayed
from resnet_study.training.quantization import imitate_int8
from resnet_study.training.sparsity import MagnitudePruning


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """How a step changes the weights, beside what optimizer and learning rate do.

    Attributes:
        batch_size: images of a batch, those of all devices together.
        parts: in which each batch is computed, one after the other.
        weight_decay: factor d of the gradient term d*w.
        weight_decay_on: which variables decay, a value of `--weight_decay_on`.
        beta_lr_factor: factor of the learning rate of the offsets (beta) of batch norm.
        weight_averaging: decay per step of an exponential moving average of the weights, or of Lookahead at the end; 0 = none is kept.
        lookahead_steps: every that many steps the weights are set to their average; 0 = never.
        extend: for Lookahead, the step that the training was to end with before it was made longer; 0 = it was not.
        sparsity: share of the weights of convolutions that become 0, see `resnet_study.training.sparsity`.
        quantize_aware: whether the loss is that of the network rounded to 8 bits, see `resnet_study.training.quantization`.
    """

    batch_size: int
    weight_decay: float
    weight_decay_on: str
    beta_lr_factor: float = 1.0
    weight_averaging: float = 0.0
    lookahead_steps: int = 0
    extend: int = 0
    parts: int = 1
    sparsity: float = 0.0
    quantize_aware: bool = False


class CompiledSteps:
    """Forward and backward pass, weight decay, optimizer and averages in one `tf.function`; the forward pass in another.

    Attributes:
        train: function (images, labels, step) -> sums over the batch, dict of scalars; changes the model. `step` is an int64 tensor, the
            steps before this one.
        validate: the same for images before normalisation; changes nothing.
    """

    def __init__(
        self,
        *,
        model,
        optimizer,
        averages,
        measure,
        normalization,
        strategy,
        towers,
        update,
        train_steps,
        teach=None,
        choose=None,
    ):
        """Compiles nothing yet: that happens at the first call.

        Args:
            model: keras.Model that is trained, from normalised images to logits.
            optimizer: built for its trainable variables.
            averages: variables for the averages of `model.weights`, or [].
            measure: function (logits, labels) -> (losses to lower [images], dict of sums over the images).
            normalization: function of images, for `validate`.
            strategy: tf.distribute.Strategy.
            towers: shards of each batch, see the head of this file; with several replicas 1.
            update: `UpdateRule`.
            train_steps: steps of the whole training, for Lookahead and for zeros (sparsity).
            teach: function (images, logits, losses to lower) -> losses to lower, see `distillation`; None = there is no teacher.
            choose: function (images, labels) -> those of a batch that are trained on, see `proxy`; None = all.
        """
        replicas = strategy.num_replicas_in_sync
        decayed = find_decayed(update, model.trainable_variables)
        pruning = MagnitudePruning(model, averages, update.sparsity, train_steps) if update.sparsity else None
        forward = imitate_int8(model) if update.quantize_aware else model

        def find_gradients(images, labels):
            with tf.GradientTape() as tape:
                logits = forward(images, training=True)
                objective, sums = measure(logits, labels)
                if teach:
                    objective = teach(images, logits, objective)
                # The gradients of all replicas and towers are added up, so each contributes its share of the batch.
                objective = optimizer.scale_loss(tf.reduce_sum(objective) / update.batch_size)
            return tape.gradient(objective, model.trainable_variables), sums

        def share_part(images, labels):
            if towers == 1:
                return find_gradients(images, labels)
            return _share(find_gradients, model.non_trainable_variables, towers, images, labels)

        def replica_step(images, labels):
            if choose:
                images, labels = choose(images, labels)
            gradients, sums = _accumulate(share_part, update.parts, images, labels, unrolled=replicas > 1)
            if update.beta_lr_factor != 1:
                gradients = [
                    update.beta_lr_factor * gradient if variable.name == "beta" else gradient
                    for gradient, variable in zip(gradients, model.trainable_variables, strict=True)
                ]
            gradients = [
                _decay(gradient, optimizer.scale_loss(update.weight_decay / replicas), variable)
                if id(variable) in decayed
                else gradient
                for gradient, variable in zip(gradients, model.trainable_variables, strict=True)
            ]
            optimizer.apply(gradients, model.trainable_variables)
            return sums

        @tf.function
        def train_step(images, labels, step):
            # Not the optimizer's count of steps, which leaves out those whose gradients overflow in float16.
            kept = pruning.find_kept(step) if pruning else None
            sums = strategy.run(replica_step, (images, labels))
            count = step + 1
            update_averages(averages, model.weights, update, count, train_steps)
            if pruning:
                pruning.prune(kept, count)
            return {name: strategy.reduce("SUM", value, axis=None) for name, value in sums.items()}

        @tf.function(reduce_retracing=True)
        def validation_step(images, labels, towers):
            parts = [
                measure(forward(normalization(some), training=False), of_these)[1]
                for some, of_these in split_among_towers(towers, images, labels)
            ]
            return {name: _sum([sums[name] for sums in parts]) for name in parts[0]}

        def validate(images, labels):
            return validation_step(images, labels, min(towers, len(images)))  # batch norm takes no empty shard

        self.train, self.validate = train_step, validate


def _sum(parts):
    """The sum of a tensor for each tower, in one order."""
    # `add_n` begins with whichever of its inputs is free: that makes no difference for two only.
    return tf.add_n(parts) if len(parts) < 3 else tf.reduce_sum(tf.stack(parts), axis=0)


def _decay(gradient, factor, variable):
    # TensorFlow makes one sum of the towers' gradients and the decay, whose order depends on which of the three is ready first, and with it
    # the last bits. What something waits for it leaves alone.
    with tf.control_dependencies([gradient]):
        return gradient + factor * variable


def _accumulate(find_gradients, count, images, labels, unrolled):
    """`find_gradients` on each of `count` parts of a batch, one after the other: the sums of what it returns.

    Several devices share the statistics of batch norm, which they cannot do within a loop of TensorFlow: there the parts are `unrolled`.
    """
    if count == 1:
        return find_gradients(images, labels)
    parts = [tf.reshape(values, [count, values.shape[0] // count, *values.shape[1:]]) for values in (images, labels)]

    def part(number):
        return find_gradients(*(values[number] for values in parts))

    def add(number, total):
        flat = tf.nest.flatten(part(number))
        with tf.control_dependencies(flat):  # see `_decay`
            return number + 1, [before + value for before, value in zip(total, flat, strict=True)]

    first = part(0)
    if unrolled:
        total = tf.nest.flatten(first)
        for number in range(1, count):
            with tf.control_dependencies(total):
                _, total = add(number, total)
        return tf.nest.pack_sequence_as(first, total)
    _, total = tf.while_loop(
        lambda number, total: number < count, add, (1, tf.nest.flatten(first)), parallel_iterations=1
    )
    return tf.nest.pack_sequence_as(first, total)


def _share(find_gradients, state, towers, images, labels):
    """`find_gradients` on each shard of a batch: the sums of what it returns. `state`, the variables that a forward pass changes, is set
    to the mean of the towers' moving statistics, and to the next state of dropout.
    """
    before = [
        variable.value + tf.zeros((), variable.dtype) for variable in state
    ]  # read once, before anything is written
    gradients, sums, after = [], [], []
    for number, part in enumerate(split_among_towers(towers, images, labels)):
        # Each tower draws dropout of its own: the first as without towers, the others from another seed.
        own = [
            value + tf.stack([tf.cast(number, value.dtype), tf.zeros((), value.dtype)]) if is_seed(variable) else value
            for variable, value in zip(state, before, strict=True)
        ]
        # Towers that wrote to the variables themselves would wait for each other, and each count as a step of its own.
        with keras.StatelessScope(state_mapping=list(zip(state, own, strict=True))) as scope:
            found, summed = find_gradients(*part)
        gradients.append(found)
        sums.append(summed)
        after.append([scope.get_current_value(variable) for variable in state])
    for variable, value, *ended in zip(state, before, *after, strict=True):
        if is_seed(variable):
            variable.assign(ended[0])
        elif any(end is not value for end in ended):
            # Not by `_sum`: TensorFlow would make one sum of it and of those that made the statistics, see `_decay`.
            variable.assign(tf.reduce_mean(tf.stack(ended), axis=0))
    return (
        [_sum(parts) for parts in zip(*gradients, strict=True)],
        {name: _sum([part[name] for part in sums]) for name in sums[0]},
    )


def is_seed(variable) -> bool:
    return variable.name == "seed_generator_state"


def spread_dropout(model, strategy) -> None:
    """Gives each device dropout of its own; from Keras all get the same. The first keeps its seeds, which checkpoints hold."""
    states = [variable for variable in model.variables if is_seed(variable)]
    if strategy.num_replicas_in_sync == 1 or not states:
        return
    values = [tf.constant(state.numpy()) for state in states]

    def spread():
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, values[0].dtype)
        for state, value in zip(states, values, strict=True):
            state.assign(value + tf.stack([replica, tf.zeros_like(replica)]))

    strategy.run(tf.function(spread))


@contextlib.contextmanager
def undone(variables):
    """Lets variables change for a while; then they have their values again."""
    kept = [(variable, variable.numpy()) for variable in variables]
    try:
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)


def measure_classes(logits, labels, label_smoothing: float, class_weights=None) -> tuple:
    """What training lowers and reports tell.

    Args:
        logits: float [images, classes].
        labels: of these, int32 [images]; or shares of the classes, float32 [images, classes], whose largest counts for errors.
        label_smoothing: share of the target that is spread evenly over all classes.
        class_weights: factor of what is lowered for each class, float32 [classes]; None = 1. What reports tell has no factors.

    Returns:
        (losses to lower, float32 [images]; sums over the images: {"loss": cross-entropy in nat, "wrong": number of errors}).
    """
    log_probabilities = tf.nn.log_softmax(logits)
    shared = len(labels.shape) == 2
    if shared:
        losses, truth = -tf.reduce_sum(labels * log_probabilities, axis=-1), tf.argmax(labels, -1, tf.int32)
    else:
        losses, truth = -tf.gather(log_probabilities, labels, batch_dims=1), labels
    wrong = tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) != truth, tf.float32)
    objective = losses
    if label_smoothing:
        objective = (1 - label_smoothing) * losses - label_smoothing * tf.reduce_mean(log_probabilities, axis=-1)
    if class_weights is not None and shared:  # each class has its factor, also where an image is a mixture of two
        smoothed = label_smoothing * tf.reduce_mean(log_probabilities, axis=-1, keepdims=True)
        terms = (1 - label_smoothing) * log_probabilities + smoothed
        objective = -tf.linalg.matvec(labels * terms, tf.constant(class_weights))
    elif class_weights is not None:
        objective *= tf.gather(tf.constant(class_weights), labels)
    return objective, {"loss": tf.reduce_sum(losses), "wrong": tf.reduce_sum(wrong)}


def measure_labels(logits, labels, label_smoothing: float) -> tuple:
    """As `measure_classes`, of images with several labels.

    Args:
        logits: float [images, classes]; above 0 a class is answered.
        labels: int32 [images, classes], 0 or 1; or shares of these, float32.
        label_smoothing: share of the target that becomes 1/2.

    Returns:
        (losses to lower, float32 [images]; sums over the images: {"loss": mean binary cross-entropy of the classes in nat, "wrong": number
        of images with a wrong class}).
    """
    targets = tf.cast(labels, tf.float32)

    def entropy(truth):
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(truth, logits), axis=-1)

    losses = entropy(targets)
    wrong = tf.cast(tf.reduce_any((logits > 0) != (targets > 0.5), axis=-1), tf.float32)
    objective = entropy((1 - label_smoothing) * targets + label_smoothing / 2) if label_smoothing else losses
    return objective, {"loss": tf.reduce_sum(losses), "wrong": tf.reduce_sum(wrong)}
