"""The webhook's server, over real TLS."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509

from lora_dpo_operator import webhook
from tests.certificates import write_pair

from .builders import SETTINGS, a_job
from .test_admission import asked


async def serial_number(port: int) -> int:
    """Of the certificate that the server shows to a new connection."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("localhost", port, ssl=unverified)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return x509.load_der_x509_certificate(der).serial_number


async def shown(port: int, number: int) -> None:
    """Wait until new connections get the certificate of this number."""
    for _ in range(200):
        if await serial_number(port) == number:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"certificate {number} was never shown")


@dataclasses.dataclass(frozen=True)
class Served:
    """A webhook that serves."""

    folder: Path
    port: int
    certificate: str

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}{webhook.PATH}"


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(webhook, "RENEWAL_SECONDS", 0.05)
    certificate = write_pair(tmp_path)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    chosen = dataclasses.replace(SETTINGS, webhook_certificate=str(tmp_path), webhook_port=port)
    async with webhook.serving(chosen):
        yield Served(tmp_path, port, certificate)


async def test_a_review_is_answered_to_who_trusts_the_certificate(served: Served) -> None:
    trusting = ssl.create_default_context(cadata=served.certificate)
    async with aiohttp.ClientSession() as client, client.post(served.url, json=asked(a_job()), ssl=trusting) as answer:
        assert (answer.status, (await answer.json())["response"]["allowed"]) == (200, True)


async def test_what_is_no_review_is_answered_with_400(served: Served) -> None:
    trusting = ssl.create_default_context(cadata=served.certificate)
    async with aiohttp.ClientSession() as client:
        for body in (b"", b"{", b"\xff", b"[]"):
            async with client.post(served.url, data=body, ssl=trusting) as answer:
                assert answer.status == 400


async def test_a_renewed_certificate_is_shown_to_new_connections(served: Served) -> None:
    assert await serial_number(served.port) == 1
    write_pair(served.folder, number=2)
    await shown(served.port, 2)


async def test_half_of_a_renewal_leaves_the_certificate_in_use(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    (served.folder / "tls.key").write_text("torn")
    for _ in range(200):
        if "cannot be read" in caplog.text:
            break
        await asyncio.sleep(0.05)
    assert "cannot be read" in caplog.text
    assert await serial_number(served.port) == 1
    write_pair(served.folder, number=3)
    await shown(served.port, 3)


async def test_without_a_certificate_nothing_is_served() -> None:
    async with webhook.serving(SETTINGS):
        pass


async def test_a_certificate_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"tls\.crt"):
        async with webhook.serving(dataclasses.replace(SETTINGS, webhook_certificate=str(tmp_path))):
            pass
