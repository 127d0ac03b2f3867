"""Whether probabilities can be believed: how they are measured, and the temperature that mends them.

expected_calibration_error(probabilities, labels)    in points
brier_score(probabilities, labels)
fit_temperature(probabilities, labels)               one number, fitted on held-out images
set_temperature(model, temperature)                  divides the logits of a model by it, for good
"""

import keras
import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special

_BINS = 15  # of equal width, as Guo et al. 2017 have them
_SMALLEST = 1e-12  # instead of a probability of 0, whose logarithm is no number


def reliability_table(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Confidence and accuracy of the answers, in bins by their confidence (Guo et al. 2017, arXiv:1706.04599, section 2).

    Args:
        probabilities: float [num_images, num_labels]; the confidence of an answer is the largest of a row.
        labels: int [num_images].

    Returns:
        Table with a row for each of the 15 bins of equal width, the first from 0: columns images (their number), confidence and
        accuracy (means over these images, 0..1; NaN where a bin is empty).
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    # A bin holds its upper bound, as in the paper.
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(
            {
                "images": counts,
                "confidence": np.bincount(bins, confidence, _BINS) / counts,
                "accuracy": np.bincount(bins, right, _BINS) / counts,
            }
        )


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over the bins of `reliability_table`, weighted by their images, in points.

    0 = of the answers with a confidence of 80 %, 80 % are right, and so on.

    Example:
        expected_calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 0]))  # 20.0: both are right
    """
    table = reliability_table(probabilities, labels).dropna()
    distance = (table["confidence"] - table["accuracy"]).abs()
    return 100 * float((distance * table["images"]).sum() / table["images"].sum())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities from 1 for the right class and 0 for the others; 0 is best, 2 is worst (Brier 1950).

    Args:
        probabilities: float [num_images, num_labels].
        labels: int [num_images].
    """
    targets = np.eye(probabilities.shape[1])[labels]
    return float(np.mean(np.sum((probabilities - targets) ** 2, axis=1)))


def change_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities as they were with the logits divided by `temperature`: above 1 less sure, below 1 surer."""
    # Logits that differ by a constant in a row give the same probabilities, and logarithms of probabilities do so.
    return scipy.special.softmax(np.log(np.maximum(probabilities, _SMALLEST)) / temperature, axis=1)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the smallest cross-entropy (Guo et al. 2017, section 4.2).

    It changes no answer: the order of the classes stays.

    Args:
        probabilities: float [num_images, num_labels], of images that were neither trained on nor are tested with.
        labels: int [num_images].

    Returns:
        A number between 0.05 and 20.
    """
    logits, rows = np.log(np.maximum(probabilities, _SMALLEST)), np.arange(len(labels))

    def loss(log_temperature):
        return -np.mean(scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels])

    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=np.log((0.05, 20)), method="bounded").x))


def set_temperature(model: keras.Model, temperature: float) -> None:
    """Divides the logits of a model by a temperature, in the weights of its last dense layer; the architecture stays.

    Args:
        model: from images to probabilities by a dense layer with softmax, which is changed.
        temperature: > 0.

    Raises:
        ValueError: the model does not end in one dense layer with softmax.
    """
    last = model.layers[-1]
    if not isinstance(last, keras.layers.Dense) or last.activation is not keras.activations.softmax:
        raise ValueError(
            f"expected a model that ends in a dense layer with softmax, received one that ends in {last.name}"
        )
    last.set_weights([weight / temperature for weight in last.get_weights()])
