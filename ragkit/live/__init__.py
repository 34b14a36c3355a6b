"""The client side of the socket: messages, server discovery, publishing and listening."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
