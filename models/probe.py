"""Linear classifiers on the features of a frozen encoder, one for each probed layer."""
import torch
from torch import nn

from models.build import build_encoder, materialize
from models.inputs import image_size
from models.layers import truncated_normal
from utils import distributed

HEAD_STD = 0.01
NORM_EPS = 1e-6


class SharedBatchNorm(nn.BatchNorm1d):
    """BatchNorm without affine whose statistics are those of the images of all processes, as if they were one.

    The features it sees need no gradient, so none goes through the statistics. In evaluation and for one process it is
    nn.BatchNorm1d.
    """

    def __init__(self, num_features):
        super().__init__(num_features, affine=False, eps=NORM_EPS)

    def forward(self, x):
        """(B, C) -> (B, C); in training all processes must call it, with batches of one size."""
        if not self.training or not distributed.is_parallel():
            return super().forward(x)
        with torch.no_grad():
            x = x.float()
            count = len(x) * distributed.world_size()
            mean = distributed.sum_over_processes(x.sum(dim=0)) / count
            centred = x - mean
            var = distributed.sum_over_processes(centred.square().sum(dim=0)) / count
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / max(count - 1, 1)), self.momentum)
            return centred * torch.rsqrt(var + self.eps)


class LinearProbe(nn.Module):
    """A frozen encoder with a linear head on each of some layers.

    Args:
        encoder: Encoder without a head.
        layers: what is probed, see Encoder.forward_layers.
        widths: channels of each.
        num_classes: size of each head.
        feature: mean or cls.
        batch_norm: normalise features, without learned scale, before the linear layer (MAE).
    Source: He et al. (arXiv 2111.06377), appendix A.1; names of one head as in its files: head.0.running_mean, head.1.weight.
    """

    def __init__(self, encoder, layers, widths, num_classes, feature="mean", batch_norm=True):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.layers = list(layers)
        self.feature = feature
        heads = [nn.Sequential(SharedBatchNorm(width) if batch_norm else nn.Identity(), nn.Linear(width, num_classes))
                 for width in widths]
        self.head = heads[0] if len(heads) == 1 else nn.ModuleDict(
            {str(layer): head for layer, head in zip(layers, heads, strict=True)})
        for head in heads:
            truncated_normal(head[1].weight, HEAD_STD)
            nn.init.zeros_(head[1].bias)

    @property
    def heads(self):
        """The head of each layer, in the order of `layers`."""
        return [self.head] if len(self.layers) == 1 else list(self.head.values())

    def train(self, mode=True):
        """The encoder always stays as in evaluation."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def features(self, images):
        """(B, C, H, W) -> list of (B, width), one for each layer, float32."""
        return [feature.float() for feature in self.encoder.forward_layers(images, self.layers, self.feature)]

    def forward(self, *inputs):
        """Images (B, C, H, W), or one tensor of features for each layer -> list of logits (B, classes)."""
        if inputs[0].ndim == 4:
            inputs = self.features(inputs[0])
        return [head(feature) for head, feature in zip(self.heads, inputs, strict=True)]

    def state_dict(self, *args, **kwargs):
        """With the encoder's names at the root, as in official files and fine-tuning checkpoints."""
        return {name.removeprefix("encoder."): value for name, value in super().state_dict(*args, **kwargs).items()}

    def no_weight_decay(self):
        return set()


def check_probing(config):
    """Refuse what main_linprobe.py can't do. Raises ValueError."""
    if config.EVAL_MODE and not config.MODEL.RESUME and not config.PROBE.KNN:
        raise ValueError("--eval needs a trained head: pass --resume <checkpoint of a probe>; --knn needs none.")
    needs_weights = not (config.THROUGHPUT_MODE or config.PROBE.RANDOM_ENCODER)
    if needs_weights and not config.PRETRAINED and (config.PROBE.KNN or not config.MODEL.RESUME):
        raise ValueError("a probe needs an encoder: pass --pretrained <checkpoint>; --random-encoder probes one that was never "
                         "trained.")
    if config.PROBE.RANDOM_ENCODER and config.PRETRAINED:
        raise ValueError(f"--random-encoder and --pretrained {config.PRETRAINED} contradict each other: leave one out.")
    if config.EVAL_MODE or config.THROUGHPUT_MODE or config.PROBE.KNN:
        return  # what follows is about training
    if config.TRAIN.PARALLEL != "ddp":
        raise ValueError(f"TRAIN.PARALLEL={config.TRAIN.PARALLEL} is for training encoders: a frozen one has neither gradients "
                         f"nor moments. Use TRAIN.PARALLEL ddp.")
    if config.PROBE.SWEEP and config.TRAIN.CLIP_GRAD:
        raise ValueError(f"TRAIN.CLIP_GRAD={config.TRAIN.CLIP_GRAD} would let the heads of --sweep slow each other down: use "
                         f"TRAIN.CLIP_GRAD 0.")


def check_batch_norm(config):
    """Refuse to normalise a batch of one image over all processes. Raises ValueError."""
    if config.PROBE.BATCH_NORM and config.DATA.BATCH_SIZE * distributed.world_size() < 2:
        raise ValueError("DATA.BATCH_SIZE=1 leaves nothing to normalise over: the head begins with a batch norm. Use 2 or "
                         "more, or --opts PROBE.BATCH_NORM False.")


def build_probe(config, num_classes):
    """The probe of PROBE around the encoder named by MODEL.TYPE.

    Raises: ValueError on a layer that the encoder does not have.
    """
    config = config.clone()
    config.defrost()
    config.MODEL.DROP_RATE = config.MODEL.DROP_PATH_RATE = 0.0
    with torch.device("meta"):
        encoder = build_encoder(config)
    materialize(encoder)
    layers = probed_layers(config.PROBE, len(encoder.probed_blocks()))
    with torch.no_grad():
        images = torch.zeros(1, encoder.in_chans, *image_size(config))
        widths = [feature.shape[1] for feature in encoder.eval().forward_layers(images, layers, config.PROBE.FEATURE)]
    return LinearProbe(encoder, layers, widths, num_classes, config.PROBE.FEATURE, config.PROBE.BATCH_NORM)


def probed_layers(probe, num_blocks):
    """PROBE.LAYER as [number from 1, or "last"]; with PROBE.SWEEP all of them."""
    if probe.SWEEP:
        return [*range(1, num_blocks + 1), "last"]
    return [numbered_layer(probe.LAYER, num_blocks)]


def numbered_layer(layer, num_blocks):
    """A layer as PROBE.LAYER names it, a number from 1, or from the end -1, or last, as number from 1 or "last".

    Raises: ValueError if there is none of that number.
    """
    if layer == "last":
        return layer
    return numbered_block(layer, num_blocks, "PROBE.LAYER={} (--layer)", "; `last` is the normalised output")


def numbered_block(block, num_blocks, given, more=""):
    """A number of a block, from 1, or from the end -1, as number from 1.

    Args:
        given: what the user gave, with {} in the place of the number, for the message.
        more: what else might have been given.
    Raises: ValueError if there is none of that number.
    """
    block = int(block)
    if not 1 <= abs(block) <= num_blocks:
        raise ValueError(f"{given.format(block)} does not exist: the encoder has blocks 1 to {num_blocks}, counted from the "
                         f"end -{num_blocks} to -1{more}.")
    return block if block > 0 else num_blocks + 1 + block
