"""Stock Keras callbacks in the training loop: they run, or are refused by name with the setting that does their job."""

import errno
import functools
import inspect
import os
import signal
import types

import conftest
import keras
import numpy as np
import pytest

import cifar10_train
from cifar10_train import Train
from resnet_study.errors import UsageError
from resnet_study.training.averages import averaged_weights
from resnet_study.training.callbacks import _REFUSED, KeepBest, Patience, check_callbacks
from resnet_study.training.step import undone

tiny = functools.partial(conftest.tiny, model="lenet5")


@pytest.fixture
def stock(tmp_path, monkeypatch):
    """Name -> an object of every stock callback that is not refused."""
    monkeypatch.setattr("requests.post", lambda *_, **__: None, raising=False)
    return {
        "Callback": keras.callbacks.Callback(),
        "CSVLogger": keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        "EarlyStopping": keras.callbacks.EarlyStopping(monitor="val_accuracy", patience=5),
        "History": keras.callbacks.History(),
        "LambdaCallback": keras.callbacks.LambdaCallback(),
        "ModelCheckpoint": keras.callbacks.ModelCheckpoint(
            tmp_path / "checkpoint.keras", monitor="val_accuracy", save_best_only=True
        ),
        "ProgbarLogger": keras.callbacks.ProgbarLogger(),
        "RemoteMonitor": keras.callbacks.RemoteMonitor(root="http://127.0.0.1:9", send_as_json=True),
        "TensorBoard": keras.callbacks.TensorBoard(tmp_path / "logs"),
        "TerminateOnNaN": keras.callbacks.TerminateOnNaN(),
    }


def test_every_stock_callback_is_known(stock):
    names = {
        name
        for name, kind in vars(keras.callbacks).items()
        if inspect.isclass(kind) and issubclass(kind, keras.callbacks.Callback) and name != "CallbackList"
    }
    assert names == stock.keys() | _REFUSED.keys()


def test_stock_callbacks_run_and_see_the_model_as_users_get_it(tmp_path, stock):
    trainer = Train(tiny(tmp_path, version="run", weight_averaging=0.5))
    trainer.train(callbacks=list(stock.values()))
    assert stock["History"].history["val_accuracy"] == [
        pytest.approx(1 - row["validation_error"] / 100) for row in trainer.history[1:]
    ]
    images = trainer.data.test.images[:50]
    saved = keras.saving.load_model(tmp_path / "checkpoint.keras")
    kept = keras.saving.load_model(trainer.run.best)
    np.testing.assert_array_equal(saved.predict(images, verbose=0), kept.predict(images, verbose=0))
    answers = saved.predict(images, verbose=0)
    assert answers.shape == (40, 10) and np.allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert trainer.run.best.stat().st_size < 0.75 * (tmp_path / "checkpoint.keras").stat().st_size  # no optimizer in it
    assert (tmp_path / "log.csv").read_text().startswith("epoch,accuracy,learning_rate,loss,val_accuracy,val_loss")


def test_the_direction_of_an_accuracy_is_known(tmp_path):
    stopping = keras.callbacks.EarlyStopping(monitor="val_accuracy", patience=0, min_delta=1.0)
    trainer = Train(tiny(tmp_path, version="stopped", train_steps=30))
    trainer.train(callbacks=[stopping])
    assert stopping.monitor_op is keras.ops.greater and trainer.step == 6


def test_weights_that_early_stopping_puts_back_are_those_of_the_result(tmp_path):
    # No later report counts as better, so the weights of the first are put back.
    stopping = keras.callbacks.EarlyStopping(patience=1, min_delta=100.0, restore_best_weights=True)
    trainer = Train(tiny(tmp_path, version="restored", train_steps=12, deterministic=True))
    first = keras.callbacks.ModelCheckpoint(tmp_path / "epoch-{epoch}.keras")
    trainer.train(callbacks=[stopping, first])
    images = trainer.data.test.images[:20]
    expected = keras.saving.load_model(tmp_path / "epoch-1.keras").predict(images, verbose=0)
    final = keras.saving.load_model(trainer.run.final)
    np.testing.assert_array_equal(final.predict(images, verbose=0), expected)
    np.testing.assert_allclose(trainer.test(images), expected, atol=1e-6)
    # Where the same object goes on, the weights of its training count again.
    trainer.train(resume=True, callbacks=[])
    whole = Train(tiny(tmp_path, version="whole", train_steps=12, deterministic=True))
    whole.train()
    np.testing.assert_array_equal(trainer.test(images), whole.test(images))


