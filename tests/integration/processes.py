"""Starting the mains: by the interpreter or a launcher as users do, or forked from a process that has imported them."""
import io
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from utils.cli import run

ROOT = Path(__file__).resolve().parents[2]
UNSET = ("DISPLAY", "FORCE_COLOR", "CLICOLOR_FORCE", "SIMMIM_TRACEBACK", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR",
         "MASTER_PORT", "PYTHONWARNINGS", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@dataclass
class Result:
    """What a process left: exit code and text."""
    code: int
    out: str
    err: str

    @property
    def error_lines(self):
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    def checked(self):
        """This result, if the run succeeded; otherwise everything it said."""
        assert self.code == 0, f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"
        return self


def environment(**extra):
    """Environment of a run: one thread, CPU, no colour, no launcher's traces."""
    values = {name: value for name, value in os.environ.items() if name not in UNSET}
    return values | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""} | extra


def usual_signals():
    """In the child: signals do what they do in a shell, also where the tests were started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


def opts(settings):
    """--opts for {'SECTION.KEY': value}."""
    return ["--opts", *[str(word) for pair in settings.items() for word in pair]] if settings else []


def start(*command):
    """Start `python <command>` in the repository root and return at once; `finish` waits for it."""
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=environment(), text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process):
    out, err = process.communicate()
    return Result(process.returncode, out, err)


def in_process(program, *arguments):
    """Run a tool, as `python tools/<program>.py <arguments>`, without the seconds that a process and its imports take."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            run(program.main, program.parse_arguments([str(word) for word in arguments]))
        except SystemExit as end:
            code = end.code
    return Result(code, out.getvalue(), err.getvalue())


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launcher_environments(world_size):
    """What a launcher tells each of its processes."""
    port = str(free_port())
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": port} for rank in range(world_size)]


def result(code, out, err):
    """Result of a process whose text went to two files."""
    return Result(code, *(path.read_text(encoding="utf-8", errors="replace") for path in (out, err)))


class Forks:
    """Runs of the mains without the seconds their imports take; see forked.py.

    Args:
        folder: where the output of the runs goes.
        root: the repository, or a copy of it, whose programs are run.
    """

    def __init__(self, folder, root=ROOT):
        self.folder = folder
        self.count = 0
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked.py")), str(root)], cwd=root, env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.ready = False

    def run(self, script, *arguments, **env):
        """One process, as `python <script> <arguments>`."""
        return self._run([(script, arguments, env)])[0]

    def run_ranks(self, world_size, script, *arguments):
        """Several processes with the environment a launcher gives them; returns a Result for each rank."""
        return self._run([(script, arguments, env) for env in launcher_environments(world_size)])

    def start(self, ranks, group=True, prelude=None):
        """Start processes and return at once.

        Args:
            ranks: [(script, arguments, environment), ...], one for each process; a script of "-m" runs the module that its
                first argument names.
            group: whether they get a process group of their own, so that a signal can reach them and their children alone.
            prelude: Python file that each process runs before its script.
        Returns: [(pid, stdout file, stderr file), ...]; the first pid is the number of the group.
        """
        orders = []
        for script, arguments, env in ranks:
            self.count += 1
            orders.append({"script": str(script), "arguments": [str(word) for word in arguments], "env": env,
                           "prelude": prelude and str(prelude),
                           "out": str(self.folder / f"{self.count}.out"), "err": str(self.folder / f"{self.count}.err")})
        pids = self._ask(start=orders, group=group)["pids"]
        return [(pid, Path(order["out"]), Path(order["err"])) for pid, order in zip(pids, orders, strict=True)]

    def codes(self, pids, wait=False):
        """Exit codes, negative after a signal, None of a process that still runs; `wait` waits for all of them."""
        return self._ask(end_of=pids, wait=wait)["codes"]

    def close(self):
        if self.server.poll() is None:
            self.server.stdin.write(json.dumps({"end": True}) + "\n")  # its end may be open in processes that tests left behind
            self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def _run(self, ranks):
        started = self.start(ranks, group=False)
        codes = self.codes([pid for pid, _, _ in started], wait=True)
        return [result(code, out, err) for code, (_, out, err) in zip(codes, started, strict=True)]

    def _ask(self, **order):
        if not self.ready:
            self._answer()
            self.ready = True
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.server.stdout.readline()
        assert line, f"the process that forks the runs has ended with code {self.server.wait()}"
        return json.loads(line)
