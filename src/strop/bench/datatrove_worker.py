"""datatrove's MinHash deduplication as a competitor of the `curate` bench. Runs in an environment of its own, so it imports
nothing of ours.

    python datatrove_worker.py '{"files": FOLDER, "out": FOLDER, "workers": N, "ngram": N, "bands": N, "rows": N}'

Prints one JSON line: of each file (without its ending) the rows that are kept.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def main() -> None:
    settings = json.loads(sys.argv[1])
    from datatrove.pipeline.dedup import MinhashDedupSignature  # type: ignore[import-not-found]
    from datatrove.pipeline.dedup.minhash import (  # type: ignore[import-not-found]
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-not-found]
    from datatrove.pipeline.writers.jsonl import JsonlWriter  # type: ignore[import-not-found]
    from datatrove.utils.hashing import HashConfig  # type: ignore[import-not-found]

    out, bands = settings["out"], settings["bands"]
    config = MinhashConfig(
        hash_config=HashConfig(precision=64), n_grams=settings["ngram"], num_buckets=bands, hashes_per_bucket=settings["rows"]
    )  # fmt: skip
    num_files = len(list(Path(settings["files"]).glob("*.jsonl")))

    def read() -> Any:
        return JsonlReader(settings["files"], text_key="problem", glob_pattern="*.jsonl")

    stages = [
        (num_files, [read(), MinhashDedupSignature(f"{out}/signatures", config=config)]),
        (bands, [MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config)]),
        (1, [MinhashDedupCluster(f"{out}/buckets", f"{out}/gone", config=config)]),
        (num_files, [read(), MinhashDedupFilter(f"{out}/gone"), JsonlWriter(f"{out}/kept")]),
    ]
    for number, (tasks, steps) in enumerate(stages):
        _run(steps, tasks, settings["workers"], f"{out}/logs-{number}")
    print(json.dumps(_kept(Path(out) / "kept")))


def _run(steps: list[Any], tasks: int, workers: int, logs: str) -> None:
    from datatrove.executor.local import LocalPipelineExecutor  # type: ignore[import-not-found]

    LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=workers, logging_dir=logs).run()


def _kept(folder: Path) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            counts.update(Path(json.loads(line)["metadata"]["file_path"]).stem for line in file)
    return dict(counts)


if __name__ == "__main__":
    main()
