"""A second signal ends the process, unless a launcher passed on the first."""

import signal
import time

import pytest

from hf_cifar.training.signals import RELAYED, StopOnSignal


@pytest.fixture
def stop():
    stop = StopOnSignal()
    with stop.listening():
        yield stop


def test_a_second_signal_ends_the_process(stop, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    signal.raise_signal(signal.SIGTERM)
    assert stop.number == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_a_launcher_passes_on_is_the_first_signal_once_more(stop, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert stop.number == signal.SIGTERM
    time.sleep(RELAYED + 0.1)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
