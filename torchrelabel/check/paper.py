"""What ReLabel's paper found on ImageNet's validation set, to stand beside one's own figures.

Source: Yun et al. 2021, https://arxiv.org/abs/2101.05022, figure 2 (the distribution of IoU between random crops and
boxes) and figure 5 (confidence by IoU), read off the figures: the first to 0.4 %, the second to 0.002.
"""

from __future__ import annotations

NO_OVERLAP = 0.08
ABOVE_HALF = 0.235
# Both are bins of a histogram with 49 bins: what is called no overlap ends at .020, and what is called a half at .510.
# Exactly at a half the same figure gives 24.7 %.
ABOVE_HALF_EXACT = 0.247

# Share of the crops below the upper edge of each bin, (k + 1) / 49.
CDF = (
    *(0.075, 0.099, 0.124, 0.145, 0.172, 0.200, 0.232, 0.263, 0.294, 0.326, 0.357, 0.389, 0.420, 0.451, 0.483),
    *(0.510, 0.542, 0.573, 0.601, 0.629, 0.657, 0.685, 0.713, 0.740, 0.765, 0.789, 0.810, 0.831, 0.852, 0.873),
    *(0.890, 0.904, 0.918, 0.932, 0.943, 0.953, 0.963, 0.970, 0.977, 0.984, 0.988, 0.991, 0.995, 0.998),
)
CDF_BINS = 49

# Mean confidence of the pooled label at an IoU of 0, 0.02, ..., 0.80.
CONFIDENCE = (
    *(0.557, 0.685, 0.704, 0.716, 0.732, 0.749, 0.772, 0.791, 0.810, 0.824, 0.838, 0.847, 0.857, 0.864, 0.871),
    *(0.876, 0.880, 0.883, 0.889, 0.889, 0.892, 0.894, 0.895, 0.897, 0.899, 0.901, 0.901, 0.901, 0.902, 0.902),
    *(0.902, 0.902, 0.904, 0.902, 0.902, 0.901, 0.899, 0.897, 0.894, 0.892, 0.887),
)
CONFIDENCE_STEP = 0.02
