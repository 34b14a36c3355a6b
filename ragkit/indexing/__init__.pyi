from .index import Index as Index
from .integrity import IndexCheck as IndexCheck
from .report import IndexReport as IndexReport
from .stored import DocumentRecord as DocumentRecord
from .vector_store import ChromaStore as ChromaStore
from .vector_store import VectorStore as VectorStore
from .watcher import IndexWatcher as IndexWatcher
