from .document import Document as Document
from .document import Mark as Mark
from .document import SourceFile as SourceFile
from .loading import load as load
from .loading import read as read
from .sources import find_sources as find_sources
