"""The page docs/models.md: the tables of released models in models/weights/zoo.json; written by tools/pages.py."""
from pathlib import Path

from models.weights import zoo
from utils.tables import markdown

UNKNOWN = "not known"
INTRODUCTION = """# Released models
<!-- Made by tools/pages.py from models/weights/zoo.json: change those. -->

{number} released models of the methods of this repository, with what was published about them. The numbers of parameters were
counted here, in the models that the recipes build (without a recipe: as published); nothing else was measured again. What is
not known is left open. No released file could be tried here: loading is tested on files of the same layout.

```python
from config import load_config
from models import build_model, load_pretrained
from models.weights import zoo

zoo.list_models("simmim_swin", task="pretrain")  # or classification; shell wildcards, as if a * stood at the end
entry = zoo.find("mae_vit_base_1600ep_ft224")    # all that the tables have; a typo is answered with names like it
model = build_model(load_config(entry.config, entry.opts), is_pretrain=entry.task == "pretrain")
load_pretrained(model, zoo.weights_file(entry))  # downloads once, verifies the published checksum
```
From the root of the repository. A linear probe (`entry.linear_probe`) is built by `models.probe.build_probe` instead.

**Names** say method, encoder, size, length of pre-training, then `ft<pixels>` or `linear` for a classifier, then `mmpretrain`
where that project trained it and not the authors of the method. Without the length and the pixels, as in `simmim_swin_base` and
`simmim_swin_base_ft`, a name stands for the longest pre-training by the authors (of several data sets, on all of ImageNet-1K),
fine-tuned at 224 px; [other names](#other-names) has these and mmpretrain's.

**Weights** are looked for in the folder `weights_dir`, then in that of the environment variable `SIMMIM_WEIGHTS`, then in
torch.hub's `checkpoints` (`TORCH_HOME` moves it), under the last part of their address or the file name beside it. A download
goes into the first of these folders that is given; an interrupted one goes on where it stopped, `.part` ends its name until it
is complete. Google Drive asks for confirmation in a browser: download those files by hand, give them the name in the table and
put them into such a folder.

**Parameters** are those of the whole model, with head or decoder and with position tables that are not trained. **GFLOPs** are
1e9 multiply-adds for one image, as published: mmpretrain counts the encoder alone, and 5 for each element of a LayerNorm.
**Top-1** is on ImageNet-1K, in percent. The **validation loss** is that of the pre-training.

LSMAE: [its repository](https://github.com/facebookresearch/long_seq_mae) has pre-trained weights, but neither their addresses
nor any number of classification are known here; [configs/lsmae](../configs/lsmae) builds the models. No weights of SwinV2-G or
of MixMIM-H are known to be public.
"""
HEADINGS = {"pretrain": "pre-trained", "classification": "classifiers"}


def page():
    """The whole text of docs/models.md."""
    entries = list(zoo.entries().values())
    parts = [INTRODUCTION.replace("{number}", str(len(entries)))]
    for family in dict.fromkeys(entry.family for entry in entries):
        members = [entry for entry in entries if entry.family == family]
        papers = dict.fromkeys(entry.paper for entry in members)
        links = ", ".join(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" for paper in papers)
        parts.append(f"\n## {family}\n{links}\n")
        for task, heading in HEADINGS.items():
            parts.append(f"\n### {family}: {heading}\n{section([entry for entry in members if entry.task == task])}")
    aliases = [[f"`{alias}`", f"`{entry.name}`"] for entry in entries for alias in entry.aliases]
    parts.append(f"\n## Other names\n{markdown(['name', 'stands for'], sorted(aliases))}")
    return "".join(parts)


def section(entries):
    """The table of some models and its notes."""
    found = dict.fromkeys(note for entry in entries for note in notes_of(entry))
    notes = {note: number for number, note in enumerate(found, 1)}
    columns = {
        "name": lambda entry: f"`{entry.name}`",
        "parameters": lambda entry: UNKNOWN if entry.params is None else f"{entry.params:,}",
        "GFLOPs": lambda entry: UNKNOWN if entry.gflops is None else f"{entry.gflops:.4g}",
        "pre-training": lambda entry: entry.pretraining,
        "validation loss": lambda entry: UNKNOWN if entry.validation_loss is None else f"{entry.validation_loss:.4f}",
        "top-1": lambda entry: UNKNOWN if entry.top1 is None else str(entry.top1),
        "recipe": lambda entry: "none" if entry.config is None else f"[{Path(entry.config).parent.name}](../{entry.config})",
        "weights": weights,
        "notes": lambda entry: ", ".join(str(notes[note]) for note in notes_of(entry)),
    }
    own = {"validation loss": "validation_loss", "top-1": "top1"}  # of one kind of model only
    shown = [name for name in columns if name not in own or any(getattr(entry, own[name]) is not None for entry in entries)]
    text = markdown(shown, [[columns[name](entry) for name in shown] for entry in entries])
    return text + "".join(["\n", *(f"{number}. {note}\n" for note, number in notes.items())] if notes else [])


def notes_of(entry):
    """What the columns of a model do not say, as sentences."""
    found = {"GFLOPs": entry.flops_note, "Can't be built here": entry.obstacle, "Linear probe": entry.linear_probe and
             "the encoder is frozen", None: entry.note}
    return [(f"{about}: {text}." if about else f"{text[0].upper()}{text[1:]}.") for about, text in found.items() if text]


def weights(entry):
    """Who released the file, with its address, and its name where the address does not have it."""
    if entry.url is None:
        return f"{entry.source}: {UNKNOWN}"
    link = f"[{entry.source}]({entry.url})"
    return link if entry.filename in entry.url else f"{link}, `{entry.filename}`"
