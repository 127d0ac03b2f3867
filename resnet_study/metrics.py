"""Numbers that tell how good answers are: error, its interval, precision and recall by class, several labels, calibration."""

import numpy as np
import scipy.stats
import sklearn.metrics

from resnet_study.calibration import (
    as_labels,
    as_probabilities,
    brier_score,
    error_by_chance,
    expected_calibration_error,
    reliability_table,
)
from resnet_study.class_names import THRESHOLD


def confidence_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, after Wilson (1927).

    Args:
        right: correct answers, 0..count.
        count: answers, at least 1.

    Returns:
        (lower, upper) in %.

    Example:
        from resnet_study.metrics import confidence_interval

        low, high = confidence_interval(38, 43)
        print(round(low, 1), round(high, 1))  # 75.5 94.9
    """
    low, high = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    return 100 * float(low), 100 * float(high)


def measure(probabilities: np.ndarray, labels: np.ndarray, class_names) -> dict:
    """Metrics of predicted probabilities.

    Args:
        probabilities: float [n, classes].
        labels: int [n]; or of images with several 0 and 1, int [n, classes], see `_measure_multi_label`.
        class_names: names of all classes.

    Returns:
        dict with these keys.
            images: their number.
            error, top5_error, accuracy: in %.
            accuracy_interval: 95 % interval of the accuracy, [lower, upper] in %; see `confidence_interval`.
            balanced_accuracy: mean recall of the classes that have images, in %.
            macro_f1: mean F1 of these, 0..1.
            loss: mean cross-entropy, nat; a probability below 1e-12 counts as that.
            calibration_error: expected calibration error of 15 bins, in points.
            calibration_error_by_chance: what a perfect model would have of it, see `calibration.error_by_chance`.
            brier_score: 0..2.
            reliability: list of the bins that hold images, each with images, confidence and accuracy; see
                `calibration.reliability_table`.
            per_class: list of class, precision, recall, f1, images.
            confusion_matrix: list of rows; a row is a true class, a column a predicted class.
        Of images with several labels others, see `_measure_multi_label`.

    Raises:
        ValueError: another number of names than of classes, or labels that are no classes, or not one for each image; or numbers that
            are no probabilities.

    Example:
        import numpy as np
        from resnet_study.metrics import measure

        metrics = measure(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]), ["cat", "dog"])
        print(metrics["accuracy"], metrics["confusion_matrix"])  # 50.0 [[1, 0], [1, 0]]
    """
    probabilities, labels = as_probabilities(probabilities), np.asarray(labels)
    if len(class_names) != probabilities.shape[1]:
        raise ValueError(
            f"class_names must be one for each of the {probabilities.shape[1]} classes of the probabilities, received {len(class_names)}"
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _measure_multi_label(probabilities, labels, class_names)
    labels = as_labels(labels, probabilities)
    classes = np.arange(len(class_names))
    predicted = probabilities.argmax(axis=1)
    top5 = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    likelihood = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1)
    scores = sklearn.metrics.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    per_class = [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "images": int(n)}
        for name, p, r, f, n in zip(class_names, *scores, strict=True)
    ]
    error = 100 * float(np.mean(predicted != labels))
    present = [row for row in per_class if row["images"]]
    reliability = reliability_table(probabilities, labels)
    return {
        "images": len(labels),
        "error": error,
        **describe_accuracy(error, len(labels)),
        "balanced_accuracy": 100 * float(np.mean([row["recall"] for row in present])),
        "macro_f1": float(np.mean([row["f1"] for row in present])),
        "top5_error": 100 * float(np.mean((top5 != labels[:, None]).all(axis=1))),
        "loss": float(-np.log(likelihood).mean()),
        "calibration_error": expected_calibration_error(probabilities, labels),
        "calibration_error_by_chance": error_by_chance(reliability),
        "brier_score": brier_score(probabilities, labels),
        "reliability": reliability.dropna().to_dict("records"),
        "per_class": per_class,
        "confusion_matrix": sklearn.metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def _measure_multi_label(probabilities, labels, class_names) -> dict:
    """Metrics of images with several labels; a class is answered from `THRESHOLD` on.

    Returns:
        dict: images; error, accuracy (%) of images, right where all classes are, with the interval; hamming_error (%) of all answers;
        mean_average_precision and macro_f1 (0..1) of the classes that have images; micro_f1; loss, mean binary cross-entropy; threshold; per_class,
        also with average_precision, which is None for a class without images.
    """
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels of images with several must be 0 and 1, received {labels.min()}..{labels.max()}")
    predicted, labels = probabilities >= THRESHOLD, labels.astype(bool)
    scores = sklearn.metrics.precision_recall_fscore_support(labels, predicted, average=None, zero_division=0)
    per_class = []
    for name, p, r, f, n, truth, answers in zip(class_names, *scores, labels.T, probabilities.T, strict=True):
        average = float(sklearn.metrics.average_precision_score(truth, answers)) if n else None
        row = {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "images": int(n)}
        per_class.append(row | {"average_precision": average})
    present = [row for row in per_class if row["images"]]
    error = 100 * float(np.mean((predicted != labels).any(axis=1)))
    likelihood = np.clip(np.where(labels, probabilities, 1 - probabilities), 1e-7, 1)
    return {
        "images": len(labels),
        "error": error,
        **describe_accuracy(error, len(labels)),
        "hamming_error": 100 * float(np.mean(predicted != labels)),
        "mean_average_precision": float(np.mean([row["average_precision"] for row in present] or [0])),
        "macro_f1": float(np.mean([row["f1"] for row in present] or [0])),
        "micro_f1": float(sklearn.metrics.f1_score(labels, predicted, average="micro", zero_division=0)),
        "loss": float(-np.log(likelihood).mean()),
        "threshold": THRESHOLD,
        "per_class": per_class,
    }


def describe_accuracy(error: float, images: int) -> dict:
    """accuracy and accuracy_interval of `measure`, of an error in % of so many images."""
    right = round(images * (1 - error / 100))
    return {"accuracy": 100 - error, "accuracy_interval": list(confidence_interval(right, images))}
