"""Experiments: compare and tune systems on a dataset with judgements, with cached results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
