"""Classification by nearest neighbours in feature space."""
import torch
from torch.nn import functional as F


@torch.no_grad()
def count_correct(queries, labels, bank, bank_labels, ks, temperature, num_classes):
    """How many queries the votes of their nearest neighbours classify correctly.

    The k most similar (cosine) vectors of the bank vote for their class with the weight exp(similarity / temperature).
    A class without a vote is never counted as found.

    Args:
        queries: (Q, C) float, on the device that computes.
        labels: (Q,) int64, on that device.
        bank: iterable of (n, C) float, parts of the bank.
        bank_labels: (N,) int64, N the sum of the n.
        ks: numbers of neighbours; one above N means all N.
        temperature: above 0.
        num_classes: labels are 0 <= label < num_classes.
    Returns: (len(ks), 2) int64: correct in the first place, correct among the first five.
    Source: Wu et al. (arXiv 1805.01978), section 3.4, as evaluated by DINO (arXiv 2104.14294).
    """
    if not len(queries):
        return torch.zeros(len(ks), 2, dtype=torch.int64)
    queries = F.normalize(queries.float(), dim=1)
    similarity, neighbours = _nearest(queries, bank, max(ks))
    votes_for = bank_labels.to(queries.device)[neighbours]  # (Q, k)
    counts = torch.zeros(len(ks), 2, dtype=torch.int64)
    for row, k in enumerate(ks):
        # the same factor for all votes of a query keeps them finite at any temperature
        weights = ((similarity[:, :k] - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(queries), num_classes, device=queries.device).scatter_add_(1, votes_for[:, :k], weights)
        best = votes.topk(min(5, num_classes), dim=1)
        hits = best.indices.eq(labels.unsqueeze(1)) & (best.values > 0)
        counts[row] = torch.stack([hits[:, 0].sum(), hits.any(dim=1).sum()]).cpu()
    return counts


def _nearest(queries, bank, k, chunk=1024):
    """Similarity and position in the bank of the k nearest vectors of each query, nearest first: two of (Q, k)."""
    best = torch.empty(len(queries), 0, device=queries.device)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    start = 0
    for part in bank:
        part = F.normalize(part.to(queries.device).float(), dim=1)
        found = [torch.cat([best[i:i + chunk], queries[i:i + chunk] @ part.T], dim=1).topk(min(k, best.shape[1] + len(part)))
                 for i in range(0, len(queries), chunk)]
        positions = torch.arange(start, start + len(part), device=queries.device)
        where = torch.cat([torch.cat([w, positions.expand(len(w), -1)], dim=1).gather(1, f.indices)
                           for w, f in zip(where.split(chunk), found, strict=True)])
        best = torch.cat([f.values for f in found])
        start += len(part)
    return best, where
