"""A program that POSTs very many times at once, and prints how many answers had which status."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

import aiohttp


async def flood(url: str, token: str, count: int) -> Counter[int]:
    """The statuses of the answers; every request has a connection of its own."""
    headers = {"Authorization": f"Bearer {token}"}
    begin = asyncio.Event()

    async def post(session: aiohttp.ClientSession) -> int:
        await begin.wait()
        async with session.post(url, json={}, headers=headers) as answer:
            await answer.read()
            return answer.status

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        posts = [asyncio.create_task(post(session)) for _ in range(count)]
        print("begins", flush=True)  # noqa: T201 - whoever measures need not count the time before
        begin.set()
        return Counter(await asyncio.gather(*posts))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(flood(sys.argv[1], sys.argv[2], int(sys.argv[3])))))  # noqa: T201 - its answer
