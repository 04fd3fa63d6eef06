"""What settings of several encoders and decoders must fulfil. Each raises ValueError that says what to use instead."""

LARGEST_SIDE = 2 ** 14  # of an image or a patch, in pixels


def image_size(config):
    """DATA.IMG_SIZE as (height, width)."""
    size = config.DATA.IMG_SIZE
    return (size, size) if isinstance(size, int) else tuple(size)


def check_stages(section, stages):
    """Depths and heads of an encoder with stages of twice the width each.

    Args:
        section: name of its settings, e.g. MODEL.SWIN.
        stages: those settings, with PATCH_SIZE, DEPTHS, NUM_HEADS, EMBED_DIM and MLP_RATIO.
    """
    if not stages.DEPTHS or len(stages.DEPTHS) != len(stages.NUM_HEADS):
        raise ValueError(f"{section}.DEPTHS={stages.DEPTHS} and {section}.NUM_HEADS={stages.NUM_HEADS} must have one value "
                         f"for each stage, and so the same length.")
    if min(stages.DEPTHS) < 1 or min(stages.NUM_HEADS) < 1:
        raise ValueError(f"{section}.DEPTHS={stages.DEPTHS} and {section}.NUM_HEADS={stages.NUM_HEADS} must be at least 1.")
    coarsest = stages.PATCH_SIZE * 2 ** (len(stages.DEPTHS) - 1)
    if coarsest > LARGEST_SIDE:
        raise ValueError(f"{section}.DEPTHS={stages.DEPTHS} has {len(stages.DEPTHS)} stages, each of which halves the map: "
                         f"images would have at least {coarsest} pixels a side. Use fewer, e.g. four.")
    check_mlp(section, stages.MLP_RATIO, stages.EMBED_DIM)
    for stage, heads in enumerate(stages.NUM_HEADS):
        width = stages.EMBED_DIM * 2 ** stage
        if width % heads:
            fit = fitting_heads(heads, width)
            raise ValueError(f"{section}.NUM_HEADS={stages.NUM_HEADS}: {heads} heads do not divide the {width} channels of "
                             f"stage {stage} (EMBED_DIM={stages.EMBED_DIM} x {2 ** stage}). Use e.g. {fit} heads there.")


def check_mlp(section, ratio, width, key="MLP_RATIO"):
    """A hidden layer of at least one channel between two of `width`."""
    if int(width * ratio) < 1:
        raise ValueError(f"{section}.{key}={ratio:g} leaves an MLP of width {width} no hidden channel. Use e.g. 4.")


def fitting_heads(heads, width):
    """The largest number, up to `heads`, that divides the width."""
    return max(h for h in range(1, heads + 1) if width % h == 0)


def window_problem(size, patch, windows):
    """Why a side of `size` pixels can't go through stages of these windows, or None. A window shrinks to a smaller map."""
    unit = patch * 2 ** (len(windows) - 1)
    if size % unit:
        return f"the image side must be a multiple of {unit} (PATCH_SIZE {patch} halved {len(windows) - 1} times)"
    for stage, window in enumerate(windows):
        side = size // patch // 2 ** stage
        if side % min(window, side):
            return f"the window does not divide the map of stage {stage}, {side} tokens wide"
    return None


def check_sincos(key, width):
    """The width of tokens that get a position table of sines and cosines."""
    if width % 4:
        raise ValueError(f"{key}={width} must be a multiple of 4: a quarter each for sines and cosines of column and row. Use "
                         f"{-(-width // 4) * 4}.")


def check_patches(section, patch, size, shown):
    """Whole patches in an image.

    Args:
        section: whose PATCH_SIZE it is.
        size: (height, width) in pixels.
        shown: DATA.IMG_SIZE as the user gave it.
    """
    for side in size:
        if side % patch:
            raise ValueError(f"{section}.PATCH_SIZE={patch} does not divide DATA.IMG_SIZE={shown}. "
                             f"Use DATA.IMG_SIZE {nearest_side(side, patch)}.")


def nearest_side(side, unit):
    """The side of an image of whole units of pixels, at least one, that is nearest to `side`."""
    return min(max(round(side / unit), 1), LARGEST_SIDE // unit) * unit
