"""The sampling loop: samples answers with the concurrency of the backend until there are enough pairs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from random import Random

from solopo_nemo.builders.pairs.backend import REFUSALS_TO_GIVE_UP, Backend, Refused, Request, Sample
from solopo_nemo.builders.pairs.meter import Meter
from solopo_nemo.builders.pairs.source import Asked
from solopo_nemo.builders.pairs.store import PAIR, Entry, SampleStore
from solopo_nemo.runtime.errors import RunFault, UserError

REFUSED = "refused"

Entries = dict[str, Entry | None]
"""Side -> sample counts; None if the prompt was refused."""


def yields_pair(entry: Entry | None) -> bool:
    """True if a prompt has correct and incorrect answers."""
    return entry is not None and entry.verdict == PAIR


def yield_pairs(entries: Entries) -> bool:
    """True if a question yields a pair on every side."""
    return all(map(yields_pair, entries.values()))


@dataclass(frozen=True)
class _Unit:
    number: int
    asked: Asked
    side: str


class Sampler:
    """Samples the questions in a seeded random order, so every prefix of the order is a random sample.

    Args:
        count: Number of questions.
        question: Returns a question by its number.
        store: Keeps the answers.
        backend: Gives them.
        sides: Prompts of each question to sample on.
        size: Number of accepted questions to reach.
        accepts: True if a question is accepted by its counts.

    Attributes:
        entries: Question number -> its sample counts.
        refusals: Question number and side -> why the prompt was refused.
        asked: Number of prompts that this process sampled.
        reused: Number of prompts that an earlier process sampled.
    """

    def __init__(
        self,
        count: int,
        question: Callable[[int], Asked],
        store: SampleStore,
        backend: Backend,
        sides: Sequence[str],
        size: int,
        accepts: Callable[[Entries], bool] = yield_pairs,
    ) -> None:
        self.entries: dict[int, Entries] = {}
        self.asked = 0
        self.reused = 0
        self._question, self._store, self._backend = question, store, backend
        self._sides, self._size, self._accepts = tuple(sides), size, accepts
        self._order = list(range(count))
        Random(f"{store.sampling.seed}:order").shuffle(self._order)
        self._accepted = 0
        self.refusals: dict[tuple[int, str], str] = {}

    def run(self, meter: Meter) -> list[int]:
        """Sample until `size` questions are accepted, by default as pairs, or until all questions are sampled.

        Returns:
            The numbers of the candidate questions: the shortest prefix of the order with `size` such questions. It
            depends on the samples only, not on the order of their completion.

        Raises:
            UserError: The backend fails; finished samples are kept.
        """
        units = self._units(meter)
        begun: deque[_Unit] = deque()
        pending: dict[Future[list[Sample]], _Unit] = {}
        pool = ThreadPoolExecutor(self._backend.concurrency)
        try:
            while True:
                while len(pending) < self._backend.concurrency and (
                    unit := begun.popleft() if begun else next(units, None)
                ):
                    tokens = unit.asked.meta.get(f"{unit.side}_tokens")
                    tokens = tokens if isinstance(tokens, int) else None
                    request = Request(unit.asked.id, unit.side, unit.asked.prompts[unit.side], tokens)
                    have = self._store.count(unit.asked, unit.side)
                    pending[pool.submit(self._backend.sample, request, have)] = unit
                if not pending:
                    return self._settled()
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    unit = pending.pop(future)
                    if not self._finish(unit, future, meter):
                        begun.append(unit)
        except (UserError, RunFault):
            # the other threads' answers are kept
            for future in wait(pending).done:
                if future.exception() is None:
                    self._finish(pending[future], future, meter)
            raise
        finally:
            if pending:
                # an interrupted run does not wait for requests in flight
                self._backend.close()
            pool.shutdown(wait=False, cancel_futures=True)

    def _units(self, meter: Meter) -> Iterator[_Unit]:
        """Yield the prompts with missing samples."""
        for number in self._order:
            if self._accepted >= self._size:
                return
            asked = self._question(number)
            for side in self._sides:
                entry = self._store.finished(asked, side)
                if entry is None:
                    yield _Unit(number, asked, side)
                else:
                    self.reused += 1
                    self._record(number, side, entry, meter)

    def _finish(self, unit: _Unit, future: Future[list[Sample]], meter: Meter) -> bool:
        """Store the received answers. Return True if the prompt is complete or refused."""
        try:
            samples = future.result()
        except Refused as error:
            self.refusals[unit.number, unit.side] = str(error)
            if len(self.refusals) >= REFUSALS_TO_GIVE_UP and not self.asked + self.reused:
                raise UserError(f"the first {len(self.refusals)} prompts are all refused: {error}") from error
            self._record(unit.number, unit.side, None, meter)
            return True
        meter.add_samples(len(samples))
        self._store.add(unit.asked, unit.side, samples)
        entry = self._store.finished(unit.asked, unit.side)
        if entry is None:
            return False
        self.asked += 1
        self._record(unit.number, unit.side, entry, meter)
        return True

    def _record(self, number: int, side: str, entry: Entry | None, meter: Meter) -> None:
        known = self.entries.setdefault(number, {})
        known[side] = entry
        if len(known) == len(self._sides):
            accepted = self._accepts(known)
            self._accepted += accepted
            meter.add_question(accepted)

    def _settled(self) -> list[int]:
        settled: list[int] = []
        accepted = 0
        for number in self._order:
            if accepted == self._size or number not in self.entries:
                break
            settled.append(number)
            accepted += self._accepts(self.entries[number])
        return settled
