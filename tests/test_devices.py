"""On which device and in which number format is computed, and what is said of it. The GPUs are made up."""

import functools
import importlib.machinery
import json
import subprocess
import sys
import types
from pathlib import Path

import conftest
import pytest
import tensorflow as tf
from conftest import ROOT, user_environment

from cifar10_train import Train, train
from hyper_parameters import from_preset
from resnet_study import devices, errors
from resnet_study import environment as environment_module
from resnet_study.checkpoints import read_checkpoint
from resnet_study.data import folder_data
from resnet_study.environment import (
    _memory_limits,
    _read_quotas,
    count_cores,
    describe_environment,
    free_memory,
    largest_memory,
)
from resnet_study.errors import UsageError
from resnet_study.files import read_json, write_json
from resnet_study.networks import layers
from resnet_study.reports.results import name_hardware
from resnet_study.run_folder import RunFolder


@pytest.fixture
def machine(monkeypatch):
    """A machine with made-up GPUs and a made-up processor: call it with the GPUs' (name, compute capability)."""

    def make(*gpus, processor="AuthenticAMD avx512_bf16"):
        found = [types.SimpleNamespace(name=f"/physical_device:GPU:{index}") for index in range(len(gpus))]
        details = {
            gpu.name: {"device_name": name, "compute_capability": capability}
            for gpu, (name, capability) in zip(found, gpus, strict=True)
        }
        visible = list(found)

        def hide(kept, kind):
            assert kind == "GPU"
            visible[:] = kept

        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: list(found))
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: list(visible))
        monkeypatch.setattr(tf.config, "set_visible_devices", hide)
        monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details[gpu.name])
        monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, enable: None)
        read_text = devices.Path.read_text
        monkeypatch.setattr(
            devices.Path,
            "read_text",
            lambda path, *args, **kwargs: (
                f"model name\t: Made Up 9000\nflags : sse {processor}"
                if str(path) == "/proc/cpuinfo"
                else read_text(path, *args, **kwargs)
            ),
        )

    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    return make


AMPERE, TURING = ("NVIDIA A100", (8, 0)), ("NVIDIA T4", (7, 5))


@pytest.mark.parametrize(
    ("gpus", "processor", "strategy", "policy"),
    [
        ([AMPERE], "", "cpu", "float32"),
        ([AMPERE], "", "auto", "mixed_bfloat16"),
        ([TURING], "AuthenticAMD avx512_bf16", "cpu", "mixed_bfloat16"),
        ([TURING], "AuthenticAMD avx512_bf16", "one_gpu", "float32"),
        ([AMPERE, TURING], "", "one_gpu", "mixed_bfloat16"),
        ([AMPERE, TURING], "", "mirrored", "float32"),
        ([], "amx_bf16", "auto", "mixed_bfloat16"),
        ([], "GenuineIntel avx512_bf16", "auto", "float32"),
        ([], "", "auto", "float32"),
    ],
)
def test_precision_is_that_of_the_devices_that_compute(machine, gpus, processor, strategy, policy):
    machine(*gpus, processor=processor)
    assert devices.choose_policy("auto", strategy) == policy
    assert devices.choose_policy("float32", strategy) == "float32"
    assert devices.choose_policy("bfloat16", strategy) == "mixed_bfloat16"


def test_a_hidden_gpu_does_not_choose_the_precision(machine):
    machine(AMPERE, processor="")
    devices.choose_strategy("cpu")
    assert devices.choose_policy("auto", "auto") == "float32"


@pytest.mark.parametrize(("value", "policy"), [("0", "float32"), ("false", "float32"), ("1", "mixed_bfloat16")])
def test_bfloat16_needs_onednn_on_a_processor(machine, monkeypatch, value, policy):
    machine()
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", value)
    assert devices.choose_policy("auto", "auto") == policy


tiny = functools.partial(
    conftest.tiny, model="lenet5", train_steps=2, report_freq=1, synthetic_images=60, train_batch_size=4
)


