"""A client of the local Hub, in a process of its own.

huggingface_hub reads HF_ENDPOINT and its friends when it is imported, so the client is a child process that
is started with them set; it runs the snippets that the tests send it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHILD = """
import json, sys
out, sys.stdout = sys.stdout, sys.stderr
from qmamba.checkpoints import load_checkpoint, read_config
from qmamba.checkpoints.folder import push_checkpoint as push
from qmamba.checkpoints.hub import fetch
from qmamba.checkpoints.locate import resolve
for line in sys.stdin:
    scope = {**globals(), "answer": None}
    try:
        exec(json.loads(line), scope)
        reply = {"answer": scope["answer"]}
    except Exception as error:
        reply = {"error": type(error).__name__, "line": str(error)}
    print(json.dumps(reply), file=out, flush=True)
"""


class ClientError(Exception):
    """An exception in the client."""


class Client:
    def __init__(self, url: str, cache: Path, **variables: str) -> None:
        self.cache = cache
        home = cache.parent / "home"
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))
        }
        environment |= {
            "HF_ENDPOINT": url,
            "HF_HUB_CACHE": str(cache),
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # the LFS protocol, which the local server speaks
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
            "no_proxy": "*",
            **variables,
        }
        self.log = (cache.parent / "client.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )

    def __call__(self, code: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(code), file=self.process.stdin, flush=True)
        reply = json.loads(self.process.stdout.readline())
        if "error" in reply:
            raise ClientError(f"{reply['error']}: {reply['line']}")
        return reply["answer"]

    def refuses(self, code: str, match: str) -> str:
        with pytest.raises(ClientError, match=match) as caught:
            self(code)
        line = str(caught.value)
        assert "\n" not in line
        assert len(line) < 400
        return line

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.log.close()
