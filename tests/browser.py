"""A headless Chromium for tests of the live page: Debian's, driven by Playwright."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, async_playwright

INSTALL = ("apt-get", "install", "-y", "--no-install-recommends", "chromium")
INSTALL_S = 300.0


async def chromium_path() -> str:
    """Where Chromium is; installed with apt where that can be done, else the test is skipped and says why."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and sys.platform == "linux" and shutil.which("apt-get") and os.geteuid() == 0:
        process = await asyncio.create_subprocess_exec(
            *INSTALL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(INSTALL_S):
            await process.wait()
        found = shutil.which("chromium")
    if found is None:
        pytest.skip(f"NOT TESTED in a browser: no Chromium here; as root, `{' '.join(INSTALL)}` installs one")
    return found


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """The browser, closed afterwards."""
    path = await chromium_path()
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield launched
        finally:
            await launched.close()
