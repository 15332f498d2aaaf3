"""vLLM for CPUs as a competitor of the `rollout` bench. Runs in an environment of its own, so it imports nothing of ours.

Speaks the lines of `worker.py` over stdin and stdout. Settings: the model folder, the type of the weights, the prompts
as token ids, siblings of each, exact tokens of each completion. What it reads at its start (`engine.vllm.environment`) is
set by whoever starts it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time


def main() -> None:
    settings = json.loads(sys.argv[1])
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


def _say(answers, value: dict) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
