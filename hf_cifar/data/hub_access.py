"""The Hub, or its cache where the Hub is out of reach, without half a minute of waiting."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hf_cifar.network import check_connection


def hub_in_reach() -> bool:
    """Return whether the Hub takes a connection within ten seconds; False with HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        check_connection(constants.ENDPOINT)
    except ConnectionError:
        return False
    return True


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let `datasets` and `huggingface_hub` look into their caches only, as HF_HUB_OFFLINE does."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
