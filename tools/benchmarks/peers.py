"""The training step beside that of other projects: the same weights, images and masks, losses shown to be equal first."""
import torch
from torch import nn

from engine import Updater
from tools.benchmarks.peer_models import peers_of
from tools.benchmarks.step import Candidate, measure
from utils import distributed
from utils.precision import build_precision

CLOSE = 1e-4  # relative difference of losses in fp32 that rounding explains


def main(args):
    device = distributed.start()
    kinds = [["TRAIN.COMPILE", False], ["TRAIN.COMPILE", True]] if args.compiled else [[]]
    still = ["MODEL.DROP_PATH_RATE", 0.0]  # draws of different models differ
    candidates = [Candidate(args.cfg, args, device, [*kind, *still]) for kind in kinds]
    ours = candidates[0]
    if not ours.is_pretrain:
        raise ValueError(f"{args.cfg} is not for pre-training, for which there are peers: give e.g. a recipe of SimMIM or MAE.")
    state = {name: value.cpu() for name, value in ours.updater.model.state_dict().items()}
    peers = [Peer(name, module.to(device), ours) for name, module in peers_of(ours.config, state).items()]
    if not peers:
        raise ValueError(f"there is no peer of {args.cfg} here: transformers and timm have Swin with SimMIM, timm has SimMIM's "
                         f"ViT, transformers MAE. pip install -r requirements-bench.txt.")
    check_losses(ours, peers)
    measure([*candidates, *peers], args, device)


class Peer(Candidate):
    """A model of another project, ready to make training steps on the images and masks of ours, with the same optimizer."""

    def __init__(self, name, module, ours):
        self.name, self.config, self.device, self.is_pretrain = name, ours.config, ours.device, True
        start = self._allocated()
        precision = build_precision(ours.config.AMP_OPT_LEVEL, ours.config.AMP_BACKEND, ours.device)
        train = ours.config.TRAIN
        optimizer = torch.optim.AdamW(module.parameters(), lr=train.BASE_LR, weight_decay=train.WEIGHT_DECAY,
                                      fused=ours.device.type in ("cpu", "cuda"))
        self.updater = Updater(module.train(), optimizer, precision, train.CLIP_GRAD)
        self.precision, self.dtype, self.images, self.compute_loss = ours.precision, ours.dtype, ours.images, ours.compute_loss
        self.own, self.first = self._allocated() - start, True
        self.seconds, self.memory = [], 0.0
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0


@torch.no_grad()
def check_losses(ours, peers):
    """Raises: ValueError if a peer has another loss than ours in fp32."""
    expected = ours.compute_loss(ours.updater.model).item()
    for peer in peers:
        loss = peer.compute_loss(peer.updater.model).item()
        if not abs(loss - expected) <= CLOSE * abs(expected):
            raise ValueError(f"{peer.name} has a loss of {loss:.6f} where ours is {expected:.6f}: they are not one model.")
        print(f"loss in fp32: ours {expected:.6f}, {peer.name} {loss:.6f}")
