"""What an objective carries from step to step is there again after a kill: a file of its own, so that it runs beside test_train."""

from __future__ import annotations

import pytest

from test_train import SMALL, Killed, check_equals, killed_at, recipe, run, unchecked_shapes


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        pytest.param({"kl": "loss", "kl_coef": 0.1, "kl_reset_every": 2}, {}, id="a reference that moves", marks=pytest.mark.slow),
        pytest.param({"entropy_coef": 0.01, "entropy_target": 0.6}, {}, id="an entropy bonus that adapts", marks=pytest.mark.slow),
        pytest.param({"preset": "ppo", "critic": {"pretrain_steps": 2}}, {}, id="a critic's head"),
        pytest.param({"preset": "ppo", "kl_coef": 0.1, "critic": {"kind": "model"}}, {}, id="a critic's model", marks=pytest.mark.slow),
        pytest.param({}, {"rewards": [
            {"name": "accuracy"}, {"name": "format", "weight": 0.0, "until_weight": 0.5, "over_steps": 4},
            {"name": "short_rl", "accuracy_tolerance": 0.1},
        ]}, id="weights of rewards that move and wait"),
    ],
)  # fmt: skip
def test_what_lasts_longer_than_a_step_survives_a_kill(tmp_path, tiny_model, algorithm, settings):
    """Killed two steps behind a checkpoint: the steps are replayed, and what they left behind is there again."""
    job = recipe(tmp_path, tiny_model, steps=7, rl=SMALL | {"checkpoint_every": 3} | settings, **algorithm)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    with unchecked_shapes():
        run(job, whole)
        with pytest.raises(Killed):
            run(job, out, stop_requested=killed_at(out, "train", 5))
        assert (out / "checkpoints" / "rl" / "step_000003").is_dir()
        assert not (out / "checkpoints" / "rl" / "step_000005").exists()
        assert run(job, out, resume=True)["finished"]
    check_equals(whole, out)
