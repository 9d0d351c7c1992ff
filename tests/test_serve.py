"""The server: its answers are the recommender's, and what it cannot answer is one sentence."""

import asyncio
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
from fastapi.testclient import TestClient

from sigma.errors import UserError
from sigma.recommender import Recommender
from sigma.serve import MOST_BYTES, Server, listener, loopback, main, names_of
from tests.runs.front_door import Capture, write_sequences
from tests.test_hindsight import trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On data with titles, some of them such as to act in a page."""
    folder = tmp_path_factory.mktemp("served")
    write_sequences(folder / "clicks.txt")
    lines = [line.split() for line in (folder / "clicks.txt").read_text().splitlines()]
    ratings = [(u, i, 4, t) for u, *items in lines for t, i in enumerate(items)]
    names = ["userId", "movieId", "rating", "timestamp"]
    pd.DataFrame(ratings, columns=names).to_csv(folder / "ratings.csv", index=False)
    items = sorted({int(i) for _, *items in lines for i in items})
    titles = [f"<b>Heat</b> {i}" if i % 2 else f"Ronin, {i}" for i in items]
    movies = {"movieId": items, "title": titles, "genres": "Crime"}
    pd.DataFrame(movies).to_csv(folder / "movies.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        return trained(patch, folder / "run", folder / "ratings.csv")


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender.load(run, device="cpu")


@pytest.fixture(scope="module")
def client(recommender: Recommender) -> Iterator[TestClient]:
    with TestClient(Server({"a": recommender, "b": recommender}).app) as client:
        yield client


def test_answers_are_the_recommenders(client: TestClient, recommender: Recommender) -> None:
    histories = [["5", 6, "7"], ["12"], [], ["nobody's"]]
    for unseen in (True, False):
        body = {"histories": histories, "k": 4, "unseen": unseen, "run": "b"}
        answer = client.post("/recommend", json=body).json()
        assert answer["run"] == "b"
        expected = recommender.recommend(
            {i: list(map(str, h)) for i, h in enumerate(histories)}, k=4, unseen=unseen
        )
        for user, result in enumerate(answer["results"]):
            part = expected[expected["user"] == user]
            assert result["known"] == part["known"].iloc[0]
            for name in ("item", "title"):
                assert [line[name] for line in result["items"]] == part[name].tolist()
            scores = [line["score"] for line in result["items"]]
            np.testing.assert_allclose(scores, part["score"], rtol=1e-5)


def test_questions_that_come_together_are_one_batch(recommender: Recommender) -> None:
    """Of different k and rankings: each gets its own answer."""
    from sigma.batcher import Question

    server = Server({"a": recommender})
    draw = random.Random(0)
    questions = [
        Question(
            histories=[[str(draw.randrange(1, 45)) for _ in range(draw.randrange(9))]]
            * (1 + i % 3),
            k=1 + i % 5,
            unseen=i % 2 == 0,
        )
        for i in range(30)
    ]

    async def together() -> list[Any]:
        async with server.lifespan(server.app):
            return await asyncio.gather(*map(server.batchers["a"].ask, questions))

    for question, answers in zip(questions, asyncio.run(together()), strict=True):
        assert len(answers) == len(question.histories)
        alone = recommender.recommend(
            dict(enumerate(question.histories)), question.k, unseen=question.unseen
        )
        items = [line["item"] for answer in answers for line in answer["items"]]
        assert items == alone["item"].tolist()
    batches = server.metrics.get_sample_value("sigma_batch_histories_count", {"run": "a"})
    histories = server.metrics.get_sample_value("sigma_batch_histories_sum", {"run": "a"})
    assert histories == sum(len(question.histories) for question in questions)
    assert batches is not None
    assert batches < 5


MALFORMED: list[tuple[Any, str]] = [
    ("", "The body"),
    ("{", "not JSON"),
    ("[]", "The body"),
    ("null", "The body"),
    ({}, "histories"),
    ({"histories": []}, "histories"),
    ({"histories": "5"}, "histories"),
    ({"histories": ["5"]}, "histories.0"),
    ({"histories": [[None]]}, "histories.0.0"),
    ({"histories": [[True]]}, "histories.0.0"),
    ({"histories": [[{"item": 5}]]}, "histories.0.0"),
    ({"histories": [["x" * 1001]]}, "histories.0.0"),
    ({"histories": [["5"]], "k": 0}, "k: "),
    ({"histories": [["5"]], "k": 10**9}, "k: "),
    ({"histories": [["5"]], "k": "many"}, "k: "),
    ({"histories": [["5"]], "unseen": "si"}, "unseen"),
    ({"histories": [["5"]], "run": "c"}, "there is no c"),
    ({"histories": [["5"]], "runs": "a"}, "runs"),
    ({"histories": [["5"]] * 257}, "histories"),
    ({"histories": [["5"] * 10_001]}, "histories.0"),
    ("[" * 100_000, "parsing the body"),
    ('{"histories": [["\xff"]]}', "parsing the body"),
    ('{"histories": [["\\ud800"]], "k": NaN}', ""),
]


@pytest.mark.parametrize(("body", "sentence"), MALFORMED)
def test_bad_input_is_one_sentence(client: TestClient, body: Any, sentence: str) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    answer = client.post(
        "/recommend", content=text.encode("latin-1"), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (400, 422), answer.text
    message = answer.json()["error"]
    assert sentence in message
    assert "\n" not in message
    assert len(message) < 400


def test_other_refusals(client: TestClient, recommender: Recommender) -> None:
    large = {"histories": [["5" * 900] * 1200]}
    assert len(json.dumps(large)) > MOST_BYTES
    assert client.post("/recommend", json=large).status_code == 413
    pieces = client.post("/recommend", content=iter([b"{}"]))
    assert pieces.status_code == 411
    assert client.get("/recommend").status_code == 405
    assert client.get("/nothing").status_code == 404
    assert client.get("/items?limit=1000").status_code == 422
    assert client.get("/items?run=c").status_code == 422
    with TestClient(Server({"a": recommender}, token="secret").app) as closed:
        assert closed.get("/health").status_code == 200
        assert closed.get("/").status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer other"},
            {"Authorization": "sécret".encode()},
        ):
            assert closed.get("/runs", headers=headers).status_code == 401
            assert closed.post("/recommend", json={}, headers=headers).status_code == 401
        good = {"Authorization": "Bearer secret"}
        assert closed.get("/runs", headers=good).status_code == 200


def test_items_runs_and_numbers(client: TestClient, recommender: Recommender) -> None:
    lines = client.get("/items", params={"q": "rONIN", "limit": 5}).json()
    assert len(lines) == 5
    assert all(line["title"].startswith("Ronin") for line in lines)
    counts = dict(zip(recommender.items, recommender.counts.tolist(), strict=True))
    had = [counts[line["item"]] for line in lines]
    assert had == sorted(had, reverse=True)
    assert "5" in [line["item"] for line in client.get("/items", params={"q": "5"}).json()]
    assert client.get("/items", params={"q": "nothing like it"}).json() == []
    runs = client.get("/runs").json()
    assert list(runs) == ["a", "b"]
    assert (runs["a"]["model"], runs["a"]["r"], runs["a"]["max_length"]) == ("sigma", 5, 12)
    assert client.get("/openapi.json").json()["paths"]["/recommend"]["post"]
    text = client.get("/metrics").text
    assert 'sigma_request_seconds_count{path="/runs",status="200"}' in text
    assert 'path="/nothing"' not in text  # what strangers ask for is no label
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "innerHTML" not in page.text


@pytest.fixture
def address(recommender: Recommender) -> Iterator[str]:
    """Of a server on a socket."""
    import uvicorn

    app = Server({"a": recommender, "b": recommender}).app
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.slow
def test_the_page_by_keyboard_in_a_browser(address: str, recommender: Recommender) -> None:
    """Search, choose, move, remove, without a mouse; titles are text; nothing goes wrong."""
    reason = "needs pip install playwright, and Chromium"
    browsers = pytest.importorskip("playwright.sync_api", reason=reason)
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip(reason)
    errors: list[str] = []
    with browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.extend([said.text] * (said.type == "error")))

        def shown(where: str) -> list[str]:
            texts = page.locator(where).all_text_contents()
            return [str(text) for text in texts]

        page.goto(address)
        page.wait_for_selector("#results section:nth-child(2) li")
        page.keyboard.press("Tab")
        for item in ["5", "6", "7", "8", "9", "10", "11"]:
            page.keyboard.type(item)
            page.wait_for_function("id => found.length && found.some(x => x.item === id)", arg=item)
            place = page.evaluate("id => found.findIndex(x => x.item === id)", item)
            for _ in range(place):
                page.keyboard.press("ArrowDown")
            page.keyboard.press("Enter")
        titles = [f"<b>Heat</b> {i}" if i % 2 else f"Ronin, {i}" for i in range(5, 12)]
        assert shown("#history span") == titles
        assert shown("#order li") == [f"⇄ {t}" for t in titles[1::-1]] + titles[2:]
        page.keyboard.press("Tab")  # the first item can be removed alone
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # the second goes before it
        assert shown("#history span")[:2] == titles[1::-1]
        page.keyboard.press("Enter")  # and has the focus, on its button to be removed
        assert shown("#history span") == [titles[0], *titles[2:]]
        history = ["5", "7", "8", "9", "10", "11"]
        best = recommender.recommend(history)["title"].tolist()
        page.wait_for_function(
            "best => document.querySelector('#results').innerText.includes(best)", arg=best[0]
        )
        for column in (1, 2):
            assert shown(f"#results section:nth-child({column}) li > span:nth-child(2)") == best
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        browser.close()
    assert not errors


def test_names_and_places(run: Path, recommender: Recommender) -> None:
    assert names_of([run], [recommender]) == ["sigma"]
    assert names_of([run, Path("/x/b")], [recommender] * 2) == ["run", "b"]
    assert names_of([run, run], [recommender] * 2) == ["run 1", "run 2"]
    assert [loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "a.b")] == [
        *[True] * 3,
        *[False] * 2,
    ]


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"run={tmp_path}"])
    assert ended.value.code == 1
    assert "holds no config.json" in capsys.readouterr().err


def test_an_address_that_cannot_be_had() -> None:
    with listener("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        for place in (("127.0.0.1", port), ("203.0.113.7", 0), ("127.0.0.1", 70_000)):
            with pytest.raises(
                UserError, match=r"cannot be had \(.+\); give another, such as port="
            ):
                listener(*place)
