"""Draws B-mode ultrasound of a breast with a lesion, with the statistics that matter.

Scatterers on a grid of (depth, beam) have complex normal amplitudes, scaled by the tissue's echogenicity. Filtered by
the scanner's point-spread function they give fully developed speckle, whose envelope is Rayleigh distributed
(Burckhardt 1978, doi 10.1109/T-SU.1978.30978); it is attenuated along the beam, log-compressed, and scan-converted to a
fan.

Lengths are in sides of the image, depths in shares of the depth shown, levels in dB with 0 for white.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.special import expit

_MARGIN = 0.02  # black around the fan


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything about a view but its random texture.

    Attributes:
      half_angle: of the fan, in degrees.
      shown: depth shown, as a share of the distance from the fan's apex to its end.
      gain, dynamic_range: of the log compression, dB.
      tilt: level at the end of the fan for want of time-gain compensation, dB.
      skin, fat_depth, gland_depth: thickness of the layers; muscle has the rest.
      fat, gland, muscle: echogenicity, dB.
      septa: how far septa and fascias stand out, dB.
      lesion_depth: of its centre.
      lesion_side: from -1, touching the left edge of the fan, to 1.
      radius: of the disc with the lesion's area.
      aspect: the lesion's width by its height.
      rotation: of the lesion, in radians.
      roughness: standard deviation of each wave of the outline, as a share of the radius.
      spicules: how many.
      reach: their mean length, as a share of the radius.
      blur: width of the margin, as a share of the radius.
      darkness: of the lesion below fat, dB.
      attenuation: inside the lesion beyond the tissue's, dB per side of the image; negative enhances what lies behind.
      halo: echogenicity of the tissue around the lesion above other tissue, dB.
      rim: attenuation by refraction at a smooth edge, dB per side of the image.
    """

    half_angle: float
    shown: float
    gain: float
    dynamic_range: float
    tilt: float
    skin: float
    fat_depth: float
    gland_depth: float
    fat: float
    gland: float
    muscle: float
    septa: float
    lesion_depth: float
    lesion_side: float
    radius: float
    aspect: float
    rotation: float
    roughness: float
    spicules: float
    reach: float
    blur: float
    darkness: float
    attenuation: float
    halo: float
    rim: float

    @property
    def fan(self) -> "Fan":
        return Fan(np.radians(self.half_angle), self.shown)


class Fan:
    """Where a convex probe's beams lie: on rings from `near` to `far` around an apex above the image.

    `half_angle` is in radians.
    """

    def __init__(self, half_angle: float, shown: float) -> None:
        self.half_angle, self.far = half_angle, (0.5 - _MARGIN) / np.sin(half_angle)
        self.near = self.far - min(1 - 2 * _MARGIN, shown * self.far)
        self.apex = _MARGIN - self.near * np.cos(half_angle)

    def polar(self, column: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depth and beam, both 0..1 inside the fan."""
        radius, angle = np.hypot(column - 0.5, row - self.apex), np.arctan2(column - 0.5, row - self.apex)
        return (radius - self.near) / (self.far - self.near), 0.5 + angle / (2 * self.half_angle)

    def cartesian(self, depth: np.ndarray, beam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Column and row."""
        radius, angle = self.near + depth * (self.far - self.near), (2 * beam - 1) * self.half_angle
        return 0.5 + radius * np.sin(angle), self.apex + radius * np.cos(angle)


def _draw_outline(rng: np.random.Generator, scene: Scene) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Draws a lesion's outline, an ellipse with waves and spicules.

    Returns:
      The distance of (column, row) from the lesion's centre, as a share of the way to the outline: below 1 inside.
    """
    edge, middle = scene.fan.cartesian(np.array(scene.lesion_depth), np.array(1.0))
    centre = 0.5 + scene.lesion_side * max(float(edge) - 0.5 - scene.radius, 0.0)
    amplitudes, phases = rng.normal(0, scene.roughness, 6) / np.arange(1, 7) ** 0.7, rng.uniform(0, 2 * np.pi, 6)
    count = round(scene.spicules)
    angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.4, 0.4, count)) / max(count, 1)
    widths, lengths = rng.uniform(0.07, 0.22, count), scene.reach * rng.uniform(0.4, 1.6, count)
    turn = np.linspace(-np.pi, np.pi, 721)
    reach = np.ones_like(turn)
    for turns, (amplitude, phase) in enumerate(zip(amplitudes, phases, strict=True), start=2):
        reach += amplitude * np.cos(turns * turn + phase)
    for angle, width, length in zip(angles, widths, lengths, strict=True):
        away = np.angle(np.exp(1j * (turn - angle)))
        reach += length * np.exp(-((away / width) ** 2))
    reach *= scene.radius / np.sqrt((reach**2).mean())

    def distance(column: np.ndarray, row: np.ndarray) -> np.ndarray:
        x, z = column - centre, row - float(middle)
        cos, sin = np.cos(scene.rotation), np.sin(scene.rotation)
        across = (x * cos + z * sin) / np.sqrt(scene.aspect)
        down = (z * cos - x * sin) * np.sqrt(scene.aspect)
        return np.hypot(across, down) / np.interp(np.arctan2(down, across), turn, reach)

    return distance


def _smooth(rng: np.random.Generator, shape: tuple[int, int], depth: float, beam: float) -> np.ndarray:
    """Noise of unit variance that varies over `depth` and `beam`, shares of the grid's sides."""
    rows, beams = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    transfer = np.exp(-2 * np.pi**2 * ((rows * depth * shape[0]) ** 2 + (beams * beam * shape[1]) ** 2))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * transfer, s=shape)
    return field / field.std()


