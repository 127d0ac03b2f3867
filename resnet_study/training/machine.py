"""On what a training computes: devices, number format, towers. It is chosen once, and a run that goes on keeps it."""

import dataclasses

import tensorflow as tf

from resnet_study import devices, workers
from resnet_study.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a training computes on.

    Attributes:
        strategy: the devices.
        policy: Keras dtype policy of the network.
        towers: shards of each batch, see `resnet_study.training.step`.
        is_chief: whether it writes the run folder; of several machines, one does.
    """

    strategy: tf.distribute.Strategy
    policy: str
    towers: int
    is_chief: bool

    def describe(self, environment: dict) -> str:
        """As the first line of a training tells it, from what `describe_environment` gives."""
        hardware = f"{', '.join(environment['gpus']) or environment['processor']} ({environment['cores']} cores)"
        return f"{self.policy}, {devices.describe_strategy(self.strategy, self.towers)}, on {hardware}"


def choose_machine(config, strategy: tf.distribute.Strategy, run=None) -> Machine:
    """What settings ask for, or what the run that goes on was begun with.

    Args:
        config: settings; uses strategy, precision, towers, accumulate and the images of a step.
        strategy: of `devices.choose_strategy`.
        run: `resnet_study.run_folder.RunFolder` of the run; None = one that begins.

    Raises:
        UsageError: the batch cannot be shared so, or a setting is for one device.
    """
    devices.note_missing_onednn(config.strategy)
    policy = devices.choose_policy(config.precision, config.strategy, run and run.stored_policy())
    if config.strategy == "multi_worker":  # machines of different kinds would choose differently
        policy = devices.policy_of_chief(strategy, policy)
    if config.images_per_step < config.train_batch_size and (count := strategy.num_replicas_in_sync) > 1:
        raise UsageError(
            f"--hard_share is for one device, received {count} of them; give --hard_share=1, or --strategy=one_gpu or cpu"
        )
    batch = config.images_per_step // config.accumulate
    towers = devices.choose_towers(config.towers, strategy, batch, run and run.stored_towers())
    return Machine(strategy, policy, towers, workers.is_chief(config.strategy))
