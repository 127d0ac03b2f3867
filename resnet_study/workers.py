"""Several machines that train together: which they are, and what they tell each other. On one machine nothing here does anything."""

import contextlib
import dataclasses
import json
import os
import re

from resnet_study.errors import UsageError
from resnet_study.strings import shorten


@dataclasses.dataclass(frozen=True)
class Workers:
    """The machines of TF_CONFIG: their addresses, that of the chief first, and the number of this one among them."""

    addresses: tuple[str, ...]
    index: int


def read_tf_config() -> Workers:
    """Reads the environment variable TF_CONFIG, as TensorFlow documents it:

        {"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", "index": 0}}

    The chief is the task of type "chief", where there is one, otherwise worker 0.

    Raises:
        UsageError: it is missing, or does not say this.
    """
    text = os.environ.get("TF_CONFIG", "")
    example = """{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}"""
    if not text:
        raise UsageError(
            f"--strategy=multi_worker needs the environment variable TF_CONFIG, received none; set it on each machine, such as {example}"
        )
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        unknown = {*cluster, task["type"]} - {"chief", "worker"}
        if unknown:
            raise ValueError(f"only tasks of type chief and worker train, not {', '.join(sorted(map(str, unknown)))}")
        addresses = [address for kind in ("chief", "worker") for address in cluster.get(kind, [])]
        if not addresses or not all(re.fullmatch(r"[^\s:/]+:\d+|\[[^\s/]+\]:\d+", address) for address in addresses):
            raise ValueError('every machine must be "host:port"')
        if len(set(addresses)) < len(addresses) or len(cluster.get("chief", [])) > 1:
            raise ValueError("every machine must be there once, and at most one as the chief")
        index = task["index"]
        if type(index) is not int or not 0 <= index < len(cluster[task["type"]]):
            raise ValueError(f"the task has index {index}, and there are {len(cluster[task['type']])} of its type")
        place = index + (len(cluster.get("chief", [])) if task["type"] == "worker" else 0)
    # What a user wrote by hand can be anything at all.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UsageError(f"TF_CONFIG must be like {example}, received {shorten(text)} ({reason}); mend it") from error
    return Workers(tuple(addresses), place)


def is_chief(name: str) -> bool:
    """Whether this process writes the run folder: always, but for all machines except one under --strategy=multi_worker."""
    return name != "multi_worker" or read_tf_config().index == 0


def join_workers():
    """The `tf.distribute.Strategy` of all machines of TF_CONFIG, for which it waits; see `devices.choose_strategy`."""
    import tensorflow as tf

    workers = read_tf_config()
    print(
        f"machine {workers.index + 1} of {len(workers.addresses)} ({workers.addresses[workers.index]}), waiting for the others: "
        f"{', '.join(workers.addresses)}",
        flush=True,
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:  # something was computed before
        raise UsageError(
            f"--strategy=multi_worker must come before any other use of TensorFlow in a process, received: {error}"
        ) from error
    except tf.errors.OpError as error:
        raise UsageError(
            f"the machines of TF_CONFIG could not be joined ({shorten(error.message)}); check that the ports are free "
            "and that each machine was started"
        ) from error


def from_chief(strategy, values: list[float]) -> list[float]:
    """Numbers of the chief, on every machine; all of them must call this at the same time. On one machine: `values`."""
    return _add_up(strategy, values, lambda replica: replica == 0)


def is_any(strategy, value: bool) -> bool:
    """Whether `value` is true on any machine; all of them must call this at the same time. On one machine: `value`."""
    return any(_add_up(strategy, [float(value)], lambda replica: True))


def wait_for_all(strategy) -> None:
    """Returns when all machines have called this, or one of them is gone."""
    import tensorflow as tf

    with contextlib.suppress(tf.errors.OpError):
        is_any(strategy, False)


def _add_up(strategy, values, counts):
    """Sums, over the machines, of the values of those devices for whose number `counts` is true."""
    import tensorflow as tf

    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return values

    def give(context):
        mine = counts(context.replica_id_in_sync_group)
        return tf.constant(values if mine else [0.0] * len(values), tf.float64)

    shared = strategy.experimental_distribute_values_from_function(give)
    return strategy.reduce(tf.distribute.ReduceOp.SUM, shared, axis=None).numpy().tolist()
