"""Writing behind a training that goes on."""
import threading

import torch


class Writer:
    """Runs one job at a time in a thread of its own; an error comes out at the next call."""

    def __init__(self):
        self.thread = self.error = None

    def start(self, job):
        """Run `job()` once what was started before is done."""
        self.wait()
        self.thread = threading.Thread(target=self._run, args=(job,), name="writer")
        self.thread.start()

    def _run(self, job):
        try:
            job()
        except BaseException as error:  # not lost: `wait` raises it where the run can end
            self.error = error

    def check(self):
        """Raise what went wrong, without waiting."""
        if self.thread and not self.thread.is_alive():
            self.wait()

    def wait(self):
        """Until everything is written. Raises what went wrong."""
        if self.thread:
            self.thread.join()
            self.thread = None
        if self.error:
            error, self.error = self.error, None
            raise error


def host_copy(value):
    """A copy of nested containers with all tensors on the CPU, which nothing changes any more."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, host_copy(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(host_copy(item) for item in value)
    return value
