"""Rollouts on disk: what comes back is what was written, array by array."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from strop.record import Reason, Rollout, Stop, Task, UserError, Verdict, read_rollouts, replace, write_rollouts

TASKS = [Task.make(source="s", prompt=f"{i}?", answer=str(i), verifier="math", meta={"level": i}) for i in range(2)]
ARRAYS = ("sampler_logprobs", "token_rewards", "values", "advantages")


def rollout(i: int, length: int, *given: str) -> Rollout:
    ids = np.arange(length, dtype=np.int32) + 100 * i
    logged = {name: np.where(ids % 3 == 0, np.nan, -ids / 7).astype(np.float32) for name in given}
    return Rollout(
        task=TASKS[i % 2], group=i % 2, sample=i // 2, token_ids=ids, sampled=ids % 2 == 0, trained=ids % 5 == 0,
        policy_step=(i, i + 1), budget_tokens=None if i % 2 else i, text="é" * i, stop=Stop.LENGTH if i else Stop.EOS,
        verdict=Verdict(correct=bool(i), extracted=None, reason=Reason.WRONG) if i % 3 else None,
        reward=None if i % 2 else 0.5, reward_parts={"a": 1.0} if i else {}, **logged,
    )  # fmt: skip


MIXED = [
    rollout(0, 3, "values"),
    rollout(1, 0),
    rollout(2, 70, *ARRAYS),
    rollout(3, 1, "values"),
    rollout(4, 0, "values"),
]


@pytest.mark.parametrize("listed", [MIXED, [], MIXED[1:2], MIXED[2:3]], ids=["mixed", "none", "empty", "one"])
def test_rollouts_come_back_field_by_field(listed: list[Rollout], tmp_path: Path) -> None:
    write_rollouts(tmp_path / "r.parquet", listed)
    check(read_rollouts(tmp_path / "r.parquet"), listed)


def test_a_file_of_several_chunks_is_read_whole(tmp_path: Path) -> None:
    write_rollouts(tmp_path / "r.parquet", MIXED)
    pq.write_table(pq.read_table(tmp_path / "r.parquet"), tmp_path / "cut.parquet", row_group_size=2)
    assert pq.read_metadata(tmp_path / "cut.parquet").num_row_groups == 3
    check(read_rollouts(tmp_path / "cut.parquet"), MIXED)


def test_a_file_of_before_a_column_was_added_is_read(tmp_path: Path) -> None:
    marked = [replace(r, weights=f"{i:016x}") for i, r in enumerate(MIXED)]
    write_rollouts(tmp_path / "r.parquet", marked)
    check(read_rollouts(tmp_path / "r.parquet"), marked)
    pq.write_table(pq.read_table(tmp_path / "r.parquet").drop_columns("weights"), tmp_path / "old.parquet")
    check(read_rollouts(tmp_path / "old.parquet"), MIXED)


def check(found: list[Rollout], wanted: list[Rollout]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        for field in fields(Rollout):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if isinstance(y, np.ndarray):
                assert x.dtype == y.dtype
                assert not x.flags.writeable
                np.testing.assert_array_equal(x, y)
            else:
                assert x == y, field.name


def test_siblings_share_their_task(tmp_path: Path) -> None:
    write_rollouts(tmp_path / "r.parquet", MIXED)
    found = read_rollouts(tmp_path / "r.parquet")
    assert found[0].task is found[2].task is not found[1].task


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_rollouts(tmp_path / "r.parquet")
