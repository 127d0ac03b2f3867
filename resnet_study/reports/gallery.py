"""The images of a page. Of those that were tested every cell of the confusion matrix first has a few, then the mistakes fill the room."""

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image

from resnet_study.errors import UsageError

_ROOM = 700_000  # bytes of all images as they stand in the page
_LARGEST = 96  # pixels of the longer side
_MISTAKES = 24  # the most confident ones, which a page shows by themselves
_OF_RIGHT = 12  # right answers of a class, the least certain ones


def choose_images(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Places of the images to show, the most wanted first: the most confident mistakes, then of each cell the first, the second, and so on.

    In a cell of mistakes the most confident come first, in a cell of right answers the least confident.

    Args:
        probabilities: float [n, classes].
        labels: int [n].

    Returns:
        int [m].

    Example:
        import numpy as np
        from resnet_study.reports.gallery import choose_images

        probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2], [0.2, 0.8]])
        print(choose_images(probabilities, np.array([1, 1, 0, 1])).tolist())  # [1, 0, 2, 3]
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = predicted == labels
    order = np.argsort(np.where(right, confidence, -confidence), kind="stable")  # mistakes first
    seen: dict[tuple, int] = {}
    ranked = []
    for number, place in enumerate(order):
        cell = labels[place], predicted[place]
        seen[cell] = seen.get(cell, -1) + 1
        if not right[place]:
            ranked.append((number >= _MISTAKES, seen[cell], False, int(place)))
        elif seen[cell] < _OF_RIGHT:
            ranked.append((True, seen[cell], True, int(place)))
    return np.array([entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:-1])], int)


def make_gallery(tested, probabilities: np.ndarray) -> list[dict]:
    """What the page knows of each image that it shows.

    Args:
        tested: the images, a `data.image_data.Split` or a `flowers.image_part.ImagePart`.
        probabilities: of these, float [n, classes].

    Returns:
        For each a dict: place (0-based, in the part), label, predicted (int), confidence, likelihood (of the label) (%), source (data
        URI).
    """
    shown, room = [], _ROOM
    for place in choose_images(probabilities, tested.labels):
        images, _ = tested.load(np.array([place]))
        source = encode_image(images[0])
        room -= len(source)
        if room < 0:
            break
        label, predicted = int(tested.labels[place]), int(probabilities[place].argmax())
        shown.append(
            {
                "place": int(place),
                "label": label,
                "predicted": predicted,
                "confidence": round(100 * float(probabilities[place, predicted]), 1),
                "likelihood": round(100 * float(probabilities[place, label]), 1),
                "source": source,
            }
        )
    return shown


def encode_image(image, largest: int = _LARGEST, lossless: bool = False) -> str:
    """An image as a data URI.

    Args:
        image: uint8 [height, width, RGB or grey], or a `PIL.Image.Image`.
        largest: pixels that the longer side may have; a larger image is reduced.
        lossless: whether each pixel stays as it is.
    """
    if not isinstance(image, PIL.Image.Image):
        image = PIL.Image.fromarray(np.squeeze(image))
    image.thumbnail((largest, largest))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_figure(path: Path, largest: int, remedy: str) -> str:
    """A figure that was written as PNG as a data URI, see `encode_image`. Raises UsageError, with what to do, where it is no image."""
    try:
        with PIL.Image.open(path) as image:
            return encode_image(image.convert("RGB"), largest)
    except (OSError, PIL.Image.DecompressionBombError) as error:
        raise UsageError(f"{path} is no readable image ({error}); {remedy}") from error
