"""The wheel holds all that the three ways of use need, outside of a clone."""

import os
import re
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, so that no build files are left in the clone.
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in names:
        wanted = name.endswith(
            (".py", ".cfg", ".toml", ".keras", ".html", ".css", ".js", ".json", ".typed", "README.md")
        ) and not name.startswith(("tests/", "results/"))
        if wanted and (ROOT / name).is_file():
            place = folder / "source" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source"]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("resnet_study-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(installed, cwd, *command):
    environment = os.environ | {"PYTHONPATH": str(installed), "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_command_predicts_with_the_shipped_weights_that_are_installed(installed, tmp_path):
    code = (
        "import sys, resnet, resnet_study, cifar10_input\n"
        f"assert all(module.__file__.startswith({str(installed)!r}) for module in (resnet, resnet_study, cifar10_input))\n"
        "from cifar10_main import main; sys.exit(main())"
    )
    flags = ["--mode=predict", "--test_ckpt_path=cifar10", f"--images={ROOT / 'examples' / 'cat.jpg'}"]
    status, out, err = run(installed, tmp_path, "-c", code, *flags)
    assert status == 0, err
    assert re.search(r"cat\.jpg +cat ", out)


def test_types_templates_and_weights_are_installed(installed):
    shipped = [
        path.relative_to(ROOT / "resnet_study").as_posix()
        for path in (ROOT / "resnet_study").glob("pretrained/*.keras")
    ]
    assert "pretrained/resnet20_cifar10.keras" in shipped
    names = (
        *shipped,
        "py.typed",
        "reports/templates/run.html",
        "reports/templates/page.css",
        "reports/templates/page.js",
    )
    assert all((installed / "resnet_study" / name).is_file() for name in names)
    assert (installed / "flowers" / "py.typed").is_file()


@pytest.mark.slow
def test_the_installed_command_trains_and_writes_a_page(installed, tmp_path):
    code = "import sys; from cifar10_main import main; sys.exit(main())"
    flags = ["train", "--dataset=digits", "--train_steps=4", "--report_freq=2", "--model=resnet8", "--version=demo"]
    status, out, err = run(installed, tmp_path, "-c", code, *flags)
    assert status == 0 and "report.html" in out, err
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()


_CALLS = """
import keras
import numpy as np
from typing import assert_type
from cifar10_train import train
from hyper_parameters import HyperParameters, from_preset
from resnet import build_resnet, build_resnet20
from resnet_study.predictor import Predictor
from resnet_study.run_folder import RunFolder

config = from_preset("fast", seed=1)
assert_type(config, HyperParameters)
assert_type(config.init_lr, float)
assert_type(train(config, resume=True), RunFolder)
assert_type(Predictor("cifar10").predict(np.zeros((1, 32, 32, 3))), np.ndarray | dict[str, np.ndarray])
model: keras.Model = build_resnet20(classes=5, pooling=None, include_top=False)
build_resnet(9, "v1", weights=None)
"""


@pytest.mark.slow
def test_type_checkers_accept_right_calls_and_refuse_wrong_ones(tmp_path):
    mypy = pytest.importorskip("mypy.api")
    (tmp_path / "calls.py").write_text(
        _CALLS + 'build_resnet20(classes="ten")\nbuild_resnet20(colour=3)\ntrain("fast")\n'
    )
    flags = ["--config-file", str(ROOT / "setup.cfg"), "--cache-dir", str(tmp_path / "cache")]
    out, _, _ = mypy.run([*flags, str(tmp_path / "calls.py")])
    told = [line.rpartition("calls.py:")[2].partition(":")[0] for line in out.splitlines() if "error:" in line]
    first = len(_CALLS.splitlines()) + 1
    assert told == [str(first), str(first + 1), str(first + 2)], out


def test_the_flower_commands_start(installed, tmp_path):
    status, _, err = run(installed, tmp_path, "-m", "flowers.predict", "image.png", "--version=none")
    assert status == 2 and err.startswith("error: "), err
