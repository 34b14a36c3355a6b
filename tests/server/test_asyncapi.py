"""The AsyncAPI document: valid, complete, true of the examples in docs/protocol.md, and served."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any, get_args

import aiohttp
import jsonschema
import pytest

import ragkit
from ragkit.live import messages
from ragkit_server.handlers.asyncapi import document
from tests.server.live_server import DEADLINE_SECONDS, TOKEN, Server, StartServer
from tests.support.protocol_page import EXAMPLES, Example

DOCUMENT = document(version="1.2.3", url="https://hub.example.org/user/ada/")
SPECIFICATION = Path(sys.prefix, "share", "asyncapi", "3.0.0.json")
PATH = "api/v1/asyncapi.json"

UNIONS = {
    "listener → hub": ("listener", messages.ClientMessage),
    "hub → listener": ("listener", messages.ListenerMessage),
    "publisher → hub": ("publisher", messages.EngineMessage),
    "hub → publisher": ("publisher", messages.HubMessage),
}


def tags(union: Any) -> set[str]:
    return {str(member.__struct_config__.tag) for member in get_args(union)}


def follow(reference: dict[str, str]) -> Any:
    """Return what a ``$ref`` points to."""
    found: Any = DOCUMENT
    for step in reference["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return found


def problems(document: dict[str, Any]) -> list[str]:
    if not SPECIFICATION.exists():
        pytest.skip("no AsyncAPI specification: `make test` fetches it where npm is installed")
    specification = json.loads(SPECIFICATION.read_text(encoding="utf-8"))
    return [problem.message for problem in jsonschema.Draft7Validator(specification).iter_errors(document)]


# ---------------------------------------------------------------------------- the document


def test_it_is_valid() -> None:
    assert problems(DOCUMENT) == []


def test_invalid_documents_are_detected() -> None:
    for spoil in (
        lambda broken: broken["operations"]["listener_query"].update(action="ask"),
        lambda broken: broken["channels"]["listener"].update(messages=[]),
        lambda broken: broken["components"]["schemas"]["Query"].update(required="content"),
        lambda broken: broken["servers"]["jupyter"].pop("host"),
    ):
        broken = copy.deepcopy(DOCUMENT)
        spoil(broken)
        assert problems(broken) != []


@pytest.mark.parametrize("channel", ["listener", "publisher"])
def test_a_channel_has_every_message_of_both_directions(channel: str) -> None:
    listed = DOCUMENT["channels"][channel]["messages"]
    assert set(listed) == {tag for name, union in UNIONS.values() if name == channel for tag in tags(union)}
    for tag, reference in listed.items():
        message = follow(reference)
        assert message["name"] == tag
        assert message["summary"] not in ("", "None")
        assert follow(message["payload"])["properties"]["type"] == {"enum": [tag]}


@pytest.mark.parametrize("direction", UNIONS)
def test_every_message_opens_an_exchange_or_answers_one(direction: str) -> None:
    channel, union = UNIONS[direction]
    action, other = ("receive", "send") if direction.endswith("hub") else ("send", "receive")
    operations = [
        operation
        for operation in DOCUMENT["operations"].values()
        if operation["channel"] == {"$ref": f"#/channels/{channel}"}
    ]
    opened = [m for operation in operations if operation["action"] == action for m in operation["messages"]]
    answers = [
        m for operation in operations if operation["action"] == other and "reply" in operation
        for m in operation["reply"]["messages"]
    ]  # fmt: skip
    found = {reference["$ref"].rpartition("/")[2] for reference in opened + answers}
    # The hub pings with the protocol's own pings, and takes a pong without having asked.
    heartbeat = {"pong"} if action == "receive" else {"ping"}
    assert tags(union) - heartbeat == found


def test_every_reference_resolves() -> None:
    def references(part: Any) -> list[dict[str, str]]:
        if isinstance(part, dict):
            return [part] if "$ref" in part else [found for value in part.values() for found in references(value)]
        return [found for value in part for found in references(value)] if isinstance(part, list) else []

    assert len(references(DOCUMENT)) > 100
    for reference in references(DOCUMENT):
        follow(reference)


def test_docstrings_are_descriptions() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Origin"]["description"] == messages.Origin.__doc__
    assert "Chunks per second" in schemas["IndexingProgress"]["properties"]["rate"]["description"]
    assert "within an epoch" in schemas["ExperimentResult"]["properties"]["seq"]["description"]  # inherited
    for code in messages.ErrorCode:
        assert f"`{code}`: {code.meaning}" in schemas["ErrorCode"]["description"]


def test_the_server_address() -> None:
    server = DOCUMENT["servers"]["jupyter"]
    assert (server["protocol"], server["host"], server["pathname"]) == ("wss", "hub.example.org", "/user/ada/")
    assert document(version="1")["servers"]["jupyter"]["protocol"] == "ws"


# ---------------------------------------------------------------------------- the examples


def validator(message: dict[str, Any]) -> jsonschema.Draft7Validator:
    payload = follow(DOCUMENT["components"]["messages"][message["type"]]["payload"])
    return jsonschema.Draft7Validator({**payload, "components": DOCUMENT["components"]})


def spoiled(value: Any) -> Any:
    """Yield a JSON value once for each thing in it, that thing replaced with one of a type that is used nowhere."""
    if isinstance(value, dict):
        for key, part in value.items():
            for bad in spoiled(part):
                yield {**value, key: bad}
    elif isinstance(value, list):
        for index, part in enumerate(value):
            for bad in spoiled(part):
                yield [*value[:index], bad, *value[index + 1 :]]
    yield {"no": "such thing"} if not isinstance(value, dict) else 7


FREE = ("context", "row", "leaderboard")  # anything goes, inside


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"line {example.line}")
def test_an_example_is_valid_and_a_modified_one_is_not(example: Example) -> None:
    message = json.loads(example.text)
    check = validator(message)
    assert [problem.message for problem in check.iter_errors(message)] == []
    for place in (message, message.get("content", {}), message.get("event", {}), *message.get("results", ())):
        for name in FREE:
            if isinstance(place, dict) and name in place:
                place[name] = type(place[name])()
    wrong = list(spoiled(message))
    assert len(wrong) > 1
    for bad in wrong:
        assert not check.is_valid(bad), bad
    for key in message.keys() & set(check.schema["required"]):
        assert not check.is_valid({k: v for k, v in message.items() if k != key})


# ---------------------------------------------------------------------------- the page


async def fetch(server: Server, token: str | None = TOKEN) -> tuple[int, Any, str]:
    headers = {"Authorization": f"token {token}"} if token else {}
    url = server.url(PATH).replace("ws", "http", 1)
    timeout = aiohttp.ClientTimeout(total=DEADLINE_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(url, headers=headers, allow_redirects=False) as response,
    ):
        return response.status, await response.json(content_type=None), response.content_type


@pytest.mark.anyio
async def test_the_page_is_the_document_of_this_server(server: Server) -> None:
    status, body, content_type = await fetch(server)
    assert (status, content_type) == (200, "application/json")
    assert body == document(version=ragkit.__version__, url=f"http://127.0.0.1:{server.port}{server.base_url}")


@pytest.mark.anyio
async def test_without_a_token_the_page_is_403(server: Server) -> None:
    assert (await fetch(server, token=None))[0] == 403
    assert (await fetch(server, token="wrong"))[0] == 403


@pytest.mark.anyio
async def test_the_page_requires_the_permission_to_listen(start: StartServer, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "jupyter_server_config.py").write_text(
        "from jupyter_server.auth import Authorizer\n"
        "class Nobody(Authorizer):\n"
        "    async def is_authorized(self, handler, user, action, resource):\n"
        "        return (action, resource) != ('read', 'ragkit')\n"
        "c.ServerApp.authorizer_class = Nobody\n"
    )
    assert (await fetch(start(folder=tmp_path)))[0] == 403
