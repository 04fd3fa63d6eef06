"""Command line of the mains: the flags of the official SimMIM, and errors as one line."""
import argparse
import gc
import io
import logging
import math
import os
import sys
import traceback

from utils import stopping
from utils.names import shown

FLAGS = {  # flag: (config key, type, help)
    "--batch-size": ("DATA.BATCH_SIZE", int, "images per process and micro-batch"),
    "--data-path": ("DATA.DATA_PATH", str, "data folder"),
    "--resume": ("MODEL.RESUME", str, "checkpoint to continue from or to evaluate (path or https address)"),
    "--pretrained": ("PRETRAINED", str, "checkpoint that initialises the model (path or https address)"),
    "--accumulation-steps": ("TRAIN.ACCUMULATION_STEPS", int, "micro-batches per optimizer step"),
    "--amp-opt-level": ("AMP_OPT_LEVEL", str, "O0 fp32, O1 mixed precision, O2 = O1"),
    "--output": ("OUTPUT", str, "root of the run folders (default: output)"),
    "--tag": ("TAG", str, "name of this run: <output>/<MODEL.NAME>/<tag>"),
}
SWITCHES = {
    "--use-checkpoint": ("TRAIN.USE_CHECKPOINT", "recompute activations to save memory"),
    "--eval": ("EVAL_MODE", "evaluate and stop"),
    "--throughput": ("THROUGHPUT_MODE", "measure inference throughput and stop"),
}


def positive(kind):
    """A type for argparse: int or float above 0, and finite."""
    def parse(text):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value
    parse.__name__ = kind.__name__  # argparse names it where the text is no number
    return parse


def add_data(parser):
    """The flags of tools that read images as pre-training does."""
    parser.add_argument("--cfg", required=True, metavar="FILE", help="pre-training recipe, see configs/")
    parser.add_argument("--data-path", metavar="FOLDER", help="images (default: those of the recipe)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings, see config.py")


CHOOSING = {  # of programs that choose their settings where no --cfg is given, see planning/start.py
    "--hours": ("HOURS", positive(float), "without --cfg: what the run may take"),
    "--encoder": ("MODEL.TYPE", str, "encoder; without --cfg swin, swinv2 or vit"),
}


def add_ema(parser):
    """The flag that chooses the average of the weights in a checkpoint, as PRETRAINED_KEY; None where it is not given."""
    parser.add_argument("--ema", dest="PRETRAINED_KEY", action="store_const", const="ema",
                        help="take the average of the weights that the checkpoint holds beside them (PRETRAINED_KEY ema)")


def parse_arguments(description, argv=None, flags=None, switches=None):
    """Parse the flags of the mains.

    Args:
        argv: words; None = those of the program, which begins now.
        flags, switches: those of one main, as FLAGS and SWITCHES.
    Returns: (path of the YAML file, or None; opts for load_config); flags win over --opts, as in the official code.
    """
    stopping.listen()  # before the imports that take seconds
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", metavar="FILE", help="recipe, see configs/, or a checkpoint that keeps its settings (default: "
                                                      "those of --resume, or chosen by the images of --data-path)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="other settings, see config.py")
    for flag, (key, kind, text) in {**FLAGS, **(flags or {})}.items():
        choices = ("O0", "O1", "O2") if flag == "--amp-opt-level" else None
        parser.add_argument(flag, dest=key, type=kind, choices=choices, help=f"{text} ({key})")
    for flag, (key, text) in {**SWITCHES, **(switches or {})}.items():
        parser.add_argument(flag, dest=key, action="store_const", const=True, help=f"{text} ({key})")
    add_ema(parser)
    parser.add_argument("--local_rank", "--local-rank", dest="LOCAL_RANK", type=int, help=argparse.SUPPRESS)
    values = vars(parser.parse_args(argv))
    if argv is None:
        gc.disable()  # until `run`: what a program imports now stays, and looking through it is a fifth of the start
    cfg, opts = values.pop("cfg"), values.pop("opts")
    for key, value in values.items():
        if value is not None:
            opts += [key, value]
    return cfg, opts


def run(main, *arguments):
    """Run main(*arguments); what the user can mend becomes one line on stderr and exit code 2.

    A run that was asked to stop, and has saved, says so in one line and ends with a code of utils.stopping.CODES.

    The full traceback goes to the log file of a run that has begun, or to the console with SIMMIM_TRACEBACK=1.
    """
    from utils import distributed, heartbeat  # here, so that --help does not wait for torch

    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    for stream in (sys.stdout, sys.stderr):  # names of files and classes may be what a console can't show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main(*arguments)
        distributed.stop()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except stopping.Stopped as stopped:
        code = stopped.code
        if distributed.rank() == 0:
            print(stopped, file=sys.stderr)
    except BrokenPipeError:  # what reads the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        logging.getLogger("simmim").debug("stopped by an error", exc_info=True)
        code = 2 if isinstance(error, (ValueError, OSError)) else 1
        if os.environ.get("SIMMIM_TRACEBACK") or (code == 1 and not distributed.is_lost_peer(error)):
            traceback.print_exc()
        else:
            where = f"[rank {distributed.rank()}] " if distributed.is_parallel() else ""
            lost = "" if code == 2 else "another process ended first, killed or by an error that its own line tells: "
            if distributed.is_waiting_in_vain(error):
                lost = f"another process did not come ({heartbeat.others() or 'nothing is known of it'}): "
            print(f"{where}error: {lost}{_one_line(error)}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    stopping.kill_children()
    if code and distributed.is_parallel():
        logging.shutdown()
        os._exit(code)  # leaving the process group properly would wait for the others, who wait for this one
    sys.exit(code)


def _one_line(error):
    """The message; of an error in a loader process only the error itself, not its traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        last = text.splitlines()[-1]
        text = last.partition(": ")[2] or last
    text = " ".join(text.split()) or type(error).__name__
    return shown(text)  # names of files may be no text, or hold codes that a terminal obeys
