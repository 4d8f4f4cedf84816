"""Privacy figures by other means: closed forms, integration over the noise, and a small PLD of our own."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from fedplat.privacy import SampledGaussian


def event(sampling_rate: float, noise_multiplier: float, num_steps: int) -> SampledGaussian:
    return SampledGaussian(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, num_steps=num_steps)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of a Gaussian mechanism of sensitivity mu and noise 1: an upper tail under either hypothesis."""
    cut = epsilon / mu + mu / 2
    return float(ndtr(mu - cut) - math.exp(epsilon) * ndtr(-cut))


def gaussian_epsilon(mu: float, delta: float) -> float:
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0, 100, xtol=1e-12))


def gaussian_tpr(mu: float, fpr: float) -> float:
    return float(ndtr(ndtri(fpr) + mu))


def one_step_delta(sampling_rate: float, noise_multiplier: float, epsilon: float) -> float:
    """The larger of both hockey-stick divergences of one step, integrated over what is released."""
    x, width = np.linspace(-14 * noise_multiplier, 14 * noise_multiplier + 1, 200_001, retstep=True)
    density = np.exp(-0.5 * (x / noise_multiplier) ** 2) / (noise_multiplier * math.sqrt(2 * math.pi))
    with_record = np.exp(-0.5 * ((x - 1) / noise_multiplier) ** 2) / (noise_multiplier * math.sqrt(2 * math.pi))
    mixture = (1 - sampling_rate) * density + sampling_rate * with_record
    removed = np.maximum(mixture - math.exp(epsilon) * density, 0).sum() * width
    added = np.maximum(density - math.exp(epsilon) * mixture, 0).sum() * width
    return float(max(removed, added))


class OwnPld:
    """The loss of removing a record, rounded to the nearest of a grid, composed by FFT: close to the truth."""

    def __init__(self, events: list[SampledGaussian], reach: float = 25.0, interval: float = 2e-4) -> None:
        half = round(reach / interval)
        self._losses = np.arange(-half, half) * interval
        spectrum = np.ones(half + 1, dtype=complex)
        for each in events:
            masses = np.fft.ifftshift(self._one_step(each, interval))
            spectrum *= np.fft.rfft(masses) ** each.num_steps
        self._masses = np.fft.fftshift(np.fft.irfft(spectrum, n=2 * half))

    def _one_step(self, each: SampledGaussian, interval: float) -> np.ndarray:
        q, sigma = each.sampling_rate, each.noise_multiplier
        edges = np.append(self._losses, self._losses[-1] + interval) - interval / 2
        ratio = np.maximum((np.exp(edges) - (1 - q)) / q, 1e-300)
        x = 0.5 + sigma**2 * np.log(ratio)
        return np.diff((1 - q) * ndtr(x / sigma) + q * ndtr((x - 1) / sigma))

    def delta(self, epsilon: float) -> float:
        above = self._losses > epsilon
        return float(self._masses[above] @ -np.expm1(epsilon - self._losses[above]))

    def epsilon(self, delta: float) -> float:
        return float(brentq(lambda epsilon: self.delta(epsilon) - delta, 0, self._losses[-1]))
