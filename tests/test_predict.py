"""What a second `predict` leaves alone."""

import pytest

import cifar10_main
import cifar10_test
from resnet_study.errors import UsageError


def test_other_predictions_and_explanations_are_kept(tmp_path):
    first = cifar10_test._write_beside(tmp_path, "image\na\n")
    again = cifar10_test._write_beside(tmp_path, "image\na\n")
    other = cifar10_test._write_beside(tmp_path, "image\nb\n")
    assert [path.name for path in (first, again, other)] == ["predictions.csv", "predictions.csv", "predictions-2.csv"]
    assert first.read_text() == "image\na\n"
    assert cifar10_test.explanations_of(other) == tmp_path / "explanations-2"


def test_an_unknown_flag_is_told_the_nearest():
    with pytest.raises(UsageError, match="did you mean --dataset"):
        cifar10_main.make_parser().parse_args(["--mode=train", "--datset=digits"])