def test_a_run_that_moves_to_another_machine_keeps_its_precision(machine, tmp_path, capsys):
    machine(processor="")
    config = tiny(tmp_path)
    run = train(config)
    assert run.stored_policy() == "float32" and read_checkpoint(run.latest_checkpoint())[1]["precision"] == "float32"
    machine(processor="AuthenticAMD avx512_bf16")
    assert Train(config, RunFolder(run.path)).machine.policy == "float32"
    # As if it had been begun in bfloat16.
    starts = read_json(run.environment, [dict])
    write_json(run.environment, [*starts, starts[-1] | {"dtype_policy": "mixed_bfloat16"}])
    machine(processor="")
    capsys.readouterr()
    trainer = Train(config, RunFolder(run.path))
    printed = capsys.readouterr().out
    assert (
        trainer.machine.policy == "mixed_bfloat16"
        and len(printed.splitlines()) == 1
        and "is slower in bfloat16" in printed
    )
    assert "bfloat16" in {layer.compute_dtype for layer in trainer.model.layers}
    trainer.train(resume=True)
    # What starts anew chooses anew.
    trainer = Train(config, RunFolder(run.path))
    assert trainer.machine.policy == "mixed_bfloat16"
    with pytest.raises(UsageError, match=r"has taken mixed_bfloat16 .* a new one would have float32"):
        trainer.train(overwrite=True)
    assert run.stored_policy() == "mixed_bfloat16" and run.final.is_file()
    assert train(config, overwrite=True).stored_policy() == "float32"


def test_what_a_training_has_hidden_is_not_looked_for_by_the_next(machine):
    machine(AMPERE, AMPERE)
    devices.choose_strategy("one_gpu")
    assert devices.choose_strategy("auto").num_replicas_in_sync == 1


def test_runs_that_noted_no_precision_go_on(machine, tmp_path):
    machine()
    run = RunFolder(tmp_path / "x")
    assert run.stored_policy() is None
    with run.locked():
        run.begin(tiny(tmp_path), resume=False, overwrite=False)
    assert run.stored_policy() is None
    write_json(run.environment, [{"step": 0}])
    assert run.stored_policy() is None
    write_json(run.environment, [{"step": 0, "dtype_policy": "float8"}])
    with pytest.raises(UsageError, match="dtype_policy"):
        run.stored_policy()


@pytest.mark.parametrize(
    ("gpus", "strategy", "hardware"),
    [
        ([AMPERE], "auto", "NVIDIA A100, Made Up 9000 with AVX512-BF16, 2 cores, float32"),
        ([AMPERE, AMPERE], "mirrored", "2 x NVIDIA A100, Made Up 9000 with AVX512-BF16, 2 cores, float32"),
        ([AMPERE, AMPERE], "one_gpu", "NVIDIA A100, Made Up 9000 with AVX512-BF16, 2 cores, float32"),
        ([AMPERE], "cpu", "Made Up 9000 with AVX512-BF16, 2 cores, float32"),
        ([], "auto", "Made Up 9000 with AVX512-BF16, 2 cores, float32"),
    ],
)
def test_results_name_the_devices_that_computed(machine, gpus, strategy, hardware):
    machine(*gpus)
    environment = describe_environment("float32", strategy) | {"cores": 2}
    assert name_hardware(environment) == hardware
    del environment["gpus"]  # noted by other versions
    assert name_hardware(environment) == "Made Up 9000 with AVX512-BF16, 2 cores, float32"
    assert name_hardware(environment | {"towers": 2}) == "Made Up 9000 with AVX512-BF16, 2 cores, float32, 2 towers"


