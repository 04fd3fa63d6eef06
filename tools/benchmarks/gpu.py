"""All that is to be known of a GPU in one run: steps, peers, what is kept, longest kernels, and losses in both formats."""
import argparse
import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from tools.benchmarks import peers, step
from utils import distributed
from utils.devices import wait_for

COLOURS = ("#1f77b4", "#d62728")
SIZE, MARGIN = (900, 500), 40  # pixels of the picture


def main(args):
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    device = distributed.start()

    def with_args(**values):
        return argparse.Namespace(**{**vars(args), "command": "gpu", "amp_opt_level": "O1", "stage": "auto", "formats": None,
                                     "compiled": True, "warmup": 5, **values})

    print("\n== training steps in bfloat16, eager and compiled")
    step.main(with_args(json=folder / "step.json"))
    for path in args.cfg:
        print(f"\n== {Path(path).stem}: beside its peers")
        try:
            peers.main(with_args(cfg=path, json=folder / f"peers_{Path(path).stem}.json"))
        except ValueError as error:  # a recipe without peers
            print(error)
    longest = {}
    for path in args.cfg:
        candidate = step.Candidate(path, with_args(), device, ["TRAIN.COMPILE", True])
        longest[candidate.name] = kernels(candidate)
        print(f"\n== {candidate.name}: the longest kernels of a step, ms and calls")
        print("\n".join(f"{ms:9.3f} {calls:5d}  {name[:100]}" for name, ms, calls in longest[candidate.name]))
    (folder / "kernels.json").write_text(json.dumps(longest, indent=1) + "\n")
    curves = {name: losses(args.cfg[0], with_args(amp_opt_level=level), device, compiled, args.steps)
              for name, level, compiled in (("compiled, O1", "O1", True), ("eager, O0", "O0", False))}
    (folder / "losses.json").write_text(json.dumps(curves, indent=1) + "\n")
    draw(curves, folder / "losses.png")
    worst = max(abs(a - b) / b for a, b in zip(*curves.values(), strict=True))
    print(f"\n== losses of {args.steps} steps of {Path(args.cfg[0]).stem}, {' and '.join(curves)}: they differ by {worst:.2%} "
          f"at most; all of this is in {folder}")


def kernels(candidate, number=10):
    """[(name, milliseconds, calls)] of the kernels that take longest in a step."""
    for _ in range(3):
        candidate.step()
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (candidate.device.type == "cuda")
    with torch.profiler.profile(activities=kinds) as profile:
        candidate.step()
    on_gpu = candidate.device.type == "cuda"
    events = [(event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3, event.count)
              for event in profile.key_averages()]
    return sorted(events, key=lambda event: -event[1])[:number]


def losses(path, args, device, compiled, steps):
    """The losses of a run of so many steps on the candidate's images, from the same weights with the same draws."""
    candidate = step.Candidate(path, args, device, ["TRAIN.COMPILE", compiled])
    found = []
    for _ in range(steps):
        found.append(candidate.updater.update([candidate.compute_loss])[0])
    wait_for(device)
    return [loss.item() for loss in found]


def draw(curves, path):
    """Curves {name: values} as a picture."""
    picture = Image.new("RGB", SIZE, "white")
    pen, highest = ImageDraw.Draw(picture), max(max(values) for values in curves.values())
    width, height = (side - 2 * MARGIN for side in SIZE)
    pen.rectangle([MARGIN, MARGIN, MARGIN + width, MARGIN + height], outline="black")
    for i, (name, values) in enumerate(curves.items()):
        points = [(MARGIN + width * x / max(len(values) - 1, 1), MARGIN + height * (1 - value / highest))
                  for x, value in enumerate(values)]
        pen.line(points, fill=COLOURS[i], width=2)
        pen.text((MARGIN + width - 200, MARGIN + 10 + 20 * i), name, fill=COLOURS[i])
    pen.text((MARGIN, MARGIN - 20), f"loss, up to {highest:.4g}", fill="black")
    picture.save(path)
