"""The learning rate of each step: warm-up, then a schedule."""

import dataclasses
import math

from resnet_study.settings import Settings


def learning_rate_at(step: int, config: Settings, train_steps: int | None = None, lowered: int = 0) -> float:
    """Learning rate of one step, a pure function, so that a resumed run follows the same course.

    Args:
        step: 0-based index of the batch.
        config: settings; uses init_lr, final_lr, lr_schedule, warmup_* , lr_decay_factor, decay_step0/1, train_steps.
        train_steps: where the schedule ends; None = as the settings say.
        lowered: plateau schedule: how often the rate was lowered.

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
    if config.lr_schedule == "plateau":
        return max(config.init_lr * config.lr_decay_factor**lowered, min(config.final_lr, config.init_lr))
    if config.lr_schedule == "step":
        decays = (step >= config.decay_step0) + (step >= config.decay_step1)
        return config.init_lr * config.lr_decay_factor**decays
    progress = min(
        1.0, (step - config.warmup_steps) / max(1, (train_steps or config.train_steps) - config.warmup_steps)
    )
    left = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr + (config.init_lr - config.final_lr) * left


def stage_rate(step: int, config: Settings, begins: list[tuple[int, float]], end: int, lowered: int = 0) -> float:
    """Learning rate of a step where the schedule begins anew, each time without the warm-up.

    Args:
        step, config, lowered: see `learning_rate_at`.
        begins: (step, highest learning rate) of each beginning, rising; the first at step 0.
        end: where the last schedule ends.
    """
    number = max(index for index, (begin, _) in enumerate(begins) if begin <= step)
    begin, rate = begins[number]
    if number and not rate:  # which settings take for their default
        return 0.0
    if number:
        config = dataclasses.replace(config, init_lr=rate, warmup_steps=0)
    return learning_rate_at(step - begin, config, [*(at for at, _ in begins), end][number + 1] - begin, lowered)
