"""The learner: turns rollouts with advantages into one or more optimizer updates of the policy.

Knows packing, micro-batches, the optimizer and its checkpoint. Does not know tasks, rewards or how advantages came
about. Denominators are computed over a whole update before it is cut into micro-batches, so that the cut changes
memory and never the numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from strop import advantage, batch, config, loss
from strop.config import Algorithm, Optim
from strop.critic import Critic
from strop.head import logprobs_of
from strop.headroom import OutOfRoom
from strop.model import Policy
from strop.process import give_back_memory
from strop.provenance import Levels
from strop.record import Rollout, UserError, replace
from strop.schedule import learning_rate
from strop.teacher import Teacher

__all__ = ["Learner", "NonFinite"]

T = TypeVar("T")
STATE = "strop_state"
NO_CRITIC = config.Critic()
VALUE_COEF = 0.1  # of the value loss beside the policy's, which a shared body feels


class NonFinite(RuntimeError):
    """Loss or gradient is not a finite number; raised before the optimizer touched a weight with it."""


class Learner:
    """AdamW on the policy's trainable weights, in place: the engine samples from the same memory."""

    def __init__(
        self, policy: Policy, optim: Optim, critic: config.Critic = NO_CRITIC, teacher: Teacher | None = None
    ) -> None:
        self.policy, self.optim, self.teacher = policy, optim, teacher
        self.parameters = policy.trainable()
        self.critic = Critic(policy, critic) if critic.kind != "none" else None
        self.num_updates = 0
        self.most_tokens = optim.microbatch_tokens  # at once, as memory allows
        self.reference: dict[str, Tensor] | None = None  # the stage's first weights, if a KL or a teacher asks for them
        self.reference_moved = False  # later weights: a checkpoint must hold them
        groups = [{"params": list(self.parameters.values()), "share": 1.0}]  # of the scheduled learning rate
        if self.critic is not None:
            groups.append({"params": list(self.critic.parameters().values()), "share": critic.lr / optim.lr})
        self.adamw = torch.optim.AdamW(
            groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay,
            fused=policy.device.type in ("cpu", "cuda"),
        )  # fmt: skip

    # --- learning

    def update(
        self,
        rollouts: Sequence[Rollout],
        algorithm: Algorithm,
        *,
        num_updates: int,
        max_tokens: int,
        seed: int,
        only_critic: bool = False,
        most_mismatch: Levels | None = None,
    ) -> dict[str, float]:
        """Policy updates on one step's rollouts (with advantages), cut into `num_updates` by groups in random order.

        With a critic it learns the rollouts' `returns` in the same updates; `only_critic` leaves the policy as it is.
        Returns metrics, means over trained tokens that were run: groups without any gradient are left out of the
        computation but stay in the denominators. Raises NonFinite in place of the update that would spoil the weights,
        and Mismatch in place of the first one where sampler and learner differ by more than `most_mismatch`.
        """
        groups: dict[int, list[Rollout]] = {}
        for r in rollouts:
            groups.setdefault(r.group, []).append(r)
        order = np.random.default_rng(seed).permutation(sorted(groups)) if num_updates > 1 else np.array(sorted(groups))
        totals: dict[str, float] = {}
        norms: list[float] = []
        for part in np.array_split(order, num_updates):
            chosen = [r for g in part.tolist() for r in groups[g]]
            # Only the first update has the weights that sampled; later ones have moved on purpose.
            sums = self._policy_update(chosen, algorithm, max_tokens, only_critic, None if norms else most_mismatch)
            if sums is None:
                continue
            apart = {key: sums.pop(key) / sums["num_tokens"] for key in ("mismatch_abs", "mismatch_kl")}
            if not norms:
                totals |= apart
            norms.append(sums.pop("grad_norm"))
            for key, value in sums.items():
                totals[key] = totals.get(key, 0.0) + value
        return _means(totals, norms, learning_rate(max(0, self.num_updates - 1), self.optim))

    def sft_update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """One update on worked solutions: mean negative log-likelihood over their trained tokens."""
        weight = loss.token_weights([r.num_trained for r in rollouts], "token_mean", 0)

        def accumulate() -> dict[str, float]:
            self._zero()
            totals: dict[str, float] = {"loss": 0.0}
            with self.policy.as_trained():
                for part, weights_N in self._microbatches(rollouts, weight):
                    row = self._row(part, "trained")
                    logprobs_N, _ = self._logprobs(self._hidden(self.policy, row), row, 1.0)
                    value, sums = loss.sft_loss(logprobs_N, weights_N)
                    value.backward()
                    totals["loss"] += value.item()
                    totals["num_tokens"] = totals.get("num_tokens", 0.0) + sums["num_tokens"].item()
            return totals

        totals = self._with_room(rollouts, accumulate)
        norm = self._step(totals["loss"])
        return {"loss": totals["loss"], "grad_norm": norm, "learning_rate": learning_rate(self.num_updates - 1, self.optim),
                "num_tokens_trained": totals["num_tokens"]}  # fmt: skip

    def _policy_update(
        self,
        rollouts: list[Rollout],
        algorithm: Algorithm,
        max_tokens: int,
        only_critic: bool,
        most_mismatch: Levels | None,
    ) -> dict[str, float] | None:
        weight = loss.token_weights([r.num_trained for r in rollouts], algorithm.aggregate, max_tokens)
        acting = [
            (r, w) for r, w in zip(rollouts, weight, strict=True) if r.num_trained and advantage.acts([r], algorithm)
        ]
        if not acting:
            return None
        chosen, weights = [r for r, _ in acting], [w for _, w in acting]

        def accumulate() -> dict[str, float]:
            self._zero()
            totals: dict[str, float] = {"loss": 0.0}
            with self._as_trained():
                for part, weights_N in self._microbatches(chosen, weights):
                    value, sums = self._backward(part, weights_N, algorithm, only_critic)
                    totals["loss"] += value
                    for key, term in sums.items():
                        totals[key] = totals.get(key, 0.0) + term
            return totals

        totals = self._with_room(chosen, accumulate)
        if most_mismatch is not None:
            most_mismatch.check(totals["mismatch_abs"], totals["mismatch_kl"], totals["num_tokens"])
        return totals | {"grad_norm": self._step(totals["loss"])}

    def _backward(
        self, part: list[Rollout], weights_N: Tensor, algorithm: Algorithm, only_critic: bool
    ) -> tuple[float, dict[str, float]]:
        """Adds one micro-batch's gradients; its loss, and sums over its tokens."""
        device, row = self.policy.device, self._row(part, "trained")
        sampler_N = batch.flat(part, "sampler_logprobs", device)
        old_N = sampler_N if part[0].old_logprobs is None else batch.flat(part, "old_logprobs", device)
        ref_N = None if part[0].ref_logprobs is None else batch.flat(part, "ref_logprobs", device)
        advantages_N = batch.flat(part, "advantages", device)
        with torch.set_grad_enabled(not only_critic):
            hidden_Nh = self._hidden(self.policy, row)
            logprobs_N, entropy_N = self._logprobs(hidden_Nh, row, part[0].temperature)
            value, sums = loss.policy_loss(
                logprobs_N, old_N, ref_N, advantages_N, weights_N, row.rollout_N, algorithm, entropy_N
            )
        if self.critic is not None:
            if not self.critic.shares:
                hidden_Nh = self._hidden(self.critic.body, row)
            old_values_N, returns_N = batch.flat(part, "values", device), batch.flat(part, "returns", device)
            values_N, clip = self.critic.values(hidden_Nh), self.critic.settings.clip
            error, more = loss.value_loss(values_N, old_values_N, returns_N, weights_N, clip)
            value, sums = VALUE_COEF * error + (0.0 if only_critic else value), sums | more
        value.backward()
        own_N = logprobs_N.detach()
        sums |= {
            "entropy": entropy_N.detach().sum(),
            "mismatch_abs": (own_N - sampler_N).abs().sum(),
            "mismatch_kl": loss.k3(sampler_N, own_N).sum(),
        }
        return value.item(), {key: term.item() for key, term in sums.items()}

    def _microbatches(
        self, rollouts: Sequence[Rollout], weight: Sequence[float]
    ) -> Iterator[tuple[list[Rollout], Tensor]]:
        weights = iter(weight)
        for part in batch.split(rollouts, self.microbatch_tokens):
            per_token = np.concatenate([np.full(r.num_trained, next(weights), dtype=np.float32) for r in part])
            yield part, torch.from_numpy(per_token).to(self.policy.device)

    @contextmanager
    def _as_trained(self) -> Iterator[None]:
        """`Policy.as_trained` for all that learns."""
        with ExitStack() as stack:
            stack.enter_context(self.policy.as_trained())
            if self.critic is not None and not self.critic.shares:
                stack.enter_context(self.critic.body.as_trained())
            yield

    def _row(self, rollouts: Sequence[Rollout], wanted: Literal["trained", "sampled"]) -> batch.Batch:
        return batch.collate(rollouts, self.policy.device, wanted=wanted)

    def _hidden(self, body: Policy, row: batch.Batch) -> Tensor:
        """States [N, h] at the places that predict the wanted tokens."""
        hidden_Th = body.hidden(row.ids_T[None], row.position_T[None], row.layout)[0]
        return F.embedding(row.predictor_N, hidden_Th)  # plain indexing adds its gradients in no fixed order

    def _logprobs(
        self, hidden_Nh: Tensor, row: batch.Batch, temperature: float, body: Policy | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of the wanted tokens, [N] each: log-probabilities under the tempered softmax, and its entropy."""
        weight: Any = (body or self.policy).head.weight
        return logprobs_of(hidden_Nh, weight, row.target_N, temperature or 1.0)

    def _zero(self) -> None:
        self.adamw.zero_grad(set_to_none=True)  # the first micro-batch's gradients are taken over, not added to zeros

    def _step(self, value: float) -> float:
        norms = []
        for group in self.adamw.param_groups:  # the policy's and the critic's lengths are not of one kind
            with_gradient = [p for p in group["params"] if p.grad is not None]
            total_norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient])
            norms.append(total_norm.item())
            if norms[-1] > self.optim.max_grad_norm:  # else a pass over all gradients would multiply them by 1
                torch.nn.utils.clip_grads_with_norm_(with_gradient, self.optim.max_grad_norm, total_norm)
            group["lr"] = group["share"] * learning_rate(self.num_updates, self.optim)
        if not (math.isfinite(value) and all(map(math.isfinite, norms))):
            raise NonFinite(
                f"loss {value}, gradient norm {max(norms)}: this update was not applied; "
                "begin again in another --out with a lower optim.lr, or look at the saved batch (rollouts/<stage>/nonfinite_*.parquet)"
            )
        self.adamw.step()
        self.num_updates += 1
        return norms[0]

    # --- memory

    @property
    def microbatch_tokens(self) -> int:
        """Tokens per forward and backward: the recipe's, or what memory has come to allow."""
        return min(self.optim.microbatch_tokens, self.most_tokens)

    def _with_room(self, rollouts: Sequence[Rollout], work: Callable[[], T]) -> T:
        """What `work` returns, begun anew with half as many tokens at once wherever memory runs short.

        The sums are the same but for the order in which they are added. Raises UserError when halving changes nothing.
        """
        while True:
            try:
                return work()
            except (OutOfRoom, torch.cuda.OutOfMemoryError) as error:
                why = str(error).split("\n")[0]
            self._zero()
            give_back_memory()
            num_parts = len(list(batch.split(rollouts, self.microbatch_tokens)))
            self.most_tokens = self.microbatch_tokens // 2
            while self.most_tokens and len(list(batch.split(rollouts, self.most_tokens))) == num_parts:
                self.most_tokens //= 2
            if not self.most_tokens:
                longest = max(len(r.token_ids) for r in rollouts)
                raise UserError(
                    f"memory is full even with one completion at a time ({longest} tokens with its prompt; {why}): lower "
                    "max_tokens of the stage, set model.lora.rank=16 for adapters in place of all weights, or take a smaller model"
                )

    def _by_parts(self, rollouts: Sequence[Rollout], look: Callable[[list[Rollout]], list[T]]) -> list[T]:
        """What `look` finds in each micro-batch, in order."""
        return self._with_room(
            rollouts, lambda: [x for part in batch.split(rollouts, self.microbatch_tokens) for x in look(part)]
        )

    # --- looking without learning

    @torch.no_grad()
    def logprobs(self, rollouts: Sequence[Rollout], body: Policy | None = None) -> list[np.ndarray]:
        """Log-probability of every sampled token under the current weights, or another model's; per rollout [L], NaN elsewhere."""
        model = body or self.policy

        def look(part: list[Rollout]) -> list[np.ndarray]:
            row = self._row(part, "sampled")
            logprobs_N, _ = self._logprobs(self._hidden(model, row), row, part[0].temperature, model)
            return batch.unflatten(logprobs_N, part, wanted="sampled")

        with model.as_trained():
            return self._by_parts(rollouts, look)

    @torch.no_grad()
    def mean_loss(self, rollouts: Sequence[Rollout]) -> float:
        """Mean negative log-likelihood of the trained tokens of worked solutions under the current weights; nats a token."""
        return -self._mean(rollouts, "trained", 0)

    @torch.no_grad()
    def mean_entropy(self, rollouts: Sequence[Rollout]) -> float:
        """Mean entropy of the tempered next-token distribution where a token was sampled, under the current weights; nats."""
        return self._mean(rollouts, "sampled", 1)

    def _mean(self, rollouts: Sequence[Rollout], wanted: Literal["trained", "sampled"], which: int) -> float:
        """The mean over wanted tokens of their log-probability (`which` 0), or of the entropy they were drawn at (1)."""

        def look(part: list[Rollout]) -> list[tuple[float, int]]:
            row = self._row(part, wanted)
            found_N = self._logprobs(self._hidden(self.policy, row), row, part[0].temperature)[which]
            return [(found_N.double().sum().item(), len(found_N))]

        with self.policy.as_trained():
            found = self._by_parts(rollouts, look)
        return sum(total for total, _ in found) / sum(count for _, count in found)

    @torch.no_grad()
    def values(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """What the critic says before every sampled token; per rollout [L], NaN elsewhere."""
        critic = self.critic
        assert critic is not None

        def look(part: list[Rollout]) -> list[np.ndarray]:
            values_N = critic.values(self._hidden(critic.body, self._row(part, "sampled")))
            return batch.unflatten(values_N, part, wanted="sampled")

        with self._as_trained():
            return self._by_parts(rollouts, look)

    def keep_reference(self) -> None:
        """The trainable weights as they are now become the reference (with LoRA the adapters: a few megabytes)."""
        self.reference = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.reference_moved = self.num_updates > 0

    def annotate(self, rollouts: list[Rollout], algorithm: Algorithm) -> list[Rollout]:
        """Writes `old_logprobs` where the sampler's are corrected, `ref_logprobs` where a KL acts, `teacher_logprobs` where a
        teacher credits, a critic's `values`."""
        if algorithm.correction != "none":
            old = self.logprobs(rollouts)
            rollouts = [replace(r, old_logprobs=a) for r, a in zip(rollouts, old, strict=True)]
        if algorithm.charges_kl:
            with self._as_reference():
                ref = self.logprobs(rollouts)
            rollouts = [replace(r, ref_logprobs=a) for r, a in zip(rollouts, ref, strict=True)]
        if algorithm.credit != "reward":
            assert self.teacher is not None, "a teacher's credit needs the teacher"
            with self._as_reference() if algorithm.teacher == "self" else nullcontext():
                found = self.logprobs(self.teacher.reads(rollouts), self.teacher.policy)
            taught = self.teacher.aligned(found, rollouts)
            rollouts = [replace(r, teacher_logprobs=a) for r, a in zip(rollouts, taught, strict=True)]
        if self.critic is not None:
            rollouts = [replace(r, values=a) for r, a in zip(rollouts, self.values(rollouts), strict=True)]
        return rollouts

    def _as_reference(self) -> AbstractContextManager[None]:
        """Inside, the policy has the reference's weights."""
        assert self.reference is not None, "keep_reference was not called"
        return _Swapped(self.parameters, self.reference)

    # --- checkpoint

    def _critic_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {} if self.critic is None else self.critic.parameters()

    def save(self, folder: Path) -> None:
        """Weights, AdamW's moments and the update count; safetensors and JSON only."""
        self.policy.save(folder)
        (folder / STATE).mkdir(exist_ok=True)
        tensors, critic = {}, self._critic_parameters()
        for name, parameter in (self.parameters | critic).items():
            for key, value in self.adamw.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value.detach().cpu().contiguous()
        save_file(tensors, folder / STATE / "adamw.safetensors")
        if critic:
            save_file(
                {n: p.detach().cpu().contiguous() for n, p in critic.items()}, folder / STATE / "critic.safetensors"
            )
        if self.reference is not None and self.reference_moved:
            reference = {n: t.cpu().contiguous() for n, t in self.reference.items()}
            save_file(reference, folder / STATE / "reference.safetensors")
        (folder / STATE / "learner.json").write_text(json.dumps({"num_updates": self.num_updates}))

    def state_hash(self) -> str:
        """16 hex digits over all that is carried from update to update beside the weights: moments, critic, reference, count."""
        digest = hashlib.sha256(str(self.num_updates).encode())
        critic = self._critic_parameters()
        held = {f"{n}/{k}": v for n, p in (self.parameters | critic).items() for k, v in self.adamw.state.get(p, {}).items()}  # fmt: skip
        held |= critic | (self.reference if self.reference is not None and self.reference_moved else {})
        for name, tensor in sorted(held.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def load(self, folder: Path, *, weights: bool = True) -> None:
        """What `save` wrote. Raises UserError if the folder has no optimizer state."""
        if weights:
            self.policy.load_weights(folder)
        file = folder / STATE / "adamw.safetensors"
        if not file.is_file():
            raise UserError(f"{folder} holds no optimizer state ({STATE}/adamw.safetensors), so it cannot be continued")
        names = self.parameters | self._critic_parameters()
        with safe_open(file, framework="pt") as stored:
            for full in stored.keys():  # noqa: SIM118 (safe_open is no dict)
                name, _, key = full.rpartition("/")
                if name not in names:
                    raise UserError(f"{file} belongs to another model: it has state for {name}")
                value = stored.get_tensor(full)
                self.adamw.state[names[name]][key] = value.to(self.policy.device)
        if self.critic is not None:
            stored = load_file(folder / STATE / "critic.safetensors")
            with torch.no_grad():
                for name, parameter in self._critic_parameters().items():
                    parameter.copy_(stored[name])
        if (moved := folder / STATE / "reference.safetensors").is_file():
            stored = load_file(moved)
            self.reference = {n: stored[n].to(p.device) for n, p in self.parameters.items()}
            self.reference_moved = True
        self.num_updates = json.loads((folder / STATE / "learner.json").read_text())["num_updates"]


class _Swapped(AbstractContextManager[None]):
    """For a while the parameters hold other values; put back on leaving, also when something fails."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], weights: dict[str, Tensor]) -> None:
        self.parameters, self.weights = parameters, weights

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()


def _means(totals: dict[str, float], norms: list[float], lr: float) -> dict[str, float]:
    if not norms:
        return {"loss": 0.0, "num_tokens_trained": 0.0, "num_updates": 0.0}
    tokens = totals["num_tokens"]
    out = {
        "loss": totals["loss"] / len(norms),
        "grad_norm": float(np.mean(norms)),
        "learning_rate": lr,
        "entropy": totals["entropy"] / tokens,
        "clip_ratio/low_mean": totals["clip_low"] / tokens,
        "clip_ratio/high_mean": totals["clip_high"] / tokens,
        "sampling/mismatch_abs": totals["mismatch_abs"],
        "sampling/mismatch_kl": totals["mismatch_kl"],
        "num_tokens_trained": tokens,
        "num_updates": float(len(norms)),
    }
    if "kl" in totals:
        out["kl"] = totals["kl"] / tokens
    if "value_error" in totals:
        spread = totals["squared_returns"] / tokens - (totals["returns"] / tokens) ** 2
        out["critic/error"] = totals["value_error"] / tokens
        out["critic/clip_ratio"] = totals["value_clip"] / tokens
        out["critic/explained_variance"] = 1 - out["critic/error"] / spread if spread > 1e-9 else 0.0
    return out
