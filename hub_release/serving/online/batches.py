"""Requests of the same moment share a batch; a queue that is full refuses."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np


class FullError(Exception):
    """The queue has no room.

    Attributes:
        seconds: after which it will have.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"{seconds} s")
        self.seconds = seconds


class _Request(NamedTuple):
    texts: list[str]
    answer: asyncio.Future[np.ndarray]


class Batches:
    """Classifies texts in batches: while one is computed, the next gathers.

    Nothing waits for a batch to fill, so a lone request is answered at once.

    Args:
        classify: texts → probabilities [N, L]; several threads may call it at once if there are several ``workers``.
        most_texts: the most texts of a batch, unless one request has more.
        most_waiting: the most texts that wait; what would be more is refused.
        workers: batches that are computed at once.
        on_batch: called with the number of texts of each batch.
    """

    def __init__(
        self,
        classify: Callable[[list[str]], np.ndarray],
        most_texts: int,
        most_waiting: int,
        workers: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self.classify, self.most_texts, self.most_waiting, self.on_batch = classify, most_texts, most_waiting, on_batch
        self.waiting, self.workers = 0, workers
        self._requests: deque[_Request] = deque()
        self._some = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="classify")
        self._seconds_per_text = 0.0

    def start(self) -> None:
        """Begin to compute, in the running event loop."""
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self.workers)]

    async def stop(self) -> None:
        """End; requests that wait are not answered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown()

    async def submit(self, texts: list[str]) -> np.ndarray:
        """Probabilities of the texts of one request, float32 [N, L].

        Raises:
            FullError: too many texts wait.
        """
        if self.waiting and self.waiting + len(texts) > self.most_waiting:
            raise FullError(max(round(self.waiting * self._seconds_per_text / self.workers), 1))
        request = _Request(texts, asyncio.get_running_loop().create_future())
        self.waiting += len(texts)
        self._requests.append(request)
        async with self._some:
            self._some.notify()
        try:
            return await request.answer
        except asyncio.CancelledError:  # its client has gone
            if request in self._requests:
                self._requests.remove(request)
                self.waiting -= len(texts)
            raise

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._some:
                await self._some.wait_for(lambda: bool(self._requests))
                batch = self._take()
            texts = [text for request in batch for text in request.texts]
            self.on_batch(len(texts))
            began = loop.time()
            try:
                found = await loop.run_in_executor(self._pool, self.classify, texts)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # a panic of Rust code is no Exception, and must not end this loop
                failure = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
                for request in batch:
                    _give(request, failure)
                continue
            latest = (loop.time() - began) / len(texts)
            self._seconds_per_text = 0.9 * self._seconds_per_text + 0.1 * latest if self._seconds_per_text else latest
            start = 0
            for request in batch:
                _give(request, found[start : start + len(request.texts)])
                start += len(request.texts)

    def _take(self) -> list[_Request]:
        """Requests that fit into a batch, oldest first."""
        taken: list[_Request] = []
        size = 0
        while self._requests and (not taken or size + len(self._requests[0].texts) <= self.most_texts):
            request = self._requests.popleft()
            self.waiting -= len(request.texts)
            taken.append(request)
            size += len(request.texts)
        return taken


def _give(request: _Request, found: np.ndarray | Exception) -> None:
    if request.answer.done():  # its client has gone
        return
    if isinstance(found, Exception):
        request.answer.set_exception(found)
    else:
        request.answer.set_result(found)
