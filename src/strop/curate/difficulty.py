"""How often a model solves each problem, and which band of pass rates is kept: by the policy's own start, or by another model.

Two passes, each of which a kill costs PART_S seconds at most. First the problems are answered by whatever holds the
weights (`holder`); then the answers are judged as in training (`rewards.Scorer`). Answers are kept by the problem's text,
the weights, the template and the sampling; verdicts by these, the gold answer and the verifier. So more rows, another
answer to a problem or another band sample only what is new. Knows nothing of how tasks are learned from.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import strop
from strop import config, holder
from strop.config.curation import Curation, DifficultyStage
from strop.curate.kept import Kept, named
from strop.curate.rows import Fate, Outcome, Stopped, Tools
from strop.engine import Sampling
from strop.engine.remote import Refusal
from strop.machine import version
from strop.record import Rollout, Stop, Task, UserError, replace, seed_of
from strop.rewards import Scorer, extract
from strop.watch import Watch

if TYPE_CHECKING:
    from strop.holder import Held

__all__ = ["difficulty"]

SEEDS = ("curate", "difficulty")  # what the answers' randomness depends on, beside problem and sample
AT_ONCE = 4096  # answers asked of an engine in one call, which holds them all
JUDGED = 256  # answers judged in one call, so that progress is seen
CUT_FRAC, STATED_FRAC = (
    0.1,
    0.5,
)  # of the answers: more are cut, or fewer state an answer, than a pass rate can be read from
GROUP = 4  # rollouts whose chance of a signal is told

ANSWERS = pa.schema([
    ("prompt", pa.string()), ("sample", pa.int32()), ("text", pa.string()), ("num_tokens", pa.int32()),
    ("truncated", pa.bool_()),
])  # fmt: skip
VERDICTS = pa.schema([
    ("prompt", pa.string()), ("gold", pa.string()), ("sample", pa.int32()), ("num_tokens", pa.int32()),
    ("truncated", pa.bool_()), ("stated", pa.bool_()), ("scorable", pa.bool_()), ("correct", pa.bool_()),
])  # fmt: skip
Judged = tuple[str, str]  # hashes of a prompt and of what it is judged by


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A row to be measured."""

    place: int
    prompt: str  # hash of the text: what is answered
    gold: str  # hash of answer and verifier: what it is judged by
    task: Task


@dataclass(slots=True)
class Tally:
    """Verdicts of one problem."""

    right: int = 0
    scorable: int = 0


def difficulty(rows: pa.Table, settings: DifficultyStage, tools: Tools) -> Outcome:
    """Keeps rows with min_rate < pass rate < max_rate, and gives each `pass_rate` and `num_samples` (those judged).

    Drops, each with its reason: rows beyond `limit`, prompts above `engine.max_prompt_tokens` or refused by the server,
    problems none of whose answers could be judged, and pass rates outside the band. A verifier's failures are counted and
    told. Raises UserError for a model or server that cannot be had, and Stopped where that was asked.
    """
    assert tools.curation is not None, "a stage that opens a model is given the recipe"
    curation, dropped = tools.curation, dict[int, Fate]()
    problems = list(_drawn(rows, settings, tools.seed, dropped))
    if not problems:
        return Outcome(dropped=dropped)
    who = settings.model or curation.model
    with ExitStack() as stack:
        held = holder.hold(
            who, curation.chat, curation.engine, max_tokens=settings.max_tokens, watch=tools.watch, stack=stack
        )
        problems = _short_enough(problems, held, settings, curation, dropped, tools.watch)
        name = _name(held, who, curation, settings)
        answers = Kept(tools.kept / f"answers-{name}", ANSWERS)
        refused = _sample(problems, answers, held, who, settings, tools)
    dropped |= {p.place: Fate(reason="refused by the server", detail=refused[p.prompt]) for p in problems if p.prompt in refused}  # fmt: skip
    problems = [p for p in problems if p.prompt not in refused]
    by = named(name, strop.__version__, version("math-verify"), version("sympy"), curation.checks.timeout_s)
    verdicts = Kept(tools.kept / f"verdicts-{by}", VERDICTS)
    _judge(problems, answers, verdicts, settings.samples, curation.checks, tools)
    tallies, counts = _count(problems, verdicts, settings.samples)
    out = {p.place: fate for p in problems if (fate := _fate(tallies[p.prompt, p.gold], settings)) is not None}
    changed = {
        p.place: {"pass_rate": t.right / t.scorable, "num_samples": t.scorable}
        for p in problems
        if p.place not in out and (t := tallies[p.prompt, p.gold])
    }
    every = [tallies[p.prompt, p.gold] for p in problems]
    kept = [tallies[p.prompt, p.gold] for p in problems if p.place in changed]
    about = _about(rows, who, held, settings, len(problems))
    return Outcome(dropped=dropped | out, changed=changed, notes=(about, *_notes(every, kept, counts, settings)))


