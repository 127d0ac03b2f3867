"""Probabilities of raw images by a trained model, for the test of a training as for the test of a run."""

import keras
import numpy as np

from resnet_study.errors import UsageError
from resnet_study.saved_models import find_heads


def predict_probabilities(
    model: keras.Model, images: np.ndarray, batch_size: int = 125
) -> np.ndarray | dict[str, np.ndarray]:
    """Softmax probabilities of any number of images; the last, smaller batch included.

    Args:
        model: model of `saved_models.load_model`.
        images: [num_images, height, width, RGB], raw pixels 0..255, uint8 or float.
        batch_size: images at a time, int >= 1; the result does not depend on it.

    Returns:
        float32 [num_images, num_labels]; of a model with several heads a dict, name of the head -> such an array.

    Raises:
        UsageError: images of another shape than the model was built for, or with pixels that are no numbers; a model that
            answers with something else than numbers.

    Example:
        model = load_model("cifar10")
        probabilities = predict_probabilities(model, np.zeros((3, 32, 32, 3), np.uint8))
        print(probabilities.shape)  # (3, 10)
    """
    try:
        images = np.asarray(images)
    except ValueError as error:
        raise UsageError(f"images must be one array, received {error}; bring them to one size") from error
    if images.dtype.kind not in "buif" or not np.isfinite(images).all():
        raise UsageError(
            f"images must hold finite numbers, received {images.dtype} with NaN, infinity or other things; mend or leave them out"
        )
    if images.shape[1:] != model.input_shape[1:]:
        raise UsageError(
            f"images must have the shape (num_images, {', '.join(map(str, model.input_shape[1:]))}), received {images.shape}"
        )
    heads = find_heads(model)
    if len(images):
        answers = model.predict(images, batch_size=batch_size, verbose=0)
        answers = answers if isinstance(answers, dict) else {"": answers}
    else:
        answers = {name: np.empty((0, classes)) for name, classes in heads.items()}
    probabilities = {name: answers[name].astype(np.float32) for name in heads}
    if not all(np.isfinite(array).all() for array in probabilities.values()):
        raise UsageError(f"the model {model.name} must answer with finite numbers, received NaN; give other weights")
    return probabilities.get("", probabilities)
