"""A trained run whose probabilities can be believed: a copy of its model with a temperature, fitted on images that it held out.

calibrate(config, held_out)  -> calibrated.keras, calibration.json
"""

import dataclasses
from pathlib import Path

import cifar10_input
from hyper_parameters import HyperParameters
from resnet_study.calibration import change_temperature, fit_temperature, set_temperature
from resnet_study.class_names import ClassNames, without_folder
from resnet_study.data.image_data import digest
from resnet_study.errors import UsageError, say_once
from resnet_study.files import hash_file, write_json
from resnet_study.metrics import measure
from resnet_study.predictor import Predictor
from resnet_study.run_changes import PLACES
from resnet_study.run_folder import RunFolder, run_folder_of
from resnet_study.run_images import check_given_images, check_own, tell_known_images
from resnet_study.saved_models import load_model, save_model

# Flags in which a run that held images out may differ from the one that it calibrates, though the recipe is the same.
_OF_ONE_RUN = ("--seed", "--validation_fraction", "--split_seed", "--report_freq", "--patience")


def calibrate(config: HyperParameters, held_out: str = "") -> tuple[dict, Path]:
    """Gives a copy of the trained model of a run a temperature, and measures what that does on the test images.

    The temperature is one number that divides the logits (Guo et al. 2017, arXiv:1706.04599, section 4.2). No answer changes, only its
    probability. It is fitted on the validation images of the run, which no weight was trained on. `best.keras` stays as it is; the copy
    is `calibrated.keras`, and `calibration.json` tells of it.

    Args:
        config: settings of a run with one head.
        held_out: another run, by its name or its folder, of the same recipe, whose model and validation images the temperature is fitted on. A run that was
            trained on all images needs one, since it held none out. "" = the run itself.

    Returns:
        (content of `calibration.json`: of (the sha256 of `best.keras`), temperature, fitted_on, images, and validation_before, validation_after, test_before, test_after,
        each with calibration_error (points), brier_score and loss; path of the copy).

    Raises:
        UsageError: the run or the other one holds no images out, the two are of different networks or data sets, or the model has several
            heads or no softmax at its end.
    """
    run = run_folder_of(config)
    config, fitted = run.as_begun(config), run
    run.check_same_settings(config)
    if held_out:  # a name, as --version takes it, or a path
        by_name = RunFolder(f"{config.runs_dir}/{held_out}")
        fitted = by_name if by_name.holds_run() else RunFolder(held_out)
        if not fitted.holds_run():
            raise UsageError(
                f"--held_out must be a run in {config.runs_dir} or its folder, received '{held_out}'; --mode=runs lists them"
            )
    recipe = fitted.read_config(HyperParameters) if held_out else config
    validation, tested, names = _find_held_out(run, config, fitted, recipe)
    model = load_model(str(run.best))
    predictor = Predictor(model)
    seen = Predictor(load_model(str(fitted.best))) if held_out else predictor
    seen = seen.predict(validation.images, config.test_batch_size)
    answers = predictor.predict(tested.images, config.test_batch_size)
    temperature = fit_temperature(seen, validation.labels)
    try:
        set_temperature(model, temperature)
    except ValueError as error:
        raise UsageError(f"{run.best} cannot be calibrated: {error}") from error
    facts = {
        "of": hash_file(run.best),
        "temperature": temperature,
        "fitted_on": str(fitted.path) if held_out else "its own validation images",
        "images": len(validation),
    }
    for part, probabilities, labels in (("validation", seen, validation.labels), ("test", answers, tested.labels)):
        facts[f"{part}_before"] = _measure_calibration(probabilities, labels)
        facts[f"{part}_after"] = _measure_calibration(change_temperature(probabilities, temperature), labels)
    path = run.path / "calibrated.keras"
    with run.locked():
        jpeg_size = config.reading()["jpeg_size"]
        class_names = ClassNames({"": names}, config.resize, jpeg_size=jpeg_size, value_range=config.value_range)
        save_model(model, path, class_names)
        write_json(run.path / "calibration.json", facts)
    return facts, path


def _find_held_out(run, config, fitted, recipe):
    """The validation images of the run `fitted`, whose settings are `recipe`, the test images of `run`, and the names of the classes of both.

    Raises UsageError as `calibrate` tells.
    """
    is_other = recipe is not config
    for name in ("model_name", "dataset", "heads"):
        here, there = getattr(config, name), getattr(recipe, name)
        if here != there:
            raise UsageError(
                f"--held_out must be of the {name} {here or 'none'}, received {there or 'none'}; give another run"
            )
    if len(config.head_factors) > 1:
        raise UsageError(f"--mode=calibrate is for models with one head, received --heads={config.heads}")
    # What was moved since; two runs on one folder may have had tables of their own.
    kept = run.read_config(HyperParameters)
    moved = {name: getattr(config, name) for name in PLACES if getattr(config, name) != getattr(kept, name)}
    if (
        others := [flag for flag in recipe.flags_beside(kept) if flag.partition("=")[0] not in _OF_ONE_RUN]
        if is_other
        else []
    ):
        say_once(
            f"note: {fitted}, on which the temperature is fitted, was trained with {' '.join(others)}, which {run} was not"
        )
    recipe = dataclasses.replace(recipe, **{"data_dir": config.data_dir} | moved)
    data = cifar10_input.load_data(recipe)
    if recipe.is_use_ckpt:
        tell_known_images(recipe.ckpt_path, recipe, data)
    if data.multi_label:
        raise UsageError(f"--mode=calibrate is for one label of each image, received {run}, whose images have several")
    check_own(fitted, data.fingerprint, data.found)
    check_given_images(fitted, lambda: digest(data))
    # The parts of a run follow from its settings, and may be others than those of the run that held images out.
    own = cifar10_input.load_data(config) if is_other else data
    check_own(run, own.fingerprint, own.found)
    check_given_images(run, lambda: digest(own))
    if recipe.vali_random_label:
        raise UsageError(
            f"expected a run with true validation labels, received {fitted}, whose are random (--vali_random_label); give --held_out=RUN"
        )
    _, validation = cifar10_input.split_data(data, recipe)
    if not len(validation):
        raise UsageError(
            f"expected a run that held images out, received {fitted}, which was trained on all; give --held_out=RUN, a run of the same "
            "recipe that was trained with --validation_fraction=0.1"
        )
    if run.read_class_names() not in (list(data.class_names), [without_folder(name) for name in data.class_names]):
        raise UsageError(
            f"{fitted} must be of the classes that {run} tells apart, received others; give another --held_out"
        )
    return validation, own.test, list(data.class_names)


def _measure_calibration(probabilities, labels):
    metrics = measure(probabilities, labels, range(probabilities.shape[1]))
    return {name: metrics[name] for name in ("calibration_error", "brier_score", "loss")}
