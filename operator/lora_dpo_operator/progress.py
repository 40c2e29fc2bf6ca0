"""Pulls the progress of running jobs from rank 0, within one budget for the whole operator.

What answers is a pod of a user's: it is asked without redirects, for at most 64 KiB and two seconds, and what it says
is validated like any outside input.
"""

from __future__ import annotations

import dataclasses
import datetime

import aiohttp
from pydantic import ValidationError

from lora_dpo_api.protocol import PROGRESS_PORT, STATUS_LIMIT, ProgressReport
from lora_dpo_operator.errors import ProgressError
from lora_dpo_operator.observed import Poll

TIMEOUT_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Whom to ask.

    Attributes:
        address: the pod's address.
        run_id: whose progress is expected: addresses are reused.
        attempt: the restart attempt that the pod belongs to.
    """

    address: str
    run_id: str
    attempt: int
    port: int = PROGRESS_PORT

    @property
    def url(self) -> str:
        """Where the report is."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}/status"


class Budget:
    """A token bucket: at most so many readings a second, with a burst of one second's worth."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._tokens = per_second
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take a token if there is one.

        Args:
            now: a monotonic clock, in seconds.
        """
        largest = max(1.0, self._rate)
        self._tokens = min(largest, self._tokens + (now - self._at) * self._rate) if self._at else largest
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def interval(running: int, *, shortest: float, budget: float) -> float:
    """Seconds between two readings of one job, so that all fit the budget."""
    return max(shortest, running / budget)


def client() -> aiohttp.ClientSession:
    """A session for `pull`; the caller closes it."""
    return aiohttp.ClientSession(
        # A pod is asked again after many seconds: meanwhile a connection would only take up room.
        connector=aiohttp.TCPConnector(force_close=True),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        auto_decompress=False,
        trust_env=False,
    )


async def pull(session: aiohttp.ClientSession, target: Target, now: datetime.datetime) -> ProgressReport:
    """Read one progress report.

    Raises:
        ProgressError: no answer in time, or not a report of this run and attempt.
    """
    try:
        async with session.get(target.url, allow_redirects=False) as response:
            if response.status != 200:
                raise ProgressError(f"it answers with HTTP {response.status}")
            body = await response.content.read(STATUS_LIMIT + 1)
            while len(body) <= STATUS_LIMIT and (more := await response.content.read(STATUS_LIMIT + 1 - len(body))):
                body += more
    except TimeoutError as error:
        raise ProgressError(f"no answer within {TIMEOUT_SECONDS:g} s") from error
    except aiohttp.ClientConnectorError as error:
        raise ProgressError(f"no connection to {target.address}:{target.port}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ProgressError(str(error) or type(error).__name__) from error
    return parse(body, target, now)


def parse(body: bytes, target: Target, now: datetime.datetime) -> ProgressReport:
    """Believe a report, or not.

    Raises:
        ProgressError: it is too long, no report, or another run's.
    """
    if len(body) > STATUS_LIMIT:
        raise ProgressError(f"its report is longer than {STATUS_LIMIT} bytes")
    try:
        report = ProgressReport.model_validate_json(body)
    except ValidationError as error:
        raise ProgressError(f"its report is not valid: {error.errors()[0]['msg']}") from error
    if report.run_id != target.run_id:
        raise ProgressError(f"its report is of the run {report.run_id!r}, not of {target.run_id!r}")
    if report.attempt != target.attempt:
        raise ProgressError(f"its report is of attempt {report.attempt}, not of {target.attempt}")
    if report.is_from_the_future(now):
        raise ProgressError("its report is from the future; check the clocks of the nodes")
    return report


def after(poll: Poll, outcome: ProgressReport | ProgressError) -> Poll:
    """The readings, with one more."""
    if isinstance(outcome, ProgressError):
        return dataclasses.replace(poll, failures=poll.failures + 1, error=str(outcome))
    older = poll.report is not None and outcome.updated_at < poll.report.updated_at
    return Poll(report=poll.report if older else outcome)
