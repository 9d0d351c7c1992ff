"""The server under load: latency, damaged requests, and a stop amid its work.

    python -m experiments.benchmarks.serve <folder of a run> [<another>] --seconds 120

with ``--out results/benchmarks`` it writes ``serve.csv``. ``python -m sigma.serve`` runs as a user
would start it, a run at a time; the client is another process on the same machine.

1. ``--rate`` requests a second, each the history of a user of the run's data, on connections that
   are kept. A request is sent when it is due, whatever happened to those before, and its latency
   counts from then; ``late_ms`` (p99) is how much later than due the client sent it.
2. ``--malformed`` damaged requests, each on a connection of its own. ``clear`` of them get a status
   of 400 to 499 and a sentence.
3. SIGTERM while most of some large requests are unanswered: ``cut`` of these get no answer.
"""

import asyncio
import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from sigma.trained import load

HOST, PATIENCE, MIB = "127.0.0.1", 30.0, 2**20
LATENCIES = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99, "max_ms": 100}
COLUMNS = [
    *(*LATENCIES, "late_ms", "requests", "errors", "cpu_ms"),
    *("start_mib", "middle_mib", "end_mib"),
    *("malformed", "clear", "status_5xx", "others", "healthy", "unanswered", "cut", "stop_seconds"),
]


class Answer(NamedTuple):
    status: int  # 0 for none
    body: bytes = b""

    @property
    def clear(self) -> bool:
        """Whether it says in a sentence that the request cannot be answered."""
        try:
            text = json.loads(self.body)["error"]
        except (ValueError, KeyError, TypeError):
            text = self.body.decode(errors="replace")  # where there was no HTTP
        return 400 <= self.status < 500 and " " in text and text.rstrip().endswith(".")


