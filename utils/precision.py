"""Number formats of training: fp32, mixed precision by torch.amp, or apex where an old one is installed."""
import logging

import torch

log = logging.getLogger("simmim.precision")

LOWEST_SCALE = 1.0  # of losses in float16


def build_precision(level, backend, device):
    """What runs forward, backward and the optimizer step in the wanted format.

    Args:
        level: O0 fp32, O1 mixed precision, O2 = O1; "" = O1 on CUDA, O0 elsewhere.
        backend: native or apex.
        device: torch.device.
    """
    level = level or ("O1" if device.type == "cuda" else "O0")
    if backend == "apex":
        return ApexPrecision(level)
    if level == "O2":
        log.info("AMP_OPT_LEVEL O2 (fp16 weights) exists only in apex: using O1, mixed precision by torch.autocast")
    return NativePrecision(device, None if level == "O0" else mixed_dtype(device))


def computes_in_bfloat16():
    """Whether this CPU multiplies matrices of bfloat16 itself, faster than those of float32."""
    tests = (getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test() for test in tests)


def mixed_dtype(device):
    """bfloat16 where the device computes in it, else float16 (which needs loss scaling)."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    if device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        return torch.float16
    return torch.bfloat16


class NativePrecision:
    """torch.autocast, with a gradient scaler for float16.

    Args:
        device: torch.device.
        dtype: bfloat16, float16, or None for fp32.
    """

    def __init__(self, device, dtype):
        self.device = device
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def __str__(self):
        return "fp32" if self.dtype is None else f"mixed {str(self.dtype).removeprefix('torch.')}"

    def prepare(self, model, optimizer):
        return model, optimizer

    def autocast(self):
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss, optimizer, last):
        self.scaler.scale(loss).backward()

    def gradients(self, optimizer):
        """Parameters whose gradients are to be clipped, in true scale."""
        self.scaler.unscale_(optimizer)
        return [p for group in optimizer.param_groups for p in group["params"]]

    def step(self, optimizer, nonfinite):
        """Step unless `nonfinite` (a bool tensor). Fused optimizers decide on the device, without a synchronisation."""
        if self.scaler.is_enabled():
            self.scaler.step(optimizer)
            self.scaler.update()
        elif optimizer.defaults.get("fused"):
            optimizer.grad_scale, optimizer.found_inf = None, nonfinite.float()
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        elif not nonfinite:
            optimizer.step()

    def hold_scale(self):
        """Keep the factor on losses from falling to nothing, as it would while step after step is skipped; reads the device."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < LOWEST_SCALE:
            log.warning("the loss scale of float16 has fallen below %g and is held there: gradients overflow, or are NaN",
                        LOWEST_SCALE)
            self.scaler.update(LOWEST_SCALE)

    def state_dict(self):
        return self.scaler.state_dict()

    def load_state_dict(self, state):
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


class ApexPrecision:
    """apex.amp, for those who must reproduce a run of its time."""

    def __init__(self, level):
        try:
            from apex import amp
        except ImportError as error:
            raise ValueError(
                f"AMP_BACKEND apex needs apex.amp, which is not installed or no longer part of this apex ({error}; it was "
                f"removed in 2025). Use AMP_BACKEND native, or an apex from before May 2025 built from source.") from error
        self.amp = amp
        self.level = level

    def __str__(self):
        return f"apex {self.level}"

    def prepare(self, model, optimizer):
        return self.amp.initialize(model, optimizer, opt_level=self.level)

    def autocast(self):
        return torch.autocast("cpu", enabled=False)  # apex patched the functions themselves

    def backward(self, loss, optimizer, last):
        with self.amp.scale_loss(loss, optimizer, delay_unscale=not last) as scaled:
            scaled.backward()

    def gradients(self, optimizer):
        return list(self.amp.master_params(optimizer))

    def step(self, optimizer, nonfinite):
        if not nonfinite:
            optimizer.step()

    def hold_scale(self):
        """apex holds the factor itself."""

    def state_dict(self):
        return self.amp.state_dict()

    def load_state_dict(self, state):
        if state:
            self.amp.load_state_dict(state)
