"""What the statistics of many images take: mean and covariance of 50 000 x 2048 features, and a Fréchet distance.

    python benchmarks/statistics_of_features.py --threads 1

Features are random. Ends with one line of JSON: seconds, the largest memory of the process, and how far a merge of
shards is from the whole.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch

from disa.evaluate.features import Features
from disa.study.metrics import Gaussian, frechet_distance

SHARD = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    random = torch.Generator().manual_seed(0)
    features = torch.randn(asked.images, asked.width, generator=random)
    features += features[:, :1] * torch.linspace(0, 1, asked.width)
    seconds, before = {}, _memory()

    started = time.perf_counter()
    whole = Features(features).gaussian
    seconds["mean and covariance"] = time.perf_counter() - started

    started = time.perf_counter()
    shards = [Gaussian.fit(shard) for shard in features.split(SHARD)]
    merged = Gaussian.merged(shards[::-1])
    seconds["the same by shards, merged"] = time.perf_counter() - started
    apart = ((merged.covariance - whole.covariance).abs().max() / whole.covariance.abs().max()).item()

    started = time.perf_counter()
    distance = frechet_distance(whole, merged)
    seconds["Fréchet distance"] = time.perf_counter() - started
    print(
        json.dumps(
            {
                "images": asked.images,
                "width": asked.width,
                "threads": asked.threads,
                "torch": torch.__version__,
                "seconds": {name: round(value, 1) for name, value in seconds.items()},
                "mib_of_features": (features.numel() * features.element_size()) >> 20,
                "mib_beside_them": _memory() - before,
                "merged_apart": apart,
                "distance_of_the_two": distance,
            },
            ensure_ascii=False,
        )
    )


def _memory() -> int:
    """The most that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main()
