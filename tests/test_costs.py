"""Dollars, grams and waste: by hand, with every factor dated, and unlike kinds of energy never added in silence."""

from __future__ import annotations

import pytest

from strop import costs, prices, waste
from strop.config import Costs, parse_recipe

KWH = costs.J_PER_KWH


def ledger(wall_s: float = 3600.0, **joules: tuple[str, float]) -> dict:
    """One phase that had half of everything, and the rest."""
    half = {name: j / 2 for name, (_, j) in joules.items()}
    return {
        "wall_s": wall_s, "energy": {name: {"kind": kind, "joules": j} for name, (kind, j) in joules.items()},
        "phases": {name: {"wall_s": wall_s / 2, "joules": half} for name in ("train", "other")},
    }  # fmt: skip


# --- what was spent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("joules", "kwh", "kind"),
    [
        ({}, None, "none"),
        ({"cpu": ("counter", KWH), "gpu": ("counter", 2 * KWH)}, 3.0, "counter"),
        ({"cpu": ("modelled", KWH), "gpu": ("counter", 2 * KWH)}, 3.0, "counter + modelled"),
        ({"cpu": ("counter", KWH), "gpu": ("integrated", KWH)}, 2.0, "counter + integrated"),
        ({"cpu": ("modelled", KWH), "memory": ("constant", 9 * KWH)}, 1.0, "modelled"),
        ({"memory": ("constant", 9 * KWH)}, None, "none"),
    ],
)
def test_kwh_name_what_they_are_made_of(joules: dict, kwh: float | None, kind: str) -> None:
    spent = costs.spent(ledger(**joules), Costs())
    assert (spent.kwh, spent.kwh_kind) == (kwh, kind)
    assert spent.usd == (None if kwh is None else pytest.approx(kwh * prices.USD_PER_KWH.value))


def test_a_rented_machine_costs_its_hours_and_nothing_else() -> None:
    told = costs.of(ledger(1800.0, cpu=("counter", KWH)), Costs(usd_per_hour=3.0, usd_per_kwh=100.0, pue=2.0))
    assert (told["usd"], told["usd_rests_on"]) == (1.5, "dollars are hours at $3")
    assert told["co2e_g"] == pytest.approx(2 * prices.GRID.value)


def test_factors_come_with_dates_and_sources() -> None:
    told = costs.of(ledger(cpu=("counter", KWH)), Costs())
    for factor in (told["factors"]["grid"], told["factors"]["electricity"]):
        assert factor["value"] > 0
        assert factor["date"].startswith("202")
        assert factor["source"]
        assert factor["date"] in told["usd_rests_on"] + told["co2e_rests_on"]
    told = costs.of(ledger(cpu=("counter", KWH)), Costs(grid_g_per_kwh="FRA", usd_per_kwh=0.2))
    assert (told["co2e_g"], told["usd"]) == (pytest.approx(56.039), 0.2)
    assert "France" in told["co2e_rests_on"]
    assert "2023" in told["co2e_rests_on"]
    assert "the recipe" in told["usd_rests_on"]


def test_the_worlds_grid_is_the_mean_of_its_countries() -> None:
    known = [c for c in prices.countries().values() if c.get("carbon_intensity")]
    total = sum(c["total_TWh"] for c in known)
    mean = sum(c["carbon_intensity"] * c["total_TWh"] for c in known) / total
    assert len(known) > 200
    assert round(mean) == prices.GRID.value


@pytest.mark.parametrize(
    ("joules", "says", "is_measured"),
    [
        ({"cpu": ("modelled", KWH)}, "modelled kWh (nothing was measured)", False),
        ({"cpu": ("modelled", KWH), "gpu": ("counter", KWH)}, "kWh in part measured, in part modelled", True),
        ({"gpu": ("integrated", KWH)}, ": measured kWh", True),
    ],
)
def test_money_and_grams_say_what_they_rest_on(joules: dict, says: str, is_measured: bool) -> None:
    told = costs.of(ledger(**joules), Costs(pue=1.5))
    assert says in told["usd_rests_on"]
    assert says.removeprefix(": ") in told["co2e_rests_on"]
    assert "x 1.5 for the building" in told["usd_rests_on"]
    assert costs.is_measured(ledger(**joules)) is is_measured
    assert says in costs.in_words(told)


