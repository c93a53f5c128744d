"""An application beside the agent, in a process of its own: reads and updates at a steady rate, each timed.

    python -m tests.benchmarks.application URI DATABASE

Works until its standard input ends; then it prints the latencies in milliseconds as a JSON list.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
import time

from tests import servers

DOCUMENTS = 10_000
EVERY = 0.005  # 200 operations a second: a small application, far from what the server can do
COLLECTION = "orders"


def main(uri: str, database: str) -> None:
    """Works and tells."""
    ended = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=[ended], daemon=True).start()
    chance = random.Random(3)
    latencies: list[float] = []
    with servers.connect(uri, timeout_ms=600_000) as client:
        orders = client[database][COLLECTION]
        orders.delete_many({})
        orders.insert_many([{"_id": number, "count": 0, "text": "x" * 200} for number in range(DOCUMENTS)])
        began = time.perf_counter()
        for turn in itertools.count():
            due = began + turn * EVERY
            time.sleep(max(0.0, due - time.perf_counter()))
            if ended.is_set():
                break
            asked, id = time.perf_counter(), {"_id": chance.randrange(DOCUMENTS)}
            if turn % 2:
                orders.update_one(id, {"$inc": {"count": 1}})
            else:
                orders.find_one(id)
            latencies.append((time.perf_counter() - asked) * 1000)
    json.dump(latencies, sys.stdout)


def _wait_for_the_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


if __name__ == "__main__":
    main(*sys.argv[1:])
