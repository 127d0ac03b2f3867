"""What the pages give to clusters: the script of Slurm, the job of Kubernetes, the container file."""

import json
import re
import shutil
import subprocess

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "several_machines.md").read_text(encoding="utf-8")


def find_block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(0, 0, False), (137, 0, True), (75, 0, True), (2, 0, False), (137, 5, False)]
)
def test_the_script_of_slurm_starts_machines_and_requeues_what_died(tmp_path, code, restarts, requeued):
    """With stand-ins for the commands of Slurm and for Python, which ends with `code`."""
    stand_ins = {
        "scontrol": '[ "$1" = show ] && printf "node1\\nnode2\\n" || echo "$@" > requeued',
        "srun": 'shift; SLURM_PROCID=1 "$@"',
        "python": f'echo "$TF_CONFIG" > config; echo "$@" > flags; exit {code}',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "train.sh").write_text(find_block("bash"))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_RESTART_COUNT": str(restarts)}  # fmt: skip
    done = subprocess.run(
        ["bash", "train.sh", "--model=a b"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code and not done.stderr
    expected = {"cluster": {"worker": ["node1:20018", "node2:20019"]}, "task": {"type": "worker", "index": 1}}
    assert json.loads((tmp_path / "config").read_text()) == expected
    assert (tmp_path / "flags").read_text().endswith("--resume --model=a b\n")
    assert (tmp_path / "requeued").exists() == requeued


def test_the_job_of_kubernetes_is_valid():
    validate, yaml = pytest.importorskip("kubernetes_validate"), pytest.importorskip("yaml")
    service, job = yaml.safe_load_all(find_block("yaml"))
    for part in (service, job):
        validate.validate(part, validate.latest_version(), strict=True)
    assert service["spec"]["selector"]["batch.kubernetes.io/job-name"] == job["metadata"]["name"]
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    job["spec"]["complitions"] = 2
    with pytest.raises(validate.ValidationError):
        validate.validate(job, validate.latest_version(), strict=True)


def test_the_container_file_is_pinned_and_runs_as_no_root():
    lines = (ROOT / "docs" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (base,) = (line for line in lines if line.startswith("FROM "))
    assert re.fullmatch(r"FROM python:3\.(11|12|13)\.\d+-slim-\w+", base)
    users = [line for line in lines if line.startswith("USER ")]
    assert users and users[-1] != "USER root"
    assert lines.index(users[-1]) < next(number for number, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    kept = [line[1:] for line in (ROOT / "docs" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")]  # fmt: skip
    assert all(list(ROOT.glob(name)) for name in kept)