def test_a_finished_run_keeps_the_weights_that_a_callback_put_back(tmp_path):
    stopping = keras.callbacks.EarlyStopping(patience=9, min_delta=100.0, restore_best_weights=True)
    config = tiny(tmp_path, version="ended", model="lenet5", init_lr=0.01, train_steps=4, report_freq=2)
    trainer = Train(config)
    trainer.train(callbacks=(callback for callback in [stopping]))
    before = trainer.run.final.read_bytes()
    assert stopping.best_epoch == 0  # so the generator was not used up
    os.utime(trainer.run.final, (1, 1))  # as in a copy
    Train(config).train(resume=True)
    assert trainer.run.final.read_bytes() == before
    with pytest.raises(UsageError, match="callbacks must be a list, received a EarlyStopping"):
        Train(config).train(resume=True, callbacks=stopping)


@pytest.mark.parametrize(
    ("callback", "setting"),
    [
        (lambda: keras.callbacks.LearningRateScheduler(lambda *_: 0.1), "lr_schedule"),
        (lambda: keras.callbacks.ReduceLROnPlateau(), "lr_schedule"),
        (lambda: keras.callbacks.BackupAndRestore("backup"), "--resume"),
        (lambda: keras.callbacks.SwapEMAWeights(), "--weight_averaging"),
        (lambda: keras.callbacks.ModelCheckpoint("a.keras", save_freq=3), "--report_freq"),
        (lambda: keras.callbacks.EarlyStopping(monitor="val_acc"), "val_accuracy, received 'val_acc'"),
        (
            lambda: keras.callbacks.ModelCheckpoint("a.keras", monitor="top5", save_best_only=True),
            "give mode='min' or 'max'",
        ),
    ],
)
def test_a_callback_that_cannot_do_its_job_is_refused(tmp_path, callback, setting):
    callback = callback()
    trainer = Train(tiny(tmp_path, version="refused"))
    with pytest.raises(UsageError, match=setting) as refusal:
        trainer.train(callbacks=[callback])
    assert type(callback).__name__ in str(refusal.value)
    assert not trainer.run.path.exists()


def test_training_a_second_time_touches_nothing(tmp_path):
    trainer = Train(tiny(tmp_path, version="twice"))
    trainer.train()
    before = {path: path.stat().st_mtime_ns for path in trainer.run.path.rglob("*")}
    with pytest.raises(UsageError, match="make another Train"):
        trainer.train(overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in trainer.run.path.rglob("*")} == before


