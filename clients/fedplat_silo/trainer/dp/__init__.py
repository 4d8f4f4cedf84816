"""DP-SGD: Poisson samples, gradients clipped one by one, noise once; nothing else leaves a step."""