@pytest.mark.parametrize(
    ("module", "called", "words"),
    [
        (None, "/place/cifar10_main.py", "python cifar10_main.py"),
        ("flowers.train", "/place/flowers/train.py", "python -m flowers.train"),
        (None, "/place/bin/cifar10", "cifar10"),
        ("cifar10_main", "/place/cifar10_main.py", "python -m cifar10_main"),
        (None, "-c", "python -c"),
    ],
)
def test_a_command_is_named_as_it_was_typed(monkeypatch, module, called, words):
    spec = module and importlib.machinery.ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec, raising=False)
    monkeypatch.setattr(sys, "argv", [called, "--seed=1"])
    assert describe_environment("float32")["command"] == f"{words} --seed=1"
    program = words if words in ("cifar10", "python -m cifar10_main") else "python cifar10_main.py"
    assert from_preset("smoke").resume_command(Path("runs/x")) == f"{program} --mode=train --version=x --resume"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a clone")
def test_the_environment_names_the_commit_of_the_clone():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commit = describe_environment("float32")["commit"]
    assert commit and head.startswith(commit.removesuffix("+"))


def test_a_run_on_the_processor_beside_a_gpu_notes_no_gpu(machine, tmp_path):
    machine(AMPERE)
    run = train(tiny(tmp_path, strategy="cpu"))
    assert [start["gpus"] for start in read_json(run.environment, [dict])] == [[]]


@pytest.fixture
def idle_gpu(machine, monkeypatch):
    """A machine with a GPU that TensorFlow does not list."""
    machine()
    errors._said.clear()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}")
    exists = devices.Path.exists
    monkeypatch.setattr(devices.Path, "exists", lambda path: str(path) == "/dev/nvidia0" or exists(path))
    return lambda cuda: monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"is_cuda_build": cuda})


@pytest.mark.parametrize(("cuda", "words"), [(False, "built without CUDA: install the extra gpu"), (True, "driver")])
def test_a_gpu_that_cannot_be_used_is_told_once_with_the_reason(idle_gpu, capsys, cuda, words):
    idle_gpu(cuda)
    devices.choose_strategy("auto")
    devices.choose_strategy("auto")
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1 and "GPU" in printed and words in printed
    with pytest.raises(UsageError, match=words):
        devices.choose_strategy("one_gpu")


