"""The adaptations by name."""

from __future__ import annotations

from hf_cifar.adaptation.alignment import Coral
from hf_cifar.adaptation.base import Adaptation
from hf_cifar.adaptation.batch_norm import BatchNormStatistics
from hf_cifar.adaptation.eata import Eata
from hf_cifar.adaptation.entropy import Sar, Tent

ADAPTATIONS: dict[str, type[Adaptation]] = {
    "batch_norm": BatchNormStatistics,
    "tent": Tent,
    "sar": Sar,
    "eata": Eata,
    "coral": Coral,
}
