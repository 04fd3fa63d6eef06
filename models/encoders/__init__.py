"""Encoders, one file each with its settings and their checks; encoder.py is their contract."""
from models.encoders.convmae import CONVMAE
from models.encoders.mixmim import MIXMIM_ENCODER
from models.encoders.swin import SWIN
from models.encoders.swinv2 import SWINV2
from models.encoders.vit import VIT

ENCODERS = {"swin": SWIN, "swinv2": SWINV2, "vit": VIT, "convmae": CONVMAE, "mixmim": MIXMIM_ENCODER}