def _sheets(rng: np.random.Generator, shape: tuple[int, int], depth: float, beam: float, width: float) -> np.ndarray:
    """Thin sheets, 1 in their middle: where a smooth field passes zero."""
    return np.exp(-((_smooth(rng, shape, depth, beam) / width) ** 2))


def _tissue(rng: np.random.Generator, scene: Scene, depth: np.ndarray) -> np.ndarray:
    """Echogenicity in dB of skin, fat with its septa, gland and muscle; float [rows, beams]."""
    shape, line = depth.shape, (1, depth.shape[1])
    bend = 0.035 * _smooth(rng, line, 0, 0.12) + 0.012 * _smooth(rng, line, 0, 0.03)
    fat_end = scene.skin + scene.fat_depth + bend
    gland_end = scene.skin + scene.fat_depth + scene.gland_depth + 0.02 * _smooth(rng, line, 0, 0.2)
    fat = scene.fat + scene.septa * _sheets(rng, shape, 0.025, 0.12, 0.14)
    lobules = 5 * expit(6 * (_smooth(rng, shape, 0.03, 0.06) - 0.8))
    gland = scene.gland - lobules + 5 * _sheets(rng, shape, 0.018, 0.1, 0.2)
    muscle = scene.muscle + scene.septa * _sheets(rng, shape, 0.014, 0.25, 0.2)
    echo = fat + (gland - fat) * expit((depth - fat_end) / 0.006)
    echo += (muscle - echo) * expit((depth - gland_end) / 0.006)
    echo += 7 * np.exp(-(((depth - gland_end) / 0.008) ** 2)) * np.clip(_smooth(rng, line, 0, 0.08) + 1.2, 0, 2)
    skin = -14 - 9 * np.exp(-(((depth - 0.6 * scene.skin) / (0.25 * scene.skin)) ** 2))
    return np.where(depth < scene.skin, skin, echo)


def _with_lesion(
    rng: np.random.Generator, scene: Scene, echo: np.ndarray, distance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the lesion into the tissue; returns echogenicity and the loss along each beam so far, both in dB."""
    inside = expit((1 - distance) / (0.5 * scene.blur))
    content = scene.fat - scene.darkness + 2 * _smooth(rng, echo.shape, 0.02, 0.03)
    echo = echo + scene.halo * np.exp(-(((distance - 1 - scene.blur) / (2 * scene.blur + 0.1)) ** 2))
    # Beams along the sides of a smooth rim stay in it longest, hence the thin shadows from a benign lesion's sides.
    rim = scene.rim * np.exp(-(((distance - 1) / 0.06) ** 2))
    loss = np.cumsum(scene.attenuation * inside + rim, axis=0) * (scene.fan.far - scene.fan.near) / len(echo)
    return echo + (content - echo) * inside, loss


def receive(rng: np.random.Generator, scene: Scene, echo: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The envelope's level as the scanner receives it.

    Args:
      rng: decides scatterers, noise and the probe's contact.
      scene: its `tilt` is used.
      echo: float [rows, beams], echogenicity in dB.
      loss: float [rows, beams], attenuation on the way there and back in dB, on top of the tissue's.

    Returns:
      float64 [rows, beams], dB.

    The point-spread function is normal: along the beam of constant width; across it a number of beams wide that grows
    away from the focus, so that in the fan speckle widens with depth.
    """
    rows, beams = echo.shape
    depth = ((np.arange(rows) + 0.5) / rows)[:, None]
    amplitude = rng.standard_normal((2, rows, beams)) * 10 ** (echo / 20)
    along = 0.006 * rows
    filtered = gaussian_filter1d(amplitude, along, axis=1) * np.sqrt(2 * along * np.sqrt(np.pi))
    across = 0.008 * beams * (1 + 2 * np.abs(depth - 0.4))
    transfer = np.exp(-2 * (np.pi * across * np.fft.fftfreq(beams)) ** 2)
    transfer /= np.sqrt((transfer**2).mean(axis=1, keepdims=True))  # keeps the mean power
    received = np.fft.ifft(np.fft.fft(filtered[0] + 1j * filtered[1], axis=1) * transfer, axis=1)
    contact = 2.5 * _smooth(rng, (1, beams), 0, 0.05)
    received *= 10 ** ((scene.tilt * depth - loss + contact) / 20)
    noise = rng.standard_normal((2, rows, beams)) * 10 ** ((-66 + 12 * depth) / 20)
    return 20 * np.log10(np.abs(received + noise[0] + 1j * noise[1]) / np.sqrt(2) + 1e-6)


def draw_image(rng: np.random.Generator, scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scene.

    Args:
      rng: decides the lesion's outline, the tissue's texture and the speckle.
      scene: what to draw.
      size: side in pixels.

    Returns:
      The image, uint8 [size, size], 0 outside the fan; and the lesion's mask, uint8 [size, size], 0 or 255.
    """
    samples = round(1.5 * size)
    depth, beam = (np.mgrid[:samples, :samples] + 0.5) / samples
    distance = _draw_outline(rng, scene)
    away = distance(*scene.fan.cartesian(depth, beam))
    echo, loss = _with_lesion(rng, scene, _tissue(rng, scene, depth), away)
    level = receive(rng, scene, echo, loss)
    row, column = (np.mgrid[:size, :size] + 0.5) / size
    depth, beam = scene.fan.polar(column, row)
    seen = map_coordinates(level, np.stack([depth, beam]) * samples - 0.5, order=1, mode="nearest")
    grey = 255 * (1 + (seen + scene.gain) / scene.dynamic_range)
    in_fan = (depth >= 0) & (depth <= 1) & (beam >= 0) & (beam <= 1)
    mask = in_fan & (distance(column, row) < 1)
    return np.where(in_fan, grey.clip(0, 255).round(), 0).astype(np.uint8), np.where(mask, 255, 0).astype(np.uint8)