def test_a_signal_during_the_last_report_is_heard(tmp_path, capsys):
    trainer = Train(tiny(tmp_path, version="late"))

    class SignalAtTheEnd(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if trainer.step == trainer.train_steps:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(cifar10_train.Interrupted, match="SIGTERM after step 6 of 6"):
        trainer.train(callbacks=[SignalAtTheEnd()])
    finished = Train(trainer.config)
    finished.train(resume=True)
    assert finished.run.final.is_file()
    out = capsys.readouterr().out
    assert "finished after step 6, nothing is left to train" in out and "going on" not in out


def test_the_model_gets_its_own_weights_back_when_a_validation_fails(tmp_path, monkeypatch):
    trainer = Train(tiny(tmp_path, version="failed", weight_averaging=0.9))
    before = [variable.numpy() for variable in trainer.model.weights]
    for average in trainer.stage.averages:
        average.assign(average + 1)
    with pytest.raises(ZeroDivisionError), averaged_weights(trainer.model, trainer.stage.averages):
        raise ZeroDivisionError
    for value, variable in zip(before, trainer.model.weights, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_a_trial_step_is_undone_also_where_it_fails():
    weight = keras.Variable(1.0)
    with pytest.raises(KeyboardInterrupt), undone([weight]):
        weight.assign(2.0)
        raise KeyboardInterrupt
    assert weight.numpy() == 1.0


def reports_of(losses):
    return [(epoch, {"step": 10 * epoch, "validation_loss": loss}) for epoch, loss in enumerate(losses)]


def last_epoch(losses, patience, first_epoch, known=0):
    """Where `Patience` ends a training with these losses that was resumed after `known` reports; None = it does not."""
    stopping, model = Patience("validation_loss", patience, first_epoch), types.SimpleNamespace(stop_training=False)
    stopping.set_model(model)
    if known:
        stopping.go_on(reports_of(losses)[:known])
    for report in reports_of(losses)[known:]:
        if model.stop_training:
            break
        stopping.on_epoch_end(*report)
    return stopping.stopped_epoch if model.stop_training else None


@pytest.mark.parametrize(("patience", "first_epoch"), [(1, 0), (2, 0), (1, 3), (3, 2)])
def test_patience_ends_at_the_same_epoch_wherever_the_run_was_resumed(patience, first_epoch):
    rng = np.random.default_rng(0)
    for _ in range(50):
        losses = np.round(2 + rng.normal(0, 0.3, 12) - 0.05 * np.arange(12), 1).tolist()  # some are equal
        # So many epochs without a lower loss than all before; those of a first stage do not count.
        expected = next(
            (
                epoch
                for epoch in range(first_epoch + patience, 12)
                if min(losses[epoch + 1 - patience : epoch + 1]) >= min(losses[1 : epoch + 1 - patience], default=9.0)
            ),
            None,
        )
        whole = last_epoch(losses, patience, first_epoch)
        assert whole == expected, losses
        for known in range(1, (whole or 11) + 2):
            assert last_epoch(losses, patience, first_epoch, known) == whole, (losses, known)


@pytest.mark.parametrize("begin", [30, 25])  # at a report, and between two
def test_patience_counts_anew_where_the_schedule_begins_anew(begin):
    losses, model = [3.0, 2.0, 1.0, 1.5, 5.0, 4.0, 4.5, 4.2], types.SimpleNamespace(stop_training=False)
    stopping = Patience("validation_loss", 2, 0, begins=(begin,))
    stopping.set_model(model)
    stopping.go_on(reports_of(losses)[:4])
    for report in reports_of(losses)[4:]:
        assert not model.stop_training  # though 1.0 is never reached again
        stopping.on_epoch_end(*report)
    assert model.stop_training and stopping.stopped_epoch == 7
    assert last_epoch(losses, 2, 0) == 4


def test_the_kept_model_is_that_of_the_lowest_value_also_after_a_kill(tmp_path):
    written = []
    losses = [2.0, 1.0, 1.0 - 1e-12, 1.5, 0.5]
    keeper = KeepBest(tmp_path / "{odd}" / "best.keras", "validation_loss", written.append)
    for report in reports_of(losses):
        keeper.on_epoch_end(*report)
    assert written == [str(tmp_path / "{odd}" / "best.keras")] * 4
    for known, step, writes in ((1, 0, 1), (3, 20, 1), (3, 25, 0), (4, 30, 0), (5, 40, 1)):
        written.clear()
        keeper = KeepBest(tmp_path / "best.keras", "validation_loss", written.append)
        keeper.go_on(reports_of(losses)[:known], step)
        assert len(written) == writes and keeper.best == min(losses[1:known], default=None)
    # What is trained replaces the untrained network, however low the loss of that is.
    written.clear()
    keeper = KeepBest(tmp_path / "best.keras", "validation_loss", written.append)
    for report in reports_of([0.1, 1.0, 2.0]):
        keeper.on_epoch_end(*report)
    assert len(written) == 2 and keeper.best == 1.0
    newest = KeepBest(tmp_path / "best.keras", None, written.append)
    written.clear()
    newest.go_on(reports_of(losses), 40)
    assert len(written) == 1


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    trainer = Train(tiny(tmp_path, version="full"))
    trainer.run.path.mkdir()
    trainer.run.best.write_bytes(b"old")

    def fail(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keras.Model, "save", fail)
    with pytest.raises(UsageError, match=r"could not write .*best\.keras"):
        trainer._keeper.on_epoch_end(0, {"validation_error": -1.0})
    assert trainer.run.best.read_bytes() == b"old"


def test_patience_lets_a_run_that_was_extended_twice_go_on():
    errors = [90, 30, 20, 15, 12, 10, 18, 16, 14, 12, 11]
    for ends, stops in (((50, 100), False), ((50,), False), ((), True)):
        stopping = Patience("validation_error", 3, 0, begins=ends)
        stopping.set_model(types.SimpleNamespace(stop_training=False))
        stopping.go_on([(epoch, {"step": 10 * epoch, "validation_error": error}) for epoch, error in enumerate(errors)])
        assert stopping.model.stop_training == stops


def test_callbacks_may_be_none_but_not_classes():
    assert check_callbacks(None) == []
    with pytest.raises(UsageError, match="must be objects of keras"):
        check_callbacks([keras.callbacks.EarlyStopping])
