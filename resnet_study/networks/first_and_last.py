"""Which parts of a network come before all others that have weights, and which behind them: they bear rounding worst."""

from collections.abc import Hashable, Iterable


def find_first_and_last(operations: Iterable[tuple[bool, Iterable[Hashable], Iterable[Hashable]]]) -> list[int]:
    """Finds the first layers with weights and all before them, and the last layers with weights and all behind them.

    Several layers are first where several branches begin with one, and last where a network has several heads.

    Args:
        operations: for each operation, in an order in which they can be computed, whether it has weights that are multiplied with maps,
            and what it reads and writes, by name or number.

    Returns:
        Their places in `operations`, rising.

    Example:
        from resnet_study.networks.first_and_last import find_first_and_last

        chain = [(weights, [place], [place + 1]) for place, weights in enumerate([False, True, True, True, False])]
        print(find_first_and_last(chain))  # [0, 1, 3, 4]
    """
    operations = [(weights, set(reads), set(writes)) for weights, reads, writes in operations]
    found = set()
    # Forwards from the input, what an operation reads and then writes; backwards from the output, the reverse.
    for order, given, made in ((1, 1, 2), (-1, 2, 1)):
        beyond = set()  # what lies on the other side of a layer with weights
        for place in range(len(operations))[::order]:
            operation = operations[place]
            inner = not beyond.isdisjoint(operation[given])
            if not inner:
                found.add(place)
            if inner or operation[0]:
                beyond |= operation[made]
    return sorted(found)
