"""Ways to spoil a file."""
import os
import shutil


def cut(path, rng):
    """Off at a random place, as a full disk or a crash would."""
    content = path.read_bytes()
    path.write_bytes(content[:rng.randrange(max(len(content), 1))])


def cut_a_little(path, rng):
    """A few bytes off the end."""
    content = path.read_bytes()
    path.write_bytes(content[:-rng.randint(1, 40)])


def flip(path, rng):
    """One bit."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zero(path, rng):
    """A block of zeros, as a file system leaves after a power cut."""
    content = bytearray(path.read_bytes())
    begin = rng.randrange(len(content))
    size = min(4096, len(content) - begin)
    content[begin:begin + size] = bytes(size)
    path.write_bytes(content)


def empty(path, rng):
    path.write_bytes(b"")


def noise(path, rng):
    path.write_bytes(rng.randbytes(200))


def dangling_link(path, rng):
    remove(path)
    path.symlink_to(path.with_name("nowhere"))


def fifo(path, rng):
    remove(path)
    os.mkfifo(path)


def folder(path, rng):
    remove(path)
    path.mkdir()


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
