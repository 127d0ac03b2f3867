"""SIGINT and SIGTERM while a step runs."""

import contextlib
import signal
import threading


@contextlib.contextmanager
def catch_signals():
    """Collects SIGINT and SIGTERM instead of dying in the middle of a step; a second SIGINT ends at once."""
    caught = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return

    def note(number, _frame):
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
