"""Counts how many faults were tried, and how each kind of them ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ENDS = ("identical", "one clear error", "WRONG")


class Tally:
    """The faults of one test. Where the test fails, all that have not been counted went wrong."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str) -> None:
        """Note that a fault of this kind is tried."""
        self.tried[kind] += 1

    def all_ended(self, end: str) -> None:
        """Note how every fault ended that was tried since the last call."""
        for kind, count in self.tried.items():
            self.ended[kind, end] += count
        self.tried.clear()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    faults = Tally()
    yield faults
    faults.all_ended("WRONG")
    for (kind, end), count in faults.ended.items():
        request.node.user_properties.append(("fault", [kind, end, count]))


@pytest.fixture(scope="session")
def undisturbed(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """undisturbed(family, keys, processes): the run that nothing stops, made once."""
    from helpers.forked import ForkedRun, Undisturbed, run_undisturbed

    runs: dict[str, Undisturbed] = {}

    def find(family: str, keys: dict, processes: int = 1) -> Undisturbed:
        name = f"{family} {keys} {processes}"
        if name not in runs:
            root = tmp_path_factory.mktemp("undisturbed") / "at"
            runs[name] = run_undisturbed(ForkedRun(root, tiny(family), keys, processes))
        return runs[name]

    return find


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "teardown":  # the tally is complete after the test
                continue
            for name, value in getattr(report, "user_properties", ()):
                if name == "fault":
                    counts[value[0], value[1]] += value[2]
    if not counts:
        return
    kinds = sorted({kind for kind, _ in counts})
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'kind':<44}{'tried':>8}" + "".join(f"{end:>17}" for end in ENDS))
    for kind in [*kinds, "all"]:
        row = [
            sum(n for (k, e), n in counts.items() if kind in (k, "all") and e == end)
            for end in ENDS
        ]
        terminalreporter.write_line(f"{kind:<44}{sum(row):>8}" + "".join(f"{n:>17}" for n in row))
