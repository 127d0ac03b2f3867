"""Whether probabilities can be believed: how they are measured, and the temperature that mends them.

reliability_table(probabilities, labels)             confidence and accuracy of the answers, in bins
expected_calibration_error(probabilities, labels)    their mean distance, in points
error_by_chance(bins)                                what a perfect model would measure on as many images, in points
brier_score(probabilities, labels)                   mean squared distance of the probabilities from the truth
change_temperature(probabilities, temperature)       the probabilities of a model with another temperature
fit_temperature(probabilities, labels)               one number, fitted on held-out images
set_temperature(model, temperature)                  divides the logits of a model by it, for good
"""

import keras
import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special

_BINS = 15  # of equal width, as Guo et al. 2017 have them
_SMALLEST = 1e-38  # instead of a probability of 0, whose logarithm is no number; float32 holds hardly any smaller


def as_probabilities(values) -> np.ndarray:
    """The probabilities of answers as float [num_images, num_labels].

    Raises:
        ValueError: they are no such array of numbers 0..1, such as logits.
    """
    values = np.asarray(values)
    values = values.astype(np.float32) if values.dtype.name == "bfloat16" else values
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise ValueError(
            f"probabilities must be numbers [num_images, num_labels], received {values.dtype} of shape {values.shape}"
        )
    values = values if values.dtype.kind == "f" else values.astype(float)
    if values.size and not (values.min() >= -0.01 and values.max() <= 1.01):  # rounding aside; and NaN is neither
        raise ValueError(
            f"probabilities must be numbers 0..1, received {values.min():.3g}..{values.max():.3g}; logits become such by scipy.special.softmax(logits, axis=1)"
        )
    return values


def as_labels(labels, probabilities: np.ndarray) -> np.ndarray:
    """The labels of answers as int [num_images]; also those of shape [num_images, 1], as `keras.datasets` has them.

    Raises:
        ValueError: they are no whole numbers 0..classes-1, there are none, or not as many as answers.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be whole numbers [num_images], received {labels.dtype} of shape {labels.shape}")
    count, classes = probabilities.shape
    if not count or len(labels) != count or labels.min() < 0 or labels.max() >= classes:
        bounds = f", {labels.min()}..{labels.max()}" if len(labels) else ""
        raise ValueError(
            f"labels must be one for each of the {count} answers, 0..{classes - 1}, received {len(labels)}{bounds}"
        )
    return labels


def reliability_table(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Confidence and accuracy of the answers, in bins by their confidence (Guo et al. 2017, arXiv:1706.04599, section 2).

    Args:
        probabilities: float [num_images, num_labels]; the confidence of an answer is the largest of a row.
        labels: int [num_images].

    Returns:
        Table with a row for each of the 15 bins of equal width, the first from 0: columns images (their number), confidence and
        accuracy (means over these images, 0..1; NaN where a bin is empty).
    """
    probabilities = as_probabilities(probabilities)
    labels, confidence = as_labels(labels, probabilities), probabilities.max(axis=1)
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

    Args:
        probabilities: float [num_images, num_labels].
        labels: int [num_images].

    Returns:
        A number from 0 to 100.

    Example:
        import numpy as np
        from resnet_study.calibration import expected_calibration_error

        probabilities = np.array([[0.8, 0.2], [0.8, 0.2]])
        print(round(expected_calibration_error(probabilities, np.array([0, 0])), 3))  # 20.0
    """
    table = reliability_table(probabilities, labels).dropna()
    distance = (table["confidence"] - table["accuracy"]).abs()
    return 100 * float((distance * table["images"]).sum() / table["images"].sum())


def error_by_chance(bins: pd.DataFrame) -> float:
    """The expected calibration error that answers of these confidences would have if each were right as often as it says, in points.

    Of few images in a bin, never exactly as many are right as their confidence says; so a number that is not above this one shows no
    fault. The number of right answers in a bin is taken as normally distributed (Bröcker and Smith 2007, Weather and Forecasting 22, ask
    for this comparison and draw samples for it).

    Args:
        bins: columns images and confidence (mean, 0..1), such as those of `reliability_table`; bins without images have NaN.

    Returns:
        A number from 0 to 100.

    Example:
        import pandas as pd
        from resnet_study.calibration import error_by_chance

        print(round(error_by_chance(pd.DataFrame({"images": [100], "confidence": [0.5]})), 2))  # 3.99
    """
    images, confidence = bins["images"], bins["confidence"].fillna(0)
    # The mean absolute value of a normal variable is sqrt(2 / pi) of its standard deviation.
    deviation = np.sqrt(images * confidence * (1 - confidence))
    return 100 * float(np.sqrt(2 / np.pi) * deviation.sum() / images.sum())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities from 1 for the right class and 0 for the others (Brier 1950).

    Args:
        probabilities: float [num_images, num_labels].
        labels: int [num_images].

    Returns:
        A number from 0, which is best, to 2.
    """
    probabilities = as_probabilities(probabilities)
    targets = np.eye(probabilities.shape[1])[as_labels(labels, probabilities)]
    return float(np.mean(np.sum((probabilities - targets) ** 2, axis=1)))


def _check_temperature(temperature):
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be a number above 0, received {temperature}")


def change_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities as if the logits were divided by a temperature.

    Args:
        probabilities: float [num_images, num_labels].
        temperature: > 0; above 1 the answers become less sure, below 1 surer.

    Returns:
        float [num_images, num_labels]; the order of the classes of each image stays.

    Raises:
        ValueError: the temperature is not above 0, or these are no probabilities.
    """
    _check_temperature(temperature)
    # Logits that differ by a constant in a row give the same probabilities, and logarithms of probabilities do so.
    return scipy.special.softmax(np.log(np.maximum(as_probabilities(probabilities), _SMALLEST)) / temperature, axis=1)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the smallest cross-entropy (Guo et al. 2017, section 4.2).

    It changes no answer: the order of the classes stays.

    Args:
        probabilities: float [num_images, num_labels], of images that the model was not trained on and is not tested with.
        labels: int [num_images].

    Returns:
        A number between 0.05 and 20.

    Example:
        import numpy as np
        from resnet_study.calibration import fit_temperature

        probabilities = np.array([[0.9, 0.1]] * 4)  # surer than it should be: one answer of four is wrong
        print(round(fit_temperature(probabilities, np.array([0, 0, 0, 1])), 2))  # 2.0
    """
    probabilities = as_probabilities(probabilities)
    labels = as_labels(labels, probabilities)
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
        ValueError: the model does not end in one dense layer with softmax, or that is quantized or has LoRA weights; or the temperature is
            not above 0.

    Example:
        from resnet_study.calibration import set_temperature
        from resnet_study.saved_models import load_model

        model = load_model("cifar10")
        set_temperature(model, 1.5)
    """
    _check_temperature(temperature)
    last = model.layers[-1]
    if len(model.outputs) != 1:
        raise ValueError(f"expected a model with one head, received one with {len(model.outputs)}")
    if not isinstance(last, keras.layers.Dense) or last.activation is not keras.activations.softmax:
        raise ValueError(
            f"expected a model that ends in a dense layer with softmax, received one that ends in {last.name}"
        )
    if getattr(last, "quantization_mode", None) or getattr(last, "lora_enabled", False):
        raise ValueError(
            f"expected a model as trained, received one whose {last.name} is quantized or has LoRA weights"
        )
    last.set_weights([weight / temperature for weight in last.get_weights()])
