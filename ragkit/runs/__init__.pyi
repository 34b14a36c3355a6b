from .run import Run as Run
from .run import RunInfo as RunInfo
from .store import RunStore as RunStore
from .store import current_run as current_run
from .store import record as record
from .sweep import sweep as sweep