class Client:
    """Connections to a server, each kept for the next request when it has been answered."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes, again: bool = True) -> Answer:
        """The answer; none if there is no whole one.

        Args:
            again: whether the connection may serve another request.
        """
        self.idle = [kept for kept in self.idle if not kept[0].at_eof()]
        connection = self.idle.pop() if self.idle and again else None
        try:
            reader, writer = connection or await asyncio.open_connection(HOST, self.port)
            writer.write(request)
            answer = await asyncio.wait_for(self.read(reader), PATIENCE)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            return Answer(0)
        if again and not reader.at_eof():
            self.idle.append((reader, writer))
        else:
            writer.close()
        return answer

    @staticmethod
    async def read(reader: asyncio.StreamReader) -> Answer:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status, length = int(head.split(b" ", 2)[1]), head.partition(b"content-length:")[2]
        if length:
            return Answer(status, await reader.readexactly(int(length.split(b"\r\n")[0])))
        return Answer(status, await reader.read())


def http(line: str, body: bytes = b"", *headers: str) -> bytes:
    """A request; its length is said unless the headers speak of it."""
    lines = [f"{line} HTTP/1.1", "Host: server", "Content-Type: application/json", *headers]
    if not any(header.lower().startswith(("content-l", "transfer")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def question(histories: object, **others: object) -> bytes:
    return http("POST /recommend", json.dumps({"histories": histories, **others}).encode())


def damaged(histories: list[list[str]], draw: random.Random) -> Iterator[bytes]:
    """Requests without end that nobody can answer, one of each kind after the other."""
    post, no_items = "POST /recommend", [None, True, 1.5, {}, {"item": "5"}, [], ["5"]]
    no_histories = [None, True, 1.5, {}, "5", 5, [5], ["5"], []]
    for history in itertools.cycle(histories):
        good = json.dumps({"histories": [history]}).encode()
        cut = draw.randrange(1, len(good))
        noise = draw.randbytes(draw.randrange(16, 200))
        # The body.
        yield http(post, good[:cut])
        yield http(post, good[:cut] + b"\xff" + good[cut:])
        yield http(post, noise)
        yield http(post, b"[" * draw.randrange(1000, 100_000))
        yield http(post)
        # Wrong types and values, and too much.
        yield question(draw.choice(no_histories))
        yield question([*([history] * draw.randrange(3)), [draw.choice(no_items)]])
        yield question([history], k=draw.choice([0, -1, 1001, 10**30, 1.5, "ten", None, [10]]))
        yield question([history], unseen=draw.choice(["perhaps", 2, [], None]))
        yield question([history], run=f"run {noise.hex()[:9]}")
        yield question([history], **{f"k{draw.randrange(99)}": 10})
        yield question([history] * draw.randrange(257, 400))
        yield question([["5"] * draw.randrange(10_001, 12_000)])
        yield question([["5" * draw.randrange(1001, 9000)]])
        yield question([["5" * 900] * draw.randrange(1200, 3000)])
        # Methods, paths and parameters.
        yield http(f"{draw.choice(['PUT', 'DELETE', 'PATCH', 'GET'])} /recommend", good)
        yield http(f"POST /{noise.hex()[:20]}", good)
        yield http(f"GET /{'../' * draw.randrange(1, 9)}etc/passwd")
        yield http(f"GET /items?limit={draw.choice([0, -5, 101, 'all', 10**30])}")
        yield http(f"GET /items?q={'x' * draw.randrange(201, 2000)}")
        # What is said of the body, and what is no HTTP.
        yield http(post, good, f"Content-Length: {draw.choice(['-1', 'many', '1e3', '0x10', ''])}")
        yield http(post, b"0\r\n\r\n", "Transfer-Encoding: chunked")
        yield http(post, b"", f"Content-Length: {draw.randrange(2**20 + 1, 2**40)}")
        yield http(post, good, f"a header without a colon {draw.random()}")
        yield http(f"{noise.hex()[:9].upper()}! /recommend", good)
        yield b"\x16\x03\x01" + noise + b"\r\n\r\n"


async def steady(client: Client, requests: list[bytes], case: Case, server: psutil.Process) -> Case:
    """Requests at a steady rate, and what they cost the server."""
    for request in requests[:200]:  # memory is allocated, and the kernels are ready
        await client.ask(request)
    number, before = int(case["rate"] * case["seconds"]), server.cpu_times()
    loop, memory = asyncio.get_running_loop(), [server.memory_info().rss / MIB]
    start = loop.time() + 0.1

    async def one(place: int) -> tuple[float, float, int]:
        due, sent = start + place / case["rate"], loop.time()
        answer = await client.ask(requests[place % len(requests)])
        return sent - due, loop.time() - due, answer.status

    tasks = []
    for place in range(number):
        await asyncio.sleep(max(0.0, start + place / case["rate"] - loop.time()))
        tasks.append(asyncio.create_task(one(place)))
        if place == number // 2:
            memory.append(server.memory_info().rss / MIB)
    late, latency, status = np.array(await asyncio.gather(*tasks)).T
    cpu = sum(server.cpu_times()[:2]) - sum(before[:2])
    times = {name: 1e3 * np.percentile(latency, share) for name, share in LATENCIES.items()}
    counts = {"late_ms": 1e3 * np.percentile(late, 99), "requests": number}
    counts |= {"errors": int((status != 200).sum()), "cpu_ms": 1e3 * cpu / number}
    memory.append(server.memory_info().rss / MIB)
    return times | counts | dict(zip(("start_mib", "middle_mib", "end_mib"), memory, strict=True))


async def refusals(client: Client, histories: list[list[str]], number: int) -> Case:
    """How damaged requests are answered, and whether the server still answers good ones."""
    counts: Counter[str] = Counter()
    for request in itertools.islice(damaged(histories, random.Random(0)), number):
        answer = await client.ask(request, again=False)
        counts["clear"] += answer.clear
        counts["status_5xx"] += answer.status >= 500
        counts["others"] += answer.status < 500 and not answer.clear
        if not answer.clear:
            print(f"{answer} to {request[:200]!r}", file=sys.stderr)
    healthy = await client.ask(http("GET /health")), await client.ask(question(histories[:1]))
    return {**counts, "malformed": number, "healthy": all(a.status == 200 for a in healthy)}


async def stopped(
    client: Client, histories: list[list[str]], server: subprocess.Popen[bytes]
) -> Case:
    """SIGTERM at the first answer to 32 requests: how many are not answered then, or never."""
    request = question((histories * 64)[:64], k=100)
    tasks = [asyncio.create_task(client.ask(request)) for _ in range(32)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    unanswered, start = sum(not task.done() for task in tasks), time.perf_counter()
    server.send_signal(signal.SIGTERM)
    cut = sum(answer.status != 200 for answer in await asyncio.gather(*tasks))
    await asyncio.to_thread(server.wait, PATIENCE)
    return {"unanswered": unanswered, "cut": cut, "stop_seconds": time.perf_counter() - start}


async def session(
    case: Case, histories: list[list[str]], server: subprocess.Popen[bytes], port: int
) -> Case:
    """All three parts, with a server that starts."""
    client, end = Client(port), time.monotonic() + 120
    while (await client.ask(http("GET /health"), again=False)).status != 200:
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError("The server did not start.")
        await asyncio.sleep(0.2)
    requests = [question([history]) for history in histories]
    return {
        **await steady(client, requests, case, psutil.Process(server.pid)),
        **await refusals(client, histories, case["malformed"]),
        **await stopped(client, histories, server),
    }


def one(case: Case) -> Case:
    """A server of one run, and what it answers to the histories of its data's users."""
    sequences = load(Path(case["folder"])).sequences
    users = random.Random(0).choices(range(sequences.num_users), k=10_000)
    ids = np.array([str(raw) for raw in sequences.item_ids], dtype=object)
    spans = [slice(*sequences.offsets[user : user + 2]) for user in users]
    histories = [ids[sequences.items[span] - 1].tolist() for span in spans]
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sigma.serve", f"run={case['folder']}", f"port={port}"]
    command.append(f"device={case['device'].type}")
    server = subprocess.Popen(command, cwd=measure.ROOT, stdout=subprocess.DEVNULL)
    try:
        return asyncio.run(session(case, histories, server, port))
    finally:
        server.kill()
        server.wait()


def main() -> None:
    arguments = measure.parser(__doc__, 120.0)
    arguments.add_argument("runs", type=Path, nargs="+", help="their folders")
    arguments.add_argument("--rate", type=float, default=200.0, help="requests a second")
    arguments.add_argument("--malformed", type=int, default=1000)
    options = arguments.parse_intermixed_args()
    names = {str(run.resolve()): load(run).config.model.name for run in options.runs}
    common = {"rate": options.rate, "malformed": options.malformed, "seconds": options.seconds}
    cases = [
        {"model": name, "folder": folder, "device": options.device, **common}
        for folder, name in names.items()
    ]
    table = measure.medians(cases, one, options.repeats, ["model", "rate"], COLUMNS)
    measure.keep(table, "serve", options.out, options.device)


if __name__ == "__main__":
    main()
