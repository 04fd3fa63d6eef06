"""Files looked at one by one, each in a process that may hang or crash without harm to the others."""
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import wait

from tqdm import tqdm


def answers(paths, question, num_workers, timeout):
    """Ask a question of each file, in processes of their own, with a progress bar on a terminal.

    Args:
        paths: of files.
        question: path -> answer, a function that processes can be given.
        timeout: seconds after which a process that has not answered is killed.
    Yields: (path, answer) in the order of the answers, which is not that of the paths; the answer is text that says why
        where the process ended or was killed.
    """
    left, busy = iter(paths), {}  # busy: {connection: (process, path, since)}
    started = []

    def begin():
        connection, process = _worker(question)
        started.append(process)
        give_work(connection, process)

    def give_work(connection, process):
        path = next(left, None)
        connection.send(path)
        if path is not None:
            busy[connection] = process, path, time.monotonic()

    try:
        with tqdm(total=len(paths), unit=" images", disable=None) as progress:
            for _ in range(min(num_workers, len(paths))):
                begin()
            while busy:
                found = []
                oldest = min(since for _, _, since in busy.values())
                for connection in wait(list(busy), timeout=max(oldest + timeout - time.monotonic(), 0)):
                    process, path, _ = busy.pop(connection)
                    try:
                        found.append((path, connection.recv()))
                    except EOFError:
                        process.join()
                        found.append((path, f"the process that read it ended with code {process.exitcode}"))
                        begin()
                    else:
                        give_work(connection, process)
                late = [one for one, (_, _, since) in busy.items() if since + timeout < time.monotonic() and not one.poll()]
                for connection in late:
                    process, path, _ = busy.pop(connection)
                    process.kill()
                    found.append((path, f"not read after {timeout:g} seconds"))
                    begin()
                progress.update(len(found))
                yield from found
    finally:
        for process in started:  # they hold nothing
            process.kill()


def _worker(question):
    """A new process that answers what it is sent: (connection, process)."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_answer_all, args=(theirs, question), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of the connection
    return ours, process


def _answer_all(connection, question):
    """Answer each path that comes, until None does, or nobody is left to send one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends all
    parent = os.getppid()
    while os.getppid() == parent:
        if connection.poll(5):
            path = connection.recv()
            if path is None:
                return
            connection.send(question(path))
