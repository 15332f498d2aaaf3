"""Row-wise work on a Ray cluster: the same call as `measure.Processes`, the same findings in the order of the rows.

Batches travel as Arrow through Ray Data, which keeps them in order and tries a batch again whose machine is lost. Every
machine needs Strop installed; rows go to it, files do not. What needs all rows at once is decided by whoever calls.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pyarrow as pa

from strop.curate import table
from strop.curate.measure import LARGEST_BATCH, ONE_THREAD, SMALL, InProcess, checked
from strop.curate.rows import Measure, Stopped
from strop.record import UserError
from strop.watch import Watch

__all__ = ["LOCAL", "Cluster"]

ANSWER = pa.schema([("mistake", pa.string()), ("findings", pa.large_binary())])
KNOCK_S = 5.0
LOCAL = "local"  # an address: a cluster of this machine alone, for as long as it is needed


class Cluster:
    """A connection to a Ray cluster, opened at once and closed at the end; one that is open already is used and left open.

    `address` is LOCAL, `auto` (the cluster that this machine belongs to) or what `ray.init` takes. A context manager. Raises
    UserError where Ray is missing or no cluster answers, and where a function raises one; RuntimeError where it fails;
    Stopped between two batches.
    """

    def __init__(self, address: str, watch: Watch, stop_requested: Callable[[], bool] = lambda: False) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is curated here is nobody else's business
        try:
            import ray  # pyright: ignore[reportMissingImports]
            import ray.data  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("work on a cluster needs Ray, which is not installed: pip install 'strop[ray]'") from error
        self._ray, self._watch, self._stop_requested = ray, watch, stop_requested
        self._here = InProcess(watch, stop_requested)
        self._opened = not ray.is_initialized()
        if self._opened:
            try:
                _knock(address)
                ray.init(
                    address=address, include_dashboard=False if address == LOCAL else None, log_to_driver=False,
                    logging_level=logging.ERROR, runtime_env={"env_vars": ONE_THREAD},
                )  # fmt: skip
            except (OSError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"no Ray cluster answers at {address!r} ({str(error).splitlines()[0]}); start one with `ray start --head` and "
                    f"say auto, or say {LOCAL} for this machine alone"
                ) from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of each execution; `watch` does
        cores = ray.cluster_resources().get("CPU", 0)
        watch.say(f"Ray: {len(ray.nodes())} machine{'s' * (len(ray.nodes()) != 1)}, {cores:g} cores")

    def __call__(self, function: Measure, rows: pa.Table, settings: Any, *, what: str) -> pa.Table:
        if len(rows) <= SMALL or function.__module__ == "__main__":
            return self._here(function, rows, settings, what=what)
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        parts = [rows.slice(start, LARGEST_BATCH).combine_chunks() for start in range(0, len(rows), LARGEST_BATCH)]
        mapped = self._ray.data.from_arrow(parts).map_batches(
            _measured, batch_size=None, batch_format="pyarrow", fn_args=(function, settings)
        )
        found = []
        with self._watch.phase(what, len(rows), "rows") as bar:
            try:
                for answers in mapped.iter_batches(batch_size=None, batch_format="pyarrow"):
                    for mistake, body in zip(*(answers.column(name).to_pylist() for name in ANSWER.names), strict=True):
                        if mistake:
                            raise UserError(mistake)
                        found.append(table.unpacked(body))
                        bar.advance(len(found[-1]))
                    if self._stop_requested():
                        raise Stopped
            except self._ray.exceptions.RayError as error:
                raise RuntimeError(f"{what}: failed on the cluster\n{error}") from error
        return checked(pa.concat_tables(found), rows, what)

    def close(self) -> None:
        if self._opened:
            self._ray.shutdown()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at a HOST:PORT: Ray itself would try for a minute, and then end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def _measured(rows: pa.Table, function: Measure, settings: Any) -> pa.Table:
    """On a machine of the cluster: one answer for a batch, its findings or what the user should do."""
    try:
        mistake, body = "", table.packed(checked(function(rows, settings), rows, function.__name__))
    except UserError as error:  # raised, it would come back as Ray's own error with its text alone
        mistake, body = str(error), b""
    return pa.table([[mistake], pa.array([body], pa.large_binary())], schema=ANSWER)
