"""stub"""


def install(app, runtime, settings, freshness): ...
