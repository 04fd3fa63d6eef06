"""Pre-training methods, one file each with its settings and their checks; method.py is their contract, targets.py what they
predict."""
from models.methods.mae import MAE_METHOD
from models.methods.mixmim import MIXMIM_METHOD
from models.methods.simmim import SIMMIM
from models.methods.targets import PIXMIM

METHODS = {"simmim": SIMMIM, "mae": MAE_METHOD, "mixmim": MIXMIM_METHOD}
SHARED = {"pixmim": PIXMIM}  # sections that any method may read
