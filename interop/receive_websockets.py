"""Connects with the Python library `websockets` and prints each text frame as a line; ends when its stdin does.

Usage: receive_websockets.py URL [SUBPROTOCOL…]
"""

import asyncio
import sys

import websockets


async def main():
    url, *subprotocols = sys.argv[1:]
    async with websockets.connect(url, subprotocols=subprotocols or None, proxy=None) as socket:
        if subprotocols and socket.subprotocol != subprotocols[0]:
            sys.exit(f"asked for {subprotocols[0]}, was answered {socket.subprotocol}")
        stdin = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        frames = asyncio.create_task(print_frames(socket))
        await asyncio.wait([stdin, frames], return_when=asyncio.FIRST_COMPLETED)
        if frames.done():
            frames.result()
            sys.exit(f"closed by the node: {socket.close_code} {socket.close_reason}")
        frames.cancel()
    print(f'{{"type":"closed","code":{socket.close_code}}}', flush=True)


async def print_frames(socket):
    async for frame in socket:
        print(frame, flush=True)


asyncio.run(main())
