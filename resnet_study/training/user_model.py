"""The network as users get it, made of the one that is trained."""

import keras

from resnet_study.saved_models import save_model


class UserModel:
    """From raw pixels to probabilities, whole, in float32, with the averaged weights where there are any.

    Attributes:
        frozen: whether it keeps the weights it has, such as those that a callback has put back.
    """

    def __init__(self, task):
        """`task`: see `resnet_study.training.task`; the network is built when it is first asked for."""
        self._task, self._model, self.frozen = task, None, False

    def update(self, stage) -> keras.Model:
        """Gives it the weights of what a `Stage` trains, unless it is frozen; returns the network."""
        if not self.frozen:
            self._model = self._model or self._task.build_for_users()
            self._task.copy_for_users(stage.model, stage.averages, self._model)
            self._model.optimizer = stage.optimizer  # where callbacks look for it
        return self._model

    def save(self, stage, path) -> None:
        """Saves it, with the weights of `update`, without the optimizer that callbacks see."""
        model = self.update(stage)
        model.optimizer = None
        try:
            save_model(model, path, self._task.class_names)
        finally:
            model.optimizer = stage.optimizer
