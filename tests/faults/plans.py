"""What is trained while faults are injected: one plan for each kind of run, small enough for a second or two."""
import json
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from config import flatten, load_config
from tests.integration.processes import launcher_environments, opts
from tests.integration.recipes import FINETUNE, PRETRAIN, PROBE, VIT, method_settings, write_recipe

from .background import Forked, Launched

INJECTED = Path(__file__).with_name("injected.py")
EPOCHS = 4  # of three steps
COMMON = {"TRAIN.EPOCHS": EPOCHS, "VIS_FREQ": 2}


@dataclass
class Plan:
    """One training command.

    Attributes:
        script: the main.
        settings: its recipe.
        ranks: number of processes.
        pretrained: whether it starts from an encoder.
    """
    script: str
    settings: dict
    ranks: int = 1
    pretrained: bool = False

    @property
    def last(self):
        """Number of the last epoch."""
        return self.settings["TRAIN.EPOCHS"] - 1

    @property
    def sharded(self):
        return self.settings.get("TRAIN.PARALLEL") == "fsdp"


SIMMIM = {**PRETRAIN, **COMMON, "MODEL.DROP_PATH_RATE": 0.1}
PLANS = {
    "swin": Plan("main_simmim.py", SIMMIM),
    "vit_accumulation": Plan("main_simmim.py", {**SIMMIM, **VIT, "DATA.BATCH_SIZE": 4, "TRAIN.ACCUMULATION_STEPS": 2}),
    "mixmim": Plan("main_simmim.py", {**SIMMIM, **method_settings("mixmim"), "MODEL.DROP_PATH_RATE": 0.1}),
    "finetune": Plan("main_finetune.py", {**FINETUNE, **COMMON, "MODEL.DROP_PATH_RATE": 0.1, "AUG.MIXUP": 0.8,
                                          "AUG.CUTMIX": 1.0, "AUG.REPROB": 0.25}, pretrained=True),
    "probe": Plan("main_linprobe.py", {**PROBE, "TRAIN.EPOCHS": EPOCHS}, pretrained=True),
    "two_processes": Plan("main_simmim.py", {**SIMMIM, "DATA.BATCH_SIZE": 4}, ranks=2),
    "two_processes_accumulation": Plan("main_simmim.py", {**SIMMIM, **VIT, "DATA.BATCH_SIZE": 2, "TRAIN.ACCUMULATION_STEPS": 2},
                                       ranks=2),
    "fsdp": Plan("main_simmim.py", {**SIMMIM, "DATA.BATCH_SIZE": 4, "TRAIN.PARALLEL": "fsdp"}, ranks=2),
}


@cache
def settings_there():
    """Names of all settings."""
    return set(flatten(load_config()))


def varied(rng):
    """Settings that may differ between two starts of a run and change nothing of what it computes."""
    settings = {"DATA.NUM_WORKERS": rng.choice((0, 0, 2)), "SAVE_STEPS": rng.choice((0, 1, 2, 2)),
                "SAVE_ASYNC": rng.choice((True, False))}
    return {name: value for name, value in settings.items() if name in settings_there()}


@dataclass
class Reference:
    """An uninterrupted run."""
    folder: Path
    seconds: float  # how long it took
    text: str       # what rank 0 said


@dataclass
class Bench:
    """Where plans are run.

    Attributes:
        forks: processes.Forks.
        images: folder with train/ and val/.
        encoder: weights that `pretrained` plans start from.
        scratch: function name -> new folder.
    """
    forks: Any
    images: Path
    encoder: Path
    scratch: Any
    jobs: list = field(default_factory=list)  # all that were started
    references: dict = field(default_factory=dict)
    recipes: dict = field(default_factory=dict)

    def words(self, plan, output, data=None, **settings):
        """Command line of a plan, after the script's name; settings as SECTION__NAME."""
        key = str(sorted(plan.settings.items()))
        if key not in self.recipes:
            self.recipes[key] = write_recipe(self.scratch("recipe") / "recipe.yaml", plan.settings)
        changes = {name.replace("__", "."): value for name, value in settings.items()}
        data = data or self.images
        pretrains = plan.script == "main_simmim.py"
        if pretrains:
            changes.setdefault("DATA.VAL_PATH", data / "val")
        return ["--cfg", self.recipes[key], "--data-path", data / "train" if pretrains else data, "--output", output,
                *(["--pretrained", self.encoder] if plan.pretrained else []), *opts(changes)]

    def start(self, plan, output, fault=None, **settings):
        """Start a plan and return at once.

        Args:
            fault: what is done to its processes, see injected.py.
        Returns: background.Forked.
        """
        words = self.words(plan, output, **settings)
        each = launcher_environments(plan.ranks) if plan.ranks > 1 else [{}]
        if fault is None:
            return self._noted(Forked(self.forks, [(plan.script, words, env) for env in each]))
        ranks = [(plan.script, words, {**env, "FAULT": json.dumps(fault)}) for env in each]
        return self._noted(Forked(self.forks, ranks, INJECTED))

    def launch(self, plan, output, flags=(), **settings):
        """Start a plan as users do, by the interpreter or torchrun with `flags`. Returns: background.Launched."""
        launcher = [] if plan.ranks == 1 else [
            "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", plan.ranks, *flags, "--redirects", 3,
            "--log-dir", output / "ranks"]
        return self._noted(Launched(output / "console", *launcher, plan.script, *self.words(plan, output, **settings)))

    def _noted(self, job):
        self.jobs.append(job)
        return job

    def clear(self):
        """End what a test has left running."""
        while self.jobs:
            self.jobs.pop().kill()

    def run(self, plan, output, **settings):
        """Run a plan to its end, which must be a good one. Returns: [Result, ...]."""
        results = self.start(plan, output, **settings).wait()
        return [one.checked() for one in results]

    def folder(self, plan, output):
        """Run folder of a plan."""
        return Path(output) / plan.settings["MODEL.NAME"] / "default"

    def reference(self, plan, **settings):
        """The uninterrupted run of a plan, made when it is first asked for. Not to be written to."""
        key = str((plan, sorted(settings.items())))
        if key not in self.references:
            output, begin = self.scratch("reference"), time.monotonic()
            results = self.run(plan, output, **settings)
            self.references[key] = Reference(self.folder(plan, output), time.monotonic() - begin, results[0].out)
        return self.references[key]
