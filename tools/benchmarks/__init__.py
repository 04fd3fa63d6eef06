"""The commands of tools/benchmark.py, one a file."""


def transformers_or_none():
    """The package, of the versions whose names our conversion speaks, where it is installed."""
    try:
        import transformers
    except ImportError:
        return None
    return transformers if transformers.__version__.startswith("4.") else None
