"""Run in a forked process before its main: puts a fault into it, of which the environment's FAULT tells in JSON.

{"kind": "fsize", "bytes": n}                                no file can grow beyond n bytes
{"kind": "loss" | "gradient" | "weights", "rank": r, "step": s, "times": t}   NaN in t steps from step s on, on rank r
{"kind": "hang", "rank": r, "step": s, "mark": path}         step s never ends, on rank r, and writes a file when it begins
"""
import json
import os
import resource
import time
from pathlib import Path

FAULT = json.loads(os.environ["FAULT"])
NAN = float("nan")


def spoil_steps():
    from engine import Updater
    update, done = Updater.update, [0]

    def spoiled(self, losses):
        step, done[0] = done[0], done[0] + 1
        parameter = self.optimizer.param_groups[0]["params"][0]
        if not FAULT["step"] <= step < FAULT["step"] + FAULT.get("times", 1):
            return update(self, losses)
        if FAULT["kind"] == "hang":
            Path(FAULT["mark"]).touch()
            while True:
                time.sleep(0.05)
        if FAULT["kind"] == "loss":
            losses = [lambda model, of=of: of(model) * NAN for of in losses]
        handle = parameter.register_hook(lambda gradient: gradient * NAN) if FAULT["kind"] == "gradient" else None
        answer = update(self, losses)
        if handle:
            handle.remove()
        if FAULT["kind"] == "weights":
            parameter.data.mul_(NAN)
        return answer

    Updater.update = spoiled


if FAULT["kind"] == "fsize":
    resource.setrlimit(resource.RLIMIT_FSIZE, (FAULT["bytes"], resource.RLIM_INFINITY))
elif int(os.environ.get("RANK", 0)) == FAULT["rank"]:
    spoil_steps()
