"""Every setting that a program reads is declared as read by it: otherwise config.yaml of a run would not have it."""
import json

import pytest

from utils.settings import JOBS

from .processes import opts

# reads that do not count: pre-training refuses a number of images per class, the log's first line names the method, and a
# frozen encoder is built without dropout
HARMLESS = {"pretrain": {"DATA.IMAGES_PER_CLASS"}, "finetune": {"MODEL.METHOD"},
            "probe": {"MODEL.METHOD", "MODEL.DROP_RATE", "MODEL.DROP_PATH_RATE"}}
WATCH = """
import importlib, json, sys
from yacs.config import CfgNode
from config import _defaults, keys_of
from utils.settings import JOBS

sections = {}  # a section is known by its keys: clones of a config are other objects

def walk(node, prefix):
    sections[frozenset(node)] = prefix
    for name, value in node.items():
        if isinstance(value, CfgNode):
            walk(value, f"{prefix}{name}.")

walk(_defaults(), "")
read, attribute = set(), CfgNode.__getattr__

def watched(node, name):
    value = attribute(node, name)
    if not isinstance(value, CfgNode) and name in node:
        read.add(sections[frozenset(node)] + name)
    return value

def record(job, cfg, words):
    main = importlib.import_module(JOBS[job].removesuffix(".py"))
    load = main.load_config
    def loaded(*arguments):
        CfgNode.__getattr__ = attribute
        config = load(*arguments)
        found[job] = [None, keys_of(config, job)]
        CfgNode.__getattr__ = watched
        return config
    main.load_config = loaded
    read.clear()
    main.main(cfg, words)
    CfgNode.__getattr__ = attribute
    found[job][0] = sorted(read)

found = {}
for job, (cfg, words) in json.loads(sys.argv[1]).items():
    record(job, cfg, words)
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(forks, cfg, images, pretrained_run, tmp_path_factory):
    """{job: [keys that one epoch of it reads, keys that are declared as read by it]}."""
    folder = tmp_path_factory.mktemp("watched")
    common = {"OUTPUT": folder, "TRAIN.EPOCHS": 1, "DATA.DATA_PATH": images}
    runs = {"pretrain": (cfg.pretrain, common | {"DATA.DATA_PATH": images / "train", "DATA.VAL_PATH": images / "val"}),
            "finetune": (cfg.finetune, common | {"PRETRAINED": pretrained_run / "encoder.pth"}),
            "probe": (cfg.finetune, common | {"PRETRAINED": pretrained_run / "encoder.pth", "PROBE.AUGMENT": "True",
                                              "MODEL.NAME": "linprobe", "AUG.AUTO_AUGMENT": "none"})}
    words = json.dumps({job: (str(path), opts(settings)[1:]) for job, (path, settings) in runs.items()})
    (folder / "watch.py").write_text(WATCH, encoding="utf-8")
    return json.loads(forks.run(folder / "watch.py", words).checked().out.partition("FOUND")[2])


@pytest.mark.parametrize("job", JOBS)
def test_what_a_program_reads_is_declared_as_read_by_it(job, found):
    read, declared = map(set, found[job])
    assert read - declared - HARMLESS.get(job, set()) == set()
    assert {"TRAIN.BASE_LR", "DATA.BATCH_SIZE", "SEED"} <= read and len(read) > 50
