"""How much arithmetic the training of a transfer model takes; for networks of the CIFAR program see `resnet_study.training.work`."""

import math

import keras

from flowers.data import FlowerData
from flowers.features import can_cache_features, count_variants
from flowers.heads import find_backbone, find_stages, split_model
from flowers.settings import FlowerParameters
from resnet_study.networks.multiply_adds import multiply_adds


def transfer_pflop(config: FlowerParameters, model: keras.Model, steps: int, data: FlowerData) -> float:
    """Work of a training in PFLOP, 10**15 floating-point operations: a number that no machine changes.

    A multiply-add is two operations, and the gradients by inputs and by weights cost as much as the forward pass each. Layers that are frozen, with none
    that trains before them, take the forward pass alone; where their features are cached, once for each image and fixed variant.

    Args:
        config: settings of the run.
        model: its network from pixels to probabilities, of `flowers.heads.build_transfer`.
        steps: batches that were trained.
        data: what it was trained on.
    """
    to_features, head = split_model(model)
    of_backbone, of_head = multiply_adds(to_features), multiply_adds(head)
    if config.backbone_trainable:
        return 6 * (of_backbone + of_head) * steps * config.images_per_step / 1e15
    images = len(data.training)
    switch = config.unfreeze_at_epoch * math.ceil(images / config.train_batch_size) or steps
    frozen = min(steps, switch) * config.images_per_step
    tuned = max(0, steps - switch) * config.images_per_step
    cached = can_cache_features(config, images, len(data.validation), to_features)
    passes = images * count_variants(config) if cached else frozen
    work = of_backbone * passes + 3 * of_head * frozen
    if tuned:
        backbone = find_backbone(model)
        stages = find_stages(backbone)
        fixed = [
            layer.output
            for layer, stage in zip(backbone.layers, stages, strict=True)
            if stage <= stages[-1] - config.fine_tune_stages
        ]
        # The image alone, where all stages train.
        kept = multiply_adds(keras.Model(backbone.inputs, fixed)) if fixed else 0
        work += (3 * (of_backbone + of_head) - 2 * kept) * tuned
    return 2 * work / 1e15
