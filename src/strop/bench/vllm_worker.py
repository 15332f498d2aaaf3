"""vLLM for CPUs as a competitor of the `rollout` bench. Runs in an environment of its own, so it imports nothing of ours.

Speaks the lines of `worker.py` over stdin and stdout. Settings: the model folder, the type of the weights, the prompts
as token ids, siblings of each, exact tokens of each completion. All cores are bound to the computation and none is
kept back, and tcmalloc is used where it is found: the settings under which it is fastest here.
"""

from __future__ import annotations

import ctypes.util
import gc
import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    settings = json.loads(sys.argv[1])
    _restart_with_best_settings()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints must not mix with the answers
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    prompts = [{"prompt_token_ids": ids} for ids in settings["prompts"]]
    length = settings["completion_tokens"]
    llm = LLM(
        model=settings["folder"], dtype=settings["dtype"], seed=0, disable_log_stats=True,
        max_model_len=len(settings["prompts"][0]) + length, max_num_seqs=max(settings["batches"]),
    )  # fmt: skip
    params = SamplingParams(
        n=settings["group_size"], temperature=1.0, min_tokens=length, max_tokens=length, ignore_eos=True,
        detokenize=False,
    )  # fmt: skip
    _say(answers, {"ready": True})
    for line in sys.stdin:
        batch = json.loads(line)["batch"]
        gc.collect()
        started = time.perf_counter()
        outputs = llm.generate(prompts[: batch // settings["group_size"]], params, use_tqdm=False)
        seconds = time.perf_counter() - started
        assert [len(c.token_ids) for o in outputs for c in o.outputs] == [length] * batch
        _say(answers, {"seconds": seconds})


def _restart_with_best_settings() -> None:
    """vLLM and the loader read these at the start of a process, so it begins anew with them."""
    if os.environ.get("STROP_VLLM_STARTED"):
        return
    cores = sorted(os.sched_getaffinity(0))
    wanted = {
        "STROP_VLLM_STARTED": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    inside = map(str, Path(sys.prefix).rglob("libtcmalloc*.so*"))
    tcmalloc = (
        next(inside, None) or ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    )
    if tcmalloc:
        wanted["LD_PRELOAD"] = ":".join(filter(None, [tcmalloc, os.environ.get("LD_PRELOAD")]))
    os.environ.update({key: value for key, value in wanted.items() if key == "LD_PRELOAD" or key not in os.environ})
    os.execv(sys.executable, [sys.executable, *sys.argv])


def _say(answers, value: dict) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