def test_kinds_stand_apart_and_phases_add_up() -> None:
    drawn = ledger(cpu=("modelled", KWH), gpu=("counter", 3 * KWH), memory=("constant", 8 * KWH))
    told = costs.of(drawn, Costs(grid_g_per_kwh=100.0, usd_per_kwh=1.0))
    assert {kind: own["kwh"] for kind, own in told["by_kind"].items()} == {
        "counter": 3.0, "modelled": 1.0, "constant": 8.0,
    }  # fmt: skip
    assert sum(p["usd"] for p in told["phases"].values()) == pytest.approx(told["usd"]) == 4.0
    assert sum(p["co2e_g"] for p in told["phases"].values()) == pytest.approx(told["co2e_g"]) == 400.0


def test_an_older_or_empty_ledger_costs_what_is_known() -> None:
    assert costs.of({}, Costs())["usd"] is None
    assert costs.of({}, Costs())["usd_rests_on"].startswith("no dollars")
    old = {"wall_s": 7200.0, "phases": {"train": {"wall_s": 7200.0, "tokens": 4}}}
    told = costs.of(old, Costs(usd_per_hour=1.0))
    assert (told["usd"], told["kwh"], told["phases"]["train"]) == (2.0, None, {"usd": 2.0, "co2e_g": None})


# --- waste --------------------------------------------------------------------------------------------------------------


def stages(**algorithm: object) -> list:
    rl = {"name": "rl", "do": "train", "tasks": {"easy": 1}, "steps": 9, "max_tokens": 8, "algorithm": algorithm}
    recipe = {"tasks": {"easy": {"source": "arithmetic"}}, "stages": [rl], "model": {"name": "m"}}
    return parse_recipe(recipe).stages


def row(step: int, silent: float = 0.0, cut: float = 0.0) -> dict:
    """8 rollouts of 10 tokens, of which the cut ones have 20."""
    more = {"completions/mean_truncated_length": 20.0} if cut else {}
    return {
        "stage": "rl", "kind": "train", "step": step, "num_tokens_sampled": 80, "frac_reward_zero_std": silent,
        "completions/mean_length": 10.0, "completions/clipped_ratio": cut, "verify_s": 0.5, **more,
    }  # fmt: skip


PHASES = {"generate": {"wall_s": 40.0, "tokens": 400}, "replay": {"wall_s": 3.0, "tokens": 70}}


def test_waste_by_hand() -> None:
    undone = {"stage": "rl", "kind": "rollback", "step": 1, "undone_s": 12.0, "undone_tokens": 100}
    rows = [
        row(1, silent=0.25),
        row(2, cut=0.25),
        {"stage": "rl", "kind": "heldout", "step": 2, "accuracy": 0.5},
        undone,
    ]
    found = waste.of(rows, {"phases": PHASES}, stages())
    assert set(found) == set(waste.WORDS)
    assert {kind: (w.wall_s, w.tokens, w.estimated) for kind, w in found.items()} == {
        "no_signal": (2.0, 20, ("wall_s", "tokens")),  # a quarter of 80 tokens, at 10 tokens a second
        "truncated": (4.0, 40, ("wall_s",)),  # 2 of 8 rollouts, of 20 tokens
        "dropped": (14.0, 140, ("wall_s",)),  # 400 sampled, 160 in rows, 100 undone
        "replayed": (3.0, 70, ()),
        "verifier_waits": (1.0, None, ()),
        "rolled_back": (12.0, 100, ()),
    }


@pytest.mark.parametrize("algorithm", [{"preset": "ppo"}, {"preset": "reinforce_pp"}, {"preset": "opsd"}])
def test_a_group_of_equal_rewards_is_no_waste_where_siblings_are_not_compared(algorithm: dict) -> None:
    assert waste.of([row(1, silent=1.0)], {"phases": PHASES}, stages(**algorithm))["no_signal"].tokens == 0


def test_a_ledger_that_a_kill_cut_short_makes_no_negative_waste() -> None:
    found = waste.of([row(1), row(2)], {"phases": {"generate": {"wall_s": 1.0, "tokens": 80}}}, stages())
    assert found["dropped"].tokens == 0
    assert all((w.wall_s or 0) >= 0 for w in found.values())


def test_nothing_ran_and_nothing_was_wasted() -> None:
    assert not any(w.wall_s or w.tokens for w in waste.of([], {}, stages()).values())