# --- which rows -------------------------------------------------------------------------------------------------------


def _drawn(rows: pa.Table, settings: DifficultyStage, seed: int, dropped: dict[int, Fate]) -> Iterator[Problem]:
    """The rows with the lowest hashes, so that a higher limit only adds some. The others are dropped."""
    columns = [rows[name].to_pylist() for name in ("source", "prompt", "answer")]
    places = list(range(rows.num_rows))
    if settings.limit is not None and settings.limit < len(places):
        places.sort(key=lambda i: seed_of(seed, *SEEDS, *(column[i] for column in columns)))
        beyond = Fate(reason="not measured", detail=f"beyond the limit of {settings.limit:,} rows")
        dropped |= dict.fromkeys(places[settings.limit :], beyond)
        places = sorted(places[: settings.limit])
    for place, row in zip(places, rows.take(pa.array(places, pa.int64())).to_pylist(), strict=True):
        prompt, gold = _hash(row["prompt"]), _hash(row["verifier"], row["answer"])
        task = Task(
            id=f"{prompt}/{gold}", source=row["source"], prompt=row["prompt"], answer=row["answer"],
            verifier=row["verifier"],
        )  # fmt: skip
        yield Problem(place=place, prompt=prompt, gold=gold, task=task)


def _hash(*parts: str) -> str:
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()


def _short_enough(
    problems: Sequence[Problem],
    held: Held,
    settings: DifficultyStage,
    curation: Curation,
    dropped: dict[int, Fate],
    watch: Watch,
) -> list[Problem]:
    """Without the prompts that leave no room for an answer; where a server makes the prompts, it says so itself."""
    if held.chat is None:
        return list(problems)
    most, why = curation.engine.max_prompt_tokens, "engine.max_prompt_tokens"
    if held.num_places is not None and held.num_places - settings.max_tokens < most:
        most, why = held.num_places - settings.max_tokens, "the model's context less max_tokens"
    if most < 1:
        raise UserError(
            f"the model has places for {held.num_places} tokens, so max_tokens={settings.max_tokens} leaves none for a "
            "prompt; set the difficulty stage's max_tokens lower"
        )
    kept = []
    with watch.phase("measuring prompts", len(problems), "rows") as bar:
        for problem in problems:
            length = len(held.chat.encode_prompt(problem.task.prompt))
            if length > most:
                dropped[problem.place] = Fate(reason="prompt too long", detail=f"{length:,} tokens, {why} is {most:,}")
            else:
                kept.append(problem)
            bar.advance(1)
    return kept


# --- answers ----------------------------------------------------------------------------------------------------------


def _sampling(who: config.Model, settings: DifficultyStage) -> Sampling:
    exact = who.matmul == "float32"  # else as the policy is sampled in training
    return Sampling(
        temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, exact=exact
    )  # fmt: skip


def _name(held: Held, who: config.Model, curation: Curation, settings: DifficultyStage) -> str:
    """Over all that an answer depends on besides problem and sample."""
    from strop import fingerprint

    there = fingerprint.weights(held.policy, held.chat, held.engine)
    if there["model"] is None:  # not known here: told by what it is called, and where
        there["served_as"] = who.name
    template = held.chat.template if held.chat is not None else held.engine.about
    chat = fingerprint.chat_hash(curation.chat, template)
    drawn = [settings.temperature, settings.top_p, settings.max_tokens, who.matmul, *SEEDS]
    return named(there, held.engine.about, chat, drawn)


