from . import messages as messages
from .discovery import Server as Server
from .discovery import find_server as find_server
from .listener import listen as listen
from .origin import find_origin as find_origin
from .publisher import Publisher as Publisher
from .publisher import broadcast as broadcast
