"""ELPV, pictures of solar cells in electroluminescence, from the PyPI package `elpv-dataset`."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_cifar.data.decode import reason
from hf_cifar.data.hub_layout import write_card, write_parquet
from hf_cifar.data.package_clients import fetch_python_package
from hf_cifar.data.regular_files import MAX_TEXT_BYTES, inside, read_regular_file
from hf_cifar.data.splits import TEST_CUT, stratified_cut
from hf_cifar.errors import UserError

PACKAGE, MODULE = "elpv-dataset==1.0.0.post1", "elpv_dataset"
CLASSES = ["functional", "defect"]
TEST_SHARE = 0.25
MAX_PICTURE_BYTES = 2**20  # the largest has 50,229
# Of labels.csv, then of the pictures' files in its order.
SHA256 = "78ce8c6eb2b8fb03e9d864c92380dde91c030f2a7ee99f72186a42e27ad20ad0"
TEXT = """2,624 solar cells of 44 modules in electroluminescence, 300 x 300 px, grey, from the PyPI
package `elpv-dataset` 1.0.0.post1; the files of the pictures are as they were. Columns: `image`,
`label` (defect where the probability is at least 0.5), `probability` (0, 1/3, 2/3 or 1, from the
raters' confidence) and `type` (mono or poly, of the crystal).

The package has no splits. As in the paper, 25 % of the cells (656) are the test split and 75 %
(1,968) train, at random with the same shares of each probability and type in both; the paper's own
draw is not published, so this one follows from a fixed seed. The paper also balances classes in
training and weights cells by the raters' confidence; neither is done here.

Licence: CC BY-NC-SA 4.0, so not for commercial use. Its authors ask for these citations:

- Buerhop-Lutz, Deitsch, Maier, Gallwitz, Berger, Doll, Hauch, Camus and Brabec, *A Benchmark for
  Visual Identification of Defective Solar Cells in Electroluminescence Imagery*, EU PVSEC 2018.
- Deitsch, Buerhop-Lutz, Sovetkin, Steland, Maier, Gallwitz and Riess, *Segmentation of Photovoltaic
  Module Cells in Uncalibrated Electroluminescence Images*, Machine Vision and Applications, 2021.
- Deitsch, Christlein, Berger, Buerhop-Lutz, Maier, Gallwitz and Riess, *Automatic Classification of
  Defective Photovoltaic Module Cells in Electroluminescence Images*, Solar Energy 185, 2019."""
REMEDY = f"on a machine with a network, run `pip install {PACKAGE}`, then this command again"


@dataclass(frozen=True)
class Cell:
    """A row of labels.csv. probability: of a defect, 0 to 1. type: of the crystal."""

    file: str
    probability: float
    type: str


def fetch(folder: Path, scratch: Path) -> None:
    """Write ELPV to `folder`, from the module `elpv_dataset` where it is installed, or else through
    pip or uv. Raises UserError.

    scratch: an empty folder for downloads.
    """
    specification = importlib.util.find_spec(MODULE)  # looks for the module without running it
    if specification is not None and specification.submodule_search_locations:
        package = Path(next(iter(specification.submodule_search_locations)))
    else:
        fetch_python_package(PACKAGE, scratch, REMEDY)
        package = scratch / MODULE
    write(package / "data", folder)


def write(files: Path, folder: Path, sha256: str = SHA256) -> None:
    """Write labels.csv and the pictures that it lists, in `files`, to `folder` in the Hub's layout.

    sha256: hex over labels.csv and then the pictures' files in its order. Raises UserError for a
    file that is missing, or other content.
    """
    try:
        table = read_regular_file(files / "labels.csv", MAX_TEXT_BYTES)
        cells = [_cell(line) for line in table.decode("utf-8").splitlines()]
        images = [
            read_regular_file(inside((files,), cell.file), MAX_PICTURE_BYTES) for cell in cells
        ]
    except (OSError, ValueError) as error:
        raise UserError(
            f"the package {PACKAGE} cannot be read ({reason(error)}); install it again"
        ) from None
    digest = hashlib.sha256(table)
    for image in images:
        digest.update(image)
    if digest.hexdigest() != sha256:
        raise UserError(
            f"{PACKAGE}: sha256 {digest.hexdigest()} of its content is another than expected;"
            f" {REMEDY}"
        )
    for split, rows in split_rows(cells).items():
        write_parquet(
            folder / "elpv" / f"{split}-00000-of-00001.parquet",
            [images[row] for row in rows],
            np.array([cells[row].probability >= 0.5 for row in rows], dtype=np.int64),
            CLASSES,
            image_column="image",
            further={
                "probability": [cells[row].probability for row in rows],
                "type": [cells[row].type for row in rows],
            },
        )
    write_card(
        folder,
        title="ELPV: solar cells in electroluminescence",
        text=TEXT,
        license="cc-by-nc-sa-4.0",
        size="1K<n<10K",
        names=CLASSES,
        config="elpv",
        image_column="image",
        further={"probability": "float64", "type": "string"},
    )


def _cell(line: str) -> Cell:
    words = line.split()
    if len(words) != 3:
        raise ValueError(f"a line of labels.csv has {len(words)} columns, not 3")
    file, probability, crystal = words
    return Cell(file, float(probability), crystal)


def split_rows(cells: list[Cell]) -> dict[str, np.ndarray]:
    """Return the ascending rows (int64) of train and test, drawn at random with the same shares of
    each probability and type in both.
    """
    kinds = sorted({(cell.probability, cell.type) for cell in cells})
    strata = np.array([kinds.index((cell.probability, cell.type)) for cell in cells])
    test = stratified_cut(strata, TEST_SHARE, seed=0, stream=TEST_CUT)
    return {"train": np.setdiff1d(np.arange(len(cells)), test), "test": test}
