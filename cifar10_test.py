"""How a net is tested: every test image once, and what it says about pictures of one's own.

load_model(path)            a trained net: raw pixels -> probabilities
test(model, images)         probabilities of any number of images
evaluate(config)            metrics of a run on the test part -> result.json, predictions.npy
predict(config, paths)      the most likely classes of picture files
"""

import io
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import PIL.Image
import sklearn.metrics

import cifar10_input
import model_registry
from hyper_parameters import HyperParameters, UsageError
from resnet_layers import PixelNormalization
from run_folder import RunFolder, read_checkpoint, read_model, write_atomically, write_json

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")
_EXIF_ORIENTATION = 0x0112
_LARGEST_PICTURE = 256 << 20  # bytes of a file


def load_model(path: str, shipped_net: str = "resnet20") -> keras.Model:
    """Loads a trained net that takes raw pixels 0..255 and returns probabilities.

    Args:
        path: "cifar10" = the shipped weights of `shipped_net`; a run folder (its `best.keras`); a `.keras` file; or a checkpoint
            `step-*.npz` in the folder of its run.
        shipped_net: registry name, used with "cifar10" alone.

    Raises:
        UsageError: not found, damaged, or not a classifier of pictures.
    """
    if path == "cifar10":
        try:
            return model_registry.find(shipped_net).build(weights="cifar10")
        except Exception as error:  # none of this net, missing or damaged
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"'cifar10', the shipped weights, cannot be loaded for {shipped_net} ({reason})"
            ) from error
    place = Path(path).expanduser()
    if place.is_dir():
        place = RunFolder(place).best
    if not place.is_file():
        raise UsageError(
            f"expected a run folder, .keras file, checkpoint or 'cifar10', received '{path}', which has no file {place}"
        )
    if place.suffix == ".npz":
        return _load_checkpoint(place)
    if place.suffix != ".keras":
        raise UsageError(f"expected a .keras file or a checkpoint .npz, received '{place}'")
    try:
        model = read_model(place)
        inputs, outputs = tuple(model.input_shape), [tuple(output.shape) for output in model.outputs]
        named = model.output.values() if isinstance(model.output, dict) else [model.output]
        flat = all(isinstance(output, keras.KerasTensor) for output in named)
    # Keras raises nearly anything for a damaged file; whatever it is, the file cannot be used.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{place} is damaged or no Keras model of this library ({reason}); give another file"
        ) from error
    sizes = [*inputs[1:], *(size for output in outputs for size in output[1:])]
    shaped = len(inputs) == 4 and all(len(output) == 2 for output in outputs)
    if not (flat and shaped and all(isinstance(size, int) for size in sizes)):
        raise UsageError(
            f"{place} must map [batch, height, width, channels] to [batch, classes], received {inputs} to {outputs}; give "
            "another file"
        )
    if inputs[3] not in (1, 3) or max(inputs[1:]) > 4096:
        raise UsageError(
            f"{place} must take grey or RGB pictures of up to 4096 x 4096 pixels, received {inputs}; give another file"
        )
    return model


