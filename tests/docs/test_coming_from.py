"""The page for users of other libraries: its blocks, theirs and ours, run against one server.

Those of another library run in an environment of its own, whose interpreter ``LLM_EFFECTS_PEERS`` names:
``nox -s peers`` creates it.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docs.test_pages import ROOT, SYBIL
from tests.fixtures.servers import Peer, Server, chunked, reply_json, serving

PAGE: Final = ROOT / "docs" / "coming-from.md"
PEER_BLOCK: Final = re.compile(r"<!-- with: ([\w-]+) -->\n<!-- skip: next -->\n\n```python\n(.*?)```", re.DOTALL)
INCIDENT: Final = json.dumps({"severity": "high", "cause": "a full disk"})
USAGE: Final = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


def completion(body: bytes) -> bytes:
    """Answer as a request asks: as JSON for a schema, streamed, or as text; a request of Responses as text."""
    request = json.loads(body)
    common = {"id": "chatcmpl-1", "created": 1_790_000_000, "model": request["model"]}
    content = INCIDENT if "response_format" in request else "Logs."
    if "input" in request:  # tools together with reasoning need OpenAI's Responses
        parts = [{"type": "output_text", "text": content, "annotations": []}]
        output = [{"type": "message", "id": "msg-1", "status": "completed", "role": "assistant", "content": parts}]
        return reply_json({**common, "object": "response", "status": "completed", "output": output})
    if request.get("stream"):
        kind = {**common, "object": "chat.completion.chunk"}
        deltas = ({"role": "assistant", "content": ""}, {"content": content}, {})
        choices = [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"} for delta in deltas]
        chunks = [*({**kind, "choices": [each]} for each in choices), {**kind, "choices": [], "usage": USAGE}]
        return chunked(*(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks), b"data: [DONE]\n\n")
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    whole = {**common, "object": "chat.completion", "choices": choices, "usage": USAGE}
    return reply_json(whole)


async def respond(peer: Peer) -> None:
    while (request := await peer.request()) is not None:
        await peer.send(completion(request.partition(b"\r\n\r\n")[2]))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(respond) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("LM_STUDIO_ENDPOINT", "http://127.0.0.1:9/v1")
        yield running


def peer_blocks() -> dict[str, str]:
    """Return the blocks of each other library as one program."""
    programs = dict[str, list[str]]()
    for name, block in PEER_BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        programs.setdefault(name, []).append(block)
    return {name: "\n".join(blocks) for name, blocks in programs.items()}


def test_our_blocks_run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in SYBIL.parse(PAGE).examples():
        block.evaluate()
    assert len(server.requests) >= 8


@pytest.mark.parametrize(("name", "program"), peer_blocks().items(), ids=peer_blocks().keys())
def test_the_blocks_of_another_library_run(server: Server, name: str, program: str) -> None:
    python = os.environ.get("LLM_EFFECTS_PEERS")
    if python is None:
        pytest.skip(f"{name} is not installed: run `nox -s peers`, and set LLM_EFFECTS_PEERS as it says")
    variables = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    ended = subprocess.run(
        [python, "-c", program], capture_output=True, text=True, timeout=120, check=False, env=variables
    )
    assert ended.returncode == 0, ended.stderr
    assert server.requests
