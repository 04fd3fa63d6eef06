"""Runs the mains without paying for their imports each time: imports everything once, then forks for each run.

Every run executes the main's file as `__main__` in a process of its own, exactly as `python main_x.py ...` does; only
the libraries are in memory already, and the interpreter is not taken apart at the end (a second saved at either end).
Started by `processes.Forks`; reads one JSON object a line on stdin, writes one back on stdout.
"""
import atexit
import gc
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

ROOT = Path(sys.argv[1])  # the repository, or a copy of it


def main():
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import torch.distributed  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import main_finetune  # noqa: F401
    import main_linprobe  # noqa: F401
    import main_simmim  # noqa: F401
    sys.modules["apex"] = None  # as if it were not installed, whatever this machine has
    gc.freeze()  # the children need not walk through all of this
    print(json.dumps({"ready": True}), flush=True)
    for line in iter(sys.stdin.readline, ""):
        children = []
        for rank in json.loads(line)["ranks"]:
            pid = os.fork()
            if pid == 0:
                run(rank)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        print(json.dumps({"codes": codes}), flush=True)
    os._exit(0)


def run(rank):
    """In the child: become one run, and exit as a script would."""
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, rank["out"], os.O_WRONLY | os.O_CREAT),
                                    (2, rank["err"], os.O_WRONLY | os.O_CREAT)):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(rank["env"])
    sys.argv = [rank["script"], *rank["arguments"]]
    code = 0
    try:
        runpy.run_path(str(ROOT / rank["script"]), run_name="__main__")
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
