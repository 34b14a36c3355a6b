from .index import Index as Index
from .integrity import IndexCheck as IndexCheck
from .record_types import DocumentRecord as DocumentRecord
from .report import IndexReport as IndexReport
from .vector_store import ChromaStore as ChromaStore
from .vector_store import VectorStore as VectorStore
from .watcher import IndexWatcher as IndexWatcher
