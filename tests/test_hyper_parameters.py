import argparse
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from hyper_parameters import HyperParameters, from_flags, from_preset, learning_rate_at
from resnet_study.command_line import add_flags
from resnet_study.errors import UsageError, run_command
from resnet_study.presets import PRESETS

ORIGINAL_FLAGS = [
    "version",
    "report_freq",
    "train_ema_decay",
    "train_steps",
    "is_full_validation",
    "train_batch_size",
    "validation_batch_size",
    "test_batch_size",
    "init_lr",
    "lr_decay_factor",
    "decay_step0",
    "decay_step1",
    "num_residual_blocks",
    "weight_decay",
    "padding_size",
    "ckpt_path",
    "is_use_ckpt",
    "test_ckpt_path",
    "train_random_label",
    "vali_random_label",
]


def test_every_flag_of_the_original_stack_exists():
    assert set(ORIGINAL_FLAGS) <= {field.name for field in dataclasses.fields(HyperParameters)}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_named(name):
    assert from_preset(name).preset == name


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1), (31999, 0.1), (32000, 0.01), (47999, 0.01), (48000, 0.001), (63999, 0.001)]
)
def test_he2015_rate_drops_at_32k_and_48k(step, rate):
    assert learning_rate_at(step, from_preset("he2015")) == pytest.approx(rate)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.01), (399, 0.01), (400, 0.1), (32000, 0.01)])
