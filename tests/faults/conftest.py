"""How many faults were tried, and how each kind of them ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ENDS = ("identical", "one clear error", "WRONG")


class Tally:
    """Faults of a test, counted when it ends: of one that fails all that are not counted yet went
    wrong.
    """

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()

    def tried_one(self, kind: str) -> None:
        self.tried[kind] += 1

    def all_ended(self, how: str) -> None:
        """Every fault that was tried since the last time ended so."""
        for kind, count in self.tried.items():
            self.ended[kind, how] += count
        self.tried.clear()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    found = Tally()
    yield found
    found.all_ended("WRONG")
    for (kind, how), count in found.ended.items():
        request.node.user_properties.append(("fault", [kind, how, count]))


@pytest.fixture(scope="session")
def undisturbed(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """`undisturbed(family, keys, processes)`: the run that nothing stops, made once."""
    from helpers import forked

    made: dict[str, forked.Whole] = {}

    def find(family: str, keys: dict, processes: int = 1) -> forked.Whole:
        name = f"{family} {keys} {processes}"
        if name not in made:
            made[name] = forked.whole(
                forked.Place(tmp_path_factory.mktemp("whole") / "at", tiny(family), keys, processes)
            )
        return made[name]

    return find


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "teardown":  # the tally is told after the test
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
