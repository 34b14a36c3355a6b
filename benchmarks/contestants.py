"""The servers that the hub's fan-out is compared with, each in a separate process.

``bare``: a loop of `os.write` calls, the minimum cost in Python of one system call per listener. ``fastapi``: the
ConnectionManager from FastAPI's documentation, under uvicorn.

Run one with ``python -m benchmarks.contestants NAME PORT``. Listeners connect to /api/v1/ws and the publisher to
/api/v1/engine, as with the hub; messages of the publisher are sent to every listener.
"""

import os
import select
import socket
import sys

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

BACKLOG = 4_096
HOST = "127.0.0.1"


def bare(port: int) -> None:
    """Write the bytes from the publisher to every listener, unchanged."""
    listening = socket.create_server((HOST, port), backlog=BACKLOG)
    epoll = select.epoll()
    epoll.register(listening, select.EPOLLIN)
    sockets: dict[int, socket.socket] = {}
    listeners: list[int] = []
    publishers: set[int] = set()
    while True:
        for fd, _ in epoll.poll():
            if fd == listening.fileno():
                accepted, _ = listening.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets[accepted.fileno()] = accepted
                epoll.register(accepted, select.EPOLLIN)
                continue
            data = os.read(fd, 65_536)
            if data.startswith(b"GET "):
                os.write(fd, b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                if data.startswith(b"GET /api/v1/ws "):
                    listeners.append(fd)
                else:
                    publishers.add(fd)
            elif data and fd in publishers:
                for listener in listeners:
                    os.write(listener, data)
            else:
                epoll.unregister(fd)
                sockets.pop(fd).close()
                if fd in listeners:
                    listeners.remove(fd)


class ConnectionManager:
    def __init__(self) -> None:
        self.active_connections: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        self.active_connections.remove(websocket)

    async def broadcast(self, message: object) -> None:
        for connection in self.active_connections:
            await connection.send_json(message)


app = FastAPI()
manager = ConnectionManager()


@app.websocket("/api/v1/ws")
async def listen(websocket: WebSocket) -> None:
    await manager.connect(websocket)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        manager.disconnect(websocket)


@app.websocket("/api/v1/engine")
async def publish(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await manager.broadcast(await websocket.receive_json())
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    name, port = sys.argv[1], int(sys.argv[2])
    if name == "bare":
        bare(port)
    else:
        uvicorn.run(app, host=HOST, port=port, backlog=BACKLOG, log_level="warning")