def test_he2015_110_starts_at_a_tenth(step, rate):
    assert learning_rate_at(step, from_preset("he2015_110")) == pytest.approx(rate)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_warm_up_rises_and_the_schedule_ends_at_zero(schedule):
    config = from_preset("fast", lr_schedule=schedule, init_lr=0.4, warmup_lr=0.1, warmup_steps=100, train_steps=500)
    rates = [learning_rate_at(step, config) for step in range(501)]
    assert rates[0] == pytest.approx(0.1) and rates[50] == pytest.approx(0.25) and rates[100] == pytest.approx(0.4)
    assert rates[300] == pytest.approx(0.2) and rates[500] == pytest.approx(0, abs=1e-9)
    assert rates[100:] == sorted(rates[100:], reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_may_end_above_zero(schedule):
    config = from_preset("fast", lr_schedule=schedule, init_lr=1.5, final_lr=0.1, warmup_steps=100, train_steps=500)
    rates = [learning_rate_at(step, config) for step in (100, 300, 500)]
    assert rates == pytest.approx([1.5, 0.8, 0.1])


def test_constant_schedule_and_decay_factor():
    assert learning_rate_at(10**6, from_preset("he2015", lr_schedule="constant")) == 0.1
    assert learning_rate_at(32000, from_preset("he2015", lr_decay_factor=0.5)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lr": -1.0}, "--init_lr must be at least 0"),
        ({"init_lr": math.nan}, "--init_lr must be a finite float32 number"),
        ({"weight_decay": 1e39}, "--weight_decay must be a finite float32 number"),
        ({"train_steps": 0}, "--train_steps must be at least 1"),
        ({"normalization": "none"}, "--normalization must be one of"),
        ({"train_batch_size": 1.5}, "--train_batch_size must be int"),
        ({"optimizer": "adam", "beta_lr_factor": 64.0}, "--optimizer=adam takes no --beta_lr_factor"),
        ({"lookahead_steps": 5}, "--lookahead_steps needs a --weight_averaging above 0"),
        ({"lookahead_steps": 400, "weight_averaging": 0.8}, "--lookahead_steps must be at most --report_freq"),
        ({"maxout": 1}, "--maxout must be 0 or at least 2"),
        ({"is_use_ckpt": True}, "needs --ckpt_path"),
        ({"version": "../elsewhere"}, "plain folder name"),
        ({"version": 128 * "é"}, "at most 255 bytes, received 256"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        HyperParameters(**settings)


def test_a_flag_that_nothing_would_read_is_refused():
    with pytest.raises(UsageError, match="--ckpt_path=x is read with --is_use_ckpt only"):
        from_flags({"ckpt_path": "x"})
    assert from_flags({"ckpt_path": "x", "is_use_ckpt": True}).ckpt_path == "x"


def test_a_setting_of_a_program_that_changes_nothing_is_told(capsys):
    run_command(lambda: None)  # which forgets what was said
    assert from_preset("demo", data_dir="my_photos").dataset == "digits"
    assert "note: --dataset=digits reads no --data_dir, received --data_dir=my_photos" in capsys.readouterr().out
    from_preset("fast", augment=True, rotation=15.0, teacher_temperature=5.0)
    assert "note: --teacher_temperature needs --teacher" in capsys.readouterr().out


def test_numbers_of_numpy_and_paths_are_taken():
    config = from_preset("smoke", seed=np.int64(3), init_lr=np.float32(0.5), augment=np.True_, runs_dir=Path("a/b"))
    assert (config.seed, config.init_lr, config.augment, config.runs_dir) == (3, 0.5, True, str(Path("a/b")))
    assert [type(value) for value in (config.seed, config.init_lr, config.augment)] == [int, float, bool]
    assert HyperParameters.from_json(config.to_json(), "a") == config


def test_settings_that_are_no_settings_are_named():
    with pytest.raises(UsageError, match=r"expected the settings of a run in FILE, received no settings but \[\]"):
        HyperParameters.from_json("[]", "FILE")


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(UsageError, match="fast, zoo, resnet9, resnet9_hour, robust, ten_minutes, night, he2015"):
        from_preset("best")


def test_flags_override_the_preset_and_small_data_sets_have_their_own():
    assert from_flags({"preset": "he2015", "init_lr": 0.2}).init_lr == 0.2
    assert from_flags({"dataset": "digits"}).preset == "demo"
    assert from_flags({"dataset": "digits", "preset": "liang"}).preset == "liang"
    assert from_flags({}).preset == "fast"


@pytest.mark.parametrize(
    ("dataset", "model", "preset"),
    [
        ("mnist", None, "mnist"),
        ("mnist", "resnet56", "mnist"),
        ("mnist", "lenet5_1998", "mnist_lenet"),
        ("mnist", "alexnet_c", "mnist_alexnet"),
        (None, "lenet5", "lenet"),
        (None, "plain_cnn", "lenet"),
        (None, "plain20", "fast"),
        (None, "resnet9", "resnet9"),
        (None, "resnet98", "fast"),
        (None, "airbench", "ten_minutes"),
        (None, "airbench96", "night"),
        ("mnist", "airbench", "mnist"),
        ("mnist", "resnet9", "mnist_resnet9"),
        ("cifar10", "alexnet", "alexnet"),
        ("cifar100", "alexnet", "alexnet"),
        ("digits", "lenet5", "demo"),
    ],
)
def test_data_set_and_network_choose_the_recipe(dataset, model, preset):
    given = {name: value for name, value in (("dataset", dataset), ("model", model)) if value}
    config = from_flags(given)
    assert config.preset == preset and given.items() <= dataclasses.asdict(config).items()


@pytest.mark.parametrize(
    ("preset", "settings", "expected", "flags"),
    [
        ("fast", {"dataset": "mnist"}, {"validation_fraction": 1 / 12, "flip": "none"}, "--dataset=mnist"),
        ("mnist", {"dataset": "cifar10"}, {"validation_fraction": 0.1, "flip": "alternate"}, "--dataset=cifar10"),
        ("he2015", {"dataset": "mnist", "flip": "random"}, {"flip": "random"}, "--dataset=mnist --flip=random"),
        ("alexnet", {"model": "resnet20"}, {"dropout": 0.5, "network_options": {}}, "--model=resnet20"),
        ("alexnet", {"model": "alexnet_c"}, {"network_options": {"dropout": 0.2}}, "--model=alexnet_c"),
        ("alexnet", {"dropout": 0.5}, {"network_options": {}}, "--dropout=0.5"),
    ],
)
def test_a_recipe_keeps_what_data_set_and_network_ask_for(preset, settings, expected, flags):
    """Digits are never mirrored, MNIST is split 55,000 / 5,000, and no network gets another's options, whatever the preset."""
    config = from_preset(preset, **settings)
    assert {name: getattr(config, name) for name in expected} == expected
    assert set(config.command.split()) == {*config.PROGRAM.split(), f"--preset={preset}", *flags.split()}


def test_booleans_are_parsed_in_all_their_spellings():
    parser = argparse.ArgumentParser()
    add_flags(parser, HyperParameters)
    assert vars(parser.parse_args([])) == {}
    for text, value in ((["--augment"], True), (["--augment=False"], False), (["--augment", "0"], False)):
        assert parser.parse_args(text).augment is value


def test_json_round_trip_and_damage(tmp_path):
    config = from_preset("liang", seed=3)
    assert HyperParameters.from_json(config.to_json(), "x") == config
    for text in ("", "[]", '{"no_such": 1}', '{"init_lr": -1}'):
        with pytest.raises(UsageError, match=r"settings of a run in config\.json"):
            HyperParameters.from_json(text, "config.json")


@pytest.mark.parametrize(
    ("model", "blocks", "name"),
    [
        ("resnet20", 0, "resnet20"),
        ("resnet20_preact", 9, "resnet56_preact"),
        ("plain20", 1, "plain8"),
        ("resnet20_v2", 1, "resnet8_v2"),
    ],
)
def test_num_residual_blocks_sets_the_depth(model, blocks, name):
    assert HyperParameters(model=model, num_residual_blocks=blocks).model_name == name


def test_a_depth_is_not_taken_for_that_of_bottlenecks():
    with pytest.raises(UsageError, match="would give resnet164_v2, which is a network of bottlenecks"):
        _ = HyperParameters(model="resnet20_v2", num_residual_blocks=27).model_name


@pytest.mark.parametrize("model", ["resnet9", "resnet164_v2", "lenet5"])
def test_networks_of_other_depths_take_no_number_of_blocks(model):
    with pytest.raises(UsageError, match=f"depth 6n.2 .*received --model={model}"):
        _ = HyperParameters(model=model, num_residual_blocks=3).model_name


def test_what_is_printed_can_be_pasted():
    started = from_preset("fast", is_use_ckpt=True, ckpt_path="my models/a.keras")
    assert "--ckpt_path='my models/a.keras'" in started.command
    with pytest.raises(UsageError, match="is read with --is_use_ckpt only"):
        from_preset("fast", ckpt_path="a.keras")
    weighted = from_preset("fast", class_weight="/home/ann/w.json")
    assert weighted.without_places().command.endswith("--class_weight=w.json")
    with pytest.raises(UsageError, match="prune_by"):
        from_flags({"prune_by": "norm"}).check_given({"prune_by": "norm"})


def test_ctrl_c_says_that_it_stopped(capsys):
    def stop():
        raise KeyboardInterrupt

    assert run_command(stop) == 130 and capsys.readouterr().err == "stopped\n"


def test_the_command_repeats_the_run_wherever_it_lies():
    config = from_preset("liang", seed=2, data_dir="/somewhere", runs_dir="/else", num_residual_blocks=3)
    command = "python cifar10_main.py --mode=train --preset=liang --seed=2 --num_residual_blocks=3"
    assert config.command == command
    assert dataclasses.replace(config, version="mine").command == f"{command} --version=mine"
    assert dataclasses.replace(config, version=config.run_name).command == command


def test_flags_and_values_keep_their_other_names():
    parser = argparse.ArgumentParser()
    add_flags(parser, HyperParameters)
    given = vars(parser.parse_args(["--curve_smoothing=0.5", "--ema_decay=0.9", "--normalization=whiten"]))
    assert given == {"train_ema_decay": 0.5, "weight_averaging": 0.9, "normalization": "whiten"}
    config = from_flags(given)
    assert config == from_preset("fast", train_ema_decay=0.5, weight_averaging=0.9, normalization="image_standard")
    # Settings that a run of before has stored.
    stored = config.to_json().replace("image_standard", "whiten")
    assert HyperParameters.from_json(stored, "config.json") == config and "whiten" in stored
    with pytest.raises(UsageError, match=r"--normalization must be one of .*image_standard; received 'other'"):
        HyperParameters(normalization="other")


def test_a_recipe_for_all_training_images_is_so_on_every_data_set():
    assert from_preset("ten_minutes", dataset="mnist").validation_fraction == 0
    assert from_preset("fast", dataset="mnist").validation_fraction == 1 / 12


@pytest.mark.parametrize("dataset", ["mnist", "digits"])
def test_no_recipe_tests_mirrored_digits(dataset):
    for name in PRESETS:
        if from_preset(name).dataset == "cifar10":
            config = from_preset(name, dataset=dataset)
            assert (config.flip, config.test_flip, config.test_shifts) == ("none", False, False), name