def _sample(
    problems: Sequence[Problem],
    answers: Kept,
    held: Held,
    who: config.Model,
    settings: DifficultyStage,
    tools: Tools,
) -> dict[str, str]:
    """Answers to every problem are in `answers`; prompts that the server refused, with its words."""
    num = settings.samples
    have = _have(answers, ("prompt",), num)
    wanted = {p.prompt: replace(p.task, id=p.prompt) for p in problems}
    missing = [wanted[prompt] for prompt in sorted(wanted) if not _whole(have.get((prompt,), 0), num)]
    refused: dict[str, str] = {}
    title, total, step = f"answers of {who.name}", len(wanted) * num, max(1, AT_ONCE // num)
    with tools.watch.phase(title, total, "answers", done=total - len(missing) * num, in_waves=True) as bar:

        def keep(r: Rollout) -> None:
            answers.add({
                "prompt": r.task.id, "sample": r.sample, "text": r.text, "num_tokens": r.num_sampled,
                "truncated": r.truncated,
            })  # fmt: skip
            bar.advance(1)
            if tools.stop_requested():
                raise Stopped

        try:
            for start in range(0, len(missing), step):
                chunk = missing[start : start + step]
                found = _ask(chunk, held, _sampling(who, settings), num, keep)
                if len(found) == len(chunk) and not have and len(refused) == start:
                    raise UserError(next(iter(found.values())))  # nothing at all: the request itself is wrong
                refused |= found
        finally:  # whatever ended it, what was answered is not lost
            answers.save()
    return refused


def _ask(
    tasks: Sequence[Task], held: Held, sampling: Sampling, num_samples: int, keep: Callable[[Rollout], None]
) -> dict[str, str]:
    """Asks, and hands every answer to `keep`. A refusal is traced to its problems by halving; what is returned is those."""
    try:
        held.engine.generate(tasks, num_samples=num_samples, sampling=sampling, seed_path=SEEDS, on_done=keep)
    except Refusal as refusal:
        if len(tasks) == 1:
            return {tasks[0].id: " ".join(str(refusal).split())[:300]}
        middle = len(tasks) // 2
        halves = [_ask(part, held, sampling, num_samples, keep) for part in (tasks[:middle], tasks[middle:])]
        return halves[0] | halves[1]
    return {}


def _have(kept: Kept, columns: Sequence[str], num_samples: int) -> dict[tuple[str, ...], int]:
    """By the values of `columns`, which of the samples there are: bit i for sample i."""
    have: dict[tuple[str, ...], int] = {}
    for part in kept.parts([*columns, "sample"]):
        for row in part:
            if row["sample"] < num_samples:
                key = tuple(row[name] for name in columns)
                have[key] = have.get(key, 0) | 1 << row["sample"]
    return have


def _whole(samples: int, num_samples: int) -> bool:
    return samples == (1 << num_samples) - 1


# --- verdicts ---------------------------------------------------------------------------------------------------------


def _judge(
    problems: Sequence[Problem], answers: Kept, verdicts: Kept, num_samples: int, checks: config.Checks, tools: Tools
) -> None:
    """A verdict on every answer to every problem is in `verdicts`. Of two answers with one number the older one counts."""
    tasks: dict[str, dict[str, Task]] = {}
    for p in problems:
        tasks.setdefault(p.prompt, {})[p.gold] = p.task
    have = _have(verdicts, ("prompt", "gold"), num_samples)
    total = sum(len(golds) for golds in tasks.values()) * num_samples
    done = sum(have.get((prompt, gold), 0).bit_count() for prompt, golds in tasks.items() for gold in golds)
    if done == total:  # processes cost seconds to start
        return
    with (
        tools.watch.phase("judging", total, "answers", done=done) as bar,
        Scorer(workers=checks.workers, timeout_s=checks.timeout_s) as scorer,
    ):
        try:
            for part in answers.parts():
                new = list(_unjudged(part, tasks, have, num_samples))
                for start in range(0, len(new), JUDGED):
                    chunk = new[start : start + JUDGED]
                    for row, r in zip(
                        chunk, scorer.judge([_rollout(*one) for one in chunk], may_fail=True), strict=True
                    ):
                        verdicts.add(_verdict(row[0], r))
                    bar.advance(len(chunk))
                    if tools.stop_requested():
                        raise Stopped
        finally:
            verdicts.save()


def _unjudged(
    part: Sequence[Mapping[str, Any]],
    tasks: Mapping[str, Mapping[str, Task]],
    have: dict[tuple[str, ...], int],
    num: int,
) -> Iterator[tuple[Mapping[str, Any], Task]]:
    """The answers of a part that some problem still needs, each of them from now on in `have`."""
    for row in part:
        for gold, task in tasks.get(row["prompt"], {}).items():
            bits, bit = have.get((row["prompt"], gold), 0), 1 << row["sample"]
            if row["sample"] < num and not bits & bit:
                have[row["prompt"], gold] = bits | bit
                yield row, task


def _rollout(row: Mapping[str, Any], task: Task) -> Rollout:
    """What a verdict needs of an answer: its text, and whether it was cut."""
    none = np.zeros(0, bool)
    return Rollout(
        task=task, group=0, sample=row["sample"], token_ids=np.zeros(0, np.int32), sampled=none, trained=none,
        text=row["text"], stop=Stop.LENGTH if row["truncated"] else Stop.EOS,
    )  # fmt: skip


def _verdict(row: Mapping[str, Any], r: Rollout) -> dict[str, Any]:
    prompt, _, gold = r.task.id.partition("/")
    return {
        "prompt": prompt, "gold": gold, "sample": r.sample, "num_tokens": row["num_tokens"], "truncated": row["truncated"],
        "stated": extract.marked(r.text), "scorable": r.scorable, "correct": r.correct,
    }  # fmt: skip


def _count(problems: Sequence[Problem], verdicts: Kept, num: int) -> tuple[dict[Judged, Tally], Counter[str]]:
    """Verdicts by problem, and over all of them how many answers and tokens there are, how many were cut, and so on."""
    tallies: dict[Judged, Tally] = {(p.prompt, p.gold): Tally() for p in problems}
    counts: Counter[str] = Counter()
    for part in verdicts.parts():
        for row in part:
            tally = tallies.get((row["prompt"], row["gold"]))
            if tally is None or row["sample"] >= num:
                continue
            tally.right += row["correct"]
            tally.scorable += row["scorable"]
            counts.update(
                answers=1, num_tokens=row["num_tokens"], truncated=row["truncated"], stated=row["stated"],
                right=row["correct"], failed=not row["scorable"],
            )  # fmt: skip
    return tallies, counts


# --- what becomes of a row --------------------------------------------------------------------------------------------


def _fate(tally: Tally, settings: DifficultyStage) -> Fate | None:
    """None: it stays."""
    if not tally.scorable:
        return Fate(reason="could not be judged", detail=f"the verifier failed on all {settings.samples} answers")
    rate, detail = tally.right / tally.scorable, f"{tally.right} of {tally.scorable}"
    if settings.min_rate is not None and rate <= settings.min_rate:
        return Fate(reason="never solved" if rate == 0 else "solved too rarely", detail=detail)
    if settings.max_rate is not None and rate >= settings.max_rate:
        return Fate(reason="always solved" if rate == 1 else "solved too often", detail=detail)
    return None


def _about(rows: pa.Table, who: config.Model, held: Held, settings: DifficultyStage, num: int) -> str:
    drawn = f", top-p {settings.top_p:g}" if settings.top_p < 1 else ""
    return (
        f"{num:,} of {rows.num_rows:,} rows were answered {settings.samples} times by {who.name} "
        f"({'weights in this process' if held.policy is not None else held.engine.about}) at temperature "
        f"{settings.temperature:g}{drawn}, with at most {settings.max_tokens:,} tokens"
    )


def _notes(
    every: Sequence[Tally], kept: Sequence[Tally], counts: Counter[str], settings: DifficultyStage
) -> Iterator[str]:
    """Sentences on pass rates, and on what would make them say less than they seem to."""
    if not (total := counts["answers"]):
        return
    cut, stated = counts["truncated"] / total, counts["stated"] / total
    yield f"{100 * counts['right'] / total:.1f}% of the answers are right; they have {counts['num_tokens']:,} tokens"
    by_right = Counter(t.right for t in every if t.scorable == settings.samples)
    found = ", ".join(f"{right}: {by_right[right]:,}" for right in range(settings.samples + 1))
    yield f"rows by right answers of {settings.samples}: {found}"
    advice = f": raise max_tokens, to {2 * settings.max_tokens:,} for a start" if cut >= CUT_FRAC else ""
    yield f"{100 * cut:.1f}% of the answers hit the limit of {settings.max_tokens:,} tokens{advice}"
    advice = ": ask for one in chat.system" if stated < STATED_FRAC else ""
    yield f"{100 * stated:.1f}% of the answers say which value is the answer (a box, a tag, a line for it){advice}"
    group = min(GROUP, settings.samples)
    before, after = _signal(every, group, settings.samples), _signal(kept, group, settings.samples)
    if group > 1 and before is not None and after is not None:
        yield (
            f"{group} rollouts of a row are neither all right nor all wrong with a chance of {100 * before:.1f}% before this "
            f"stage and {100 * after:.1f}% after it"
        )
    if counts["failed"]:
        yield f"the verifier failed on {counts['failed']:,} answers, which count neither as right nor as wrong"


def _signal(tallies: Sequence[Tally], group: int, num: int) -> float | None:
    """The mean over rows all of whose answers were judged; None where there are none."""
    from strop.probe.before import signal_of

    right_P = np.array([t.right for t in tallies if t.scorable == num])
    return float(signal_of(num, right_P, group).mean()) if len(right_P) else None
