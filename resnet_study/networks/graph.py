"""Which tensors the operations of a functional model read and write."""

import keras

# `input` and `output` of a model within the model are tensors within it; as an operation it has those of the whole. Of an operation that is
# used twice, these are the tensors of its first use.


def inputs_of(operation: keras.Operation) -> list:
    return keras.tree.flatten(keras.Operation.input.fget(operation))


def outputs_of(operation: keras.Operation) -> list:
    return keras.tree.flatten(keras.Operation.output.fget(operation))


def find_producers(model: keras.Model) -> dict[int, keras.Operation]:
    """`id` of each tensor -> the operation that writes it."""
    return {id(tensor): operation for operation in model.operations for tensor in outputs_of(operation)}


def find_last(model: keras.Model, head: str = "") -> keras.Operation | None:
    """What gives the answers of a model; of one with several heads those of `head`, None where a layer gives those of two."""
    return find_producers(model).get(id(model.output[head])) if head else model.layers[-1]