def _load_checkpoint(path: Path) -> keras.Model:
    arrays, facts = read_checkpoint(path)
    try:
        net = facts["net"]
        model = model_registry.find(net["model"]).build(
            input_shape=tuple(net["input_shape"]),
            classes=net["classes"],
            preprocessing=PixelNormalization.from_config(net["normalization"]),
            **net["options"],
        )
        averaged = any(name.startswith("average/") for name in arrays)
        for index, variable in enumerate(model.weights):
            variable.assign(arrays[f"average/{index:04d}" if averaged else f"net/{variable.path}"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no checkpoint of a training run ({error}); give another file") from error
    return model


def find_heads(model: keras.Model) -> dict[str, int]:
    """Name -> number of classes of each head of a net of `load_model`; a net with one head has it under the name ""."""
    output = model.output
    if isinstance(output, dict):
        return {name: tensor.shape[-1] for name, tensor in output.items()}
    return {"": output.shape[-1]}


def test(model: keras.Model, images: np.ndarray, batch_size: int = 125) -> np.ndarray | dict[str, np.ndarray]:
    """Softmax probabilities of any number of images; the last, smaller batch included.

    Args:
        model: net of `load_model`.
        images: [num_images, height, width, RGB], raw pixels 0..255, uint8 or float.
        batch_size: images at a time; the result does not depend on it.

    Returns:
        float32 [num_images, num_labels]; of a net with several heads a dict, name of the head -> such an array.

    Raises:
        UsageError: images of another shape than the net was built for, or with pixels that are no numbers; a net that
            answers with something else than numbers.
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
        raise UsageError(f"the net {model.name} must answer with finite numbers, received NaN; give other weights")
    return probabilities.get("", probabilities)


def measure(probabilities: np.ndarray, labels: np.ndarray, class_names) -> dict:
    """Metrics of predicted probabilities.

    Args:
        probabilities: float [n, classes].
        labels: int [n].
        class_names: names of all classes.

    Returns:
        test_error and test_top5_error (%), test_loss (mean cross-entropy, nat), images, per_class (list of class, precision,
        recall, f1, images) and confusion_matrix (list of rows: true class, columns: predicted class).
    """
    classes = np.arange(len(class_names))
    predicted = probabilities.argmax(axis=1)
    top5 = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    likelihood = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1)
    scores = sklearn.metrics.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    per_class = [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "images": int(n)}
        for name, p, r, f, n in zip(class_names, *scores, strict=True)
    ]
    return {
        "test_error": 100 * float(np.mean(predicted != labels)),
        "test_top5_error": 100 * float(np.mean((top5 != labels[:, None]).all(axis=1))),
        "test_loss": float(-np.log(likelihood).mean()),
        "images": len(labels),
        "per_class": per_class,
        "confusion_matrix": sklearn.metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def evaluate(config: HyperParameters) -> tuple[dict, RunFolder]:
    """Tests a net on the test part of the data set and writes `result.json` and `predictions.npy`.

    The net is that of `find_net`. Calling this again replaces the two files by equal ones. Of a net with several heads, the
    metrics are those of the first; "heads" has those of the others by name, and `predictions-<head>.npy` what they answered.

    Returns:
        (metrics as in `measure`, with `test_flip` also test_error_flip in %; the folder that holds them).

    Raises:
        UsageError: no such run or file, or the net does not fit the data set.
    """
    path, run = find_net(config)
    model = load_model(path, config.model_name)
    found = find_heads(model)
    names = list(config.tasks) if len(config.tasks) > 1 else [""]
    if set(found) != set(names):
        raise UsageError(
            f"{path} has the heads {', '.join(found) or 'none'}, received --heads={config.heads}; give --heads={','.join(found)}"
        )
    data = cifar10_input.load_heads(config) if len(names) > 1 else {"": cifar10_input.load_data(config)}
    for name, labelled in data.items():
        if found[name] != len(labelled.class_names):
            raise UsageError(
                f"{path} tells {found[name]} classes apart, but --dataset={config.dataset} has {len(labelled.class_names)}; give "
                "the data set it was trained on"
            )
        known = _class_names(path, found[name], name)
        if known != list(labelled.class_names) and known != _numbered_names(found[name]):
            raise UsageError(
                f"{path} tells {', '.join(known[:3])}, ... apart, but --dataset={config.dataset} has "
                f"{', '.join(labelled.class_names[:3])}, ...; give the data set it was trained on"
            )

    def answer(images):
        answers = test(model, images, config.test_batch_size)
        return answers if isinstance(answers, dict) else {"": answers}

    images = data[names[0]].test.images
    answers = answer(images)
    measured = {
        name: measure(answers[name], labelled.test.labels, labelled.class_names) for name, labelled in data.items()
    }
    if config.test_flip:
        mirrored = answer(images[:, :, ::-1])
        for name, metrics in measured.items():
            of_both = measure(answers[name] + mirrored[name], data[name].test.labels, data[name].class_names)
            metrics["test_error_flip"] = of_both["test_error"]
    result = measured.pop(names[0])
    facts = {"model": model.name, "dataset": config.dataset, "weights": config.test_ckpt_path or run.best.name}
    if not config.test_ckpt_path:
        history = run.read_history()
        last = history.iloc[-1]
        validated = "validation_error" in history
        best = history.loc[history["validation_error"].idxmin()] if validated else last
        facts |= {"best_step": int(best["step"]), "last_step": int(last["step"])}
        if validated:
            facts |= {
                "validation_error": float(best["validation_error"]),
                "last_validation_error": float(last["validation_error"]),
            }
            for name, head in measured.items():
                head["validation_error"] = float(best[f"validation_error_{name}"])
    if measured:
        facts |= {"head": names[0], "heads": measured}
    write_json(run.result, facts | result)
    for name in names:
        buffer = io.BytesIO()
        np.save(buffer, answers[name])
        place = run.predictions if name == names[0] else run.predictions.with_stem(f"{run.predictions.stem}-{name}")
        write_atomically(place, buffer.getvalue())
    return facts | result, run


def find_net(config: HyperParameters) -> tuple[str, RunFolder]:
    """What to load, and the folder for what comes out of it.

    Without `test_ckpt_path` that is `best.keras` of the run, chosen on validation images where it held some out. What `test_ckpt_path` names gets
    the folder `<runs_dir>/test-<name>-<dataset>`, so that the result of the run is left alone; the name is that of the run
    folder, with that of the file if it is one.
    """
    path = config.test_ckpt_path
    if not path:
        run = RunFolder(f"{config.runs_dir}/{config.run_name}")
        return str(run.best), run
    place = Path(path).expanduser().resolve()
    if place.is_file():
        folder = place.parent.parent if place.parent.name == "checkpoints" else place.parent
        name = f"{folder.name}-{place.stem}"
    else:
        name = f"{config.model_name}-cifar10" if path == "cifar10" else place.name  # of a run folder
    return path, RunFolder(f"{config.runs_dir}/test-{name}-{config.dataset_name}")


def predict(config: HyperParameters, paths, *, explains=False, read=None) -> tuple[pd.DataFrame, Path]:
    """The three most likely classes of picture files, also written as `predictions.csv` to the folder of `find_net`.

    Of a net with several heads, those of each: the columns are then called `<head>_1`, `<head>_probability_1`, ...

    Args:
        config: settings; `test_ckpt_path` or `version` names the net.
        paths: files, or folders whose pictures are taken in the order of their names; a picture of a folder that cannot be
            decoded is named and left out.
        explains: also draw a Grad-CAM picture of each, in the folder `explanations` beside the table; see `grad_cam`.
        read: how a file becomes a picture of a shape, as in the training of the net; None = `read_picture`.

    Returns:
        (table with columns image, class_1, probability_1, ... class_3, probability_3; path of the CSV file).

    Raises:
        UsageError: no pictures, or one that was named itself cannot be decoded.
    """
    path, run = find_net(config)
    model = load_model(path, config.model_name)
    files, images = _read_pictures(paths, model.input_shape[1:], read or read_picture)
    answers = test(model, images, config.test_batch_size)
    answers = answers if isinstance(answers, dict) else {"": answers}
    rows = [{"image": str(file)} for file in files]
    for head, probabilities in answers.items():
        names = _class_names(path, probabilities.shape[-1], head)
        columns = (f"{head}_", f"{head}_probability_") if head else ("class_", "probability_")
        for row, probability in zip(rows, probabilities, strict=True):
            for rank, label in enumerate(np.argsort(-probability, kind="stable")[:3], start=1):
                row[f"{columns[0]}{rank}"], row[f"{columns[1]}{rank}"] = (
                    names[label],
                    round(float(probability[label]), 4),
                )
    table = pd.DataFrame(rows)
    csv_path = run.path / "predictions.csv"
    write_atomically(csv_path, table.to_csv(index=False))
    if explains:
        from grad_cam import write_explanations

        for head, probabilities in answers.items():
            names = _class_names(path, probabilities.shape[-1], head)
            folder = run.path / "explanations" / head  # of a net with one head, whose name is "", the folder itself
            write_explanations(model, files, images, probabilities, names, folder, head=head)
    return table, csv_path


def read_picture(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Reads a picture of any size, grey, RGB or RGBA, 8 or 16 bits, and brings it to the input shape of a net.

    The largest centred part with the aspect of the net is cut out and shrunk by area, or enlarged. What is transparent
    becomes white.

    Args:
        file: picture file.
        shape: (height, width, channels), channels 1 or 3.

    Returns:
        uint8 of that shape, RGB or grey.

    Raises:
        UsageError: the file cannot be read or decoded.
    """
    import cv2

    file = Path(file)
    if not file.is_file():  # a pipe would be waited for
        raise UsageError(f"{file} must be a picture file, received a folder, a pipe or nothing; leave it out")
    try:
        if file.stat().st_size > _LARGEST_PICTURE:
            raise ValueError(f"it has more than {_LARGEST_PICTURE:,} bytes")
        content = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            # Pillow reads the header first and refuses what declares more pixels than any camera makes, then what is cut off.
            # OpenCV would show that in grey.
            with PIL.Image.open(io.BytesIO(content), formats=_PICTURE_FORMATS) as opened:
                opened.load()
                # How the camera was held. Of TIFF, OpenCV heeds it itself.
                orientation = 1 if opened.format == "TIFF" else opened.getexif().get(_EXIF_ORIENTATION, 1)
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if picture is None:
            raise ValueError("OpenCV cannot decode it")
        if orientation in (5, 6, 7, 8):
            picture = picture.swapaxes(0, 1)
        if orientation in (2, 3, 6, 7):
            picture = picture[:, ::-1]
        if orientation in (3, 4, 7, 8):
            picture = picture[::-1]
        picture = np.ascontiguousarray(picture)
    # A damaged picture can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        unknown = isinstance(error, PIL.UnidentifiedImageError)
        reason = "its kind is not known" if unknown else " ".join(str(error).split())[:200]
        raise UsageError(
            f"{file} is damaged, too large or no picture ({reason}); give PNG, JPEG, WebP, BMP or TIFF"
        ) from error
    if picture.dtype != np.uint8:
        picture = (
            cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
            if picture.dtype != np.uint16
            else np.uint8(picture >> 8)
        )
    picture = picture[..., None] if picture.ndim == 2 else picture
    if picture.shape[-1] in (2, 4):
        alpha = picture[..., -1:] / 255.0
        picture = np.uint8(np.rint(picture[..., :-1] * alpha + 255 * (1 - alpha)))
    picture = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture[..., ::-1]
    height, width, channels = shape
    scale = min(picture.shape[0] / height, picture.shape[1] / width)
    cut = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = ((have - want) // 2 for have, want in zip(picture.shape, cut, strict=False))
    picture = np.ascontiguousarray(picture[top : top + cut[0], left : left + cut[1]])
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC)
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None] if channels == 1 else picture


def _read_pictures(paths, shape, read_one) -> tuple[list[Path], np.ndarray]:
    """The files of `predict`, and their pictures, uint8 [n, *shape]."""
    read, failures = [], []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
            if not found:
                raise UsageError(
                    f"{path} must hold pictures ({', '.join(PICTURE_SUFFIXES)}), received a folder without any"
                )
            for file in found:
                try:
                    read.append((file, read_one(file, shape)))
                except UsageError as error:
                    failures.append(error)
        elif path.exists():
            read.append((path, read_one(path, shape)))
        else:
            raise UsageError(f"expected picture files or folders, received '{path}', which does not exist")
    if not read:
        raise failures[0] if failures else UsageError("--mode=predict needs --images FILE_OR_FOLDER..., received none")
    for error in failures:
        print(f"left out: {error}", file=sys.stderr)
    files, images = zip(*read, strict=True)
    return list(files), np.stack(images)


def _class_names(path: str, classes: int, head: str = "") -> list[str]:
    """Class names from the `data.json` of the run that a net lies in; shipped weights know CIFAR-10's."""
    if path == "cifar10":
        return list(cifar10_input.CIFAR10_CLASSES)
    place = Path(path).expanduser()
    for folder in (place, place.parent, place.parent.parent):
        run = RunFolder(folder)
        if run.data.is_file() and len(names := run.read_class_names(head)) == classes:
            return names
    return _numbered_names(classes)


def _numbered_names(classes: int) -> list[str]:
    """For a net that lies nowhere near the names of its classes."""
    return [f"class {index}" for index in range(classes)]
