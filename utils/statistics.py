"""Mean and standard deviation of pixels."""

IMAGENET_STATISTICS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean, deviation of RGB in [0, 1]


def channel_statistics(channels, mean=(), std=()):
    """Mean and standard deviation of each channel, of pixels in [0, 1]: ([...], [...]).

    Args:
        mean, std: as given; empty = those of ImageNet for three channels, 0.5 otherwise.
    """
    usual = IMAGENET_STATISTICS if channels == 3 else ([0.5] * channels, [0.5] * channels)
    return list(mean or usual[0]), list(std or usual[1])
