"""`make reproduce`: it goes on where it was stopped, and its commands are understood."""

import json
import sys

from conftest import ROOT

from cifar10_main import make_parser
from hyper_parameters import HyperParameters, from_flags, from_preset
from resnet_study.run_folder import RunFolder
from resnet_study.studies.runs import plan_runs

sys.path.insert(0, str(ROOT / "benchmarks"))
import reproduce


def test_make_reproduce_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    script = tmp_path / "work.py"
    script.write_text(
        "import pathlib, sys\n"
        "name, log = sys.argv[1], pathlib.Path(__file__).with_name('log')\n"
        "log.write_text((log.read_text() if log.exists() else '') + name + ' ')\n"
        "code = pathlib.Path(__file__).with_name(name)\n"
        "sys.exit(int(code.read_text()) if code.exists() else 0)\n"
    )
    experiments = [
        reproduce.Experiment(name, f"shows {name}", (f"{script} {name}", f"{script} {name}-publish"), 1)
        for name in "abc"
    ]
    monkeypatch.setattr(reproduce, "EXPERIMENTS", tuple(experiments))
    flags = [f"--runs_dir={tmp_path}"]
    (tmp_path / "a").write_text("2")
    (tmp_path / "c").write_text("130")
    assert reproduce.main(flags) == 130 and "the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "log").read_text() == "a b b-publish c "  # a failed, c was stopped
    assert reproduce.main([*flags, "--list"]) == 0
    out = capsys.readouterr().out
    assert out.count("finished, took 0 min") == 1 and "shows c" in out
    (tmp_path / "c").unlink()
    assert reproduce.main(flags) == 2 and "failed: a;" in capsys.readouterr().err
    (tmp_path / "a").unlink()
    assert reproduce.main(flags) == 0 and reproduce.main(flags) == 0
    assert (tmp_path / "log").read_text() == "a b b-publish c a c c-publish a a-publish "
    assert reproduce.main(["--only=x"]) == 2


def test_only_publishing_is_told_where_the_results_lie(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(reproduce, "_run_to_its_end", lambda command: commands.append(command) or 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reproduce.main(["--only=diagrams", "--results_dir=other", "--runs_dir=~/runs"]) == 0
    assert ["--results_dir=other" in command for command in commands] == [False, True]
    assert (tmp_path / "runs" / "reproduce.json").is_file()


def test_two_make_reproduce_at_a_time_keep_both_entries(tmp_path, monkeypatch):
    script = tmp_path / "other.py"
    script.write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'reproduce.json')!r}).write_text('{{\"b\": {{}}}}')\n"
    )
    monkeypatch.setattr(reproduce, "EXPERIMENTS", (reproduce.Experiment("a", "shows a", (str(script),), 1),))
    assert reproduce.main([f"--runs_dir={tmp_path}"]) == 0
    assert set(json.loads((tmp_path / "reproduce.json").read_text())) == {"a", "b"}


def test_a_trial_is_not_taken_for_the_experiment(tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(reproduce, "_run_to_its_end", lambda command: commands.append(" ".join(command)) or 0)
    config = from_preset("fast", train_steps=100, runs_dir=str(tmp_path))
    RunFolder(tmp_path / config.run_name).begin(config, resume=False, overwrite=False)
    assert reproduce.main(["--only=fast", f"--runs_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "fast would go on with the run in" in error and "which has --train_steps=100; move it away" in error
    assert [command for command in commands if "fast-all-seed2" in command]  # the next ones begin all the same
    assert not [command for command in commands if "fast-seed0" in command]


def test_every_command_of_make_reproduce_is_understood():
    versions = set()
    for experiment in reproduce.EXPERIMENTS:
        for command in experiment.commands:
            program, *flags = command.split()
            assert program == "cifar10_main.py"
            given = vars(make_parser().parse_args(flags))
            if given["mode"] == "publish":
                versions.add(given["version"])
            elif given["mode"] == "train":
                fields = HyperParameters.__dataclass_fields__
                config = from_flags({name: value for name, value in given.items() if name in fields})
                assert f"--version={config.version} " in experiment.commands[1]
            elif given["mode"] in ("compare", "robustness"):
                assert plan_runs({}, given["models"], given["datasets"], given["seeds"])
    assert len(versions) == len(reproduce.EXPERIMENTS)
