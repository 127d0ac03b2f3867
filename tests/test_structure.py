"""Imports run one way and make no circle; importing does nothing."""

import importlib.util
import subprocess
import sys

import pytest
from conftest import ROOT

_SPEC = importlib.util.spec_from_file_location("structure", ROOT / "benchmarks" / "structure.py")
structure = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(structure)

# From the ground up: a module imports only modules of its own group or of groups above it in this list.
GROUPS = (
    ("resnet_study.errors", "resnet_study.strings", "resnet_study.files", "resnet_study.checkpoints", "resnet_study.class_names", "resnet_study.environment", "resnet_study.exporting.runtimes"),  # the ground
    (
        "resnet_study.settings", "resnet_study.command_line", "resnet_study.own_image_settings", "resnet_study.shared_settings", "resnet_study.presets", "resnet_study.run_folder", "resnet_study.run_changes", "resnet_study.run_images", "resnet_study.devices", "resnet_study.workers",
        "resnet_study.networks", "resnet_study.saved_models", "resnet_study.predictor", "resnet_study.predict_files", "resnet_study.new_data", "resnet_study.calibration", "resnet_study.metrics", "resnet_study.evaluation",
        "resnet_study.data", "resnet_study.training", "resnet_study.exporting",
    ),
    (
        "hyper_parameters", "resnet", "cifar10_input", "cifar10_train", "cifar10_test", "flowers",
        "resnet_study.training.tasks",  # what is trained on what: the part of cifar10_train that knows data sets
        "resnet_study.command_settings",  # the part of cifar10_main that knows runs and models
    ),
    ("resnet_study.reports", "resnet_study.studies", "resnet_study.serving"),
    ("cifar10_main", "flowers.train", "flowers.describe", "flowers.evaluate", "flowers.predict", "flowers.export"),
)  # fmt: skip
MODULES = structure.find_modules(ROOT)
# The package root holds nothing to import; these have no work to do where TensorFlow is missing.
LIGHT = (
    "hyper_parameters",
    "resnet_study.settings",
    "resnet_study.command_line",
    "resnet_study.presets",
    "resnet_study.networks.registry",
    "resnet_study.reports.console",
    "resnet_study.command_settings",
    "cifar10_main",
    "flowers.predict",
    "flowers.evaluate",
    "flowers.export",
)


def rank(module):
    """The number of the group that names the module or a package that holds it; the longest name counts."""
    names = [(len(name), number) for number, group in enumerate(GROUPS) for name in group if f"{module}.".startswith(f"{name}.")]  # fmt: skip
    return max(names)[1]


def test_imports_run_one_way():
    against = [
        f"{name} imports {other}"
        for name, others in structure.read_imports(MODULES).items()
        for other in others
        if rank(other) > rank(name)
    ]
    assert not against


def test_imports_make_no_circle():
    assert not structure.find_circles(structure.read_imports(MODULES))


def test_a_circle_is_found():
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert structure.find_circles(imports) == [{"a", "b", "c"}]


def test_the_top_level_holds_the_promised_names_only():
    top = {name for name in MODULES if "." not in name}
    assert top == {"resnet", "cifar10_input", "cifar10_train", "cifar10_test", "cifar10_main", "hyper_parameters"}


def reached(module):
    """All modules that come with the import of one."""
    imports, waiting, seen = structure.read_imports(MODULES), [module], set()
    while waiting:
        for name in imports[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def test_the_networks_know_no_settings_and_no_run_folder():
    assert not reached("resnet") & {"hyper_parameters", "resnet_study.settings", "resnet_study.run_folder"}


def test_a_training_needs_no_test_and_a_test_no_report():
    assert "cifar10_test" not in reached("cifar10_train")
    assert not {name for name in reached("cifar10_test") if name.startswith("resnet_study.reports")}


@pytest.mark.parametrize(
    ("names", "light"), [(LIGHT, True), (tuple(MODULES), False)], ids=["light modules", "all modules"]
)
def test_importing_does_nothing(names, light, tmp_path):
    code = f"""
import importlib, os, socket, sys
sys.argv = ["python", "--mode=nonsense"]
def refuse(*_, **__):
    raise AssertionError("it asked the network")
socket.socket.connect = socket.getaddrinfo = refuse
for name in {names}:
    importlib.import_module(name)
    assert not {light} or not {{"tensorflow", "keras"}} & set(sys.modules), name
if "matplotlib" in sys.modules:
    import matplotlib
    assert dict.__getitem__(matplotlib.rcParams, "backend") == "template"
assert not os.listdir()
"""
    environment = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "template", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
