"""ragkit: the live RAG lab for Jupyter.

>>> from ragkit import RAGEngine
>>> engine = RAGEngine("indexes/handbook")
>>> engine.index("data/handbook")
>>> engine.ask("How do I choose k1 for BM25?")

Names are imported at first use, so ``import ragkit`` takes milliseconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
