from .manager import WebSocketManager as WebSocketManager
