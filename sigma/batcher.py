"""Questions to a server, and the batches that answer them."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import prometheus_client as prometheus
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from sigma.histories import lists_of
from sigma.recommender import Recommender

MOST_HISTORIES, MOST_ITEMS, MOST_PLACES = 256, 10_000, 1_000
WAIT = 0.002  # seconds that a request waits for others

RawId = Annotated[
    str,
    BeforeValidator(lambda v: str(v) if isinstance(v, int) and not isinstance(v, bool) else v),
    StringConstraints(max_length=1000),
]


class Question(BaseModel):
    """What comes next after each of some histories."""

    model_config = ConfigDict(extra="forbid")

    histories: Annotated[
        list[Annotated[list[RawId], Field(max_length=MOST_ITEMS)]],
        Field(min_length=1, max_length=MOST_HISTORIES),
    ] = Field(description="lists of raw item ids, the oldest first", examples=[[["1", "2"]]])
    k: int = Field(10, ge=1, le=MOST_PLACES, description="places")
    unseen: bool = Field(True, description="leave out what is in the history")
    run: str | None = Field(None, description="which run answers, of /runs; the first by default")


class Item(BaseModel):
    item: str
    score: float
    title: str | None = None


class Answer(BaseModel):
    known: int = Field(description="items that the model knows; of none, the popular ones come")
    items: list[Item]


class Answers(BaseModel):
    run: str
    results: list[Answer]


class Batcher:
    """Puts questions that come together into one batch of one recommender.

    Args:
        sizes: where the number of histories of each batch is noted.
    """

    def __init__(self, recommender: Recommender, sizes: prometheus.Histogram) -> None:
        self.recommender, self.sizes = recommender, sizes
        self.queue: asyncio.Queue[tuple[Question, asyncio.Future[list[Any]]]] = asyncio.Queue()

    async def ask(self, question: Question) -> list[Any]:
        """The answers to a question, when its batch has been scored."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        await self.queue.put((question, future))
        return await future

    async def run(self, pool: ThreadPoolExecutor) -> None:
        """Score batch after batch until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            await asyncio.sleep(WAIT)
            number = len(batch[0][0].histories)
            while not self.queue.empty() and number < MOST_HISTORIES:
                batch.append(self.queue.get_nowait())
                number += len(batch[-1][0].histories)
            self.sizes.observe(number)
            try:
                answers = await loop.run_in_executor(pool, self.answers, [q for q, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # else who asked has gone
                    future.set_result(answer)

    def answers(self, questions: Sequence[Question]) -> list[list[Any]]:
        """Of each question, its histories' answers as they go into JSON."""
        result: list[list[Any]] = [[] for _ in questions]
        for unseen in (True, False):
            places = [i for i, question in enumerate(questions) if question.unseen == unseen]
            if not places:
                continue
            k = max(questions[i].k for i in places)
            lists = [history for i in places for history in questions[i].histories]
            of = [i for i in places for _ in questions[i].histories]
            rows = lists_of(lists, self.recommender.items)
            lengths = rows.lengths.tolist()
            for best in self.recommender.best(rows, k, unseen):
                for user, items, scores in zip(
                    best.users.tolist(), best.items, best.scores, strict=True
                ):
                    number = questions[of[user]].k
                    lines = self.lines(items[:number], scores[:number])
                    result[of[user]].append({"known": lengths[user], "items": lines})
        return result

    def lines(self, items: Any, scores: Any) -> list[dict[str, Any]]:
        """Places of one history."""
        names, titles = self.recommender.items, self.recommender.titles
        lines = [
            {"item": names[item - 1], "score": score}
            for item, score in zip(items.tolist(), scores.tolist(), strict=True)
            if item
        ]
        if titles is not None:
            for line, item in zip(lines, items.tolist(), strict=False):
                line["title"] = titles[item - 1]
        return lines
