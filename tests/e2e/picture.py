"""Takes the picture of the README: the status page in Chromium, after the demonstration has cleared the incident.

``make picture`` runs it, and writes ``docs/images/page.png`` anew. Look at it before you commit it.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from socket import gethostname
from typing import Final

from playwright.sync_api import Page, expect

from tests.e2e.browser import chromium, tab

PICTURE: Final = Path(__file__).parents[2] / "docs" / "images" / "page.png"
SIZE: Final = (1200, 900)
DEMO: Final = (sys.executable, "-m", "agent", "demo")
WITHOUT_HOST: Final = "(about, host) => about.textContent = about.textContent.replace(host, 'app-0')"
CLEARED: Final = "All as expected"


@contextlib.contextmanager
def demonstration() -> Iterator[tuple[str, str]]:
    """The demonstration, once its first pass has ended: the address of the page, and a token."""
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            told = ""
            for line in process.stdout:
                told += line
                if CLEARED in line:
                    break
            (url,), (token,) = re.findall(r"page +(\S+)", told), re.findall(r"token +(\S+)", told)
            yield url, token
        finally:
            process.send_signal(signal.SIGINT)


def take(page: Page, url: str, token: str, to: Path) -> None:
    """Opens the page, signs in, and takes its picture."""
    page.goto(url)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#totals")).to_contain_text("469")
    expect(page.locator(".runs tbody tr")).to_have_count(4)
    expect(page.locator("article").get_by_role("img")).to_have_count(4)
    page.locator("#about").evaluate(WITHOUT_HOST, gethostname())
    page.screenshot(path=to, full_page=True)


if __name__ == "__main__":
    with demonstration() as (url, token), chromium() as browser, tab(browser, size=SIZE) as (page, _):
        PICTURE.parent.mkdir(exist_ok=True)
        take(page, url, token, PICTURE)
    print(PICTURE)  # noqa: T201 - says what it wrote
