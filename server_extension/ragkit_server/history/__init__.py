"""The history of broadcasts: the log in memory, the archive on disk, and the publishers' event numbers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
