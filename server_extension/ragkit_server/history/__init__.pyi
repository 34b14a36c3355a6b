from .log import History as History
