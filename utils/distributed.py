"""Processes of a run: torchrun, torch.distributed.launch, or one plain process."""
import os
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist


def start(local_rank=0, timeout_minutes=30):
    """Join the process group if a launcher made one, and choose the device.

    Args:
        local_rank: device index where no launcher sets LOCAL_RANK.
        timeout_minutes: a collective operation that waits longer fails instead of hanging.
    Returns: torch.device: CUDA, MPS or CPU.
    Raises: ValueError where the launcher's environment is incomplete, there are fewer GPUs than processes, or this is one of
        several tasks of Slurm or MPI that do not know of each other.
    """
    _refuse_task_of_many()
    local_rank = int(os.environ.get("LOCAL_RANK", local_rank))
    device = _device(local_rank)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(f"WORLD_SIZE is set but {', '.join(missing)} is not: start several processes with torchrun, or "
                             f"unset WORLD_SIZE to run one.")
        if device.type == "mps" and int(os.environ["WORLD_SIZE"]) > 1:
            raise ValueError("several processes can't share the GPU of a Mac: start one with plain python.")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(minutes=timeout_minutes)
        dist.init_process_group(backend, timeout=timeout, **_place_of_meeting(timeout))
        Exchange.group = dist.new_group(backend="gloo", timeout=timeout)
    return device


def _place_of_meeting(timeout):
    """Where the processes find each other, as arguments of init_process_group; {} = as the environment says.

    torchrun keeps its store when it starts the ranks of a machine again (--max-restarts), with the addresses of those that
    died: so each attempt has a part of its own. On several machines the numbers of attempts need not agree.
    """
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or env.get("LOCAL_WORLD_SIZE") != env["WORLD_SIZE"]:
        return {}
    return {"store": dist.PrefixStore(f"attempt_{attempt()}", store(timeout)), "rank": int(env["RANK"]),
            "world_size": int(env["WORLD_SIZE"])}


def store(timeout=timedelta(minutes=5)):
    """A connection to what the processes of a run share, which the launcher or rank 0 keeps."""
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout,
                         wait_for_workers=False)


def attempt():
    """How often the launcher has started the ranks before."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


# (number of this task, how many there are) as srun and mpirun name them; a step of a Slurm job may have fewer than the job
TASKS = {"srun": ("SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")),
         "mpirun": ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)), "mpiexec": ("PMI_RANK", ("PMI_SIZE",))}


def _refuse_task_of_many():
    """Without torchrun's variables each task would train alone what all of them are to train together."""
    if "WORLD_SIZE" in os.environ:
        return
    for starter, (number, counts) in TASKS.items():
        count = next((os.environ[name] for name in counts if os.environ.get(name)), "1")
        if number in os.environ and count.isdecimal() and int(count) > 1:
            raise ValueError(f"this is task {os.environ[number]} of {count} ({number}, set by {starter}), and they do not know "
                             f"of each other: have {starter} start one torchrun on each machine (README, \"Several GPUs and "
                             f"nodes\"), or one task (unset {number} to run this process alone).")


def _device(local_rank):
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} are visible. Use "
                             f"--nproc_per_node {torch.cuda.device_count()} or look at CUDA_VISIBLE_DEVICES.")
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def stop():
    """Leave the process group once all are done: with one that goes, what others have not read yet of it may be lost."""
    if dist.is_initialized():
        try:
            barrier()
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise  # otherwise another has gone, with a code of its own; here all is done
        dist.destroy_process_group()
        Exchange.group = None


def is_waiting_in_vain(error):
    """Whether a collective operation failed because another process did not come."""
    return isinstance(error, RuntimeError) and is_parallel() and "Timed out waiting" in str(error)


def is_lost_peer(error):
    """Whether a collective operation failed because another process went away, or did not come."""
    lost = ("Timed out waiting", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "remote process exited",
            "Socket closed")
    return isinstance(error, RuntimeError) and is_parallel() and (
        isinstance(error, dist.DistError) or any(words in str(error) for words in lost))


def is_parallel():
    return dist.is_available() and dist.is_initialized()


def rank():
    return dist.get_rank() if is_parallel() else 0


def world_size():
    return dist.get_world_size() if is_parallel() else 1


def barrier():
    if is_parallel():
        dist.barrier()


def sum_over_processes(tensor):
    """Sum of a tensor over all processes, in a new tensor."""
    total = tensor.clone()
    if is_parallel():
        dist.all_reduce(total)
    return total


def largest_over_processes(tensor):
    """Elementwise maximum of a tensor over all processes, in a new tensor."""
    largest = tensor.clone()
    if is_parallel():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def any_process(flag, device):
    """Whether a flag is set on any process; waits for all of them."""
    return bool(largest_over_processes(torch.tensor(int(flag), device=device)).item())


def from_all(value):
    """The values of all processes (any picklable objects), in the order of their ranks, on each of them."""
    if not is_parallel():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank0(value):
    """The value that rank 0 holds (any picklable object), on every rank."""
    if not is_parallel():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class Exchange:
    """Whole numbers that all processes tell each other in every step, without waiting for each other.

    What a process gets is the largest of each number over all processes, of the call before: so all get the same in the same
    step, and none waits for one that is a little behind. Not to be confused with gradients: it never touches the device.
    """

    group = None  # of its own, so that it can't be mixed up with what a model sends

    def __init__(self):
        self.sent = None

    def __call__(self, *numbers):
        """Tell, and hear: a list of as many numbers; of one process its own, of several zeros the first time."""
        if not is_parallel():
            return list(numbers)
        before, told = self.sent, torch.tensor(numbers, dtype=torch.int64)
        self.sent = dist.all_reduce(told, dist.ReduceOp.MAX, group=Exchange.group, async_op=True), told
        if before is None:
            return [0] * len(numbers)
        before[0].wait()
        return before[1].tolist()


@contextmanager
def rank0_first():
    """Let rank 0 run the block before the others, who then find what it left on disk."""
    if rank() != 0:
        barrier()
    yield
    if rank() == 0:
        barrier()
