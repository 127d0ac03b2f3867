"""How much arithmetic a training takes."""

import keras

from resnet_study.networks.multiply_adds import multiply_adds
from resnet_study.saved_models import load_model
from resnet_study.training.proxy import TRAINS_EVERY, build_proxy


def training_pflop(config, model: keras.Model, steps: int, run=None) -> float:
    """Work of a training in PFLOP, 10**15 floating-point operations: a number that no machine changes.

    A multiply-add is two operations, and the gradients by inputs and by weights cost as much as the forward pass each. With a proxy its
    choices and its training are counted too, with a teacher its forward pass.

    Args:
        config: settings; uses train_batch_size, hard_share.
        model: the network.
        steps: batches that were trained.
        run: `resnet_study.run_folder.RunFolder` of the training, which holds its teacher; None = without a teacher's work.
    """
    work = 3 * multiply_adds(model) * config.images_per_step
    if config.hard_share < 1:
        proxy = build_proxy(model.input_shape[1:], model.output_shape[-1])
        work += (1 + 3 / TRAINS_EVERY) * multiply_adds(proxy) * config.train_batch_size
    if run is not None and run.teacher.is_file():
        work += multiply_adds(load_model(str(run.teacher))) * config.images_per_step
    return 2 * work * steps / 1e15
