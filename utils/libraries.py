"""What libraries warn of becomes lines of the log."""
import logging
import multiprocessing
import os
import sys
import warnings
from pathlib import Path

MOST = 1000  # texts that are known not to be said again
OURS = "simmim"
REPOSITORY = Path(__file__).resolve().parents[1]
log = logging.getLogger("simmim.libraries")


class Libraries(logging.Handler):
    """Passes on what libraries warn of, by warnings or by loggers of their own: each text once, with its source.

    Loader processes, which are forked and may be new with each epoch, and the process that they belong to know together what
    was said. Several ranks tend to meet the same: the console has that of rank 0, the log file of each rank its own.
    """

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = multiprocessing.RawArray("q", MOST)  # marks of texts, then zeros
        self.showwarning = warnings.showwarning
        warnings.showwarning = self.warn
        if "TORCH_LOGS" not in os.environ:  # whoever sets it wants them as they are
            _speak_through_root()

    def warn(self, message, category, filename, lineno, file=None, line=None):
        """In place of warnings.showwarning."""
        if file is not None:
            return self.showwarning(message, category, filename, lineno, file, line)
        self._pass_on(logging.WARNING, filename, lineno, f"{category.__name__}: {message}")

    def emit(self, record):
        self._pass_on(record.levelno, record.pathname, record.lineno, record.getMessage())

    def _pass_on(self, level, path, line, text):
        text = f"{_short(path)}:{line}: {' '.join(text.split())}"
        if self._is_new(text):
            log.handle(log.makeRecord(log.name, level, path, line, "%s", (text,), None, extra={"library": True}))

    def _is_new(self, text):
        """Whether a text was not said; then it is from now on. Without a lock, with which a process might be killed."""
        mark = hash(text) or 1
        for i, other in enumerate(self.said):
            if other in (mark, 0):
                self.said[i] = mark
                return not other
        return True

    def close(self):
        if warnings.showwarning == self.warn:
            warnings.showwarning = self.showwarning
        super().close()


def _speak_through_root():
    """Loggers of libraries that write to the console by themselves no longer do; what they say comes to the root logger."""
    for name, library in list(logging.root.manager.loggerDict.items()):
        for handler in list(getattr(library, "handlers", ())):  # what only stands for a level of names has none
            if getattr(handler, "stream", None) in (sys.stderr, sys.stdout) and name != OURS:
                library.removeHandler(handler)
                library.propagate = True


def _short(path):
    """A source file as people know it: below site-packages, or below the repository."""
    parts = Path(path).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return "/".join(parts[parts.index(folder) + 1:])
    return os.path.relpath(path, REPOSITORY) if Path(path).is_relative_to(REPOSITORY) else str(path)
