"""The whole pipeline on drawn images: pre-train, look, fine-tune with and without pre-training, evaluate.

  python tools/demo.py            about 7 minutes on 2 CPU cores; nothing is downloaded
  python tools/demo.py --vit      the same with a small ViT

Every step is one of the repository's own commands and is printed before it runs. Starting it again continues where it
stopped; --fresh begins anew.
"""
import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository is cloned, not installed


FINETUNING = ["TRAIN.EPOCHS", "6"]  # half of the recipe's: pre-training helps most where there is little time


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vit", action="store_true", help="a small ViT instead of a small Swin")
    parser.add_argument("--output", default="output/demo", help="where the runs go (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="remove the results of an earlier demo first")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="settings for every step, see config.py")
    return parser.parse_args(argv)


def main(args):
    encoder = "vit_nano" if args.vit else "swin_nano"
    recipes = {stage: f"configs/demo/simmim_{stage}__{encoder}__img64.yaml" for stage in ("pretrain", "finetune")}
    if args.fresh:
        for recipe, tags in ((recipes["pretrain"], [encoder]), (recipes["finetune"], [f"{encoder}__pretrained",
                                                                                      f"{encoder}__scratch"])):
            for tag in tags:
                shutil.rmtree(ROOT / folder_of(recipe, args, tag), ignore_errors=True)
    os.chdir(ROOT)  # paths are relative to the repository, from wherever this is started
    begin = time.time()
    step("Pre-training with SimMIM: 60 % of each image is hidden, the model regresses its pixels",
         "main_simmim.py", recipes["pretrain"], args, encoder)
    pretrained, accuracies = folder_of(recipes["pretrain"], args, encoder), {}
    for name, title, more in (
            ("pretrained", "Fine-tuning the pre-trained encoder on 100 labels a class",
             ["--pretrained", f"{pretrained}/encoder.pth"]),
            ("scratch", "Training the same model from scratch: same labels, same recipe, same number of steps", [])):
        tag = f"{encoder}__{name}"
        step(title, "main_finetune.py", recipes["finetune"], args, tag, *more, opts=FINETUNING)
        accuracies[name] = last_accuracy(folder_of(recipes["finetune"], args, tag))
    folder = folder_of(recipes["finetune"], args, f"{encoder}__pretrained")
    checkpoint = newest_checkpoint(folder)
    step("Evaluating the saved model", "main_finetune.py", recipes["finetune"], args, f"{encoder}__eval", "--eval", "--resume",
         checkpoint)
    evaluated = last_accuracy(folder_of(recipes["finetune"], args, f"{encoder}__eval"), kind="eval")
    report(accuracies, evaluated, checkpoint, pretrained, time.time() - begin)
    return 0 if evaluated == accuracies["pretrained"] else 1


def folder_of(recipe, args, tag):
    """Run folder of a step, relative to the repository."""
    from config import load_config, run_folder  # here, so that the first step does not wait for torch twice

    return run_folder(load_config(ROOT / recipe, [*args.opts, "OUTPUT", args.output, "TAG", tag]))


def step(title, program, recipe, args, tag, *more, opts=()):
    """Run one command of the repository and stop the demo if it fails."""
    command, opts = [program, "--cfg", recipe, "--output", args.output, "--tag", tag, *more], [*opts, *args.opts]
    command += ["--opts", *opts] if opts else []
    print(f"\n=== {title}\n$ python {shlex.join(command)}", flush=True)
    result = subprocess.run([sys.executable, *command], cwd=ROOT)
    if result.returncode:
        sys.exit(result.returncode)


def last_accuracy(folder, kind="val"):
    """Top-1 in percent of the last record in a run's metrics."""
    lines = (ROOT / folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind][-1]["top1"]


def newest_checkpoint(folder):
    numbers = [int(path.stem.rpartition("_")[2]) for path in (ROOT / folder).glob("ckpt_epoch_*.pth")]
    return f"{folder}/ckpt_epoch_{max(numbers)}.pth"


def report(accuracies, evaluated, checkpoint, pretrained, seconds):
    pictures = sorted(Path(pretrained, "reconstructions").glob("*.png"))  # relative: main() works in the repository
    lead = accuracies["pretrained"] - accuracies["scratch"]
    same = "the same" if evaluated == accuracies["pretrained"] else "DIFFERENT"
    verdict = "pre-training won" if lead > 0 else "pre-training did NOT win" if lead < 0 else "a draw"
    print(f"""
=== Result, after {seconds / 60:.1f} minutes
top-1 on the validation images (chance: 10 %)
  fine-tuned from the SimMIM encoder  {accuracies['pretrained']:6.2f} %
  trained from scratch                {accuracies['scratch']:6.2f} %     {verdict} by {abs(lead):.2f} points
  saved model, evaluated again        {evaluated:6.2f} %     {same}
reconstructions: {pictures[-1] if pictures else 'none drawn'}
checkpoint:      {checkpoint}
curves:          tensorboard --logdir {Path(pretrained).parents[0].parent}""")


if __name__ == "__main__":
    sys.exit(main(parse_arguments()))
