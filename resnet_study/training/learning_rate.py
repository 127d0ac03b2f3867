"""The learning rate of each step: warm-up, then a schedule."""

import math

from resnet_study.settings import Settings


def learning_rate_at(step: int, config: Settings, train_steps: int | None = None) -> float:
    """Learning rate of one step, a pure function, so that a resumed run follows the same course.

    Args:
        step: 0-based index of the batch.
        config: settings; uses init_lr, final_lr, lr_schedule, warmup_* , lr_decay_factor, decay_step0/1, train_steps.
        train_steps: where the schedule ends; None = as the settings say.

    Returns:
        A number >= 0.

    Example:
        from hyper_parameters import from_preset
        from resnet_study.training.learning_rate import learning_rate_at

        print(learning_rate_at(0, from_preset("he2015")))  # 0.1
    """
    if step < config.warmup_steps:
        if config.warmup_shape == "constant":
            return config.warmup_lr
        return config.warmup_lr + (config.init_lr - config.warmup_lr) * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.init_lr
    if config.lr_schedule == "step":
        decays = (step >= config.decay_step0) + (step >= config.decay_step1)
        return config.init_lr * config.lr_decay_factor**decays
    progress = min(
        1.0, (step - config.warmup_steps) / max(1, (train_steps or config.train_steps) - config.warmup_steps)
    )
    left = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr + (config.init_lr - config.final_lr) * left