def test_nothing_is_told_of_a_gpu_that_is_not_wanted(idle_gpu, machine, capsys, monkeypatch):
    idle_gpu(False)
    devices.choose_strategy("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    devices.choose_strategy("auto")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    machine(AMPERE)
    devices.choose_strategy("auto")
    assert capsys.readouterr().out == ""


def test_channels_come_last(monkeypatch):
    monkeypatch.setattr("keras.config.image_data_format", lambda: "channels_first")
    with pytest.raises(UsageError, match="image_data_format channels_last, received channels_first"):
        devices.check_keras()


@pytest.mark.parametrize(
    ("backend", "settings", "words"),
    [
        ("numpy", {}, "backend tensorflow, received numpy"),
        ("nonsense", {}, "backend tensorflow, received nonsense"),
        ("", {"backend": "jax"}, "set KERAS_BACKEND=tensorflow"),
        pytest.param(
            "",
            {"image_data_format": "channels_first"},
            "image_data_format channels_last, received channels_first",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_keras_that_the_networks_cannot_use_is_one_line(tmp_path, backend, settings, words):
    usual = {"floatx": "float32", "epsilon": 1e-7, "backend": "tensorflow", "image_data_format": "channels_last"}
    (tmp_path / "keras.json").write_text(json.dumps(usual | settings))
    environment = user_environment() | {"KERAS_HOME": str(tmp_path)}
    environment |= {"KERAS_BACKEND": backend} if backend else {}
    flags = ["--mode=train", "--dataset=synthetic", f"--runs_dir={tmp_path}/runs"]
    command = [sys.executable, str(ROOT / "cifar10_main.py"), *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and words in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_a_number_format_that_the_layers_cannot_use_is_one_line_in_a_program(monkeypatch):
    monkeypatch.setattr("keras.config.floatx", lambda: "float16")
    with pytest.raises(ImportError, match="Keras must have floatx float32, received float16"):
        importlib.reload(layers)


@pytest.mark.parametrize(
    ("processor", "imported", "value", "later"),
    [("avx2", [], None, "1"), ("avx2", [], "0", "0"), ("avx2", ["tensorflow"], None, None), ("avx", [], None, None)],
)
def test_onednn_is_switched_on_before_tensorflow_is_imported(machine, monkeypatch, processor, imported, value, later):
    machine(processor=processor)
    monkeypatch.setenv(devices.ONEDNN, value) if value else monkeypatch.delenv(devices.ONEDNN, raising=False)
    monkeypatch.setattr(devices, "sys", types.SimpleNamespace(modules=imported))
    devices._switch_onednn_on()
    assert devices.os.environ.get(devices.ONEDNN) == later


@pytest.mark.parametrize(
    ("gpus", "processor", "has_it", "value", "said"),
    [
        ([], "avx2", False, None, True),
        ([], "avx2", True, None, False),
        ([], "avx2", False, "0", False),
        ([], "avx", False, None, False),
        ([TURING], "avx2", False, None, False),
    ],
)
def test_a_program_that_computes_without_onednn_is_told_so(
    machine, monkeypatch, capsys, gpus, processor, has_it, value, said
):
    machine(*gpus, processor=processor)
    monkeypatch.setattr(devices, "has_onednn", lambda: has_it)
    monkeypatch.setenv(devices.ONEDNN, value) if value else monkeypatch.delenv(devices.ONEDNN, raising=False)
    monkeypatch.setattr(errors, "_said", set())
    for _ in range(2):
        devices.note_missing_onednn("auto")
    assert capsys.readouterr().out.count("set TF_ENABLE_ONEDNN_OPTS=1 before its first import") == said


def test_a_quota_of_processor_time_counts_as_cores(tmp_path):
    (tmp_path / "groups").write_text("3:cpu:/old\n0::/pod/box\n")
    box = tmp_path / "pod" / "box"
    box.mkdir(parents=True)
    assert _read_quotas(tmp_path / "groups", tmp_path) == []
    (box / "cpu.max").write_text("150000 100000\n")
    (box.parent / "cpu.max").write_text("max 100000\n")
    assert _read_quotas(tmp_path / "groups", tmp_path) == [2]
    (box / "cpu.max").write_text("damaged")
    assert _read_quotas(tmp_path / "groups", tmp_path) == []
    assert _read_quotas(tmp_path / "none", tmp_path) == [] and count_cores() >= 1


@pytest.mark.parametrize(
    ("line", "tree", "limit", "use"),
    [("0::/pod/box", "", "max", "current"), ("5:memory:/pod/box", "memory", "limit_in_bytes", "usage_in_bytes")],
)
def test_the_memory_of_a_container_counts_as_that_of_the_machine(tmp_path, monkeypatch, line, tree, limit, use):
    (tmp_path / "groups").write_text(f"3:cpu:/old\n{line}\n")
    assert _memory_limits(tmp_path / "groups", tmp_path) == _memory_limits(tmp_path / "none", tmp_path) == []
    box = tmp_path / tree / "pod" / "box"
    box.mkdir(parents=True)
    for name, text in {limit: "3000\n", use: "900\n", "stat": "anon 7\ninactive_file 300\nactive_file 100\n"}.items():
        (box / f"memory.{name}").write_text(text)
    limits = _memory_limits(tmp_path / "groups", tmp_path)
    assert limits == [(3000, 500)]
    monkeypatch.setattr(environment_module, "_memory_limits", lambda: limits)
    assert largest_memory() == 3000 and free_memory() in (2500, None)  # None on macOS


def test_images_of_a_folder_that_no_memory_holds_are_refused(monkeypatch):
    monkeypatch.setattr(folder_data, "largest_memory", lambda: 2**30)
    folder_data._check_memory(1000, (224, 224, 3))
    with pytest.raises(UsageError, match=r"10,000 images of 224 x 224 need 3 GiB of memory, .* has 1; give a smaller"):
        folder_data._check_memory(10_000, (224, 224, 3))
    monkeypatch.setattr(folder_data, "largest_memory", lambda: None)  # Windows does not tell
    folder_data._check_memory(10_000_000, (224, 224, 3))
