# SPDX-License-Identifier: MIT
"""Python's clients for scripts/record-heads: client.py BASE http.client|urllib|requests|httpx|aiohttp."""

from __future__ import annotations

import asyncio
import http.client
import io
import sys
import urllib.request
from typing import Any

BASE = sys.argv[1]
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
RANGE = {"Range": "bytes=0-99"}
DATA: dict[str, Any] = {"a": 1, "b": ["x", "y"]}
ACCOUNT = ("user", "secret")


def http_client() -> None:
    """The standard library's connections."""
    connection = http.client.HTTPConnection("shop.test")
    cases: list[tuple[str, str, Any, dict[str, str]]] = [
        ("GET", "get", None, {}),
        ("HEAD", "head", None, {}),
        ("POST", "form", "a=b", FORM),
        ("PUT", "put", b"x" * 100, {}),
        ("DELETE", "delete", None, {}),
        ("OPTIONS", "options", None, {}),
        ("PATCH", "patch", "{}", {}),
        ("GET", "range", None, RANGE),
        ("POST", "empty", None, {}),
        ("POST", "large", b"x" * 1_000_000, {}),
    ]
    for method, kind, body, headers in cases:
        connection.request(method, f"/{kind}/a?x=y", body, headers)
        connection.getresponse().read()


def urllib_request() -> None:
    """The standard library's openers, with cookies."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    agent = {"User-Agent": "my/1.0", "Accept": "text/html"}
    for request in (
        urllib.request.Request(f"{BASE}/get/a"),
        urllib.request.Request(f"{BASE}/form/a", b"a=b"),
        urllib.request.Request(f"{BASE}/agent/a", headers=agent),
        urllib.request.Request(f"{BASE}/put/a", b"x", method="PUT"),
        urllib.request.Request(f"{BASE}/cookies/a"),
        urllib.request.Request(f"{BASE}/after-cookies/a"),
    ):
        opener.open(request).read()


def requests_session() -> None:
    """PyPI's requests."""
    import requests  # type: ignore[import-untyped]  # only who records needs it

    session = requests.Session()
    for method, kind, options in (
        ("GET", "get", {"params": {"q": "a b", "n": [1, 2]}}),
        ("HEAD", "head", {}),
        ("OPTIONS", "options", {}),
        ("DELETE", "delete", {}),
        ("POST", "form", {"data": {"a": "b"}}),
        ("POST", "json", {"json": DATA}),
        ("PUT", "put", {"data": b"x" * 1000}),
        ("PATCH", "patch", {"json": DATA}),
        ("POST", "files", {"files": {"file": ("a.txt", io.BytesIO(b"x" * 100))}}),
        ("GET", "basic", {"auth": ACCOUNT}),
        ("GET", "range", {"headers": RANGE}),
        ("GET", "stream", {"stream": True}),
        ("GET", "cookies", {}),
        ("GET", "after-cookies", {}),
        ("GET", "redirect", {}),
        ("GET", "etag", {"headers": {"If-None-Match": '"1"'}}),
    ):
        session.request(method, f"{BASE}/{kind}/a", **options).content  # noqa: B018  # reads it


def httpx_client() -> None:
    """PyPI's httpx."""
    import httpx

    with httpx.Client() as client:
        client.get(f"{BASE}/get/a", params={"q": "a b"})
        client.head(f"{BASE}/head/a")
        client.post(f"{BASE}/form/a", data={"a": "b"})
        client.post(f"{BASE}/json/a", json=DATA)
        client.put(f"{BASE}/put/a", content=b"x" * 10)
        client.patch(f"{BASE}/patch/a", json=DATA)
        client.delete(f"{BASE}/delete/a")
        client.post(f"{BASE}/files/a", files={"file": b"x" * 100})
        client.get(f"{BASE}/basic/a", auth=ACCOUNT)
        client.get(f"{BASE}/cookies/a")
        client.get(f"{BASE}/after-cookies/a")


async def aiohttp_session() -> None:
    """PyPI's aiohttp."""
    import aiohttp

    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "get", {"params": {"q": "a b"}}),
        ("HEAD", "head", {}),
        ("POST", "form", {"data": {"a": "b"}}),
        ("POST", "json", {"json": DATA}),
        ("PUT", "put", {"data": b"x" * 100}),
        ("DELETE", "delete", {}),
        ("PATCH", "patch", {"json": DATA}),
        ("GET", "cookies", {}),
        ("GET", "after-cookies", {}),
        ("GET", "range", {"headers": RANGE}),
        ("POST", "expect", {"data": b"x", "expect100": True}),
        ("GET", "basic", {"auth": aiohttp.BasicAuth(*ACCOUNT)}),
    ]
    async with aiohttp.ClientSession() as session:
        for method, kind, options in cases:
            async with session.request(method, f"{BASE}/{kind}/a", **options) as answer:
                await answer.read()


if sys.argv[2] == "aiohttp":
    asyncio.run(aiohttp_session())
else:
    {
        "http.client": http_client,
        "urllib": urllib_request,
        "requests": requests_session,
        "httpx": httpx_client,
    }[sys.argv[2]]()
