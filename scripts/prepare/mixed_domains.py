"""Visual domains as one labelled pool, and what judges features within each of them.

python scripts/prepare/mixed_domains.py data/mixed    # reads the folder that CURATED_SSL_DATA names

Writes pool.parquet (image, label: the domain), of each domain with classes a bank and a test set outside of it, and
suite.yaml, which asks k-NN and a linear probe of each.
"""

from typing import Any

import yaml
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature

from experiments.visual_domains.sources import PICTURES, encoded, picture_pool
from foundation.command import run_command
from foundation.images import read_image
from foundation.options import Parser, path_type

JUDGED = ("characters", "cifar", "photos", "speech")  # these have classes, a bank and a test set


def stored(domain: str, role: str, column: str = "") -> list[dict[str, Any]]:
    """Rows of one role; tiles of the survey become PNG, all else stays as it is."""
    plain = picture_pool(domain, role).with_format("arrow")
    rows = []
    for i in range(len(plain)):
        image = plain[i]["image"][0].as_py()
        image = encoded(read_image(image)) if domain == "land" else {"bytes": image["bytes"], "path": None}
        rows.append({"image": image, "label": plain[i][column][0].as_py() if column else domain})
    return rows


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("output", type=path_type(), help="folder of the pool, the sets and the suite")
    output = parser.parse_args().output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    names = sorted(PICTURES)
    pool = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    rows = [row for domain in names for row in stored(domain, "pool")]
    Dataset.from_list(rows, features=pool).to_parquet(str(output / "pool.parquet"))
    tasks: list[dict[str, Any]] = []
    for domain in JUDGED:
        of = {}
        for role in ("bank", "test"):
            of[role] = str(output / f"{domain}_{role}.parquet")
            labelled = Features({"image": ImageFeature(), "label": Value("string")})
            Dataset.from_list(stored(domain, role, "class"), features=labelled).to_parquet(of[role])
        sets = {"train": of["bank"], "test": of["test"]}
        linear = {"steps": 1000, "train_batch": 256, "learning_rates": [0.01, 0.03, 0.1, 0.3, 1.0]}
        tasks += [{"linear": sets | linear}, {"knn": sets | {"ks": [5]}}]
    (output / "suite.yaml").write_text(yaml.safe_dump({"tasks": tasks}, sort_keys=False))


if __name__ == "__main__":
    run_command("mixed_domains", main)
