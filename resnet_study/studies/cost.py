"""What a network costs: parameters, multiply-adds, speed, memory."""

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import cifar10_input
from cifar10_train import Train
from hyper_parameters import HyperParameters
from resnet_study import devices
from resnet_study.environment import describe_environment
from resnet_study.errors import UsageError
from resnet_study.networks.multiply_adds import count_parameters, multiply_adds
from resnet_study.predictor import Predictor
from resnet_study.reports.results import name_hardware
from resnet_study.run_folder import run_folder_of
from resnet_study.saved_models import load_model
from resnet_study.studies.runs import fingerprint, remembered
from resnet_study.training.work import training_pflop

COST_STEPS, COST_REPORTS = 20, 5  # what a short training for speed and memory takes: steps of each report, reports


def measure_training(config: HyperParameters) -> dict:
    """Measures speed and memory of a training; to be called in a process of its own, since the peak never falls.

    Args:
        config: settings of a finished run.

    Returns:
        dict with three keys.
            training_seconds: seconds per 1,000 images with the run's own settings; the median of the reports of a short training,
                without the first.
            training_memory: peak resident memory of this process after that training, data included, in MB (2**20 bytes); None where
                the system does not tell.
            hardware: on which this was measured; it need not be that of the run.
    """
    data = cifar10_input.load_data(config)
    run = run_folder_of(config)
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(
            config,
            train_steps=COST_STEPS * COST_REPORTS,
            report_freq=COST_STEPS,
            towers=run.stored_towers() or 0,
            # What the run was taught by may be gone, its copy is not. Other files it needs no longer, but the weights of --quantize_aware: any take as long.
            teacher=str(run.teacher) if run.teacher.is_file() else config.teacher,
            class_weight="balanced" if config.class_weight else "",
            is_use_ckpt=config.quantize_aware,
            ckpt_path=config.ckpt_path if config.quantize_aware else "",
            tensorboard=False,
            watch_test=False,
            runs_dir=folder,
            # What is for whole trainings.
            patience=0,
            extend=0,
            lookahead_steps=min(config.lookahead_steps, COST_STEPS),
        )
        trainer = Train(short, data=data)
        trainer.train()
    # Not that of the run itself, which may have shared the machine with others. Row 0 is the untrained model.
    speed = statistics.median(row["examples_per_sec"] for row in trainer.history[2:])
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return {
        "training_seconds": 1000 / speed * config.images_per_step / config.train_batch_size,
        "training_memory": int(peak[1]) / 1024 if peak else None,
        "hardware": name_hardware(
            describe_environment(trainer.machine.policy, config.strategy, trainer.machine.towers)
        ),
    }


def measure_inference(config: HyperParameters) -> dict:
    """Measures how fast a trained model answers; to be called in a process of its own, whose threads are those of a command that tests.

    Args:
        config: settings of a finished run.

    Returns:
        dict with one key, inference_seconds: seconds per 1,000 images of a `Predictor` in float32 with batches of 125; the median of five.
    """
    devices.share_batches()
    test = cifar10_input.load_data(config).test
    predictor = Predictor(str(run_folder_of(config).best))
    images = test.images[np.arange(1000) % len(test)]
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        predictor.predict(images, batch_size=125)
        seconds.append(time.perf_counter() - started)
    return {"inference_seconds": statistics.median(seconds[1:])}  # the first builds the graph


def measure_apart(module: str, job: str, measured: str):
    """What a module of this library prints as JSON of a job on its standard input, in a new process, which says nothing unless it fails.

    Raises:
        UsageError: it failed; `measured` names what it was to measure.
    """
    # Found as this process found it: in a clone the package need not be installed.
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-m", module], input=job, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"could not measure {measured} ({reason}); repeat the command")
    return json.loads(done.stdout.splitlines()[-1])


_MEASURES = {"training": measure_training, "inference": measure_inference}


def _measure_cost_apart(config) -> dict:
    measured = {}
    print(f"measuring what {config.model_name} costs in training and inference", flush=True)
    for name in _MEASURES:
        job = json.dumps({"measures": name, "config": config.to_json()})
        measured |= measure_apart("resnet_study.studies.cost", job, f"what {run_folder_of(config)} costs")
    return measured


def cost_table(groups, folder: Path) -> pd.DataFrame:
    """What each model costs: one row per group of runs. Speed and memory are measured once per model, in processes of their own."""
    rows = []
    for (dataset, model_name, preset), runs in groups.items():
        first = runs[0]
        measured = remembered(
            folder / "measured_costs.json",
            f"{fingerprint(first)}, cores share batches",
            lambda config=first.config: _measure_cost_apart(config),
        )
        model = load_model(str(first.run.best))
        rows.append(
            {
                "dataset": dataset,
                "model": model_name,
                "preset": preset,
                "parameters": count_parameters(model.trainable_weights),
                "multiply_adds": multiply_adds(model),
                "training_tflop": 1000
                * training_pflop(first.config, model, int(first.history["step"].iloc[-1]), first.run),
                "training_seconds": measured["training_seconds"],
                "inference_seconds": measured["inference_seconds"],
                "training_memory": measured["training_memory"],
                "hardware": measured["hardware"],
                "model_mb": model.count_params() * 4 / 2**20,
                "wall_minutes": statistics.mean(float(each.history["seconds"].iloc[-1]) for each in runs) / 60,
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":  # the process of `measure_apart`
    devices.import_tensorflow()
    job = json.load(sys.stdin)
    print(json.dumps(_MEASURES[job["measures"]](HyperParameters.from_json(job["config"], "the standard input"))))
