"""Which parts of a network come before all others that have weights, and which behind them: they bear rounding worst."""

from collections.abc import Hashable, Iterable

import keras

from resnet_study.networks.graph import inputs_of, outputs_of

# Whether an operation has weights that are multiplied with maps, and what it reads and writes, by name or number.
Operation = tuple[bool, Iterable[Hashable], Iterable[Hashable]]


def list_operations(model: keras.Model) -> list[Operation]:
    """The operations of a functional model that uses each layer once, for `find_first`. A model within it counts as a layer with weights."""
    weighted = keras.layers.Conv2D | keras.layers.Dense | keras.Model
    return [
        (isinstance(layer, weighted), *({id(tensor) for tensor in end(layer)} for end in (inputs_of, outputs_of)))
        for layer in model.operations
    ]


def find_first(operations: Iterable[Operation]) -> list[int]:
    """Finds the first layers with weights and all before them; several are first where several branches begin with one.

    Args:
        operations: in an order in which they can be computed.

    Returns:
        Their places in `operations`, rising.

    Example:
        from resnet_study.networks.first_and_last import find_first

        chain = [(weights, [place], [place + 1]) for place, weights in enumerate([False, True, True, True, False])]
        print(find_first(chain))  # [0, 1]
    """
    found, beyond = [], set()  # what lies behind a layer with weights
    for place, (weights, reads, writes) in enumerate(operations):
        inner = not beyond.isdisjoint(reads)
        if not inner:
            found.append(place)
        if inner or weights:
            beyond.update(writes)
    return found


def find_first_and_last(operations: Iterable[Operation]) -> list[int]:
    """As `find_first`, and the last layers with weights and all behind them; several are last where a network has several heads."""
    operations = [(weights, set(reads), set(writes)) for weights, reads, writes in operations]
    backwards = [(weights, writes, reads) for weights, reads, writes in operations[::-1]]
    last = [len(operations) - 1 - place for place in find_first(backwards)]
    return sorted({*find_first(operations), *last})
