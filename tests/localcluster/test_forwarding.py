"""The way into a cluster's network namespace: it must not hold back what the API server says."""

from __future__ import annotations

import asyncio
import socket

from lora_dpo_localcluster import namespace_init


async def test_small_writes_go_out_at_once() -> None:
    # Else an event of a watch that follows another waits 40 ms for its acknowledgement.
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(serve, sock=namespace_init.listen(0)) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await accepted
        writer.close()
