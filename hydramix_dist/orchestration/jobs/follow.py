"""Following a job to its end: its logs as they come, over connections that break, without a line twice."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from typing import Any

from hydramix_dist.orchestration.jobs.cluster import AwayError, Cluster, RayJob

LOOK_SECONDS = 2.0  # between two looks at the job's state
AWAY_SECONDS = 120.0  # for which a cluster that does not answer is asked again
SILENCE_SECONDS = (15.0, 240.0)  # after which a silent connection is doubted; twice as long each time it was right
LAST_WORDS_SECONDS = 5.0  # for a log to come to its end once the job has


class LostError(Exception):
    """The job cannot be followed any more; the text says why."""


def follow(cluster: Cluster, submission_id: str, write: Callable[[str], None], say: Callable[[str], None]) -> RayJob:
    """Hand a job's logs to `write` as they come, and return the job once it is over.

    `say` takes what else there is to tell. Raises LostError where the cluster is away for too long or does not know
    the job any more, and KeyboardInterrupt on Ctrl-C, which leaves the job running.
    """
    # A program begun in the background of a script ignores Ctrl-C; asyncio's runner leaves such a handler alone.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return asyncio.run(_Follower(cluster, submission_id, write, say).run())
    finally:
        signal.signal(signal.SIGINT, before)


def wait_until_over(cluster: Cluster, submission_id: str, seconds: float) -> RayJob | None:
    """Return the job once it is over, None where Ray does not know it, or as it is after so many seconds.

    Raises UserError where the cluster does not answer even then.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            job = cluster.job(submission_id)
        except AwayError:  # a busy head, which is asked again
            if time.monotonic() > end:
                raise
        else:
            if job is None or job.over or time.monotonic() > end:
                return job
        time.sleep(0.5)


class _Follower:
    def __init__(
        self, cluster: Cluster, submission_id: str, write: Callable[[str], None], say: Callable[[str], None]
    ) -> None:
        self._cluster, self._id, self._write, self._say = cluster, submission_id, write, say
        self._seen = 0  # characters of the log that were written
        self._heard = time.monotonic()  # when there was something to write
        self._doubt = SILENCE_SECONDS[0]

    async def run(self) -> RayJob:
        tail = asyncio.create_task(self._tail())
        try:
            while True:
                job, was_away = await self._look()
                if job.over:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(asyncio.shield(tail), LAST_WORDS_SECONDS)
                    tail.cancel()
                    await self._rest()
                    return job
                # A connection to a head that was away, and one that was made at a bad moment, may stay silent for ever.
                if await self._is_deaf(at_once=tail.done()) or was_away or tail.done():
                    tail.cancel()
                    tail = asyncio.create_task(self._tail())
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            tail.cancel()

    async def _is_deaf(self, at_once: bool) -> bool:
        """Return whether a connection that is silent, or has ended, has missed something, which is written then."""
        if not at_once and time.monotonic() - self._heard < self._doubt:
            return False
        before = self._seen
        await self._rest()
        self._heard = time.monotonic()
        self._doubt = SILENCE_SECONDS[0] if self._seen > before else min(2 * self._doubt, SILENCE_SECONDS[1])
        return self._seen > before

    async def _look(self) -> tuple[RayJob, bool]:
        """Return the job, and whether the cluster was away meanwhile."""
        began = time.monotonic()
        away = False
        while True:
            try:
                job = await asyncio.to_thread(self._cluster.job, self._id)
            except AwayError as error:
                if not away:
                    self._say(f"{self._cluster.address} does not answer; trying again for {AWAY_SECONDS:.0f} s")
                away = True
                if time.monotonic() - began > AWAY_SECONDS:
                    raise LostError(f"{self._cluster.address} has not answered for {AWAY_SECONDS:.0f} s") from error
                await asyncio.sleep(LOOK_SECONDS)
                continue
            if job is None:
                raise LostError(
                    f"the cluster at {self._cluster.address} knows no job {self._id} any more: its head was "
                    "started anew"
                )
            if away:
                self._say(f"{self._cluster.address} answers again")
            return job, away

    async def _tail(self) -> None:
        """Write what a log says from where it was left, until the connection ends, well or not."""
        position = 0  # each connection begins at the log's beginning
        with contextlib.suppress(Exception):  # of aiohttp and of Ray; the looks tell what has become of the cluster
            client: Any = await asyncio.to_thread(self._cluster.client)
            async for text in client.tail_job_logs(self._id):
                self._fresh(text, position)
                position += len(text)

    async def _rest(self) -> None:
        """Write what no connection has brought."""
        with contextlib.suppress(AwayError):
            self._fresh(await asyncio.to_thread(self._cluster.logs, self._id), 0)

    def _fresh(self, text: str, position: int) -> None:
        """Write the part of a text at `position` of the log that is new."""
        if position + len(text) > self._seen:
            self._write(text[max(0, self._seen - position) :])
            self._seen, self._heard = position + len(text), time.monotonic()
