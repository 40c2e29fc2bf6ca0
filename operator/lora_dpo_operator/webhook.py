"""Serves the admission webhook over TLS, with a certificate that may be renewed while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from lora_dpo_operator import admission, server
from lora_dpo_operator.settings import Settings

PATH = "/validate"
RENEWAL_SECONDS = 30.0
"""Time between two looks at the files; the kubelet takes a minute or two to bring a Secret's new content."""

_MOST_BYTES = 8 << 20
"""An AdmissionReview holds a job twice, and an object of the API server has at most some 1.5 MiB."""

_log = logging.getLogger(__name__)


class Certificate:
    """A key pair in a folder, laid out as in a Secret of type kubernetes.io/tls.

    Attributes:
        context: For the server. New connections use what was loaded last.
    """

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            OSError: it is not there, or is none.
        """
        self._folder = folder
        self._loaded = ""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.renew()

    def renew(self) -> bool:
        """Load it again where it has changed.

        Returns:
            Whether it has.

        Raises:
            OSError: it is not there, or is none; the one before stays in use.
        """
        certificate, key = self._folder / "tls.crt", self._folder / "tls.key"
        found = hashlib.sha256(certificate.read_bytes() + key.read_bytes()).hexdigest()
        if found == self._loaded:
            return False
        # A scratch context first: half of a pair must not replace a whole one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        self.context.load_cert_chain(certificate, key)
        self._loaded = found
        return True

    async def keep_fresh(self) -> None:
        """Renew for ever."""
        while True:
            await asyncio.sleep(RENEWAL_SECONDS)
            try:
                if self.renew():
                    _log.info("The webhook's certificate was renewed")
            except OSError as error:  # ssl.SSLError is one
                _log.error("The webhook's certificate in %s cannot be read: %s", self._folder, error)


def application(settings: Settings) -> web.Application:
    """The HTTP application."""

    async def validate(request: web.Request) -> web.Response:
        try:
            answered = admission.answer(await request.json(), settings)
        except (json.JSONDecodeError, UnicodeDecodeError, admission.MalformedReviewError) as error:
            return web.Response(text=f"{error}\n", status=400)
        return web.json_response(answered)

    app = web.Application(client_max_size=_MOST_BYTES)
    app.add_routes([web.post(PATH, validate)])
    return app


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[None]:
    """Serve on all addresses while the context lasts; nothing where no certificate is given.

    Raises:
        OSError: the certificate cannot be read, or the port is taken.
    """
    if not settings.webhook_certificate:
        yield
        return
    certificate = Certificate(Path(settings.webhook_certificate))
    runner = await server.start(application(settings), settings.webhook_port, certificate.context)
    keeping = asyncio.create_task(certificate.keep_fresh(), name="webhook-certificate")
    try:
        yield
    finally:
        keeping.cancel()
        await runner.cleanup()
