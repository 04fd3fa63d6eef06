"""Runs the mains without paying for their imports each time: imports everything once, then forks for each run.

Every run executes the main's file as `__main__` in a process of its own, exactly as `python main_x.py ...` does, or a module
as `python -m module ...`; only the libraries are in memory already, and the interpreter is not taken apart at the end (a
second saved at either end).
Started by `processes.Forks`; reads one JSON object a line on stdin, writes one back on stdout:
{"start": [rank, ...], "group": bool} gives {"pids": [...]}, {"end_of": [pid, ...], "wait": bool} gives {"codes": [...]}.
A process that has ended stays a zombie until it is asked for, so its number is not given to another meanwhile; later it may be.
"""
import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

ROOT = Path(sys.argv[1])  # the repository, or a copy of it
# the mains, and what they import when it is needed
IMPORTED = ("main_finetune", "main_linprobe", "main_simmim", "PIL.Image", "tensorboard.compat.proto.event_pb2",
            "tensorboard.summary.writer.record_writer", "timm.data", "torch.distributed", "torch.utils.serialization.config")


def main():
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    gc.disable()  # what is imported stays
    for name in IMPORTED:
        importlib.import_module(name)
    sys.modules["apex"] = None  # as if it were not installed, whatever this machine has
    sys.modules["PIL.Image"].init()  # imports its formats
    gc.freeze()  # the children need not walk through all of this
    gc.enable()
    print(json.dumps({"ready": True}), flush=True)
    groups, codes = [], {}
    signal.signal(signal.SIGTERM, lambda number, frame: end(groups))
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if "end" in order:
            break
        if "start" in order:
            pids = start(order["start"], order["group"])
            groups += pids[:1] if order["group"] else []
            for pid in pids:  # an earlier process may have had the number
                codes.pop(pid, None)
            answer = {"pids": pids}
        else:
            answer = {"codes": [end_of(pid, codes, order["wait"]) for pid in order["end_of"]]}
        print(json.dumps(answer), flush=True)
    end(groups)


def end(groups):
    """The tests are gone: what they left running goes, too."""
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os._exit(0)


def start(ranks, group):
    """Fork one process for each rank; together in a process group of their own, if so ordered. Returns their numbers."""
    pids = []
    for rank in ranks:
        pid = os.fork()
        if pid == 0:
            if group:
                os.setpgid(0, pids[0] if pids else 0)
            run(rank)
        if group:  # here as well, so that the group is there when this returns
            try:
                os.setpgid(pid, pids[0] if pids else pid)
            except ProcessLookupError:
                pass
        pids.append(pid)
    return pids


def end_of(pid, codes, wait):
    """Exit code of a child, negative after a signal; None while it runs."""
    if pid not in codes:
        done, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
        if not done:
            return None
        codes[pid] = os.waitstatus_to_exitcode(status)
    return codes[pid]


def run(rank):
    """In the child: become one run, and exit as a script would."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # tests may run where they are ignored
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, rank["out"], os.O_WRONLY | os.O_CREAT),
                                    (2, rank["err"], os.O_WRONLY | os.O_CREAT)):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(rank["env"])
    script, arguments = rank["script"], rank["arguments"]
    sys.argv = arguments if script == "-m" else [script, *arguments]
    code = 0
    try:
        if rank.get("prelude"):
            runpy.run_path(rank["prelude"], run_name="prelude")
        if script == "-m":
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # ends the loader's processes, closes log files
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
