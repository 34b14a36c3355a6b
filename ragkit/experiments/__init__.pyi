from .experiment import Experiment as Experiment
from .experiment import Running as Running
from .result import Result as Result
from .system import System as System
from .tuning import Tuning as Tuning
from .tuning import tune as tune
