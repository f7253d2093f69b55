"""Images over HTTP: what is answered, what is refused, and that company changes no picture."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
from base64 import b64decode
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from PIL import Image

import bodies
import small
from bodies import BODIES, GOOD, Application, as_bytes, check
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.runtime import memory
from disa.serve import app, server
from disa.serve.asking import FIELDS, Limits, Reader
from disa.serve.keys import Keys
from disa.serve.orders import Event, Order, Preview
from disa.serve.refusals import Refused
from serving import PATH, Client, Gate, Never, answer, served, service_of, until

KEY = "k" * 16


@pytest.fixture(scope="module")
def client() -> Any:
    with served(service_of()) as found:
        yield found


@pytest.fixture(scope="module")
def application() -> Any:
    with bodies.application() as found:
        yield found


def png(answered: dict[str, Any]) -> bytes:
    return b64decode(answered["b64_json"])


# -- pictures ------------------------------------------------------------------------------------------------------


def test_a_served_picture_is_the_file_that_the_library_writes(client: Client, tmp_path: Path) -> None:
    small.sampler().sample_into(tmp_path, Inputs.paired([7, 8], 3), steps="linear:3-2", guidance=1.5)
    files = [path.read_bytes() for path in sorted((tmp_path / "samples").glob("*.png"))]
    asked = {"prompt": "3", "n": 2, "seed": 7, "steps": "linear:3-2", "settings": {"guidance": 1.5}}
    found = client.ask(asked)
    assert found.pictures == files
    assert [each["seed"] for each in found.json["data"]] == [7, 8]
    assert found.json["disa"]["model"] == "small"
    with Image.open(io.BytesIO(files[0])) as picture:
        assert json.loads(picture.text["disa"])["settings"]["steps"] == "linear:3-2"  # pyright: ignore[reportAttributeAccessIssue]


REQUESTS = [
    {"prompt": str(i % 10), "seed": i, "n": 1 + i % 3, "steps": ("linear:4-2", "constant:3")[i % 2]} for i in range(24)
]


def test_a_picture_is_the_same_alone_and_under_load() -> None:
    sampler = small.sampler()
    gate = Gate(sampler)
    with served(service := service_of(sampler)) as client:
        gate.open_wide()
        alone = [client.ask(asked).pictures for asked in REQUESTS]
        gate.close()
        with ThreadPoolExecutor(len(REQUESTS)) as pool:
            found = [pool.submit(client.ask, asked) for asked in REQUESTS]
            until(lambda: service.num_open == len(REQUESTS))
            gate.open_wide()
        answers = [each.result() for each in found]
    assert [each.pictures for each in answers] == alone
    together = [each.json["disa"]["drawn_together"] for each in answers]
    assert max(together) == service.drawer.batch_size == 4  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("asked", "labels", "seeds"),
    [
        ({"prompt": "3", "seed": 5}, [3], [5]),
        ({"prompt": "3, 4", "seed": 5}, [3, 4], [5, 6]),
        ({"prompt": "none", "seed": 5, "n": 2}, None, [5, 6]),
        ({"labels": 3, "n": 3, "seed": [9, 1, 4]}, [3, 3, 3], [9, 1, 4]),
        ({"labels": [3, 4], "prompt": "", "seed": 2**64 - 2}, [3, 4], [2**64 - 2, 2**64 - 1]),
    ],
)
def test_what_is_drawn(client: Client, asked: dict[str, Any], labels: list[int] | None, seeds: list[int]) -> None:
    found = client.ask(asked | {"steps": "constant:1"}).json["data"]
    assert [each["seed"] for each in found] == seeds
    assert [each.get("label") for each in found] == (labels or [None] * len(seeds))


def test_seeds_that_nobody_gives_are_told(client: Client) -> None:
    asked = {"prompt": "3", "steps": "constant:1"}
    first, second = (client.ask(asked) for _ in range(2))
    seeds = [each.json["data"][0]["seed"] for each in (first, second)]
    assert seeds[0] != seeds[1]
    assert client.ask(asked | {"seed": seeds[0]}).pictures == first.pictures


def test_a_url_is_one_of_data(client: Client) -> None:
    asked = {"prompt": "3", "seed": 1, "steps": "constant:1"}
    url = client.ask(asked | {"response_format": "url"}).json["data"][0]["url"]
    assert b64decode(url.removeprefix("data:image/png;base64,")) == client.ask(asked).pictures[0]


def test_a_stream_shows_the_picture_grow(client: Client) -> None:
    asked = {"prompt": "3", "n": 2, "seed": 1, "steps": "constant:2"}
    events = client.events(asked)
    kinds = ["image_generation.partial_image"] * 6 + ["image_generation.completed"] * 2
    assert [kind for kind, _ in events] == kinds == [told["type"] for _, told in events]
    assert [png(told) for _, told in events[-2:]] == client.ask(asked).pictures
    gray = []
    for _, told in events[:6]:
        with Image.open(io.BytesIO(png(told))) as picture:
            gray.append((told["index"], picture.tobytes().count(128)))
    for index in range(2):
        counts = [count for i, count in gray if i == index]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[-1]


@pytest.mark.parametrize(("asked", "ar_steps"), [(0, []), (1, [1]), (2, [0, 1]), (3, [0, 1, 2]), (99, [0, 1, 2])])
def test_as_many_previews_as_are_asked_for(client: Client, asked: int, ar_steps: list[int]) -> None:
    events = client.events({"prompt": "3", "steps": "constant:1", "partial_images": asked})
    assert [told["ar_step"] for _, told in events[:-1]] == ar_steps


# -- refusals ------------------------------------------------------------------------------------------------------

REFUSED = [
    ({}, "prompt"),
    ({"prompt": "a cat"}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": "10"}, "prompt"),
    ({"prompt": "3", "labels": [3]}, "prompt"),
    ({"labels": "three"}, "labels"),
    ({"labels": []}, "labels"),
    ({"labels": {"3": 3}}, "labels"),
    ({"labels": [3] * 9}, "labels"),
    ({"labels": [-1]}, "labels"),
    ({"labels": [3, 4], "n": 3}, "n"),
    ({"prompt": "3", "n": 0}, "n"),
    ({"prompt": "3", "n": 9}, "n"),
    ({"prompt": "3", "n": True}, "n"),
    ({"prompt": "3", "seed": -1}, "seed"),
    ({"prompt": "3", "seed": 2**64}, "seed"),
    ({"prompt": "3", "seed": [1, 2]}, "seed"),
    ({"prompt": "3", "size": "8"}, "size"),
    ({"prompt": "3", "size": "9x8"}, "size"),
    ({"prompt": "3", "size": "99999x99999"}, "size"),
    ({"prompt": "3", "steps": "linear"}, "steps"),
    ({"prompt": "3", "steps": "constant:51"}, "steps"),
    ({"prompt": "3", "steps": "table:/etc/passwd"}, "steps"),
    ({"prompt": "3", "settings": {"counts": "table:/etc/passwd"}}, "counts"),
    ({"prompt": "3", "settings": {"recipe": "/etc/passwd"}}, "recipe"),
    ({"prompt": "3", "settings": {"graphs": "on"}}, "settings"),
    ({"prompt": "3", "steps": "plan:/etc/passwd@8"}, "steps"),
    ({"prompt": "3", "steps": "straight:plan.json"}, "steps"),
    ({"prompt": "3", "steps": "mlp:50-5@20:/etc/passwd"}, "steps"),
    ({"prompt": "3", "steps": "variance:draws:probe"}, "steps"),
    ({"prompt": "3", "settings": {"solver": "plan:/etc/passwd"}}, "solver"),
    ({"prompt": "3", "settings": {"batch_size": 4}}, "settings"),
    ({"prompt": "3", "settings": {"speed": 4}}, "settings"),
    ({"prompt": "3", "settings": "fast"}, "settings"),
    ({"prompt": "3", "steps": 2, "settings": {"steps": 3}}, "settings"),
    ({"prompt": "3", "size": "8x8", "settings": {"size": "8x8"}}, "settings"),
    ({"prompt": "3", "settings": {"size": [10**30, 1]}}, "size"),
    ({"prompt": "3", "settings": {"num_ar_steps": 17}}, "settings"),
    ({"prompt": "3", "response_format": "jpeg"}, "response_format"),
    ({"prompt": "3", "stream": "yes"}, "stream"),
    ({"prompt": "3", "stream": True, "partial_images": -1}, "partial_images"),
    ({"prompt": "3", "negative_prompt": "blue"}, "negative_prompt"),
    ({"prompt": "3", "quality": "hd"}, "quality"),
    ({"prompt": "3", "output_format": "webp"}, "output_format"),
    ({"prompt": "3", "user": 3}, "user"),
    ({"prompt": "3", "temprature": 1}, "temprature"),
]


@pytest.mark.parametrize(("asked", "param"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_is_refused(client: Client, asked: dict[str, Any], param: str) -> None:
    found = client.ask(asked)
    assert found.status == 400, found.body
    assert (found.error["type"], found.error["param"]) == ("invalid_request_error", param)
    assert "passwd" not in found.error["message"] or "may not name a file" in found.error["message"]


@pytest.mark.parametrize("negative", [5, ["blue"], "blue " * 1000])
def test_a_negative_prompt_that_is_wrong_is_named(negative: Any) -> None:
    reader = Reader(Sampler.load("harmon-shapes", device="cpu"), Settings(), Limits())
    body = {"prompt": "a red circle", "negative_prompt": "blue", "n": 2}
    assert reader.read(as_bytes(body)).order.inputs.negative_prompt == "blue"
    with pytest.raises(Refused) as refused:
        reader.read(json.dumps(body | {"negative_prompt": negative}).encode())
    assert (refused.value.status, refused.value.param) == (400, "negative_prompt")


UNREADABLE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"n": NaN}',
    b'{"n": 1, "n": 2}',
    b"\xff\xfe",
    b"[" * 100_000,
    b'"\xed\xa0\x80"',
]


@pytest.mark.parametrize("body", UNREADABLE, ids=range(len(UNREADABLE)))
def test_bodies_that_cannot_be_read(client: Client, body: bytes) -> None:
    assert client.ask(body).status == 400
    assert "body" in client.ask(body).error["message"]


def test_other_requests_that_are_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.ask({"prompt": "3", "model": "dall-e-3"}).status == 404
    assert client.ask({"prompt": "3"}, {"Content-Type": "text/plain"}).status == 415
    assert client.ask(b" " * (app.MOST_BODY + 1)).status == 413
    assert [client.get(path).status for path in ("/", "/docs", "/openapi.json", "/v1/models/other")] == [404] * 4
    assert client.get(PATH).status == 405
    assert client.get("/v1/models", {"Host": "evil.example"}).status == 403
    monkeypatch.setattr(app, "BODY_SECONDS", 0.05)
    with client.socket() as slow:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{{"
        )
        slow.sendall(head.encode())
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


@settings(max_examples=100)
@given(BODIES)
def test_no_body_makes_the_server_fail(application: Application, body: bytes) -> None:
    check(application, body)


def test_the_bodies_that_others_are_near_to_are_answered(application: Application) -> None:
    assert [check(application, as_bytes(good)) for good in GOOD] == [200] * len(GOOD)


# -- keys ----------------------------------------------------------------------------------------------------------


def test_without_a_key_there_is_no_picture() -> None:
    service = service_of()
    with served(service, Keys([KEY, "j" * 20])) as client:
        asked = {"prompt": "3", "steps": "constant:1"}
        for headers in ({}, {"Authorization": KEY}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": "Bearer é"}):
            found = client.ask(asked, headers)
            assert (found.status, found.headers["www-authenticate"]) == (401, "Bearer")
            assert found.error["type"] == "authentication_error"
            assert client.get("/metrics", headers).status == client.get("/v1/models", headers).status == 401
        assert client.ask(asked, {"Authorization": f"Bearer {KEY}"}).status == 200
        assert client.ask(asked, {"Authorization": f"bearer {'j' * 20}", "Host": "any.example"}).status == 200
        assert client.get("/healthz").status == 200


@pytest.mark.parametrize("content", ["", "# none\n\n", "short\n", "with a space in it\n", "é" * 20])
def test_files_without_good_keys(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(DisaError, match="key"):
        Keys.read(tmp_path / "keys")


# -- many requests -------------------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back() -> None:
    never = Never()
    with served(service := service_of(drawer=never, most_open=2)) as client:
        waiting = [client.open({"prompt": "3"}) for _ in range(2)]
        until(lambda: never.open == 2)
        found = client.ask({"prompt": "3"})
        assert (found.status, found.error["type"]) == (429, "rate_limit_error")
        assert 1 <= int(found.headers["retry-after"]) <= app.LONGEST_WAIT
        assert client.get("/healthz").json["open_requests"] == 2
        waiting[0].close()
        until(lambda: service.num_open == 1)
        later = client.open({"prompt": "3"})
        until(lambda: never.open == 2)
        for connection in (waiting[1], later):
            connection.close()
        until(lambda: service.num_open == never.open == 0)
        assert "disa_left_total 3.0" in client.get("/metrics").body.decode()


def test_what_is_not_drawn_in_time_is_given_up() -> None:
    never = Never()
    with served(service := service_of(drawer=never, seconds=0.2)) as client:
        assert client.ask({"prompt": "3"}).status == 504
        ((kind, told),) = client.events({"prompt": "3"})
        assert (kind, told["error"]["type"]) == ("error", "server_error")
        until(lambda: service.num_open == never.open == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_drawing_stops_within_a_turn_when_the_client_leaves(stream: bool) -> None:
    sampler = small.sampler()
    gate = Gate(sampler)
    with served(service := service_of(sampler)) as client:
        leaving = client.open({"prompt": "3", "stream": stream, "settings": {"num_ar_steps": 16}})
        assert gate.waiting.wait(30)
        gate.open(2)
        until(lambda: gate.turns == 2)
        leaving.close()
        until(lambda: service.num_open == 0)
        gate.waiting.clear()
        gate.open(1)
        staying = client.open({"prompt": "3", "seed": 1})
        until(lambda: gate.turns == 3)
        gate.open_wide()
        assert answer(staying).pictures == [service_picture(1)]
        assert gate.turns <= 3 + 1 + small.PRESET.defaults.num_ar_steps


def service_picture(seed: int) -> bytes:
    with served(service_of()) as client:
        return client.ask({"prompt": "3", "seed": seed}).pictures[0]


def test_one_order_that_fails_does_not_spoil_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = small.sampler()
    gate, decode = Gate(sampler), sampler.decode

    def decode_or_fail(latents: Any, *more: Any) -> Any:
        if len(latents) > 1:
            raise RuntimeError("together it does not work")
        return decode(latents, *more)

    monkeypatch.setattr(sampler, "decode", decode_or_fail)
    with served(service := service_of(sampler)) as client, ThreadPoolExecutor(3) as pool:
        first = pool.submit(client.ask, {"prompt": "3", "seed": 0})
        assert gate.waiting.wait(30)
        bad, good = (pool.submit(client.ask, {"prompt": "3", "seed": 1, "n": n}) for n in (2, 1))
        until(lambda: service.num_open == 3)
        gate.open_wide()
        assert first.result().status == good.result().status == 200
        assert bad.result().status == 500
        assert bad.result().error["message"] == "drawing failed (RuntimeError: together it does not work)."


def test_options_that_nothing_can_be_drawn_with_are_the_requests_own_fault(client: Client) -> None:
    asked = {"prompt": "3", "seed": 1, "settings": {"guidance": 1e38}}
    found = client.ask(asked)
    assert (found.status, found.error["type"]) == (400, "invalid_request_error")
    assert "not finite" in found.error["message"]
    ((kind, told),) = client.events(asked | {"partial_images": 0})
    assert (kind, told["error"]["type"]) == ("error", "invalid_request_error")


@pytest.mark.parametrize("asked", [{"prompt": "3"}, {"prompt": "3", "n": 2, "settings": {"guidance": 2.0}}])
def test_what_has_no_room_when_it_is_drawn_is_told_to_come_back(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free", lambda device: 1000)  # others have the rest
    with served(service := service_of()) as client:
        assert service.reader.read(json.dumps(asked).encode()).order.inputs.labels == [3] * asked.get("n", 1)
        found = client.ask(asked)
        assert (found.status, found.error["type"], found.error["param"]) == (503, "server_error", None)
        assert re.fullmatch(
            r"there is no room for it now \(an image of 8x8 takes about .* MiB, and .* of memory are free\): try again "
            r"later, or ask for fewer or smaller images\.",
            found.error["message"],
        )
        ((kind, told),) = client.events(asked)
        assert (kind, told["error"]["message"]) == ("error", found.error["message"])


def test_memory_that_runs_out_while_drawing_is_no_fault_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    sampler = small.sampler()
    monkeypatch.setattr(sampler, "decode", decode)
    with served(service_of(sampler)) as client:
        found = client.ask({"prompt": "3", "steps": "constant:1"})
    assert found.status == 503
    assert "Tried to allocate 20.00 GiB" in found.error["message"]


def test_a_model_that_draws_no_numbers_is_the_servers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = small.sampler()
    monkeypatch.setattr(sampler.model, "finish", lambda state: torch.full((1, 1, 8, 8), torch.nan))
    with served(service_of(sampler)) as client:
        assert client.ask({"prompt": "3"}).status == 500


class Breaks(Never):
    """Fails as nothing should; or its events end too early."""

    def __init__(self, events: list[Event], error: Exception | None) -> None:
        super().__init__()
        self.events, self.error = events, error

    async def draw(self, order: Order) -> AsyncGenerator[Event, None]:
        for event in self.events:
            yield event
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("of others\nin two lines"), None])
@pytest.mark.parametrize("previews", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_server_is_told_and_counted(error: Exception | None, previews: int, stream: bool) -> None:
    breaks = Breaks([Preview({0: b"png"}, 0)] * previews, error)
    with served(service_of(drawer=breaks)) as client:
        if stream:
            *others, (kind, told) = client.events({"prompt": "3"})
            assert (len(others), kind) == (previews, "error")
        else:
            told = client.ask({"prompt": "3"}).json
        assert told["error"]["type"] == "server_error"
        assert told["error"]["message"] == "the server failed: its log says why."
        page = client.get("/metrics").body.decode()
    assert re.findall(r'disa_requests_total\{status="(\d+)"\} (.*)', page) == [("500", "1.0")]
    assert "disa_left_total 0.0" in page


def test_a_client_that_reads_no_stream_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SENDING", 0.1)
    service = service_of(seconds=0.2)
    asked = service.reader.read(b'{"prompt": "3", "stream": true}')

    async def unread(*_: Any) -> None:
        await asyncio.sleep(3600)

    async def stream() -> None:
        service.enter()
        await app._Stream(service, asked)({"type": "http"}, unread, unread)

    asyncio.run(asyncio.wait_for(stream(), 30))
    service.drawer.close()
    assert service.num_open == 0


def test_clients_that_say_nothing_block_nobody(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    silent = [client.socket() for _ in range(50)]
    half = client.socket()
    half.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: loc")
    assert client.ask({"prompt": "3", "steps": "constant:1"}).status == 200
    for each in (*silent, half):
        assert each.recv(100) == b""
        each.close()


def test_slow_clients_and_half_requests_block_nobody() -> None:
    asked = {"prompt": "3", "seed": 1, "stream": True, "settings": {"num_ar_steps": 16}}
    body = json.dumps(asked).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    whole = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with served(service_of()) as client, client.socket() as half, client.socket() as slow:
        half.sendall(whole[:40])
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        slow.sendall(whole)
        first = slow.recv(1)
        assert client.ask({"prompt": "3", "seed": 1}).status == 200
        # Neither was given up: the half request is answered once it is whole, and the slow one is read to its end.
        half.sendall(whole[40:])
        for each, found in ((half, b""), (slow, first)):
            while b"image_generation.completed" not in found:
                part = each.recv(512)
                assert part, found
                found += part


def test_the_requests_of_the_documentation_are_answered(client: Client) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "serve.md").read_text()
    bodies = re.findall(r"-d '(\{.*\})'", page)
    assert len(bodies) == 3
    for body in bodies:
        found = client.ask(body.encode())
        assert found.status == 200, found.body
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", page.partition("## Asking")[2].partition("###")[0], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(FIELDS)
