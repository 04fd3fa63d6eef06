"""Draw the demo data set (ten classes told apart by shape) in ImageNet layout.

Example:
    python tools/make_demo_data.py --root /tmp/demo --train-per-class 1000 --val-per-class 200
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from data.demo import CLASSES, demo_data, make_demo_data


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, help="folder to create (default: one per parameter set, in the cache)")
    parser.add_argument("--train-per-class", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--val-per-class", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Returns: exit code, 0 or 2 (bad arguments, an unusable folder, or drawing failed)."""
    args = parse_arguments(arguments)
    start = time.perf_counter()
    try:
        if args.root is None:
            folder = demo_data(args.train_per_class, args.val_per_class, args.seed)
        else:
            folder = make_demo_data(args.root, args.train_per_class, args.val_per_class, args.seed)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"make_demo_data: {error}", file=sys.stderr)
        return 2
    num_train, num_val = args.train_per_class * len(CLASSES), args.val_per_class * len(CLASSES)
    seconds = time.perf_counter() - start
    print(f"{folder}: {num_train} train and {num_val} val images in {len(CLASSES)} classes, {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
