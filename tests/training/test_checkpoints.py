"""Which checkpoints are kept."""

from pathlib import Path

import pytest

from hf_cifar.training import checkpoints


@pytest.mark.parametrize(
    ("present", "keep", "written", "best", "left"),
    [
        ([3, 6, 9], 1, 9, None, [9]),
        ([3, 6, 9], 2, 9, "checkpoint-3", [3, 9]),
        ([3, 6, 9], 1, 9, "checkpoint-3", [3, 9]),
        ([3, 6, 9], 1, 6, None, [6]),  # 9 is damaged: the run resumed from 3
        ([3, 6, 9, 12], 2, 6, "checkpoint-3", [3, 6]),
        ([3, 6, 9], None, 6, None, [3, 6, 9]),
    ],
)
def test_rotation_keeps_what_was_written_and_the_best(
    present, keep, written, best, left, tmp_path: Path
) -> None:
    for step in present:
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.rotate(tmp_path, keep, written, best)
    assert list(checkpoints.by_step(tmp_path)) == left
    assert not (tmp_path / checkpoints.WRITING).exists()
