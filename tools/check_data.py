"""Decode every image below a folder and list those that can't be read, before a run meets them.

  python tools/check_data.py <folder>                                  a table of sizes and modes, and the bad files
  python tools/check_data.py <folder> --output bad_images.txt          and the list that DATA.SKIP_LIST takes
  python tools/check_data.py <folder> --workers 32 --max-pixels 200000000

Exit code: 0 = all can be read, 1 = some can't, 2 = wrong arguments or no images. A file counts as bad where training could not
read it: broken, empty, no image, no file at all, or larger than --max-pixels. A file that takes longer than --timeout to read
counts as well (the disk may hang), and one whose decoder crashes.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository is cloned, not installed

from utils.cli import positive, run


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="images in it or below it, as --data-path")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the list of bad files")
    parser.add_argument("--workers", type=positive(int), default=8, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--max-pixels", type=positive(int), metavar="N", help="as DATA.MAX_PIXELS, and its default")
    parser.add_argument("--white", type=positive(float), default=0.0, metavar="VALUE", help="as DATA.WHITE, and its default")
    parser.add_argument("--channels", type=positive(int), default=3, metavar="N", help="as IN_CHANS (default: %(default)s)")
    parser.add_argument("--timeout", type=positive(float), default=60.0, metavar="SECONDS",
                        help="the longest that one file may take (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports that take seconds

import os
from collections import Counter
from functools import partial

from data.bad_images import named, write_list
from data.examining import answers
from data.folders import image_files, listing
from data.pixels import MAX_PIXELS, PIL_MODES, Rules
from data.reading import BadImage, examine
from data.splits import splits_read_as_one
from utils.tables import aligned


def main(args):
    if args.output and args.output.is_dir():
        raise ValueError(f"--output {args.output} is a folder: name a file, e.g. {args.output / 'bad_images.txt'}.")
    if args.output and not args.output.absolute().parent.is_dir():
        raise ValueError(f"--output {args.output}: {args.output.absolute().parent} does not exist. Make it, or choose another.")
    mode = PIL_MODES.get(args.channels, args.channels)
    with listing(mode, args.folder):
        paths = [os.path.abspath(path) for path in image_files(args.folder, "the folder's name")]
        note = splits_read_as_one(args.folder)
    if note:
        print(note)
    rules = Rules(args.max_pixels or MAX_PIXELS, white=args.white)
    kinds, bad = check(paths, args.workers, rules, args.timeout, mode)
    print(summary(kinds))
    print(f"{len(paths)} images, {len(bad)} can't be read" + (f": {named(bad)}" if bad else ""))
    if args.output:
        write_list(args.output, bad)
        print(f"{args.output}: {len(bad)} files, for DATA.SKIP_LIST")
    if bad:
        sys.exit(1)


def check(paths, num_workers, rules, timeout, mode="RGB"):
    """Decode files in processes of their own.

    Args:
        paths: absolute.
        rules, mode: how they are read, see data.reading.read_image.
        timeout: seconds after which a process that has not answered is killed; its file is bad.
    Returns: (Counter of (mode, width, height), {path: reason}).
    """
    kinds, bad = Counter(), {}
    for path, answer in answers(paths, partial(decode, rules=rules, mode=mode), num_workers, timeout):
        if isinstance(answer, OSError):
            raise answer
        if isinstance(answer, str):
            bad[path] = answer
        else:
            kinds[answer] += 1
    return kinds, bad


def decode(path, rules, mode="RGB"):
    """(mode, width, height) of an image file; or as text why training can't read it; or the OSError that this machine is at
    its end.
    """
    try:
        return examine(path, mode, rules)
    except BadImage as error:
        return error.reason
    except OSError as error:
        return error


def summary(kinds):
    """Modes, the most frequent sizes, and the range of sides, as text."""
    modes, sizes = Counter(), Counter()
    for (mode, width, height), count in kinds.items():
        modes[mode] += count
        sizes[f"{width} x {height}"] += count
    rows = [("mode", "images"), *((mode, str(count)) for mode, count in modes.most_common())]
    rows += [("size", "images"), *((size, str(count)) for size, count in sizes.most_common(10))]
    if len(sizes) > 10:
        rows.append((f"{len(sizes) - 10} others", str(sum(count for _, count in sizes.most_common()[10:]))))
    for name, sides in (("width", [width for _, width, _ in kinds]), ("height", [height for _, _, height in kinds])):
        if sides:
            rows.append((name, f"{min(sides)} to {max(sides)}"))
    return "\n".join(aligned(rows))


if __name__ == "__main__":
    run(main, ARGUMENTS)
