from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from .endpoint import Stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.freed.set()
    server.shutdown()
    server.server_close()
